//! Titles that the model writes after the first answer of a session, where the operator wants them.
//!
//! A title has the lowest priority: it is dropped where no slot is free at once, or as soon as anything
//! waits in the queue. Its tokens count for the owner of the session, also where it is dropped. It replaces
//! the beginning of the first question, and never a title that a user gave.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::Generations;
use super::capacity;
use super::embedding::BYTES_PER_TOKEN;
use crate::config::Titles;
use crate::lifecycle::spawn_caught;
use crate::ollama::{
    ChatMessage, ChatRole, Done, HostId, ModelRequest, OllamaError, Options, Think,
};
use crate::queue::{Ticket, TicketStatus};
use crate::session::store::{Measured, Turn, Update};
use crate::session::{GenerationId, StoreError, shortened};
use crate::telemetry::metric;

/// The request for a title. It follows the first answer, so that the host has all before it in its
/// prompt cache, and still has it for the next question.
const REQUEST: &str = "Write a title for this conversation: at most six words, plain text, in its \
    language. Reply with the title alone.";
/// Characters of a title, at most.
const CHARACTERS: usize = 80;
/// Tokens of a title, at most: more than its characters need.
const TOKENS: u32 = 64;
/// Bytes of the question and the answer together, at most: longer ones would cost more than a title is
/// worth.
const CONVERSATION_BYTES: usize = 32 << 10;
/// Bytes of a model's reply that are read, at most: the title is in its first line.
const REPLY_BYTES: usize = 4 << 10;
/// Titles that one replica has written at the same time, at most. Others are dropped.
const AT_ONCE: usize = 8;
/// How long the host may take for a title.
const LIMIT: Duration = Duration::from_secs(30);
/// The time between two looks at the queue while a title is written.
const LOOK: Duration = Duration::from_millis(200);

/// The titles of one replica. Cloning is cheap, and clones share the bound.
#[derive(Clone)]
pub(super) struct TitleWriter {
    titles: Titles,
    running: Arc<Semaphore>,
}

