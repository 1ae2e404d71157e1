//! What clients get of the models on the hosts beside generations: descriptions, which of them are in
//! memory, and embeddings, which wait for a slot as turns do.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until, timeout};

use super::capacity;
use super::failures::queue_full;
use super::{EmbedRequest, Generations, LoadedModel, SubmitError, Vectors};
use crate::limits::{Subject, TurnPermit};
use crate::ollama::{HostId, OllamaError};
use crate::queue::{Grant, Lease, Room, Ticket, TicketStatus};
use crate::retry::Backoff;
use crate::session::{GenerationId, Owner};
use crate::telemetry::metric;

/// Attempts at hosts, after which a request for embeddings fails.
const ATTEMPTS: usize = 3;
/// Bytes of a text that count as one token where no host has counted its tokens.
const BYTES_PER_TOKEN: u64 = 4;
/// How long a request for embeddings waits for a Redis that does not reply, or refuses it.
const REDIS_LIMIT: Duration = Duration::from_secs(5);
/// How long the reply waits until its tokens are counted, so that the caller's next request counts
/// them.
const COUNT_LIMIT: Duration = Duration::from_millis(500);

impl Generations {
    /// Checks that a host has the model, by what the hosts replied last.
    ///
    /// # Errors
    /// [`SubmitError::ModelNotFound`], [`SubmitError::NoModelHost`].
    pub async fn check_model(&self, model: &str) -> Result<(), SubmitError> {
        Ok(self.fleet.check(model).await?)
    }

    /// Returns the models that are in the memory of any host, by name.
    ///
    /// # Errors
    /// [`SubmitError::NoModelHost`].
    pub async fn loaded_models(&self) -> Result<Vec<LoadedModel>, SubmitError> {
        Ok(self.fleet.loaded().await?)
    }

    /// Returns the description of a model as a host that has it sends it; it may hold paths of that
    /// host.
    ///
    /// # Errors
    /// As [`Generations::check_model`], or the host's.
    pub async fn describe_model(&self, model: &str) -> Result<Map<String, Value>, SubmitError> {
        Ok(self.fleet.show(model).await?)
    }

    /// Returns the vectors of texts from a host that has the model. The request waits for a slot in
    /// the queue, as a turn of the same caller would; dropping the future closes the request to the
    /// host. From then on that a host works, the permit keeps its turn, and a future that is dropped
    /// costs the caller an estimate of the tokens; an error costs nothing.
    ///
    /// # Errors
    /// Any [`SubmitError`] but those of a session.
    pub async fn embed(
        &self,
        permit: &TurnPermit,
        model: &str,
        request: &EmbedRequest,
    ) -> Result<Vectors, SubmitError> {
        if self.store.lifecycle().is_draining() {
            return Err(SubmitError::Draining);
        }
        // A drain waits for what is under way.
        let _task = self.tasks.token();
        tokio::select! {
            vectors = self.embed_in_turn(permit, model, request) => vectors,
            () = self.stop.cancelled() => Err(SubmitError::Draining),
        }
    }

    async fn embed_in_turn(
        &self,
        permit: &TurnPermit,
        model: &str,
        request: &EmbedRequest,
    ) -> Result<Vectors, SubmitError> {
        self.check_model(model).await?;
        let ticket = ticket(&permit.subject, model);
        if let Room::NoneFor(after) = self.queue.room(&ticket.model, &ticket.source).await {
            return Err(SubmitError::QueueFull(queue_full(after)));
        }
        let generation = ticket.generation;
        let mut lease = self.queue.lease(ticket);
        let mut attempts = 0;
        let vectors = loop {
            let grant = self.granted(&mut lease, attempts == 0).await?;
            let work = HostWork::begin(self, permit, generation, request);
            let embedded = self.embed_at(&grant, model, request).await;
            work.end(embedded.is_ok());
            let error = match embedded {
                Ok(vectors) => break vectors,
                Err(error) => error,
            };
            attempts += 1;
            if attempts == ATTEMPTS || !error.is_retryable() {
                return Err(error.into());
            }
            let returned = capacity::returned(&error, attempts, false);
            if let Err(error) = lease.give_back(returned).await {
                tracing::debug!(%error, "slot of embeddings not returned");
                return Err(redis_unusable());
            }
        };
        drop(lease);
        // Not every route of a host counts.
        let tokens = match vectors.tokens() {
            0 => estimated_tokens(request, self.num_ctx_cap),
            tokens => tokens,
        };
        self.count_embedded(&permit.subject.owner, generation, tokens).await;
        Ok(vectors)
    }

    async fn embed_at(
        &self,
        grant: &Grant,
        model: &str,
        request: &EmbedRequest,
    ) -> Result<Vectors, OllamaError> {
        let slot = self.fleet.slot(&HostId::new(&grant.host.0), model).await?;
        let num_ctx = slot.num_ctx().await?.map(|tokens| tokens.min(self.num_ctx_cap));
        slot.embed(request, num_ctx).await
    }

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

    async fn count_embedded(&self, owner: &Owner, generation: GenerationId, tokens: u64) {
        metrics::counter!(metric::TOKENS_TOTAL, "kind" => "prompt").increment(tokens);
        let (limits, owner) = (self.limits.clone(), owner.clone());
        let counted = tokio::spawn(async move {
            limits.count_tokens(&owner, generation, tokens).await;
        });
        // It goes on where the reply does not wait for it.
        let _ = timeout(COUNT_LIMIT, counted).await;
    }
}

/// The work of a host for a request for embeddings. Where it is dropped before its end, the caller
/// has left: it pays for the work all the same.
struct HostWork<'a> {
    generations: &'a Generations,
    permit: &'a TurnPermit,
    generation: GenerationId,
    /// The estimated tokens of the texts.
    tokens: u64,
    has_ended: bool,
}

impl<'a> HostWork<'a> {
    fn begin(
        generations: &'a Generations,
        permit: &'a TurnPermit,
        generation: GenerationId,
        request: &EmbedRequest,
    ) -> Self {
        permit.set_worked_on(true);
        let tokens = estimated_tokens(request, generations.num_ctx_cap);
        Self { generations, permit, generation, tokens, has_ended: false }
    }

    /// Notes that the host has replied. An error costs the caller nothing.
    fn end(mut self, is_answered: bool) {
        self.has_ended = true;
        self.permit.set_worked_on(is_answered);
    }
}

impl Drop for HostWork<'_> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        if self.generations.has_stopped() || self.generations.stop.is_cancelled() {
            // The replica left, not its client.
            self.permit.set_worked_on(false);
            return;
        }
        // Without a runtime the process is ending.
        let Ok(runtime) = Handle::try_current() else { return };
        let limits = self.generations.limits.clone();
        let (owner, generation) = (self.permit.subject.owner.clone(), self.generation);
        let tokens = self.tokens;
        runtime.spawn(async move { limits.count_tokens(&owner, generation, tokens).await });
    }
}

/// Estimates the tokens of texts, of which a host reads at most a context window each.
fn estimated_tokens(request: &EmbedRequest, num_ctx: u32) -> u64 {
    let tokens = |text: &String| (text.len() as u64).div_ceil(BYTES_PER_TOKEN);
    request.texts.iter().map(|text| tokens(text).min(u64::from(num_ctx))).sum()
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
        model: capacity::model_key(model),
        session,
        prefixes: Vec::new(),
        has_text: false,
    }
}

fn redis_unusable() -> SubmitError {
    let message = "The queue is not available; retry after 5 s.".to_owned();
    SubmitError::Upstream { code: "store_unavailable", message }
}
