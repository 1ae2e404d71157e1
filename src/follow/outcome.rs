//! The outcome of a generation, from the event log or from its stored answer.

use std::sync::Arc;

use chrono::Utc;

use crate::session::store::{self, ReadFrom, ReadOutcome};
use crate::session::{
    Control, Cursor, Event, FinishReason, GenerationId, Message, Owner, Role, SessionId, Status,
    Store, StoreError, Window,
};

/// More bytes than any answer has.
const HAS_ALL_TEXT: u64 = 1 << 40;

/// The outcome of a generation.
pub enum TurnOutcome {
    /// The generation waits or runs.
    Open,
    /// The generation has ended.
    Ended {
        /// The answer as it is stored.
        message: Box<Message>,
        /// The number of the event that ended the generation, while that is kept.
        number: Option<u64>,
    },
    /// The session has no such generation, or nothing is kept of it.
    Unknown,
}

/// The end of a generation in the log of control events.
pub(super) enum LoggedEnd {
    /// This event ended the generation.
    Ended(Arc<Event>),
    /// All events since the cursor are kept, and none of them ended the generation.
    NotEnded,
    /// Some events since the cursor are no longer kept.
    Unknown,
}

/// Returns the outcome of a generation that was accepted after `before`, where that is known. A
/// caller that follows an open generation opens its reader first, so that the end cannot fall in
/// between.
///
/// # Errors
/// [`StoreError`].
pub async fn outcome(
    store: &Store,
    owner: &Owner,
    session: SessionId,
    generation: GenerationId,
    before: Option<Cursor>,
) -> Result<TurnOutcome, StoreError> {
    let logged = match before {
        Some(before) => logged_end(store, owner, session, generation, before).await?,
        None => LoggedEnd::Unknown,
    };
    let end = match logged {
        LoggedEnd::NotEnded => return Ok(TurnOutcome::Open),
        LoggedEnd::Ended(event) => Some(event),
        LoggedEnd::Unknown => None,
    };
    if end.is_none() && store.is_open(owner, session, generation).await? {
        return Ok(TurnOutcome::Open);
    }
    let number = end.as_ref().map(|event| event.number);
    Ok(match stored_answer(store, owner, session, generation).await? {
        Some(message) => TurnOutcome::Ended { message, number },
        // A turn that was cancelled while it waited leaves no answer.
        None if end.is_some_and(|event| event.control == Control::Cancelled {}) => {
            let message = Box::new(Message {
                generation_id: Some(generation),
                status: Some(Status::Cancelled),
                finish_reason: Some(FinishReason::Cancelled),
                ..store::message(Role::Assistant, Utc::now())
            });
            TurnOutcome::Ended { message, number }
        }
        None => TurnOutcome::Unknown,
    })
}

/// Returns the stored answer of a generation.
pub(super) async fn stored_answer(
    store: &Store,
    owner: &Owner,
    session: SessionId,
    generation: GenerationId,
) -> Result<Option<Box<Message>>, StoreError> {
    let found = store.find_answer(owner, session, generation).await?;
    Ok(found.map(|found| Box::new(found.message)))
}

/// Returns how often the answer of a generation had started again by this control event.
pub(super) async fn restarts(
    store: &Store,
    owner: &Owner,
    session: SessionId,
    generation: GenerationId,
    until: u64,
) -> Result<u32, StoreError> {
    let mut cursor = Cursor { generation: Some(generation), ..Cursor::START };
    let mut restarts = 0;
    loop {
        // The log without the text.
        let read = store.read(owner, session, ReadFrom::Cursor(cursor, HAS_ALL_TEXT)).await?;
        let ReadOutcome::Window { window, more } = read else {
            return restarts_without_log(store, owner, session, generation, until).await;
        };
        restarts = restarts.max(claimed_restarts(&window, generation, until));
        let (number, tag) = window.tip();
        if !more || number == cursor.events || number >= until {
            return Ok(restarts);
        }
        (cursor.events, cursor.tag) = (number, tag);
    }
}

/// Returns the same where the session has had so many turns that the log does not begin with its first one
/// any more: from the running turn, or from the stored answer.
async fn restarts_without_log(
    store: &Store,
    owner: &Owner,
    session: SessionId,
    generation: GenerationId,
    until: u64,
) -> Result<u32, StoreError> {
    if let ReadOutcome::Window { window, .. } =
        store.read(owner, session, ReadFrom::RunningTurn).await?
        && window.running() == Some(generation)
    {
        return Ok(claimed_restarts(&window, generation, until));
    }
    let answer = stored_answer(store, owner, session, generation).await?;
    Ok(answer.map_or(0, |answer| answer.restarts()))
}

/// Returns how often the answer of a generation had started again by this control event, as the claims in a
/// window show it.
fn claimed_restarts(window: &Window, generation: GenerationId, until: u64) -> u32 {
    let events = window.events().filter(|event| event.number <= until);
    let claims = events.filter(|event| event.generation == Some(generation));
    let restarts = claims.filter_map(|event| match event.control {
        Control::Claimed { restarts, .. } => Some(restarts),
        _ => None,
    });
    restarts.max().unwrap_or_default()
}

/// Looks for the end of a generation after a cursor.
pub(super) async fn logged_end(
    store: &Store,
    owner: &Owner,
    session: SessionId,
    generation: GenerationId,
    mut cursor: Cursor,
) -> Result<LoggedEnd, StoreError> {
    loop {
        let read = store.read(owner, session, ReadFrom::Cursor(cursor, cursor.offset)).await?;
        let ReadOutcome::Window { window, more } = read else { return Ok(LoggedEnd::Unknown) };
        let end = window
            .events()
            .find(|event| event.generation == Some(generation) && event.control.is_terminal());
        if let Some(event) = end {
            return Ok(LoggedEnd::Ended(Arc::clone(event)));
        }
        let next = window.end();
        if !more || next == cursor {
            return Ok(LoggedEnd::NotEnded);
        }
        cursor = next;
    }
}
