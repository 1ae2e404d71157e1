//! The slots of one host, and the requests that a slot may send.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, Object, PoolError, RecycleResult, TimeoutType, Timeouts};

use super::breaker::{BreakerAdmission, BreakerState};
use super::catalogue::{Catalogue, FRESH};
use super::embedding::{EmbedRequest, Vectors};
use super::error::{ModelRefusal, OllamaError};
use super::host::{Host, HostId, HostName};
use super::parallel::Parallelism;
use super::reply::Model;
use super::stream::TokenStream;
use super::wire::{Always, HostChatBody, HostGenerateBody, ModelRequest, Options, Think};
use crate::model_name::ModelName;
use crate::source::ShareKey;
use crate::telemetry::traces::TraceContext;

/// How long a slot may stay in use after its ticket was released.
const RELEASE_LIMIT: Duration = Duration::from_secs(1);

/// The last known state of a host.
#[derive(Clone, Debug)]
pub struct HostState {
    /// The host.
    pub id: HostId,
    /// Concurrent generations that the host runs.
    pub slots: usize,
    /// The state of this replica's breaker for the host.
    pub breaker: BreakerState,
    /// The models of the host, and whether each is in its memory.
    pub models: BTreeMap<ModelName, bool>,
    /// The states of the breakers of the models that have failed on the host.
    pub failed: BTreeMap<ModelName, BreakerState>,
}

/// Hands out the client of a host that replies.
#[derive(Debug)]
pub(super) struct Manager {
    host: Arc<Host>,
}

impl managed::Manager for Manager {
    type Type = Arc<Host>;
    type Error = OllamaError;

    async fn create(&self) -> Result<Arc<Host>, OllamaError> {
        self.host.check_alive(FRESH).await?;
        Ok(Arc::clone(&self.host))
    }

    async fn recycle(&self, host: &mut Arc<Host>, _: &Metrics) -> RecycleResult<OllamaError> {
        Ok(host.check_alive(FRESH).await?)
    }
}

/// A host of a fleet, with its models and its slots.
#[derive(Debug)]
pub(super) struct Member {
    /// The index of its entry in the settings; all addresses of one name have the same.
    pub number: usize,
    pub host: Arc<Host>,
    pub catalogue: Arc<Catalogue>,
    pool: managed::Pool<Manager>,
    parallelism: Arc<Parallelism>,
}

impl Member {
    pub(super) fn new(number: usize, host: Host, slots: usize) -> Result<Self, OllamaError> {
        let host = Arc::new(host);
        let manager = Manager { host: Arc::clone(&host) };
        let pool = managed::Pool::builder(manager)
            .max_size(slots)
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|_| OllamaError::Setting("a pool of slots cannot be built"))?;
        let parallelism = Arc::new(Parallelism::new(host.id.clone(), slots));
        let catalogue = Catalogue::new(Arc::clone(&host));
        Ok(Self { number, host, catalogue, pool, parallelism })
    }

    /// Returns the last known state of the host.
    pub(super) fn state(&self) -> HostState {
        let listing = self.catalogue.latest();
        // A host that does not reply gets no generation, whatever the state of its breaker.
        let breaker = listing.as_ref().map_or(BreakerState::Open, |_| self.host.breakers.host());
        let models = listing.iter().flat_map(|listing| {
            listing.models.keys().map(|model| (model.clone(), listing.has_loaded(model)))
        });
        HostState {
            id: self.host.id.clone(),
            slots: self.pool.status().max_size,
            breaker,
            models: models.collect(),
            failed: self.host.breakers.models(),
        }
    }

    /// Takes a slot. The caller has a grant for one, so it only waits for a stream that is closing.
    pub(super) async fn take(self: Arc<Self>, model: Model) -> Result<Slot, OllamaError> {
        let trial = match self.host.breakers.admit(&model.key) {
            Ok(BreakerAdmission::Normal) => None,
            Ok(BreakerAdmission::Trial) => {
                Some(Trial { host: Arc::clone(&self.host), model: model.key.clone() })
            }
            Err(retry_after) => {
                return Err(OllamaError::ModelFailing { model: model.name, retry_after });
            }
        };
        let timeouts = Timeouts { wait: Some(RELEASE_LIMIT), ..Timeouts::default() };
        match self.pool.timeout_get(&timeouts).await {
            Ok(client) => Ok(Slot { client, model, member: self, trace: None, _trial: trial }),
            Err(PoolError::Timeout(TimeoutType::Wait)) => {
                Err(OllamaError::Busy { retry_after: RELEASE_LIMIT })
            }
            Err(PoolError::Backend(error)) => {
                self.host.breakers.host_failed();
                Err(error)
            }
            Err(error) => {
                tracing::error!(host = %self.host.name, %error, "pool of slots failed");
                Err(OllamaError::Unreachable)
            }
        }
    }
}

