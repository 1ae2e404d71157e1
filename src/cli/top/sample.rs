//! One look at the fleet.

use jarvis::queue::Overview;
use jarvis::redis::{Observer, RedisError, ServerReport};

/// The contents of one look.
pub(super) struct FleetSample {
    pub(super) overview: Overview,
    pub(super) servers: Vec<ServerReport>,
}

impl FleetSample {
    /// Looks once: a call of one function, and one `INFO` for each primary.
    pub(super) async fn take(observer: &mut Observer) -> Result<Self, RedisError> {
        let overview = Overview::read(observer).await?;
        Ok(Self { overview, servers: observer.servers().await })
    }
}
