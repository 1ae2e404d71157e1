//! What the model is given: the system prompt, as much of the conversation as fits, the question.

use crate::ollama::{ChatMessage, ChatRequest, ChatRole, Options};
use crate::session::model::ContextReport;
use crate::session::store::{OwnConversation, Page, Turn};
use crate::session::{Message, Role, SessionInfo, Status, Store, StoreError};

/// Messages that are looked at, from the newest back, at most.
const MESSAGES: u64 = 400;
/// Bytes of them, at most.
const BYTES: usize = 512 << 10;
/// Bytes of a token, while the conversation has not told better: less than in the languages and
/// models we know, so that the estimate is high.
const BYTES_PER_TOKEN: f64 = 3.0;
/// What a conversation may have told, at most and at least.
const LEARNED: std::ops::RangeInclusive<f64> = 0.5..=8.0;
/// How much more an estimate from what was learned is taken for.
const CAUTION: f64 = 1.1;
/// Tokens that a chat template puts around one message.
const TOKENS_AROUND_MESSAGE: f64 = 8.0;
/// Share of the window that is left for the answer, at most.
const ANSWER_SHARE: f64 = 0.5;

/// What is sent to the model.
pub(super) struct Chosen {
    pub(super) request: ChatRequest,
    pub(super) report: ContextReport,
    /// What it was taken for, in tokens.
    pub(super) estimate: f64,
}

/// The conversation as it was when the turn began.
pub(super) struct Conversation {
    page: Page,
    /// Whether the turn brought it with it: then it is sent as it is, or not at all.
    is_own: bool,
}

impl Conversation {
    /// What the turn brought with it, and its question.
    pub(super) fn own(turn: &Turn, conversation: &OwnConversation) -> Self {
        let question = turn.question();
        let messages: Vec<Message> =
            conversation.messages().iter().chain([question]).cloned().collect();
        let info = SessionInfo {
            session_id: turn.session,
            title: String::new(),
            model: turn.spec.model.clone(),
            created_at: question.timestamp,
            updated_at: question.timestamp,
            message_count: messages.len() as u64,
        };
        Self { page: Page { info, running: None, first: 0, messages }, is_own: true }
    }

    /// Whether fewer messages may be sent where these are too many for the host.
    pub(super) fn can_be_shortened(&self) -> bool {
        !self.is_own
    }

    /// None where it does not end with the turn's question: a failover took that, and its writer is
    /// about to bring it back.
    pub(super) async fn read(store: &Store, turn: &Turn) -> Result<Option<Self>, StoreError> {
        let page = match store.newest(&turn.owner, turn.session, MESSAGES, BYTES).await {
            Ok(page) => page,
            Err(StoreError::Absent) => return Ok(None),
            Err(error) => return Err(error),
        };
        let ends_well = page.messages.last().is_some_and(|message| turn.answers(message));
        Ok(ends_well.then_some(Self { page, is_own: false }))
    }

    /// Chooses from the newest back what fits `num_ctx` tokens, where each token of the estimate is
    /// `density` true ones: 1 until the host has said that it was too much.
    pub(super) fn request(&self, turn: &Turn, num_ctx: Option<u32>, density: f64) -> Chosen {
        let spec = &turn.spec;
        let room = num_ctx.map_or(f64::INFINITY, |window| {
            let window = f64::from(window);
            (window - f64::from(spec.max_tokens).min(window * ANSWER_SHARE)) / density
        });
        let measure = Measure::of(&self.page.messages, &spec.model);
        let mut estimate = spec.system.as_deref().map_or(0.0, |system| measure.text(system));
        let kept = |message: &&Message| self.is_own || !message.content.is_empty();
        let told = self.page.messages.iter().rev().filter(kept);
        let mut chosen = Vec::new();
        for message in told {
            let longer = estimate + measure.message(message);
            // The question itself always goes: whether it fits is for the host to say.
            if longer > room && !chosen.is_empty() && !self.is_own {
                break;
            }
            estimate = longer;
            let role = match message.role {
                Role::System => ChatRole::System,
                Role::User => ChatRole::User,
                Role::Assistant => ChatRole::Assistant,
                Role::Tool => ChatRole::Tool,
            };
            chosen.push(ChatMessage { role, content: message.content.clone() });
        }
        let sent = chosen.len() as u64;
        let empty =
            self.page.messages.iter().filter(|message| message.content.is_empty()).count() as u64;
        let system = spec
            .system
            .as_ref()
            .map(|content| ChatMessage { role: ChatRole::System, content: content.clone() });
        let request = ChatRequest {
            model: spec.model.clone(),
            messages: system.into_iter().chain(chosen.into_iter().rev()).collect(),
            options: Options {
                temperature: spec.temperature,
                num_predict: spec.max_tokens,
                num_ctx,
                seed: spec.seed,
                stop: spec.stop.clone(),
            },
            think: spec.think,
        };
        let report = ContextReport {
            messages_sent: sent,
            messages_dropped: self.page.info.message_count.saturating_sub(sent + empty),
            prompt_tokens: 0,
            num_ctx: num_ctx.map_or(0, u64::from),
        };
        Chosen { request, report, estimate }
    }
}

