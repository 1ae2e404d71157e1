//! The models of one host: requested when they are needed, and cached for seconds.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::error::OllamaError;
use super::host::{Details, Host};
use super::lock;
use super::reply::{LoadedModel, Model};
use crate::lifecycle::{Panicked, catch_panic, spawn_caught};
use crate::model_name::ModelName;

/// How long a listing is fresh.
pub(super) const FRESH: Duration = Duration::from_secs(5);
/// How long a host that failed to reply is not asked again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long a host is not asked again for a model that it did not describe.
const DESCRIBE_AGAIN: Duration = Duration::from_secs(5);
/// Models whose details are cached, at most.
const DETAILS: usize = 1024;

/// The models that a host reported.
#[derive(Debug)]
pub(super) struct Listing {
    pub models: BTreeMap<ModelName, Model>,
    /// The models in the host's memory.
    pub loaded: BTreeMap<ModelName, LoadedModel>,
}

impl Listing {
    /// Returns the model of a name; `None` also where the text is not a model's name.
    pub(super) fn find(&self, model: &str) -> Option<&Model> {
        self.models.get(&ModelName::parse(model).ok()?)
    }

    /// Returns whether a model is in the host's memory.
    pub(super) fn has_loaded(&self, model: &ModelName) -> bool {
        self.loaded.contains_key(model)
    }
}

/// A host's reply; `None` where the host did not reply.
pub(super) type LastListing = Option<Arc<Listing>>;

/// A request that is under way, shared by all that wait for its reply.
pub(super) type PendingListing = Shared<BoxFuture<'static, LastListing>>;

/// The task that describes the models of a listing.
pub(super) type Description = JoinHandle<Result<(), Panicked>>;

/// The state of the cache.
pub(super) enum CatalogueEntry {
    /// The cached reply is fresh.
    Fresh(LastListing),
    /// The host is being asked. `doubtful`: it did not reply last time.
    Pending { listing: PendingListing, doubtful: bool },
}

/// The models of one host.
#[derive(Debug)]
pub(super) struct Catalogue {
    host: Arc<Host>,
    state: Mutex<CatalogueState>,
    /// By digest, so that the details of a replaced model are requested again.
    details: Mutex<HashMap<String, Details>>,
    /// When the host was asked for models that it did not describe, by digest. Held while a list of models is
    /// described.
    undescribed: tokio::sync::Mutex<HashMap<String, Instant>>,
}

#[derive(Debug, Default)]
struct CatalogueState {
    last_reply: Option<(Instant, LastListing)>,
    /// The last listing that the host sent.
    last_listing: LastListing,
    pending: Option<PendingListing>,
}

impl Catalogue {
    pub(super) fn new(host: Arc<Host>) -> Arc<Self> {
        Arc::new(Self {
            host,
            state: Mutex::default(),
            details: Mutex::default(),
            undescribed: tokio::sync::Mutex::default(),
        })
    }

    /// Returns the cached reply where it is fresh, and otherwise asks the host.
    pub(super) fn entry(self: &Arc<Self>) -> CatalogueEntry {
        let doubtful = {
            let state = lock(&self.state);
            match &state.last_reply {
                Some((at, Some(listing)))
                    if at.elapsed() < FRESH && !self.host.health.failed_since(*at) =>
                {
                    return CatalogueEntry::Fresh(Some(Arc::clone(listing)));
                }
                Some((at, None)) if at.elapsed() < RETRY_PAUSE => {
                    return CatalogueEntry::Fresh(None);
                }
                Some((_, reply)) => reply.is_none(),
                None => false,
            }
        };
        CatalogueEntry::Pending { listing: self.refresh(), doubtful }
    }

    /// Returns the host's last reply, however old; `None` where the host did not reply. Asks the
    /// host again where the reply is not fresh.
    pub(super) fn latest(self: &Arc<Self>) -> LastListing {
        match self.entry() {
            CatalogueEntry::Fresh(reply) => reply,
            CatalogueEntry::Pending { .. } => {
                lock(&self.state).last_reply.as_ref().and_then(|(_, reply)| reply.clone())
            }
        }
    }

