//! Generations: turns are accepted, wait for earlier turns and for a slot, run, and end.
//!
//! Nothing here knows of sockets. The text reaches clients through the session's feed.

mod abandonment;
mod acceptance;
mod attempts;
mod calls;
mod capacity;
mod context;
mod continuation;
mod conversations;
mod copies;
mod deletion;
mod embedding;
mod failures;
mod held_texts;
mod hosted_models;
mod images;
#[cfg(test)]
mod interleavings;
mod model_run;
mod pace;
mod panics;
mod prefixes;
mod redis_call;
mod redo;
mod seam;
mod slot_wait;
mod stop;
mod takeover;
mod titles;
mod turn;
mod turn_spans;
mod turn_state;
mod unheard;
mod writer;
mod writer_state;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::budget::{Budget, OverBudget, StorageLimits};
use crate::config::Titles;
use crate::lifecycle::{Phase, catch_panic};
use crate::limits::{LimitRefusal, RateLimits};
use crate::membership::{Membership, MembershipStore, Renewal};
use crate::ollama::{Fleet, Model, OllamaError};
use crate::queue::{HostReport, Queue};
use crate::session::model::Failure;
use crate::session::store::{
    self, Cancellation, Clearing, Selection, SessionChange, Transfer, Update,
};
use crate::session::{Cursor, Feed, Feeds, GenerationId, Owner, SessionId, Store, StoreError};
use crate::source::SourceKey;
use crate::telemetry::metric;

pub use crate::ollama::{EmbedKind, EmbedRequest, LoadedModel, ModelDetails};
use copies::Copies;
pub use deletion::DeletedAll;
pub use embedding::{EmbedRun, EmbedUsage, EmbeddedSlice};
use held_texts::{HeldTexts, TextRoom};
use redo::{HiddenRequest, RedoEntry, RedoLog};
use takeover::TurnSuccessor;
use titles::TitleWriter;
use turn_state::TurnState;

/// How long a cancel waits for the request to the model host to be closed.
const UPSTREAM_CLOSE: Duration = Duration::from_millis(500);

/// Runs the turns that this replica accepted.
#[derive(Clone)]
pub struct Generations {
    store: Store,
    feeds: Feeds,
    fleet: Fleet,
    queue: Queue,
    budget: Budget,
    limits: RateLimits,
    retries: Arc<capacity::RetryBudget>,
    num_ctx_cap: u32,
    membership: MembershipStore,
    host_wait: Duration,
    abandon_after: Duration,
    renewal: Renewal,
    source_key: SourceKey,
    /// The runs of each generation on this replica: two while a run that was refused ends and the next
    /// one has begun.
    running: Arc<Mutex<HashMap<GenerationId, u32>>>,
    redo: Arc<RedoLog>,
    images: Arc<images::HeldImages>,
    texts: TextRoom,
    titles: TitleWriter,
    copies: Arc<Copies>,
    tasks: TaskTracker,
    /// Cancelled when the drain limit is over, and the remaining turns are handed over.
    stop: CancellationToken,
    #[cfg(test)]
    injected_panics: Arc<panics::InjectedPanics>,
}

/// The settings of running turns.
#[derive(Clone)]
pub struct GenerationSettings {
    /// The greatest context window, in tokens, whatever a model allows.
    pub num_ctx_cap: u32,
    /// How long a turn waits while no host with its model can be reached.
    pub host_wait: Duration,
    /// How long an anonymous caller's turn may wait while nobody listens and the queue is more than
    /// half full.
    pub abandon_after: Duration,
    /// The replica lease: how long a replica may miss heartbeats before its turns are taken over.
    pub lease: Duration,
    /// How much may be stored.
    pub storage: StorageLimits,
    /// The limits of callers.
    pub limits: RateLimits,
    /// The key of the digests of conversations.
    pub source_key: SourceKey,
    /// The writer of the titles of sessions.
    pub titles: Titles,
}