/// The right to one generation on one host; dropping it frees the slot. The caller keeps it until
/// the stream is dropped, because a host with more generations than slots slows all of them down.
#[derive(Debug)]
pub struct Slot {
    client: Object<Manager>,
    member: Arc<Member>,
    model: Model,
    /// The place in a trace of what the slot is used for, which the host gets with each request.
    trace: Option<TraceContext>,
    _trial: Option<Trial>,
}

/// A trial of a model that has failed. Dropping it without an outcome admits the next trial.
#[derive(Debug)]
struct Trial {
    host: Arc<Host>,
    model: ModelName,
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.host.breakers.release(&self.model);
    }
}

impl Slot {
    /// Returns the host's name, for logs only.
    pub fn host(&self) -> &HostName {
        &self.client.name
    }

    /// Sets the place in a trace of the next requests.
    pub fn set_trace(&mut self, trace: Option<TraceContext>) {
        self.trace = trace;
    }

    /// Returns the model, as this host lists it.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Asks the host once more for the digest of the model; none where the host does not report it.
    pub async fn digest(&self) -> Option<String> {
        let listing = self.member.catalogue.refresh().await?;
        let digest = listing.models.get(&self.model.key)?.digest.clone();
        (!digest.is_empty()).then_some(digest)
    }

    /// Requests the answer to a conversation.
    ///
    /// Resolves when the host begins to reply, at the latest at the time limit of the first token.
    ///
    /// # Errors
    /// Any [`OllamaError`] but [`OllamaError::NoHost`]. The host has generated nothing then.
    pub async fn chat(&self, request: &ModelRequest) -> Result<TokenStream, OllamaError> {
        self.check_images(request).await?;
        let think = self.think(request).await?;
        let body = self.chat_body(request, &request.options, think, false);
        let observed = self.member.parallelism.begin();
        let stream =
            TokenStream::open(&self.client, "api/chat", &self.model, &body, self.trace).await;
        Ok(self.record(stream).await?.observed_by(observed))
    }

    /// Returns the prompt that the host renders from a conversation; `None` where its release
    /// cannot do so.
    ///
    /// Such a release generates one token, the others none. Either loads the model.
    ///
    /// # Errors
    /// As [`Slot::chat`].
    pub async fn render(&self, request: &ModelRequest) -> Result<Option<String>, OllamaError> {
        let think = self.think(request).await?;
        let options = Options { num_predict: 1, ..request.options.clone() };
        let body = self.chat_body(request, &options, think, true);
        let reply = self.client.object("api/chat", &self.model.name, &body, self.trace).await;
        Ok(self.record(reply).await?.into_rendered())
    }

    /// Continues behind `prompt`, which is a rendered prompt followed by the answer so far. The
    /// messages of `request` are ignored but for their images, to which the prompt refers by their
    /// numbers, and so is whether it wants reasoning.
    ///
    /// # Errors
    /// As [`Slot::chat`].
    pub async fn continue_raw(
        &self,
        request: &ModelRequest,
        prompt: &str,
    ) -> Result<TokenStream, OllamaError> {
        let body = HostGenerateBody {
            model: &self.model.name,
            prompt,
            images: request.messages.iter().flat_map(|message| &message.images).collect(),
            options: &request.options,
            stream: true,
            raw: true,
            always: Always::new(&self.client.keep_alive, Think::No),
        };
        let observed = self.member.parallelism.begin();
        let stream =
            TokenStream::open(&self.client, "api/generate", &self.model, &body, self.trace).await;
        Ok(self.record(stream).await?.observed_by(observed))
    }

