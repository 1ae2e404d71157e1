//! The whole state of one simulated Ollama.

use std::sync::Arc;

use crate::config::Config;
use crate::engine::Engine;
use crate::faults::Faults;
use crate::journal::Journal;
use crate::models::Models;
use crate::slots::Slots;
use crate::stats::Counters;

/// The state behind the routes.
pub struct Simulator {
    pub(crate) config: Config,
    pub(crate) engine: Engine,
    pub(crate) models: Models,
    pub(crate) slots: Slots,
    pub(crate) counters: Arc<Counters>,
    pub(crate) faults: Faults,
    pub(crate) journal: Journal,
}