/// An accepted turn.
#[derive(Clone, Copy, Debug)]
pub struct Submitted {
    /// The generation of its answer.
    pub generation: GenerationId,
    /// The cursor just before the turn, while the session keeps that event.
    pub before: Option<Cursor>,
    /// Whether the turn was accepted earlier, with the same idempotency key.
    pub repeated: bool,
    /// Whether the turn is new and created its session, which may have been deleted before.
    pub created_session: bool,
    /// Whether the turn is new and waits for earlier turns of its session.
    pub waits: bool,
}

/// The outcome of a cancel.
#[derive(Clone, Copy, Debug)]
pub enum CancelOutcome {
    /// The generation is cancelled.
    Cancelled {
        /// The cancelled generation.
        generation: GenerationId,
        /// Whether its request to the model host is known to be closed.
        upstream_closed: bool,
    },
    /// There was nothing left to cancel.
    AlreadyEnded,
}

/// A model that some host has.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelInfo {
    /// The model's name, such as `tinyllama:latest`.
    pub name: String,
    /// Bytes on disk.
    pub size: u64,
    /// When the model last changed, as its host reports it.
    pub modified: String,
    /// Whether it takes images; absent where no host has said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    pub images: Option<bool>,
    /// The digest of its weights and template; empty where its host does not report it.
    #[serde(skip)]
    #[schema(ignore)]
    pub digest: String,
    /// The kind of the model.
    #[serde(skip)]
    #[schema(ignore)]
    pub details: ModelDetails,
}

impl ModelInfo {
    fn new(model: Model, images: Option<bool>) -> Self {
        Self {
            name: model.name,
            size: model.size,
            modified: model.modified_at,
            images,
            digest: model.digest,
            details: model.details,
        }
    }
}

/// Why a turn was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The session refused the turn, or Redis failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No host has the model. The text names the models that there are.
    #[error("{0}")]
    ModelNotFound(String),
    /// No model host can be reached.
    #[error("No model host can be reached; try again later.")]
    NoModelHost,
    /// The queue is full.
    #[error("{}", .0.message)]
    QueueFull(Failure),
    /// The question cannot fit into the model's context window.
    #[error("{}", .0.message)]
    TooLong(Failure),
    /// The request is too large to be stored.
    #[error(
        "The request is too large to be stored: instruction, tools, format and metadata may have {} bytes \
         together as JSON, and {} with the question; send less.",
        store::REQUEST_BYTES,
        store::QUESTION_BYTES
    )]
    RequestTooLarge,
    /// The caller may store nothing more.
    #[error(transparent)]
    OverBudget(#[from] OverBudget),
    /// A limit of the caller refuses the turn.
    #[error(transparent)]
    Limited(#[from] LimitRefusal),
    /// This replica drains.
    #[error("This replica is being replaced; send the request again.")]
    Draining,
    /// The submission ended without a result: a fault of this service.
    #[error("the submission failed")]
    Internal,
    /// The model hosts reply in an unexpected way.
    #[error("{message}")]
    Upstream {
        /// The stable code of the error.
        code: &'static str,
        /// The text for people.
        message: String,
    },
}

impl SubmitError {
    /// Returns the stable code that the client gets.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Store(StoreError::Absent) => "session_not_found",
            Self::Store(StoreError::Busy) => "session_busy",
            Self::Store(StoreError::Full) => "session_full",
            Self::Store(StoreError::KeyReused) => "idempotency_key_reused",
            Self::Store(StoreError::Occupied) => "session_exists",
            Self::Store(StoreError::MessageAbsent) => "message_not_found",
            Self::Store(StoreError::WrongRole(_)) | Self::RequestTooLarge => "validation_failed",
            Self::Store(StoreError::TooManySiblings) => "too_many_siblings",
            Self::Store(StoreError::TurnRuns(_)) => "turn_running",
            Self::Store(StoreError::OutOfMemory) => "store_full",
            Self::Store(StoreError::Redis(_) | StoreError::ImagesAbsent) => "store_unavailable",
            Self::ModelNotFound(_) => "model_not_found",
            Self::NoModelHost => "no_model_host",
            Self::QueueFull(_) => "queue_full",
            Self::TooLong(_) => "context_too_long",
            Self::OverBudget(_) => "quota_exceeded",
            Self::Limited(refusal) => refusal.kind().code(),
            Self::Draining => "draining",
            Self::Internal => "internal",
            Self::Upstream { code, .. } => code,
        }
    }
}

