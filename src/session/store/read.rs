//! Reads of a session's stored events and text.

use super::{SessionKeys, Store, StoreError, field, optional, unexpected};
use crate::session::cursor::Cursor;
use crate::session::event::Event;
use crate::session::model::{Owner, SessionId};
use crate::session::store::Turn;
use crate::session::window::{AnswerText, Window};

/// The largest size of events and answers in one read, in bytes, so that no call blocks Redis for
/// long. Only a single larger event exceeds it.
const READ_BYTES: usize = 512 << 10;

/// The result of a read.
#[derive(Debug)]
pub enum ReadOutcome {
    /// Everything after the cursor, or as much of it as fits one read.
    Window {
        /// The events and text.
        window: Window,
        /// Whether there is more.
        more: bool,
    },
    /// The events after the cursor are no longer kept.
    Behind,
    /// The cursor is of another history, or of one that a failover lost and the writer may bring
    /// back.
    Unknown,
    /// This owner has no such session.
    Absent,
}

/// The position from which a read begins.
#[derive(Clone, Copy, Debug)]
pub enum ReadFrom {
    /// A cursor, and the bytes of its generation's answer that are held already.
    Cursor(Cursor, u64),
    /// The beginning of the running turn, or the end of the log where none runs.
    RunningTurn,
}

impl Store {
    /// Reads events and text of the session.
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

    /// Returns the stored reasoning and answer of the running turn.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn answer_so_far(&self, turn: &Turn) -> Result<String, StoreError> {
        let owner = self.owner_of(turn).await?;
        match self.read(&owner, turn.session, ReadFrom::RunningTurn).await? {
            ReadOutcome::Window { window, .. } => Ok(window
                .answer(turn.generation)
                .map(|answer| answer.text.clone())
                .unwrap_or_default()),
            ReadOutcome::Behind | ReadOutcome::Unknown | ReadOutcome::Absent => Ok(String::new()),
        }
    }
}

fn window(reply: Vec<String>) -> Result<ReadOutcome, StoreError> {
    let bytes = reply.iter().map(String::len).sum();
    let base = (field(&reply, 1)?, field(&reply, 2)?);
    let running = optional(&reply, 3)?;
    let more = reply.get(4).is_some_and(|flag| flag == "1");
    let count: usize = field(&reply, 5)?;
    let mut rest = reply.into_iter().skip(6);
    let mut events = Vec::new();
    for _ in 0..count {
        let (Some(entry), Some(message)) = (rest.next(), rest.next()) else {
            return Err(unexpected("read"));
        };
        events.push(Event::parse_with(&entry, &message).map_err(|_| unexpected("event"))?);
    }
    let mut answers = Vec::new();
    while let (Some(id), Some(from), Some(text)) = (rest.next(), rest.next(), rest.next()) {
        let generation = id.parse().map_err(|_| unexpected("generation"))?;
        let base = from.parse().map_err(|_| unexpected("offset"))?;
        answers.push(AnswerText::new(generation, base, text));
    }
    let window = Window::new(base, events, answers, running).read_in(bytes);
    Ok(ReadOutcome::Window { window, more })
}
