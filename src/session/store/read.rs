//! What happened in a session, as it is stored.

use super::{SessionKeys, Store, StoreError, field, optional, unexpected};
use crate::session::cursor::Cursor;
use crate::session::event::Event;
use crate::session::model::{Owner, SessionId};
use crate::session::store::Turn;
use crate::session::window::{AnswerText, Window};

/// Bytes of events and answers in one read, at most, but for one event that is larger alone: a call
/// must not hold up Redis.
const READ_BYTES: usize = 1 << 20;

/// What a read found.
#[derive(Debug)]
pub enum ReadOutcome {
    /// All from the cursor on, or as much of it as fits one read.
    Window {
        /// What was read.
        window: Window,
        /// Whether there is more.
        more: bool,
    },
    /// What follows the cursor is no longer kept.
    Behind,
    /// The cursor is of another history, or of one that a failover took and its writer may bring
    /// back.
    Unknown,
    /// No such session of this owner.
    Absent,
}

/// Where to read from.
#[derive(Clone, Copy, Debug)]
pub enum ReadFrom {
    /// From a cursor; `held` bytes of its generation's answer are held already.
    Cursor(Cursor, u64),
    /// From where the running turn began, else from the end.
    RunningTurn,
}

impl Store {
    /// What happened in the session.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn read(
        &self,
        owner: &Owner,
        session: SessionId,
        from: ReadFrom,
    ) -> Result<ReadOutcome, StoreError> {
        let (events, tag, generation, held) = match from {
            ReadFrom::Cursor(cursor, held) => {
                (cursor.events, cursor.tag.to_string(), cursor.generation, held)
            }
            ReadFrom::RunningTurn => (0, "-".to_owned(), None, 0),
        };
        let keys = SessionKeys::of(session);
        let names = ["session", "messages", "index", "events", "answer"];
        let call = keys
            .call_with("jarvis_read_1", &names)
            .arg("owner", owner.key())
            .text("number", events)
            .arg("tag", tag)
            .arg("generation", generation.map_or_else(|| "-".to_owned(), |id| id.to_string()))
            .text("held", held)
            .text("bytes", READ_BYTES);
        let reply: Vec<String> = self.redis.call_readonly(call).await?;
        match reply.first().map(String::as_str) {
            Some("ok") => window(reply),
            Some("behind") => Ok(ReadOutcome::Behind),
            Some("unknown") => Ok(ReadOutcome::Unknown),
            Some("absent") => Ok(ReadOutcome::Absent),
            _ => Err(unexpected("read")),
        }
    }

    /// The answer of the running turn with the thoughts before it, as far as they are stored.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn answer_so_far(&self, turn: &Turn) -> Result<String, StoreError> {
        match self.read(&turn.owner, turn.session, ReadFrom::RunningTurn).await? {
            ReadOutcome::Window { window, .. } => Ok(window
                .answer(turn.generation)
                .map(|answer| answer.text.clone())
                .unwrap_or_default()),
            ReadOutcome::Behind | ReadOutcome::Unknown | ReadOutcome::Absent => Ok(String::new()),
        }
    }
}

fn window(reply: Vec<String>) -> Result<ReadOutcome, StoreError> {
    let base = (field(&reply, 1)?, field(&reply, 2)?);
    let running = optional(&reply, 3)?;
    let more = reply.get(4).is_some_and(|flag| flag == "1");
    let count: usize = field(&reply, 5)?;
    let mut rest = reply.into_iter().skip(6);
    let events = rest
        .by_ref()
        .take(count)
        .map(|entry| Event::parse(&entry).map_err(|_| unexpected("event")))
        .collect::<Result<Vec<_>, _>>()?;
    let mut answers = Vec::new();
    while let (Some(id), Some(from), Some(text)) = (rest.next(), rest.next(), rest.next()) {
        let generation = id.parse().map_err(|_| unexpected("generation"))?;
        let base = from.parse().map_err(|_| unexpected("offset"))?;
        answers.push(AnswerText::new(generation, base, text));
    }
    Ok(ReadOutcome::Window { window: Window::new(base, events, answers, running), more })
}