impl From<OllamaError> for SubmitError {
    fn from(error: OllamaError) -> Self {
        match error {
            OllamaError::NoHost => Self::NoModelHost,
            OllamaError::ModelNotFound { .. } => Self::ModelNotFound(error.to_string()),
            other => Self::Upstream { code: other.code(), message: other.to_string() },
        }
    }
}

/// Returns this replica's report of the model hosts to the queue.
pub fn host_reports(fleet: &Fleet) -> Vec<HostReport> {
    capacity::reports(fleet)
}

impl Generations {
    /// Starts to run turns, and to take over the turns of replicas that are gone.
    pub fn start(
        store: Store,
        feeds: Feeds,
        fleet: Fleet,
        queue: Queue,
        membership: MembershipStore,
        settings: GenerationSettings,
    ) -> Self {
        let GenerationSettings {
            num_ctx_cap,
            host_wait,
            abandon_after,
            lease,
            storage,
            limits,
            source_key,
            titles,
        } = settings;
        let (copies, waiting) = Copies::new();
        let generations = Self {
            budget: Budget::new(store.clone(), storage),
            limits,
            store,
            feeds,
            fleet,
            queue,
            retries: Arc::default(),
            num_ctx_cap,
            membership: membership.clone(),
            host_wait,
            abandon_after,
            renewal: Renewal::new(lease),
            source_key,
            running: Arc::default(),
            redo: Arc::default(),
            images: Arc::default(),
            texts: TextRoom::default(),
            titles: TitleWriter::new(titles),
            copies: Arc::new(copies),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            #[cfg(test)]
            injected_panics: Arc::default(),
        };
        let membership = Membership {
            store: membership,
            lease,
            renewal: generations.renewal.clone(),
            lifecycle: generations.store.lifecycle().clone(),
            stop: generations.stop.clone(),
        };
        let lifecycle = generations.store.lifecycle();
        let successor = TurnSuccessor::new(generations.clone());
        lifecycle.spawn("heartbeat and takeover", membership.run(successor));
        lifecycle.spawn("redo after a failover", redo::watch(generations.clone()));
        lifecycle.spawn("deletions", deletion::resume(generations.clone()));
        let (store, copies) = (generations.store.clone(), Arc::clone(&generations.copies));
        lifecycle.spawn("copies of redo entries", copies::exchange(store, copies, waiting));
        generations
    }

    /// Keeps an entry for the case that a failover loses what it wrote, here and in another replica.
    fn keep(&self, entry: impl Into<RedoEntry>) {
        let entry = entry.into();
        self.copies.send(&self.store, &entry);
        self.redo.push(entry);
    }

    /// Runs a turn of another replica, or one that a failover lost, in a task of its own.
    fn run_again(&self, turn: Arc<store::Turn>, state: TurnState) {
        let texts = self.texts.take_if_free(&turn.owner, &turn.spec.source, turn.memory());
        self.run(turn, state, texts, None);
    }

