//! What the model is given: the system prompt, as much of the conversation as fits, the question.

use crate::ollama::{ChatMessage, ChatRequest, ChatRole, Options};
use crate::session::model::ContextReport;
use crate::session::store::{Page, Turn};
use crate::session::{Owner, Role, SessionId, Store, StoreError};

/// Messages that are looked at, from the newest back, at most.
const MESSAGES: u64 = 400;
/// Bytes of them, at most.
const BYTES: usize = 512 << 10;
/// Bytes of a token, at least, in the languages and models we know: an estimate that is corrected
/// by the host's own count when it was too bold.
const BYTES_PER_TOKEN: f64 = 3.0;
/// Tokens that a chat template puts around one message.
const TOKENS_AROUND_MESSAGE: f64 = 8.0;
/// Share of the window that is left for the answer, at most.
const ANSWER_SHARE: f64 = 0.5;

/// The conversation as it was when the turn began.
pub(super) struct Conversation {
    page: Page,
}

impl Conversation {
    pub(super) async fn read(
        store: &Store,
        owner: &Owner,
        session: SessionId,
    ) -> Result<Self, StoreError> {
        Ok(Self { page: store.newest(owner, session, MESSAGES, BYTES).await? })
    }

    /// Chooses from the newest back what fits `num_ctx` tokens, in a measure that `boldness` scales
    /// (1 for the estimate; less once the host said that it was too much).
    pub(super) fn request(
        &self,
        turn: &Turn,
        num_ctx: Option<u32>,
        boldness: f64,
    ) -> (ChatRequest, ContextReport) {
        let spec = &turn.spec;
        let mut room = num_ctx.map_or(f64::INFINITY, |window| {
            let window = f64::from(window);
            (window - f64::from(spec.max_tokens).min(window * ANSWER_SHARE)) * boldness
        });
        room -= spec.system.as_deref().map_or(0.0, tokens);
        let told = self.page.messages.iter().rev().filter(|message| !message.content.is_empty());
        let mut chosen = Vec::new();
        for message in told {
            room -= tokens(&message.content);
            // The question itself always goes: whether it fits is for the host to say.
            if room < 0.0 && !chosen.is_empty() {
                break;
            }
            let role = match message.role {
                Role::User => ChatRole::User,
                Role::Assistant => ChatRole::Assistant,
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
        (request, report)
    }
}

fn tokens(text: &str) -> f64 {
    text.len() as f64 / BYTES_PER_TOKEN + TOKENS_AROUND_MESSAGE
}
