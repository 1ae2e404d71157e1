//! The context of an answer: the system prompt, whole turns of the conversation, the question.
//!
//! A host caches the prompt that it evaluated last, and evaluates of the next one only what follows
//! their common beginning. So a prompt begins with the same turn as the one before it for as long
//! as it fits. When it no longer fits, so many turns are dropped at once that a quarter of the room
//! is free for the turns to come. The first turn of the last prompt follows from the report that is
//! stored with its answer: every replica makes the same choice from what is stored.

mod budget;
mod past_turns;
mod tokens;

use crate::ollama::{
    CalledFunction, ChatMessage, ChatRole, ModelRequest, OllamaError, Options, RawJson,
    RequestedCall, Think,
};
use crate::session::model::{ContextReport, Effort, Failure, Reasoning, TurnSpec};
use crate::session::store::{OwnConversation, Page, Turn};
use crate::session::{ImageRef, Message, Owner, Role, SessionInfo, Store, StoreError};

use super::failures::failure;
use budget::{HEADER_BYTES, PromptSize, first_turn, image_share, sizes_from, token_room};
use past_turns::{PastTurn, Turns, first_of_prompt, with_those_before};
use tokens::{BYTES_PER_TOKEN, TokenEstimate, least_tokens, text_bytes};

/// Messages that are read, from the newest back, at most.
const MESSAGES: u64 = 400;
/// Bytes of these messages as they are stored, at most.
const BYTES: usize = 512 << 10;

/// A request to the model, with its report.
pub(super) struct ChosenContext {
    pub(super) request: ModelRequest,
    pub(super) report: ContextReport,
    /// The estimated tokens of the prompt.
    pub(super) estimate: f64,
    /// The images of each message of the request, which has none of them yet.
    pub(super) images: Vec<Vec<ImageRef>>,
}

/// The beginning of a prompt.
#[derive(Clone, Copy, Debug)]
pub(super) enum Beginning {
    /// The prompt begins where the last one began, or later. Each estimated token counts as
    /// `density` real ones, which is 1 until the host has found the prompt too long.
    Fitting { density: f64 },
    /// The prompt has this number of messages, as when the answer so far was generated.
    Sent(u64),
}

/// Returns the failure of a question that fits into no context window of so many tokens, however the
/// model divides it into tokens: such a question is refused before it is stored.
pub(super) fn obviously_too_long(
    question: &str,
    spec: &TurnSpec,
    num_ctx: Option<u32>,
) -> Option<Failure> {
    let num_ctx = num_ctx?;
    let least = least_tokens(question) + spec.system.as_deref().map_or(0, least_tokens);
    let is_too_long = least > num_ctx as usize;
    is_too_long.then(|| {
        failure(&OllamaError::ContextTooLong {
            prompt_tokens: least as u64,
            num_ctx: num_ctx.into(),
        })
    })
}

/// The conversation as it was when the turn began.
pub(super) struct Conversation {
    page: Page,
    /// Whether the conversation came with the turn: it is then sent whole, or not at all.
    is_of_turn: bool,
}