    /// Runs a turn in a task of its own, which holds the room of its texts, and the feed that was prepared
    /// for it.
    fn run(
        &self,
        turn: Arc<store::Turn>,
        state: TurnState,
        texts: HeldTexts,
        prepared: Option<Arc<Feed>>,
    ) {
        self.copies.send(&self.store, &RedoEntry::Accepted(Arc::clone(&turn)));
        let listed = panics::Listed::new(self.clone(), turn.generation);
        let (generations, stop) = (self.clone(), self.stop.clone());
        self.tasks.spawn(catch_panic("turn", async move {
            let _held = (listed, texts, prepared);
            let unheard = Arc::clone(&turn);
            tokio::select! {
                () = panics::run(&generations, turn, state) => {}
                () = unheard::cancel(&generations, &unheard) => {}
                () = stop.cancelled() => {}
            }
        }));
    }

    fn running(&self) -> MutexGuard<'_, HashMap<GenerationId, u32>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether this replica runs no turns any more, because it ends.
    pub fn has_stopped(&self) -> bool {
        self.store.lifecycle().phase() == Phase::Stopped
    }

    /// Returns the storage budgets, which also list the sessions of each user.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Cancels a generation, whichever replica runs it: the given one, else the running one, else
    /// the oldest that waits. Waits up to 500 ms until the request to the model host is closed.
    ///
    /// # Errors
    /// [`SubmitError::Store`].
    pub async fn cancel(
        &self,
        owner: &Owner,
        session: SessionId,
        generation: Option<GenerationId>,
    ) -> Result<CancelOutcome, SubmitError> {
        // Joined first, so that the feed receives the event of the writer.
        let feed = self.feeds.join(owner, session).await?;
        let cancellation = Cancellation::new(owner, session, generation);
        let reply = self.store.cancel(&cancellation).await?;
        if let store::CancelReply::Running(id) | store::CancelReply::Waiting(id) = reply {
            self.keep(RedoEntry::Cancelled(cancellation.again(id)));
        }
        match reply {
            store::CancelReply::Nothing => Ok(CancelOutcome::AlreadyEnded),
            store::CancelReply::Waiting(generation) => {
                Ok(CancelOutcome::Cancelled { generation, upstream_closed: true })
            }
            store::CancelReply::Running(generation) => {
                metrics::counter!(metric::TURNS_TOTAL, "outcome" => "cancelled").increment(1);
                let closed = async {
                    loop {
                        let changed = feed.changed();
                        tokio::pin!(changed);
                        changed.as_mut().enable();
                        if feed.upstream_is_closed(generation) {
                            return;
                        }
                        changed.await;
                    }
                };
                let upstream_closed = timeout(UPSTREAM_CLOSE, closed).await.is_ok();
                Ok(CancelOutcome::Cancelled { generation, upstream_closed })
            }
        }
    }

