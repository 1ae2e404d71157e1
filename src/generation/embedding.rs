//! Embeddings: the vectors of texts, which wait for a slot as turns do.
//!
//! The texts go to a host in slices, so that neither a reply nor its time grows with the request. The slot
//! is kept from slice to slice for about as long as a turn takes, and then returned: with a ticket of its
//! own for the rest, a large request waits for others as their turns wait for it.

use std::ops::Range;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::capacity;
use super::failures::queue_full;
use super::held_texts::HeldTexts;
use super::{EmbedRequest, Generations, SubmitError};
use crate::lifecycle::{spawn_caught, spawn_on_drop};
use crate::limits::{Subject, TurnPermit};
use crate::model_name;
use crate::ollama::{HostId, OllamaError, Vectors};
use crate::queue::{Grant, Lease, Returned, Room, Ticket, TicketStatus};
use crate::retry::Backoff;
use crate::session::{GenerationId, Owner};
use crate::telemetry::metric;

/// Attempts in a row at one slice, after which a request for embeddings fails.
const ATTEMPTS: usize = 3;
/// Attempts that fail, of all slices, after which it fails.
const FAILED_ATTEMPTS: usize = 12;
/// Where the texts of a slice are too many for one request to a host, the next has this part of them.
const SMALLER: usize = 8;
/// How long a request keeps its slot before others may have it, with the slice that runs then.
const SLOT_TIME: Duration = Duration::from_secs(5);
/// How long a host with another model of the name is not tried again.
const EXCLUDED: Duration = Duration::from_secs(30);
/// Bytes of a text that count as one token where no host has counted its tokens.
pub(super) const BYTES_PER_TOKEN: u64 = 4;
/// How long a request for embeddings waits for a Redis that does not reply, or refuses it.
const REDIS_LIMIT: Duration = Duration::from_secs(5);
/// How long the reply waits until its tokens are counted, so that the caller's next request counts
/// them.
const COUNT_LIMIT: Duration = Duration::from_millis(500);

/// A request for embeddings that is under way. Dropping it closes the request to the host, and frees the
/// slot. From then on that a host has worked, the permit keeps its turn, and the tokens until there count,
/// however the request ends: those of a slice that is dropped by an estimate. Texts for which no host has
/// worked cost nothing.
pub struct EmbedRun<'a> {
    generations: &'a Generations,
    permit: &'a TurnPermit,
    model: &'a str,
    request: &'a EmbedRequest,
    /// The name under which its tokens are counted.
    generation: GenerationId,
    slot: Option<EmbedSlot>,
    /// The model that made the first vectors, and makes all others.
    maker: Option<Maker>,
    /// Texts that have their vectors.
    done: usize,
    /// Texts of a slice, at most.
    most: usize,
    failed: usize,
    usage: EmbedUsage,
    /// Tokens to count: where a host reports none, an estimate of them.
    tokens: u64,
    /// Whether a host has worked for the request.
    is_worked_for: bool,
    /// The texts that a host has now.
    under_way: Option<Range<usize>>,
    has_ended: bool,
    /// The room of the texts.
    _texts: HeldTexts,
    /// A drain waits for what is under way.
    _task: TaskTrackerToken,
}

/// A ticket, from when on it may be asked to return its slot.
struct EmbedSlot {
    lease: Lease,
    has_joined: bool,
    granted_at: Option<Instant>,
}

/// The vectors of some texts, in their order.
pub struct EmbeddedSlice {
    /// One JSON list for each text, as the host sent it.
    pub vectors: Vec<Box<RawValue>>,
    /// Bytes of the host's reply.
    pub bytes: usize,
}

/// The reports of hosts about a request for embeddings.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmbedUsage {
    /// Tokens of the texts; 0 where the hosts do not report them.
    pub tokens: u64,
    /// Nanoseconds in which hosts loaded the model.
    pub load_duration: u64,
}

/// The model of a host.
#[derive(Debug, PartialEq, Eq)]
struct Maker {
    host: HostId,
    digest: String,
}

