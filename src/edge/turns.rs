//! A turn as REST, event streams and WebSockets ask for it, and what became of an earlier one.

use std::sync::Arc;

use chrono::Utc;
use tokio::runtime::Handle;
use tracing::Instrument;

use super::Shared;
use super::input::{ChatRequest, OnDisconnect};
use super::problem::Problem;
use crate::generation::{Generations, Submitted};
use crate::session::store::{self, IdempotencyKey, NewTurn, ReadFrom, ReadOutcome};
use crate::session::{
    Control, Cursor, Event, FinishReason, GenerationId, Message, Owner, Role, SessionId, Status,
    Store, StoreError, TurnSpec,
};

/// Cancels a generation when it is dropped, unless it was told that there is no need.
pub struct CancelOnDrop {
    generations: Generations,
    owner: Owner,
    session: SessionId,
    generation: Option<GenerationId>,
}

impl CancelOnDrop {
    /// The generation has ended, or may go on.
    pub fn disarm(&mut self) {
        self.generation = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Some(generation) = self.generation else { return };
        // The runtime is gone when the process ends, and its turns are taken over by others.
        let Ok(runtime) = Handle::try_current() else { return };
        let (generations, owner, session) =
            (self.generations.clone(), self.owner.clone(), self.session);
        runtime.spawn(async move {
            if let Err(error) = generations.cancel(&owner, session, Some(generation)).await {
                tracing::warn!(%error, %generation, "the client is gone, and its turn runs on");
            }
        });
    }
}

/// A turn that was accepted.
pub struct Asked {
    /// By the generation side.
    pub submitted: Submitted,
    /// Where the client wants it cancelled when it goes away.
    pub guard: Option<CancelOnDrop>,
}

/// Submits a turn. A client that goes away meanwhile does not leave it half accepted.
///
/// # Errors
/// As a client is told.
pub async fn submit(
    shared: &Shared,
    owner: &Owner,
    session: SessionId,
    request: &ChatRequest,
    key: Option<String>,
    source: &str,
) -> Result<Asked, Problem> {
    let new = NewTurn {
        spec: TurnSpec {
            source: source.to_owned(),
            ..request.spec(&shared.settings.default_model)
        },
        content: request.message.clone(),
        conversation: None,
        key: key.map(|key| IdempotencyKey { key, body: request.digest() }),
    };
    let (generations, owner) = (shared.generations.clone(), owner.clone());
    let cancels = request.on_disconnect == OnDisconnect::Cancel;
    let task = async move {
        let submitted = generations.submit(&owner, session, new).await?;
        let generation = Some(submitted.generation);
        let guard = cancels.then(|| CancelOnDrop { generations, owner, session, generation });
        Ok(Asked { submitted, guard })
    };
    let asked: Result<Asked, Problem> =
        tokio::spawn(task.in_current_span()).await.map_err(|error| {
            tracing::error!(%error, "a submission broke off");
            Problem::internal()
        })?;
    if let Ok(asked) = &asked {
        let generation = tracing::field::display(asked.submitted.generation);
        tracing::Span::current().record("generation", generation);
    }
    asked
}

/// What has become of a generation.
pub enum Past {
    /// It waits or runs: its end is still to be seen.
    Live,
    /// It ended, and this is its message.
    Ended {
        /// As it is stored.
        message: Box<Message>,
        /// The number of the event that tells of it, while that is kept.
        number: Option<u64>,
    },
    /// There is none, or nothing is kept of it.
    Unknown,
}

/// What has become of a generation that was accepted after `before`, if that is known. Who wants to
/// follow a live one makes the reader first, so that the end cannot come in between.
///
/// # Errors
/// [`StoreError`].
pub async fn past(
    store: &Store,
    owner: &Owner,
    session: SessionId,
    generation: GenerationId,
    before: Option<Cursor>,
) -> Result<Past, StoreError> {
    let seen = match before {
        Some(before) => end_since(store, owner, session, generation, before).await?,
        None => Since::Unknown,
    };
    let end = match seen {
        Since::NotEnded => return Ok(Past::Live),
        Since::Ended(event) => Some(event),
        Since::Unknown => None,
    };
    if end.is_none() && store.is_open(owner, session, generation).await? {
        return Ok(Past::Live);
    }
    let number = end.as_ref().map(|event| event.number);
    Ok(match stored(store, owner, session, generation).await? {
        Some(message) => Past::Ended { message, number },
        // It was cancelled while it waited.
        None if end.is_some_and(|event| event.control == Control::Cancelled {}) => {
            let message = Box::new(Message {
                generation_id: Some(generation),
                status: Some(Status::Cancelled),
                finish_reason: Some(FinishReason::Cancelled),
                ..store::message(Role::Assistant, Utc::now())
            });
            Past::Ended { message, number }
        }
        None => Past::Unknown,
    })
}

/// The message that a generation made.
///
/// # Errors
/// [`StoreError`].
pub async fn stored(
    store: &Store,
    owner: &Owner,
    session: SessionId,
    generation: GenerationId,
) -> Result<Option<Box<Message>>, StoreError> {
    let found = store.find_message(owner, session, generation.0).await?;
    Ok(found.map(|(_, message)| Box::new(message)))
}

/// What the log says of a generation's end.
pub enum Since {
    /// With this event.
    Ended(Arc<Event>),
    /// Everything since the cursor is kept, and its end is not there.
    NotEnded,
    /// Not everything is kept.
    Unknown,
}

/// Looks for the end of a generation after a cursor.
///
/// # Errors
/// [`StoreError`].
pub async fn end_since(
    store: &Store,
    owner: &Owner,
    session: SessionId,
    generation: GenerationId,
    mut cursor: Cursor,
) -> Result<Since, StoreError> {
    loop {
        let read = store.read(owner, session, ReadFrom::Cursor(cursor, cursor.offset)).await?;
        let ReadOutcome::Window { window, more } = read else { return Ok(Since::Unknown) };
        let end = window
            .events()
            .find(|event| event.generation == Some(generation) && event.control.is_terminal());
        if let Some(event) = end {
            return Ok(Since::Ended(Arc::clone(event)));
        }
        let next = window.end();
        if !more || next == cursor {
            return Ok(Since::NotEnded);
        }
        cursor = next;
    }
}