    /// Clears the session's history and cancels its turns; with `delete` the session is deleted,
    /// too. Returns the number of messages that it had.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn clear(
        &self,
        owner: &Owner,
        session: SessionId,
        delete: bool,
    ) -> Result<u64, StoreError> {
        let mut clearing = Clearing::new(owner, session, delete);
        let cleared = self.store.clear(&mut clearing).await;
        match &cleared {
            Ok(_) => {
                self.keep(RedoEntry::Cleared(clearing));
                self.budget.record_again(session).await;
            }
            // A session that is gone leaves the caller's list here, too. That another caller has
            // such a session makes no difference, also not in the calls of Redis.
            Err(StoreError::Absent) if *owner != Owner::Anonymous => {
                if let Err(error) = self.budget.unlist_gone(owner, &[session]).await {
                    tracing::debug!(%error, "session that is gone not removed from the list");
                }
            }
            Err(_) => {}
        }
        cleared
    }

    /// Selects the branch of a message: the history leads through it, and the next turn continues it.
    /// Returns whether another branch was selected before.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::MessageAbsent`], [`StoreError::TurnRuns`],
    /// [`StoreError::Redis`].
    pub async fn select(
        &self,
        owner: &Owner,
        session: SessionId,
        message: Uuid,
    ) -> Result<bool, StoreError> {
        let mut selection = Selection::new(owner, session, message);
        let has_changed = self.store.select(&mut selection).await?;
        if has_changed {
            self.keep(RedoEntry::Selected(selection));
        }
        Ok(has_changed)
    }

    /// Hides what a front shows again of the request of a turn, whose messages stay.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn hide_request(
        &self,
        owner: &Owner,
        session: SessionId,
        generation: GenerationId,
    ) -> Result<(), StoreError> {
        if self.store.hide_request(owner, session, generation).await? {
            let owner = owner.clone();
            self.keep(RedoEntry::Hidden(HiddenRequest { owner, session, generation }));
        }
        Ok(())
    }

    /// Changes a session for its owner.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn update(
        &self,
        owner: &Owner,
        session: SessionId,
        change: SessionChange,
    ) -> Result<(), StoreError> {
        self.apply_update(Update::new(owner, session, change)).await
    }

    /// Applies a change of a session, and keeps it for a failover.
    async fn apply_update(&self, mut update: Update) -> Result<(), StoreError> {
        self.store.update(&mut update).await?;
        self.keep(RedoEntry::Updated(update));
        Ok(())
    }

    /// Makes an anonymous session a user's, with its open turns.
    ///
    /// # Errors
    /// [`SubmitError::OverBudget`], [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn transfer(&self, owner: &Owner, session: SessionId) -> Result<(), SubmitError> {
        // The index lists the session before it is the user's: a replica that is killed in between
        // leaves an entry that vanishes, and no session that is missing.
        let grant = self.budget.reserve_claim(owner, session).await?;
        let mut transfer = Transfer::new(owner, session);
        let transferred = self.apply_transfer(&mut transfer).await;
        match &transferred {
            Ok(()) => self.keep(RedoEntry::Transferred(transfer)),
            Err(StoreError::Absent) => self.budget.withdraw(owner, session, grant).await,
            Err(_) => {}
        }
        Ok(transferred?)
    }

    /// Applies a transfer, and moves the bytes of the session to the user's budget.
    async fn apply_transfer(&self, transfer: &mut Transfer) -> Result<(), StoreError> {
        self.store.transfer(transfer).await?;
        self.budget.record("", transfer.session()).await;
        Ok(())
    }

    /// Returns the models of all hosts, without what they take.
    ///
    /// # Errors
    /// [`SubmitError::NoModelHost`].
    pub async fn models(&self) -> Result<Vec<ModelInfo>, SubmitError> {
        let models = self.fleet.models().await?.into_iter();
        Ok(models.map(|model| ModelInfo::new(model, None)).collect())
    }

    /// Returns the models of all hosts, and whether they take images, as far as the hosts say that
    /// within a second.
    ///
    /// # Errors
    /// [`SubmitError::NoModelHost`].
    pub async fn described_models(&self) -> Result<Vec<ModelInfo>, SubmitError> {
        let models = self.fleet.described_models().await?.into_iter();
        Ok(models.map(|(model, images)| ModelInfo::new(model, images)).collect())
    }

    /// Returns the number of healthy hosts.
    pub async fn model_host_count(&self) -> usize {
        self.fleet.healthy().await
    }

    /// Accepts no new turns, waits until the running turns have ended or `limit` is over, and hands
    /// the remaining turns over to the other replicas.
    pub async fn drain(&self, limit: Duration) {
        self.store.lifecycle().advance(Phase::Draining);
        self.tasks.close();
        let _ = timeout(limit, self.tasks.wait()).await;
        let rest = self.tasks.len();
        self.queue.leave_to_others();
        self.stop.cancel();
        self.tasks.wait().await;
        if let Err(error) = self.queue.sign_off().await {
            tracing::debug!(%error, "slots not freed; they are free after the lease");
        }
        match self.membership.sign_off().await {
            Ok(()) => tracing::info!(turns = rest, "turns handed over"),
            Err(error) => {
                tracing::warn!(%error, "sign-off failed; turns are taken over after the lease");
            }
        }
    }
}