impl Maker {
    /// Returns whether both make the same vectors: a model without a digest is the same at its host only.
    fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest && (!self.digest.is_empty() || self.host == other.host)
    }
}

/// Why a slice has no vectors.
enum SliceError {
    Host(OllamaError),
    /// The host has another model of this name, whose vectors do not go with the first.
    OtherModel,
}

impl From<OllamaError> for SliceError {
    fn from(error: OllamaError) -> Self {
        Self::Host(error)
    }
}

impl Generations {
    /// Begins a request for the vectors of texts, and takes the room of the texts until its end. It takes a
    /// slot only with its first slice.
    ///
    /// # Errors
    /// Any [`SubmitError`] but those of a session. No host has worked then.
    pub async fn embed<'a>(
        &'a self,
        permit: &'a TurnPermit,
        model: &'a str,
        request: &'a EmbedRequest,
    ) -> Result<EmbedRun<'a>, SubmitError> {
        // They are short and bounded, and a balancer does not send them elsewhere by itself: a replica that
        // drains accepts them until it hands over what is left.
        if self.has_stopped() || self.stop.is_cancelled() {
            return Err(SubmitError::Draining);
        }
        let task = self.tasks.token();
        let subject = &permit.subject;
        let texts = self.texts.take(&subject.owner, &subject.source.0, request.memory())?;
        self.check_model(model).await?;
        let ticket = ticket(&permit.subject, model);
        if let Room::NoneFor(after) = self.queue.room(&ticket.model, &ticket.source).await {
            return Err(SubmitError::QueueFull(queue_full(after)));
        }
        Ok(EmbedRun {
            generations: self,
            permit,
            model,
            request,
            generation: GenerationId::random(),
            slot: None,
            maker: None,
            done: 0,
            most: usize::MAX,
            failed: 0,
            usage: EmbedUsage::default(),
            tokens: 0,
            is_worked_for: false,
            under_way: None,
            has_ended: false,
            _texts: texts,
            _task: task,
        })
    }

    async fn count_embedded(&self, owner: &Owner, generation: GenerationId, tokens: u64) {
        metrics::counter!(metric::TOKENS_TOTAL, "kind" => "prompt").increment(tokens);
        let (limits, owner) = (self.limits.clone(), owner.clone());
        let counted = spawn_caught("limits", async move {
            limits.count_tokens(&owner, generation, tokens).await;
        });
        // It goes on where the reply does not wait for it.
        let _ = timeout(COUNT_LIMIT, counted).await;
    }
}