    /// Requests the vectors of these texts of the request, in a context window of `num_ctx` tokens, in the
    /// name of a client's network where it has one.
    ///
    /// # Errors
    /// As [`Slot::chat`], and [`OllamaError::TooManyTexts`] or [`OllamaError::ReplyTooLarge`].
    pub async fn embed(
        &self,
        request: &EmbedRequest,
        texts: Range<usize>,
        num_ctx: Option<u32>,
        client: Option<ShareKey>,
    ) -> Result<Vectors, OllamaError> {
        let has_several = texts.len() > 1;
        let body = request.body(texts, &self.model.name, num_ctx, &self.client.keep_alive);
        let path = request.kind.path();
        let vectors = self.client.embed(path, &self.model.name, &body, has_several, client).await;
        let vectors = self.record(vectors).await?;
        self.client.breakers.begun(&self.model.key);
        self.client.breakers.succeeded(&self.model.key);
        Ok(vectors)
    }

    /// Records an outcome with the breakers. A missing model was deleted since the host listed its
    /// models, so the list is requested again.
    async fn record<T>(&self, result: Result<T, OllamaError>) -> Result<T, OllamaError> {
        if let Err(error) = &result {
            match error.fault() {
                Some(fault) => self.client.breakers.failed(fault, &self.model.key),
                // Neither a fault nor a sign of life.
                None if *error == OllamaError::TooManyTexts => {}
                // A refusal shows that the host works.
                None => self.client.breakers.begun(&self.model.key),
            }
        }
        let Err(OllamaError::ModelNotFound { model, .. }) = result else {
            return result;
        };
        let listing = self.member.catalogue.refresh().await;
        let available = listing.iter().flat_map(|listing| listing.models.values());
        let available = available.map(|model| model.name.clone()).collect();
        Err(OllamaError::ModelNotFound { model, available })
    }

    async fn think(&self, request: &ModelRequest) -> Result<Think, OllamaError> {
        Ok(if self.thinks(request).await? { request.think } else { Think::No })
    }

    fn chat_body<'a>(
        &'a self,
        request: &'a ModelRequest,
        options: &'a Options,
        think: Think,
        render_only: bool,
    ) -> HostChatBody<'a> {
        HostChatBody {
            model: &self.model.name,
            messages: &request.messages,
            options,
            format: request.format.as_ref(),
            tools: request.tools.as_ref(),
            stream: !render_only,
            render_only,
            always: Always::new(&self.client.keep_alive, think),
        }
    }

    /// Returns the largest context window that the model allows, in tokens; `None` where this host
    /// does not report it.
    ///
    /// # Errors
    /// Where the host does not reply. It has generated nothing then.
    pub async fn num_ctx(&self) -> Result<Option<u32>, OllamaError> {
        match self.record(self.member.catalogue.details(&self.model).await).await {
            Err(OllamaError::ModelNotFound { .. }) => Ok(None),
            details => Ok(details?.num_ctx),
        }
    }

    /// Returns whether the model takes images.
    ///
    /// # Errors
    /// As [`Slot::chat`].
    pub async fn sees(&self) -> Result<bool, OllamaError> {
        let details = self.member.catalogue.details(&self.model).await;
        Ok(self.record(details).await?.sees)
    }

    /// Refuses images for a model that takes none: a host would leave them out without a word.
    async fn check_images(&self, request: &ModelRequest) -> Result<(), OllamaError> {
        let has_images = request.messages.iter().any(|message| !message.images.is_empty());
        if !has_images || self.sees().await? {
            return Ok(());
        }
        let refusal = ModelRefusal::Capability("images");
        Err(OllamaError::ModelRefused { model: self.model.name.clone(), refusal })
    }

    /// Returns whether the request wants reasoning and the model supports it. Ollama refuses the
    /// request for a model that does not.
    ///
    /// # Errors
    /// As [`Slot::chat`].
    pub async fn thinks(&self, request: &ModelRequest) -> Result<bool, OllamaError> {
        if request.think == Think::No {
            return Ok(false);
        }
        let details = self.member.catalogue.details(&self.model).await;
        Ok(self.record(details).await?.thinks)
    }
}