/// How many tokens a text is: learned from what the host counted in this conversation, as only it
/// knows its model's tokenizer.
struct Measure {
    bytes_per_token: f64,
}

impl Measure {
    /// From the newest answer of this model that tells what it was given.
    fn of(messages: &[Message], model: &str) -> Self {
        let learned = messages.iter().enumerate().rev().find_map(|(place, answer)| {
            let (usage, context) = (answer.usage?, answer.context?);
            let told = answer.model.as_deref() == Some(model) && usage.prompt_tokens > 0;
            // A system prompt is counted, too, and makes the estimate a little higher.
            let sent = messages[..place].iter().rev().filter(|sent| !sent.content.is_empty());
            let sent = sent.take(context.messages_sent as usize).collect::<Vec<_>>();
            let bytes: usize = sent.iter().map(|sent| sent.content.len()).sum();
            let around = sent.len() as f64 * TOKENS_AROUND_MESSAGE;
            let tokens = (usage.prompt_tokens as f64 - around).max(1.0);
            (told && sent.len() as u64 == context.messages_sent).then(|| bytes as f64 / tokens)
        });
        let bytes_per_token = learned.map_or(BYTES_PER_TOKEN, |bytes| {
            bytes.clamp(*LEARNED.start(), *LEARNED.end()) / CAUTION
        });
        Self { bytes_per_token }
    }

    fn text(&self, text: &str) -> f64 {
        text.len() as f64 / self.bytes_per_token + TOKENS_AROUND_MESSAGE
    }

    fn message(&self, message: &Message) -> f64 {
        match (message.usage, message.status) {
            // Counted by the host, as it said them; thoughts are counted with them and not sent.
            (Some(usage), Some(Status::Complete))
                if usage.completion_tokens > 0 && message.thinking.is_none() =>
            {
                usage.completion_tokens as f64 + TOKENS_AROUND_MESSAGE
            }
            _ => self.text(&message.content),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Usage;
    use crate::session::store::message;

    fn said(content: &str) -> Message {
        Message { content: content.to_owned(), ..message(Role::User, chrono::Utc::now()) }
    }

    fn answered(sent: u64, prompt_tokens: u64) -> Message {
        Message {
            model: Some("m".to_owned()),
            status: Some(Status::Complete),
            usage: Some(Usage { prompt_tokens, completion_tokens: 5 }),
            context: Some(ContextReport { messages_sent: sent, ..ContextReport::default() }),
            ..said("an answer")
        }
    }

    #[test]
    fn what_the_host_counted_is_the_measure_of_what_comes() {
        let question = "x".repeat(1000);
        // A thousand bytes were ten tokens more than what stands around a message.
        let messages = [said(&question), answered(1, 8 + 10)];
        let learned = Measure::of(&messages, "m");
        assert!((learned.bytes_per_token - *LEARNED.end() / CAUTION).abs() < 1e-9, "the most");
        let messages = [said(&question), answered(1, 8 + 500)];
        let learned = Measure::of(&messages, "m");
        assert!((learned.bytes_per_token - 2.0 / CAUTION).abs() < 1e-9);
        assert!(learned.text(&question) > 500.0);
        let of_another = Measure::of(&messages, "another model");
        assert!((of_another.bytes_per_token - BYTES_PER_TOKEN).abs() < 1e-9);
    }

    #[test]
    fn an_answer_is_as_long_as_the_host_said() {
        let measure = Measure::of(&[], "m");
        assert!((measure.message(&answered(1, 9)) - 13.0).abs() < 1e-9);
    }
}