impl Conversation {
    /// Creates a conversation from the messages that came with the turn, and its question.
    pub(super) fn of_turn(turn: &Turn, conversation: &OwnConversation) -> Self {
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
            pinned: false,
            archived: false,
            running: true,
        };
        Self { page: Page { info, running: None, first: 0, messages }, is_of_turn: true }
    }

    /// Returns whether there is nothing to answer yet: the question is the result of one call, and
    /// the answer before it has calls without a result.
    pub(super) fn awaits_results(&self) -> bool {
        !self.is_of_turn && Turns::of(&self.page.messages).awaits_results()
    }

    /// Returns whether a message of the request has to be sent as it is: the question, and every
    /// message of a conversation that came with the turn. `from_end` counts the messages behind it.
    pub(super) fn is_required(&self, from_end: usize) -> bool {
        self.is_of_turn || from_end == 0
    }

    /// Returns whether messages may be left out where the host finds the prompt too long.
    pub(super) fn can_be_shortened(&self) -> bool {
        !self.is_of_turn
    }

    /// Reads the conversation. Returns none where it does not end with the turn's question: a
    /// failover lost that, and the writer is about to restore it.
    pub(super) async fn read(store: &Store, turn: &Turn) -> Result<Option<Self>, StoreError> {
        let newest =
            async |owner: &Owner| match store.newest(owner, turn.session, MESSAGES, BYTES).await {
                Ok(page) => Ok(Some(page)),
                Err(StoreError::Absent) => Ok(None),
                Err(error) => Err(error),
            };
        let mut page = newest(&turn.owner).await?;
        if page.is_none() && turn.owner == Owner::Anonymous {
            // The session may have become a user's since.
            page = newest(&store.owner_of(turn).await?).await?;
        }
        let Some(page) = page else { return Ok(None) };
        let has_question = page.messages.last().is_some_and(|message| turn.answers(message));
        Ok(has_question.then_some(Self { page, is_of_turn: false }))
    }

    /// Returns the request for the turn's answer, in a context window of `num_ctx` tokens. The
    /// question is always sent, and so is a conversation that came with the turn: the host finds
    /// out whether they fit.
    pub(super) fn request(
        &self,
        spec: &TurnSpec,
        num_ctx: Option<u32>,
        beginning: Beginning,
    ) -> ChosenContext {
        let (sent, estimate) = if self.is_of_turn {
            let estimate = TokenEstimate { bytes_per_token: BYTES_PER_TOKEN };
            let system = spec.system.as_deref().map_or(0.0, |system| estimate.of_text(system));
            let messages = self.page.messages.iter();
            let tokens: f64 = messages.map(|message| estimate.of_message(message)).sum();
            (self.page.messages.iter().collect(), tokens + system)
        } else {
            self.fitting(spec, num_ctx, beginning)
        };
        let report = ContextReport {
            messages_sent: sent.len() as u64,
            messages_dropped: self.page.info.message_count.saturating_sub(sent.len() as u64),
            prompt_tokens: 0,
            num_ctx: num_ctx.map_or(0, u64::from),
        };
        let system = spec
            .system
            .as_ref()
            .map(|content| ChatMessage::text(ChatRole::System, content.clone()));
        // A conversation that came with the turn is sent as it is.
        let sent = if self.is_of_turn { sent } else { with_those_before(&sent) };
        let images = system.iter().map(|_| Vec::new());
        let images = images.chain(sent.iter().map(|message| message.images.clone())).collect();
        let request = ModelRequest {
            messages: system.into_iter().chain(sent.into_iter().map(chat_message)).collect(),
            options: Options {
                temperature: spec.temperature,
                num_predict: spec.max_tokens,
                num_ctx,
                seed: spec.seed,
                stop: spec.stop.clone(),
                top_k: spec.sampling.top_k,
                top_p: spec.sampling.top_p,
                min_p: spec.sampling.min_p,
                repeat_penalty: spec.sampling.repeat_penalty,
                presence_penalty: spec.sampling.presence_penalty,
                frequency_penalty: spec.sampling.frequency_penalty,
            },
            think: think(spec.think),
            format: raw_json(spec.rules.format.as_ref()),
            tools: raw_json(spec.rules.tools.as_ref()),
        };
        ChosenContext { request, report, estimate, images }
    }

    /// Returns the messages of the prompt, and the estimated tokens with the system prompt.
    fn fitting(
        &self,
        spec: &TurnSpec,
        num_ctx: Option<u32>,
        beginning: Beginning,
    ) -> (Vec<&Message>, f64) {
        let Turns { past, open } = Turns::of(&self.page.messages);
        let estimate = TokenEstimate::of(&past, spec);
        let system_tokens = spec.system.as_deref().map_or(0.0, |system| estimate.of_text(system));
        let rules_tokens = spec.rules.bytes() as f64 / estimate.bytes_per_token;
        let open_tokens: f64 = open.iter().map(|message| estimate.of_message(message)).sum();
        let open_bytes: usize = open.iter().map(|it| text_bytes(it) + HEADER_BYTES).sum();
        let always = PromptSize {
            tokens: system_tokens + rules_tokens + open_tokens,
            messages: open.len() as f64,
            bytes: open_bytes as f64,
            images: open.iter().map(|message| image_share(message)).sum(),
        };
        let sizes = sizes_from(&past, &estimate, always);
        let first = match beginning {
            Beginning::Sent(messages) => {
                first_of_prompt(&past, past.len(), open.len(), messages).unwrap_or(0)
            }
            Beginning::Fitting { density } => {
                let room = PromptSize {
                    tokens: token_room(spec, num_ctx) / density,
                    messages: MESSAGES as f64,
                    bytes: BYTES as f64,
                    images: 1.0,
                };
                first_turn(&sizes, room, self.last_beginning(&past, spec, num_ctx))
            }
        };
        let sent = past[first..].iter().flat_map(PastTurn::messages).chain(open).collect();
        (sent, sizes[first].tokens)
    }

    /// Returns the turn that the last prompt for this model and context window began with: the
    /// first turn of all where there was no such prompt. None where that turn is beyond the messages that
    /// are read.
    fn last_beginning(
        &self,
        past: &[PastTurn<'_>],
        spec: &TurnSpec,
        num_ctx: Option<u32>,
    ) -> Option<usize> {
        let (model, num_ctx) = (&spec.model, num_ctx.map_or(0, u64::from));
        let reported = past.iter().enumerate().rev().find_map(|(at, turn)| {
            let report = turn.answer.context.filter(|report| report.messages_sent > 0)?;
            let is_same = report.num_ctx == num_ctx && turn.is_by(model);
            let own = turn.before_answer().count();
            is_same.then(|| first_of_prompt(past, at, own, report.messages_sent))
        });
        let very_first = (self.page.first == 0).then_some(0);
        reported.flatten().or(very_first)
    }
}

fn chat_message(message: &Message) -> ChatMessage {
    let role = match message.role {
        Role::System => ChatRole::System,
        Role::User => ChatRole::User,
        Role::Assistant => ChatRole::Assistant,
        Role::Tool => ChatRole::Tool,
    };
    let tool_calls = message.tool_calls.iter().filter_map(|call| {
        let arguments = RawJson::new(call.arguments.clone())?;
        let function = CalledFunction { name: call.name.clone(), arguments };
        Some(RequestedCall { id: call.id.clone(), function })
    });
    ChatMessage {
        role,
        content: message.content.clone(),
        images: Vec::new(),
        tool_calls: tool_calls.collect(),
        tool_name: message.tool_name.clone(),
        tool_call_id: message.tool_call_id.clone(),
    }
}

/// Returns the JSON of a stored rule. A front checks it before it is stored.
fn raw_json(stored: Option<&String>) -> Option<RawJson> {
    stored.and_then(|text| RawJson::new(text.clone()))
}

fn think(reasoning: Reasoning) -> Think {
    match reasoning {
        Reasoning::Off => Think::No,
        Reasoning::On => Think::Yes,
        Reasoning::Effort(Effort::Low) => Think::Low,
        Reasoning::Effort(Effort::Medium) => Think::Medium,
        Reasoning::Effort(Effort::High) => Think::High,
    }
}

#[cfg(test)]
mod tests;