    /// Returns whether the host does not reply now, and had the model when it last did.
    pub(super) fn had_before_failure(&self, model: &str) -> bool {
        let state = lock(&self.state);
        let is_failing = matches!(state.last_reply, Some((_, None)));
        let had = |listing: &Arc<Listing>| listing.find(model).is_some();
        is_failing && state.last_listing.as_ref().is_some_and(had)
    }

    /// Asks the host, or joins a request that is under way. The request continues when all callers
    /// have left, so that a host that hangs is noticed even if others are faster.
    pub(super) fn refresh(self: &Arc<Self>) -> PendingListing {
        let mut state = lock(&self.state);
        if let Some(pending) = &state.pending {
            return pending.clone();
        }
        let catalogue = Arc::clone(self);
        let pending = async move {
            // A request that panicked would stay pending, and the host would never be asked again.
            let reply = catch_panic("catalogue", catalogue.fetch()).await.unwrap_or(None);
            let mut state = lock(&catalogue.state);
            state.last_reply = Some((Instant::now(), reply.clone()));
            state.last_listing = reply.clone().or_else(|| state.last_listing.take());
            state.pending = None;
            reply
        }
        .boxed()
        .shared();
        state.pending = Some(pending.clone());
        spawn_caught("catalogue", pending.clone());
        pending
    }

    async fn fetch(&self) -> LastListing {
        let (models, loaded) = tokio::join!(self.host.models(), self.host.loaded());
        let models = models.ok()?;
        // The loaded models only help to choose a host: one that does not report them is healthy.
        self.host.health.succeeded();
        let loaded = loaded.unwrap_or_default().into_iter();
        let loaded = loaded.map(|loaded| (loaded.model.key.clone(), loaded)).collect();
        // Of two spellings of one model, the first counts.
        let models = models.into_iter().rev().map(|model| (model.key.clone(), model)).collect();
        Some(Arc::new(Listing { models, loaded }))
    }

    /// Returns the context window of a model, where it was requested before.
    pub(super) fn known_num_ctx(&self, model: &Model) -> Option<u32> {
        lock(&self.details).get(&model.digest).and_then(|details| details.num_ctx)
    }

    /// Returns whether a model takes images, where its details were requested before.
    pub(super) fn known_to_see(&self, model: &Model) -> Option<bool> {
        lock(&self.details).get(&model.digest).map(|details| details.sees)
    }

    /// Requests the details of the models of a listing that are not known, one after another, in a task that
    /// goes on where its callers have left.
    pub(super) fn describe(self: &Arc<Self>, listing: &Arc<Listing>) -> Description {
        let (catalogue, listing) = (Arc::clone(self), Arc::clone(listing));
        spawn_caught("catalogue", async move { catalogue.describe_models(&listing).await })
    }

    async fn describe_models(&self, listing: &Listing) {
        let mut undescribed = self.undescribed.lock().await;
        undescribed.retain(|_, asked| asked.elapsed() < DESCRIBE_AGAIN);
        for model in listing.models.values() {
            let is_known = lock(&self.details).contains_key(&model.digest);
            let was_asked = undescribed.contains_key(&model.digest);
            if is_known || was_asked || model.digest.is_empty() || undescribed.len() >= DETAILS {
                continue;
            }
            let described = self.details(model).await;
            if self.known_to_see(model).is_some() {
                continue;
            }
            undescribed.insert(model.digest.clone(), Instant::now());
            if described.is_err_and(|error| error.fault().is_some()) {
                // A host that does not reply about one model would hold the others up, too.
                let digests = listing.models.values().map(|model| model.digest.clone());
                undescribed.extend(digests.take(DETAILS).map(|digest| (digest, Instant::now())));
                return;
            }
        }
    }

    /// Returns the details of a model, requested once for each digest. They are empty where the
    /// host's release does not know the route.
    pub(super) async fn details(&self, model: &Model) -> Result<Details, OllamaError> {
        if let Some(details) = lock(&self.details).get(&model.digest) {
            return Ok(*details);
        }
        let details = match self.host.details(&model.name).await {
            Err(OllamaError::Rejected { .. } | OllamaError::Malformed) => {
                return Ok(Details::default());
            }
            reply => reply?,
        };
        let mut known = lock(&self.details);
        if known.len() >= DETAILS {
            known.clear();
        }
        // Without a digest a replaced model could not be recognised.
        if !model.digest.is_empty() {
            known.insert(model.digest.clone(), details);
        }
        Ok(details)
    }
}