impl EmbedRun<'_> {
    /// Returns the vectors of the next texts; none where all texts have theirs.
    ///
    /// # Errors
    /// Any [`SubmitError`] but those of a session. Do not call it again then.
    pub async fn next(&mut self) -> Result<Option<EmbeddedSlice>, SubmitError> {
        if self.done == self.request.texts.len() {
            return Ok(None);
        }
        let stop = self.generations.stop.clone();
        tokio::select! {
            slice = self.next_slice() => slice.map(Some),
            () = stop.cancelled() => Err(SubmitError::Draining),
        }
    }

    /// Frees the slot, counts the tokens, and returns what the hosts reported.
    pub async fn end(mut self) -> EmbedUsage {
        self.slot = None;
        self.has_ended = true;
        let owner = &self.permit.subject.owner;
        self.generations.count_embedded(owner, self.generation, self.tokens).await;
        self.usage
    }

    async fn next_slice(&mut self) -> Result<EmbeddedSlice, SubmitError> {
        let mut attempts = 0;
        loop {
            let grant = self.granted().await?;
            let texts = self.request.slice(self.done, self.most);
            let embedded = self.embed_at(&grant, texts.clone()).await;
            self.under_way = None;
            let error = match embedded {
                Ok(vectors) => return self.completed(texts, vectors),
                Err(SliceError::Host(OllamaError::TooManyTexts)) => {
                    tracing::debug!(texts = texts.len(), "slice of embeddings divided");
                    self.is_worked_for = true;
                    self.most = (texts.len() / SMALLER).max(1);
                    continue;
                }
                Err(error) => error,
            };
            if let SliceError::Host(OllamaError::ReplyTooLarge) = &error {
                self.is_worked_for = true;
                self.tokens += self.estimated_tokens(texts);
            }
            self.permit.set_worked_on(self.is_worked_for);
            attempts += 1;
            self.failed += 1;
            let is_over = attempts == ATTEMPTS || self.failed == FAILED_ATTEMPTS;
            let returned = match error {
                SliceError::Host(error) if is_over || !error.is_retryable() => {
                    return Err(error.into());
                }
                SliceError::Host(error) => capacity::returned(&error, attempts, false),
                SliceError::OtherModel if is_over => return Err(no_maker()),
                SliceError::OtherModel => {
                    Returned { excluded: EXCLUDED, full: Duration::ZERO, has_text: false }
                }
            };
            self.give_back(returned).await?;
        }
    }

    /// Takes the vectors of these texts.
    fn completed(
        &mut self,
        texts: Range<usize>,
        vectors: Vectors,
    ) -> Result<EmbeddedSlice, SubmitError> {
        self.is_worked_for = true;
        // Not every route of a host counts.
        self.tokens += match vectors.tokens {
            0 => self.estimated_tokens(texts.clone()),
            tokens => tokens,
        };
        if vectors.list.len() != texts.len() {
            let message = "the model host's reply does not have the vector of each text".to_owned();
            return Err(SubmitError::Upstream { code: "upstream_error", message });
        }
        self.usage.tokens += vectors.tokens;
        self.usage.load_duration += vectors.load_duration;
        self.done = texts.end;
        Ok(EmbeddedSlice { vectors: vectors.list, bytes: vectors.bytes })
    }

    async fn embed_at(
        &mut self,
        grant: &Grant,
        texts: Range<usize>,
    ) -> Result<Vectors, SliceError> {
        let host = HostId::new(&grant.host.0);
        let slot = self.generations.fleet.slot(&host, self.model).await?;
        let maker = Maker { host, digest: slot.model().digest.clone() };
        if self.maker.as_ref().is_some_and(|first| !first.is_same(&maker)) {
            return Err(SliceError::OtherModel);
        }
        let num_ctx = slot.num_ctx().await?.map(|tokens| tokens.min(self.generations.num_ctx_cap));
        self.permit.set_worked_on(true);
        self.under_way = Some(texts.clone());
        let client = self.permit.subject.source.widest_network();
        let vectors = slot.embed(self.request, texts, num_ctx, client).await?;
        self.maker.get_or_insert(maker);
        Ok(vectors)
    }

    /// Returns the grant of a slot: the one that is held, unless others may have it now.
    async fn granted(&mut self) -> Result<Grant, SubmitError> {
        let held_since = self.slot.as_ref().and_then(|slot| slot.granted_at);
        if held_since.is_some_and(|since| since.elapsed() >= SLOT_TIME) {
            self.slot = None;
        }
        let slot = self.slot.get_or_insert_with(|| EmbedSlot {
            lease: self.generations.queue.lease(ticket(&self.permit.subject, self.model)),
            has_joined: false,
            granted_at: None,
        });
        let joins = !std::mem::replace(&mut slot.has_joined, true);
        let grant = self.generations.granted(&mut slot.lease, joins).await?;
        slot.granted_at.get_or_insert_with(Instant::now);
        Ok(grant)
    }

    async fn give_back(&mut self, returned: Returned) -> Result<(), SubmitError> {
        let Some(slot) = &mut self.slot else { return Ok(()) };
        slot.granted_at = None;
        match slot.lease.give_back(returned).await {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::debug!(%error, "slot of embeddings not returned");
                Err(redis_unusable())
            }
        }
    }

    /// Estimates the tokens of texts, of which a host reads at most a context window each.
    fn estimated_tokens(&self, texts: Range<usize>) -> u64 {
        let num_ctx = u64::from(self.generations.num_ctx_cap);
        let tokens = |text: &String| (text.len() as u64).div_ceil(BYTES_PER_TOKEN).min(num_ctx);
        self.request.texts.get(texts).unwrap_or_default().iter().map(tokens).sum()
    }
}

