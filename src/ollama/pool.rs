//! The slots of one host, and what may be done with one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, Object, PoolError, RecycleResult, TimeoutType, Timeouts};

use super::breaker::{Admission, BreakerState};
use super::catalogue::{Catalogue, FRESH};
use super::error::OllamaError;
use super::host::{Host, HostId, HostName};
use super::reply::Model;
use super::stream::TokenStream;
use super::wire::{Always, ChatBody, GenerateBody, ModelRequest, Options, Think};
use crate::model_name::ModelName;

/// How long a slot may take to come free after its lease has.
const CLOSING: Duration = Duration::from_secs(1);

/// What is known of a host without asking it now.
#[derive(Clone, Debug)]
pub struct HostState {
    /// Which.
    pub id: HostId,
    /// Generations at a time.
    pub slots: usize,
    /// Whether generations may go there, from here.
    pub breaker: BreakerState,
    /// The models that it has, and whether they are in its memory.
    pub models: BTreeMap<ModelName, bool>,
    /// Of the models that have failed there, whether generations may go to them.
    pub failed: BTreeMap<ModelName, BreakerState>,
}

/// Makes a client of its host ready, which means: proves that the host answers.
#[derive(Debug)]
pub(super) struct Manager {
    host: Arc<Host>,
}

impl managed::Manager for Manager {
    type Type = Arc<Host>;
    type Error = OllamaError;

    async fn create(&self) -> Result<Arc<Host>, OllamaError> {
        self.host.prove_alive(FRESH).await?;
        Ok(Arc::clone(&self.host))
    }

    async fn recycle(&self, host: &mut Arc<Host>, _: &Metrics) -> RecycleResult<OllamaError> {
        Ok(host.prove_alive(FRESH).await?)
    }
}

/// A host of a fleet: its models and its slots.
#[derive(Debug)]
pub(super) struct Member {
    /// Its place in the settings; hosts of one name have the same.
    pub number: usize,
    pub host: Arc<Host>,
    pub catalogue: Arc<Catalogue>,
    pool: managed::Pool<Manager>,
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
        Ok(Self { number, catalogue: Catalogue::new(Arc::clone(&host)), host, pool })
    }

    /// What is known of the host without asking it now.
    pub(super) fn state(&self) -> HostState {
        let listing = self.catalogue.latest();
        // A host that does not answer is left alone, whatever its breaker says.
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

    /// A slot. Whoever comes has the right to one: the wait is for a stream that is just closed.
    pub(super) async fn take(self: Arc<Self>, model: Model) -> Result<Slot, OllamaError> {
        let trial = match self.host.breakers.admit(&model.key) {
            Ok(Admission::Free) => None,
            Ok(Admission::Trial) => {
                Some(Trial { host: Arc::clone(&self.host), model: model.key.clone() })
            }
            Err(retry_after) => {
                return Err(OllamaError::ModelFailing { model: model.name, retry_after });
            }
        };
        let timeouts = Timeouts { wait: Some(CLOSING), ..Timeouts::default() };
        match self.pool.timeout_get(&timeouts).await {
            Ok(client) => Ok(Slot { client, model, member: self, _trial: trial }),
            Err(PoolError::Timeout(TimeoutType::Wait)) => {
                Err(OllamaError::Busy { retry_after: CLOSING })
            }
            Err(PoolError::Backend(error)) => {
                self.host.breakers.host_failed();
                Err(error)
            }
            Err(error) => {
                tracing::error!(host = %self.host.name, %error, "a pool of slots failed");
                Err(OllamaError::Unreachable)
            }
        }
    }
}

/// The right to one generation on one host, free again when dropped. To be kept until the stream
/// is dropped: a host with more generations than slots makes all of them slow.
#[derive(Debug)]
pub struct Slot {
    client: Object<Manager>,
    member: Arc<Member>,
    model: Model,
    _trial: Option<Trial>,
}

