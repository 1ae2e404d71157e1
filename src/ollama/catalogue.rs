//! Which models one host has: asked for when it matters, remembered for seconds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::Instant;

use super::error::OllamaError;
use super::host::{Details, Host};
use super::lock;
use super::reply::Model;
use crate::lifecycle::catch_panic;
use crate::model_name::ModelName;

/// How long a list is taken for true.
pub(super) const FRESH: Duration = Duration::from_secs(5);
/// How long a host that gave no list is left alone.
const LEFT_ALONE: Duration = Duration::from_secs(1);
/// Models whose details are remembered, at most.
const DETAILS: usize = 1024;

/// What a host said it has.
#[derive(Debug)]
pub(super) struct Listing {
    pub models: BTreeMap<ModelName, Model>,
    loaded: HashSet<ModelName>,
}

impl Listing {
    /// The model of a name; none also where that is no name.
    pub(super) fn find(&self, model: &str) -> Option<&Model> {
        self.models.get(&ModelName::parse(model).ok()?)
    }

    /// Whether a model is in the host's memory.
    pub(super) fn has_loaded(&self, model: &ModelName) -> bool {
        self.loaded.contains(model)
    }
}

/// A host's answer; none where there was none.
pub(super) type LastListing = Option<Arc<Listing>>;

/// A question under way, shared by all who want to know.
pub(super) type Question = Shared<BoxFuture<'static, LastListing>>;

/// What can be said at once.
pub(super) enum CatalogueEntry {
    /// This, and it is fresh.
    Known(LastListing),
    /// Only after asking. `doubtful`: the host gave no answer last time.
    Asked { question: Question, doubtful: bool },
}

/// The models of one host.
#[derive(Debug)]
pub(super) struct Catalogue {
    host: Arc<Host>,
    state: Mutex<State>,
    /// By digest, so that a replaced model is asked about again.
    details: Mutex<HashMap<String, Details>>,
}

#[derive(Debug, Default)]
struct State {
    answered: Option<(Instant, LastListing)>,
    /// The last list that there was.
    last_list: LastListing,
    question: Option<Question>,
}

impl Catalogue {
    pub(super) fn new(host: Arc<Host>) -> Arc<Self> {
        Arc::new(Self { host, state: Mutex::default(), details: Mutex::default() })
    }

    /// What is known, or the question that will tell.
    pub(super) fn look(self: &Arc<Self>) -> CatalogueEntry {
        let doubtful = {
            let state = lock(&self.state);
            match &state.answered {
                Some((at, Some(listing)))
                    if at.elapsed() < FRESH && !self.host.health.failed_since(*at) =>
                {
                    return CatalogueEntry::Known(Some(Arc::clone(listing)));
                }
                Some((at, None)) if at.elapsed() < LEFT_ALONE => {
                    return CatalogueEntry::Known(None);
                }
                Some((_, answer)) => answer.is_none(),
                None => false,
            }
        };
        CatalogueEntry::Asked { question: self.ask(), doubtful }
    }

    /// What the host said last, however long ago; none where it gave no answer. Asks it again where
    /// that is due.
    pub(super) fn latest(self: &Arc<Self>) -> LastListing {
        match self.look() {
            CatalogueEntry::Known(answer) => answer,
            CatalogueEntry::Asked { .. } => {
                lock(&self.state).answered.as_ref().and_then(|(_, answer)| answer.clone())
            }
        }
    }

    /// Whether the host does not answer, and had the model when it last did.
    pub(super) fn had_before_silence(&self, model: &str) -> bool {
        let state = lock(&self.state);
        let is_silent = matches!(state.answered, Some((_, None)));
        is_silent && state.last_list.as_ref().is_some_and(|list| list.find(model).is_some())
    }

    /// Asks the host, or joins a question that is under way. It goes on when nobody waits for it,
    /// so that a host that hangs is found out even if others are faster.
    pub(super) fn ask(self: &Arc<Self>) -> Question {
        let mut state = lock(&self.state);
        if let Some(question) = &state.question {
            return question.clone();
        }
        let catalogue = Arc::clone(self);
        let question = async move {
            // A question that panicked would never be answered, and never be asked again.
            let answer = catch_panic("catalogue", catalogue.fetch()).await.unwrap_or(None);
            let mut state = lock(&catalogue.state);
            state.answered = Some((Instant::now(), answer.clone()));
            state.last_list = answer.clone().or_else(|| state.last_list.take());
            state.question = None;
            answer
        }
        .boxed()
        .shared();
        state.question = Some(question.clone());
        tokio::spawn(question.clone());
        question
    }

    async fn fetch(&self) -> LastListing {
        let (models, loaded) = tokio::join!(self.host.models(), self.host.loaded());
        let models = models.ok()?;
        // What is loaded only helps to choose: a host that does not tell it is well all the same.
        self.host.health.well();
        let loaded = loaded.unwrap_or_default().into_iter().collect();
        // Of two spellings of one model, the first counts.
        let models = models.into_iter().rev().map(|model| (model.key.clone(), model)).collect();
        Some(Arc::new(Listing { models, loaded }))
    }

    /// What the host knows of a model, asked once for each digest; nothing where it answers
    /// something else, as old releases do.
    pub(super) async fn details(&self, model: &Model) -> Result<Details, OllamaError> {
        if let Some(details) = lock(&self.details).get(&model.digest) {
            return Ok(*details);
        }
        let details = match self.host.details(&model.name).await {
            Err(OllamaError::Rejected { .. } | OllamaError::Malformed) => {
                return Ok(Details::default());
            }
            told => told?,
        };
        let mut known = lock(&self.details);
        if known.len() >= DETAILS {
            known.clear();
        }
        // Without a digest nobody could tell whether it is still the same model.
        if !model.digest.is_empty() {
            known.insert(model.digest.clone(), details);
        }
        Ok(details)
    }
}