impl TitleWriter {
    pub(super) fn new(titles: Titles) -> Self {
        Self { titles, running: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

/// Why a session keeps its title.
enum Dropped {
    /// Others need the slot, or none is free.
    Busy,
    /// The session has a title that the user or the model gave, or is deleted.
    Given,
    /// The host failed, or wrote no title.
    Failed,
}

impl From<OllamaError> for Dropped {
    fn from(error: OllamaError) -> Self {
        tracing::debug!(%error, "title not written");
        Self::Failed
    }
}

impl From<StoreError> for Dropped {
    fn from(error: StoreError) -> Self {
        tracing::debug!(%error, "title not stored");
        Self::Failed
    }
}

impl Generations {
    /// Has the model write the title of a session, behind the first answer of which this was called.
    pub(super) fn write_title(&self, turn: &Arc<Turn>, answer: &str) {
        let question = &turn.question().content;
        if self.titles.titles != Titles::Model
            || turn.own_conversation().is_some()
            || answer.trim().is_empty()
            || question.len() + answer.len() > CONVERSATION_BYTES
            || self.store.lifecycle().is_draining()
        {
            return;
        }
        let Ok(permit) = Arc::clone(&self.titles.running).try_acquire_owned() else {
            return count(Dropped::Busy.outcome());
        };
        let system = turn.spec.system.clone();
        let messages = system.map(|system| ChatMessage::text(ChatRole::System, system));
        let messages = messages.into_iter().chain([
            ChatMessage::text(ChatRole::User, question.clone()),
            ChatMessage::text(ChatRole::Assistant, answer.to_owned()),
            ChatMessage::text(ChatRole::User, REQUEST.to_owned()),
        ]);
        let messages = messages.collect();
        let (generations, turn) = (self.clone(), Arc::clone(turn));
        spawn_caught("turn", async move {
            let _permit = permit;
            count(match generations.title(&turn, messages).await {
                Ok(()) => "written",
                Err(dropped) => dropped.outcome(),
            });
        });
    }

    async fn title(&self, turn: &Turn, messages: Vec<ChatMessage>) -> Result<(), Dropped> {
        if self.queue.has_waiting() {
            return Err(Dropped::Busy);
        }
        // The session may have become a user's since the turn was accepted, or have got a title.
        let session = self.store.measure(turn.session).await?;
        let Some(Measured { owner, is_titled: false, .. }) = session else {
            return Err(Dropped::Given);
        };
        let generation = GenerationId::random();
        let ticket = capacity::ticket(turn, &owner, &self.source_key);
        let mut lease = self.queue.lease(Ticket { generation, has_text: false, ..ticket });
        let Ok(TicketStatus::Granted(grant)) = lease.join(false).await else {
            return Err(Dropped::Busy);
        };
        let host = HostId::new(&grant.host.0);
        let used = AtomicU64::new(0);
        let written = tokio::select! {
            written = self.write_at(&host, &turn.spec.model, messages, &used) => {
                written.map_err(Dropped::from)
            }
            () = self.anything_waits() => Err(Dropped::Busy),
            () = self.stop.cancelled() => Err(Dropped::Busy),
            () = sleep(LIMIT) => Err(Dropped::Busy),
        };
        drop(lease);
        self.limits.count_tokens(&owner, generation, used.into_inner()).await;
        let title = plain(&written?);
        if title.is_empty() {
            return Err(Dropped::Failed);
        }
        Ok(self.apply_update(Update::title_of_model(&owner, turn.session, title)).await?)
    }

    /// Returns what the model writes. The tokens of it and its prompt are in `used`, also where this is
    /// dropped: an estimate then.
    async fn write_at(
        &self,
        host: &HostId,
        model: &str,
        messages: Vec<ChatMessage>,
        used: &AtomicU64,
    ) -> Result<String, OllamaError> {
        let prompt_bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        let slot = self.fleet.slot(host, model).await?;
        // Another context window would reload the model.
        let num_ctx = slot.num_ctx().await?.map(|tokens| tokens.min(self.num_ctx_cap));
        let request = ModelRequest {
            messages,
            options: Options {
                temperature: Some(0.0),
                num_predict: TOKENS,
                num_ctx,
                ..Options::default()
            },
            think: Think::No,
            format: None,
            tools: None,
        };
        // A host answers when it has evaluated the prompt.
        used.store((prompt_bytes as u64).div_ceil(BYTES_PER_TOKEN), Ordering::Relaxed);
        let mut stream = match slot.chat(&request).await {
            Ok(stream) => stream,
            Err(error) => {
                used.store(0, Ordering::Relaxed);
                return Err(error);
            }
        };
        let mut text = String::new();
        while let Some(token) = stream.next().await? {
            text.push_str(&token.content);
            used.fetch_add(1, Ordering::Relaxed);
            if text.len() >= REPLY_BYTES {
                // Dropped, the stream ends the work of a host that does not heed the number of tokens.
                return Ok(text);
            }
            if let Some(Done { prompt_eval_count, eval_count, .. }) = token.done {
                used.store(prompt_eval_count + eval_count, Ordering::Relaxed);
                return Ok(text);
            }
        }
        Err(OllamaError::Interrupted("no end"))
    }

    /// Waits until any ticket waits in the queue.
    async fn anything_waits(&self) {
        while !self.queue.has_waiting() {
            sleep(LOOK).await;
        }
    }
}

impl Dropped {
    fn outcome(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Failed => "failed",
            Self::Given => "given",
        }
    }
}

fn count(outcome: &'static str) {
    metrics::counter!(metric::TITLES_TOTAL, "outcome" => outcome).increment(1);
}

/// Returns the title in a model's reply as plain text: of its first line that has a letter or a digit,
/// without Markdown, quotes and a heading "Title:", in at most [`CHARACTERS`].
fn plain(reply: &str) -> String {
    let has_text = |line: &&str| line.chars().any(char::is_alphanumeric);
    let line = reply.lines().find(has_text).unwrap_or_default();
    let line: String = line.chars().map(|it| if it.is_control() { ' ' } else { it }).collect();
    let line = line.trim_start_matches(['#', '*', '_', '`', '-', '>', ' ']);
    let after = line.get(..6).filter(|start| start.eq_ignore_ascii_case("title:"));
    let line = after.map_or(line, |start| &line[start.len()..]);
    let marks = ['"', '\'', '`', '*', '_', '“', '”', '„', '«', '»', '‘', '’', '.', ' '];
    let words: Vec<&str> = line.trim_matches(marks).split_whitespace().collect();
    shortened(&words.join(" "), CHARACTERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_one_plain_line_of_80_characters_at_most() {
        for (reply, title) in [
            ("Sorting a list in Rust", "Sorting a list in Rust"),
            ("\n\n\"Sorting a list\"\nIt is about lists.", "Sorting a list"),
            ("**Title: Sorting  lists.**", "Sorting lists"),
            ("# TITLE: „Listen sortieren“", "Listen sortieren"),
            ("配列の並べ替え", "配列の並べ替え"),
            ("\u{7}a\tb\u{0}c", "a b c"),
            ("---\n***", ""),
            ("", ""),
        ] {
            assert_eq!(plain(reply), title, "{reply:?}");
        }
        let long = "word ".repeat(40);
        let title = plain(&long);
        assert!(title.chars().count() <= CHARACTERS, "{title}");
        assert!(title.starts_with("word word") && title.ends_with("word…"), "{title}");
    }
}