/// A trial of a model that has failed: where nothing is heard of it, dropping it lets the next one in.
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
    /// The host; for logs only.
    pub fn host(&self) -> &HostName {
        &self.client.name
    }

    /// The host, as all replicas call it.
    pub fn host_id(&self) -> &HostId {
        &self.client.id
    }

    /// The model, as this host has it.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Answers a conversation.
    ///
    /// Resolves when the host begins to answer, at the latest at the limit for the first token.
    ///
    /// # Errors
    /// Any [`OllamaError`] but [`OllamaError::NoHost`]. Nothing was generated then.
    pub async fn chat(&self, request: &ModelRequest) -> Result<TokenStream, OllamaError> {
        let think = self.think(request).await?;
        let body = self.chat_body(request, &request.options, think, false);
        self.learned(TokenStream::open(&self.client, "api/chat", &self.model, &body).await).await
    }

    /// The prompt as the model would see it; none where the host does not know how to tell.
    ///
    /// Generates nothing, or, where it is not understood, one token. Loads the model.
    ///
    /// # Errors
    /// As [`Slot::chat`].
    pub async fn render(&self, request: &ModelRequest) -> Result<Option<String>, OllamaError> {
        let think = self.think(request).await?;
        let options = Options { num_predict: 1, ..request.options.clone() };
        let body = self.chat_body(request, &options, think, true);
        let reply = self.client.object("api/chat", &self.model.name, &body).await;
        Ok(self.learned(reply).await?.into_rendered())
    }

    /// Goes on after `prompt`, which is a rendered prompt followed by the answer so far. Messages
    /// and thoughts of `request` are not looked at.
    ///
    /// # Errors
    /// As [`Slot::chat`].
    pub async fn continue_raw(
        &self,
        request: &ModelRequest,
        prompt: &str,
    ) -> Result<TokenStream, OllamaError> {
        let body = GenerateBody {
            model: &self.model.name,
            prompt,
            options: &request.options,
            stream: true,
            raw: true,
            always: Always::new(&self.client.keep_alive, Think::No),
        };
        self.learned(TokenStream::open(&self.client, "api/generate", &self.model, &body).await)
            .await
    }

    /// Charges a failure to whom it belongs. A model that is missing here was deleted since the host
    /// was asked: it is asked again.
    async fn learned<T>(&self, result: Result<T, OllamaError>) -> Result<T, OllamaError> {
        if let Err(error) = &result {
            match error.fault() {
                Some(fault) => self.client.breakers.failed(fault, &self.model.key),
                // A host that refuses a request is well.
                None => self.client.breakers.begun(&self.model.key),
            }
        }
        let Err(OllamaError::ModelNotFound { model, .. }) = result else {
            return result;
        };
        let listing = self.member.catalogue.ask().await;
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
    ) -> ChatBody<'a> {
        ChatBody {
            model: &self.model.name,
            messages: &request.messages,
            options,
            stream: !render_only,
            render_only,
            always: Always::new(&self.client.keep_alive, think),
        }
    }

    /// The largest context window that the model allows, in tokens; none where this host does not
    /// tell.
    ///
    /// # Errors
    /// Where it does not answer. Nothing was generated then.
    pub async fn num_ctx(&self) -> Result<Option<u32>, OllamaError> {
        match self.learned(self.member.catalogue.details(&self.model).await).await {
            Err(OllamaError::ModelNotFound { .. }) => Ok(None),
            told => Ok(told?.num_ctx),
        }
    }

    /// Whether thoughts are wanted of a model that has any: one without refuses to be asked for them.
    ///
    /// # Errors
    /// As [`Slot::chat`].
    pub async fn thinks(&self, request: &ModelRequest) -> Result<bool, OllamaError> {
        if request.think == Think::No {
            return Ok(false);
        }
        let details = self.member.catalogue.details(&self.model).await;
        Ok(self.learned(details).await?.thinks)
    }
}
