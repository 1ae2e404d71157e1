//! Titles that the model writes after the first answer of a session, where the operator wants them.
//!
//! A title has the lowest priority: it is dropped where no slot is free at once, or as soon as anything
//! waits in the queue. Its tokens count for the owner of the session. It replaces the beginning of the
//! first question, and never a title that a user gave.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Generations;
use super::capacity;
use crate::config::Titles;
use crate::lifecycle::spawn_caught;
use crate::ollama::{
    ChatMessage, ChatRole, Done, HostId, ModelRequest, OllamaError, Options, Think,
};
use crate::queue::{Ticket, TicketStatus};
use crate::session::store::Turn;
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
/// Titles that one replica has written at the same time, at most. Others are dropped.
const AT_ONCE: usize = 8;
/// How long a title may take.
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
            let titled = timeout(LIMIT, generations.title(&turn, messages)).await;
            count(match titled.unwrap_or(Err(Dropped::Busy)) {
                Ok(()) => "written",
                Err(dropped) => dropped.outcome(),
            });
        });
    }

    async fn title(&self, turn: &Turn, messages: Vec<ChatMessage>) -> Result<(), Dropped> {
        if self.queue.has_waiting() {
            return Err(Dropped::Busy);
        }
        // The session may have become a user's since the turn was accepted.
        let owner = self.store.owner_of(turn).await?;
        let generation = GenerationId::random();
        let ticket = capacity::ticket(turn, &owner, &self.source_key);
        let mut lease = self.queue.lease(Ticket { generation, has_text: false, ..ticket });
        let Ok(TicketStatus::Granted(grant)) = lease.join(false).await else {
            return Err(Dropped::Busy);
        };
        let host = HostId::new(&grant.host.0);
        let (title, tokens) = tokio::select! {
            written = self.write_at(&host, &turn.spec.model, messages) => written?,
            () = self.anything_waits() => return Err(Dropped::Busy),
            () = self.stop.cancelled() => return Err(Dropped::Busy),
        };
        drop(lease);
        self.limits.count_tokens(&owner, generation, tokens).await;
        let title = plain(&title);
        if title.is_empty() {
            return Err(Dropped::Failed);
        }
        Ok(self.store.entitle(&owner, turn.session, &title).await?)
    }

    /// Returns what the model writes, and the tokens of it and its prompt.
    async fn write_at(
        &self,
        host: &HostId,
        model: &str,
        messages: Vec<ChatMessage>,
    ) -> Result<(String, u64), OllamaError> {
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
        let mut stream = slot.chat(&request).await?;
        let mut text = String::new();
        while let Some(token) = stream.next().await? {
            text.push_str(&token.content);
            if let Some(Done { prompt_eval_count, eval_count, .. }) = token.done {
                return Ok((text, prompt_eval_count + eval_count));
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
