//! Writes an answer to Redis while it grows.
//!
//! The stream from the model never waits for Redis: while one write is under way, text gathers, and
//! the next write carries all of it. So the first token leaves at once, a quiet system sends token
//! by token, and a loaded one sends fewer, larger pieces.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::session::store::{Turn, Written};
use crate::session::window::floor_char_boundary;
use crate::session::{Store, StoreError, Tag};

/// Bytes of one write, at most.
const WRITE_BYTES: usize = 64 << 10;
/// Bytes of an answer as JSON, at most: with the rest of its event it stays below 512 KiB.
const ANSWER_JSON_BYTES: usize = 500 << 10;
/// Pause after a write that failed.
const RETRY: Duration = Duration::from_millis(200);

/// Somebody else writes this answer now, or it has ended.
pub(super) struct Fenced;

/// One answer on its way to Redis.
pub(super) struct Writer {
    store: Store,
    turn: Turn,
    text: String,
    json_bytes: usize,
    /// Bytes that Redis has.
    stored: usize,
    under_way: Option<UnderWay>,
}

struct UnderWay {
    end: usize,
    reply: BoxFuture<'static, Result<Written, StoreError>>,
}

impl Writer {
    /// Begins with the event that tells of the answer, where none has yet; goes on after what is
    /// stored of it.
    pub(super) fn start(store: Store, turn: Turn, stored: String) -> Self {
        let mut writer = Self {
            store,
            turn,
            json_bytes: stored.chars().map(json_bytes).sum(),
            stored: stored.len(),
            text: stored,
            under_way: None,
        };
        let (store, turn, tag) = (writer.store.clone(), writer.turn.clone(), Tag::random());
        let reply = Box::pin(async move {
            loop {
                match store.start(&turn, tag).await {
                    // Nothing may be appended before the answer has begun.
                    Err(error) => wait_after(&error).await,
                    written => return written,
                }
            }
        });
        writer.under_way = Some(UnderWay { end: writer.stored, reply });
        writer
    }

    /// The answer so far, written or not.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Adds text. `false`: the answer is as long as one may be, and what did not fit is left out.
    pub(super) fn push(&mut self, text: &str) -> bool {
        for (at, character) in text.char_indices() {
            let bytes = json_bytes(character);
            if self.json_bytes + bytes > ANSWER_JSON_BYTES {
                self.text.push_str(&text[..at]);
                return false;
            }
            self.json_bytes += bytes;
        }
        self.text.push_str(text);
        true
    }

    /// Whether Redis has everything.
    pub(super) fn is_settled(&self) -> bool {
        self.under_way.is_none() && self.stored == self.text.len()
    }

    /// Takes back what lies beyond `length`: the model, asked to go on, said something else.
    pub(super) async fn take_back(&mut self, length: usize) -> Result<(), Fenced> {
        while !self.is_settled() {
            self.progress().await?;
        }
        let tag = Tag::random();
        loop {
            match self.store.rewind(&self.turn, length as u64, tag).await {
                Ok(Written::Fenced) => return Err(Fenced),
                Ok(_) => break,
                Err(error) => wait_after(&error).await,
            }
        }
        self.text.truncate(floor_char_boundary(&self.text, length));
        self.stored = self.text.len();
        self.json_bytes = self.text.chars().map(json_bytes).sum();
        Ok(())
    }

    /// Redis turned out to have only so many bytes.
    pub(super) fn go_back_to(&mut self, stored: u64) {
        let stored = usize::try_from(stored).unwrap_or(usize::MAX);
        self.stored = floor_char_boundary(&self.text, stored);
    }

    /// Makes one write, or sees the one under way to its end. Pends while there is nothing to
    /// write. Cancel-safe.
    pub(super) async fn progress(&mut self) -> Result<(), Fenced> {
        if self.under_way.is_none() && self.stored < self.text.len() {
            self.under_way = Some(self.append());
        }
        let Some(under_way) = &mut self.under_way else {
            return std::future::pending().await;
        };
        let reply = under_way.reply.as_mut().await;
        let end = under_way.end;
        self.under_way = None;
        match reply {
            Ok(Written::Ok) => {
                self.stored = end;
                Ok(())
            }
            Ok(Written::Hole(stored)) => {
                self.go_back_to(stored);
                Ok(())
            }
            Ok(Written::Fenced) => Err(Fenced),
            Err(error) => {
                let reply = Box::pin(async move {
                    wait_after(&error).await;
                    Ok(Written::Ok)
                });
                self.under_way = Some(UnderWay { end: self.stored, reply });
                Ok(())
            }
        }
    }

    fn append(&self) -> UnderWay {
        let longest = self.text.len().min(self.stored + WRITE_BYTES);
        let end = floor_char_boundary(&self.text, longest);
        let piece = self.text[self.stored..end].to_owned();
        let (store, turn, offset) = (self.store.clone(), self.turn.clone(), self.stored as u64);
        let reply = Box::pin(async move { store.append(&turn, offset, &piece).await });
        UnderWay { end, reply }
    }
}

async fn wait_after(error: &StoreError) {
    tracing::warn!(%error, "an answer waits for Redis");
    tokio::time::sleep(RETRY).await;
}

fn json_bytes(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        control if control < ' ' => 6,
        other => other.len_utf8(),
    }
}