impl Drop for EmbedRun<'_> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        if self.generations.has_stopped() || self.generations.stop.is_cancelled() {
            // The replica left, not its client.
            self.permit.set_worked_on(false);
            return;
        }
        let leaving = self.under_way.take().map_or(0, |texts| self.estimated_tokens(texts));
        let tokens = self.tokens + leaving;
        if tokens == 0 {
            return;
        }
        let generations = self.generations.clone();
        let (owner, generation) = (self.permit.subject.owner.clone(), self.generation);
        spawn_on_drop("limits", async move {
            generations.count_embedded(&owner, generation, tokens).await;
        });
    }
}

impl Generations {
    /// Waits until the ticket holds a slot; with `joins` it has yet to join the queue.
    async fn granted(&self, lease: &mut Lease, mut joins: bool) -> Result<Grant, SubmitError> {
        let mut backoff = Backoff::redis();
        let mut redis_away_since = None;
        let mut no_host_since = None;
        let refusal = self.store.refused_for(REDIS_LIMIT);
        tokio::pin!(refusal);
        loop {
            let status = if joins {
                match lease.join(false).await {
                    Ok(status) => status,
                    Err(error) => {
                        tracing::debug!(%error, "embeddings waiting for redis");
                        let since = *redis_away_since.get_or_insert_with(Instant::now);
                        if since.elapsed() >= REDIS_LIMIT {
                            return Err(redis_unusable());
                        }
                        let _ = backoff.pause().await;
                        continue;
                    }
                }
            } else {
                lease.status()
            };
            match status {
                TicketStatus::Granted(grant) => return Ok(grant),
                TicketStatus::Full(after) | TicketStatus::Crowded(after) => {
                    return Err(SubmitError::QueueFull(queue_full(after)));
                }
                TicketStatus::Waiting(waiting) if waiting.hosts > 0 => no_host_since = None,
                TicketStatus::Waiting(_) => {
                    no_host_since.get_or_insert_with(Instant::now);
                }
                // Redis has forgotten the ticket.
                TicketStatus::Gone if joins => return Err(SubmitError::Internal),
                TicketStatus::Gone => {
                    joins = true;
                    continue;
                }
            }
            joins = false;
            let give_up = no_host_since.map(|since| since + self.host_wait);
            tokio::select! {
                _ = lease.changed() => {}
                () = sleep_until(give_up.unwrap_or_else(Instant::now)), if give_up.is_some() => {
                    return Err(SubmitError::NoModelHost);
                }
                trouble = &mut refusal => {
                    tracing::debug!(trouble, "embeddings refused by redis");
                    return Err(redis_unusable());
                }
            }
        }
    }
}

/// Creates the ticket of a request for embeddings, which has no session.
fn ticket(subject: &Subject, model: &str) -> Ticket {
    let generation = GenerationId::random();
    let source = capacity::ticket_source(&subject.owner, &subject.source.0);
    let session = generation.to_string();
    Ticket {
        generation,
        user: if source.name.is_empty() { session.clone() } else { source.name.clone() },
        is_of_address: subject.owner == Owner::Anonymous && !source.name.is_empty(),
        source,
        model: model_name::canonical(model),
        session,
        prefixes: Vec::new(),
        has_text: false,
    }
}

fn redis_unusable() -> SubmitError {
    let message = "The queue is not available; retry after 5 s.".to_owned();
    SubmitError::Upstream { code: "store_unavailable", message }
}

/// Returns the error of a request whose first vectors no host can be added to.
fn no_maker() -> SubmitError {
    let message =
        "The model that made the first vectors cannot be reached; send the request again.";
    SubmitError::Upstream { code: "model_unavailable", message: message.to_owned() }
}
