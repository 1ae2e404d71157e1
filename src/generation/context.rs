//! What the model is given: the system prompt, whole turns of the conversation, the question.
//!
//! A host caches the prompt that it evaluated last, and evaluates of the next one only what follows
//! the beginning that both share. So a prompt begins with the same turn as the one before it for as
//! long as it fits. When it does not fit any more, so many turns are dropped at once that a quarter
//! of the room is free for the turns to come. Where the last prompt began follows from the report
//! that is stored with its answer: every replica chooses the same, and none remembers anything.

use crate::model_name::ModelName;
use crate::ollama::{ChatMessage, ChatRole, ModelRequest, Options, Think};
use crate::session::model::{ContextReport, Effort, Reasoning, TurnSpec};
use crate::session::store::{OwnConversation, Page, Turn};
use crate::session::{Message, Role, SessionInfo, Status, Store, StoreError};

/// Messages that are looked at, from the newest back, at most.
const MESSAGES: u64 = 400;
/// Bytes of them as they are stored, at most.
const BYTES: usize = 512 << 10;
/// Bytes of the headers of a question and its answer as they are stored, about.
const HEADER_BYTES: usize = 1 << 10;
/// Share of the room that is in use after turns were dropped.
const AFTER_CUT: f64 = 0.75;
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
    pub(super) request: ModelRequest,
    pub(super) report: ContextReport,
    /// What it was taken for, in tokens.
    pub(super) estimate: f64,
}

/// Where a prompt is to begin.
#[derive(Clone, Copy, Debug)]
pub(super) enum Beginning {
    /// Where the last prompt began, or later. Each token of the estimate is `density` true ones: 1
    /// until the host has said that the prompt was too long.
    Fitting { density: f64 },
    /// Where so many messages are sent: as many as were when the answer so far was generated.
    Sent(u64),
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

    /// The request for the turn's answer, in a window of `num_ctx` tokens. The question itself
    /// always goes: whether it fits is for the host to say. So does all that the turn brought.
    pub(super) fn request(
        &self,
        spec: &TurnSpec,
        num_ctx: Option<u32>,
        beginning: Beginning,
    ) -> Chosen {
        let (sent, estimate) = if self.is_own {
            let measure = Measure { bytes_per_token: BYTES_PER_TOKEN };
            let texts = self.page.messages.iter().map(|message| message.content.as_str());
            let tokens = texts.chain(spec.system.as_deref()).map(|text| measure.text(text)).sum();
            (self.page.messages.iter().map(chat_message).collect(), tokens)
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
            .map(|content| ChatMessage { role: ChatRole::System, content: content.clone() });
        let request = ModelRequest {
            messages: system.into_iter().chain(sent).collect(),
            options: Options {
                temperature: spec.temperature,
                num_predict: spec.max_tokens,
                num_ctx,
                seed: spec.seed,
                stop: spec.stop.clone(),
            },
            think: think(spec.think),
        };
        Chosen { request, report, estimate }
    }

    /// The messages that are sent, and the estimate of what they take with the system prompt.
    fn fitting(
        &self,
        spec: &TurnSpec,
        num_ctx: Option<u32>,
        beginning: Beginning,
    ) -> (Vec<ChatMessage>, f64) {
        let (question, before) = match self.page.messages.split_last() {
            Some((question, before)) => (Some(question), before),
            None => (None, &[][..]),
        };
        let past = past_turns(before);
        let measure = Measure::of(&past, spec);
        let system_tokens = spec.system.as_deref().map_or(0.0, |system| measure.text(system));
        let asked = question.map_or("", |question| question.content.as_str());
        let always = Size {
            tokens: system_tokens + measure.text(asked),
            messages: 1.0,
            bytes: (asked.len() + HEADER_BYTES) as f64,
        };
        let from = sizes_from(&past, &measure, always);
        let first = match beginning {
            Beginning::Sent(messages) => past.len().saturating_sub(turns_before(messages)),
            Beginning::Fitting { density } => {
                let room = Size {
                    tokens: room(spec, num_ctx) / density,
                    messages: MESSAGES as f64,
                    bytes: BYTES as f64,
                };
                first_turn(&from, room, self.last_beginning(&past, spec, num_ctx))
            }
        };
        let sent = past[first..]
            .iter()
            .flat_map(|turn| [turn.question, turn.answer])
            .chain(question)
            .map(chat_message)
            .collect();
        (sent, from[first].tokens)
    }

    /// The turn that the last prompt for this model and window began with: the first of all where
    /// there was none. None where that turn is no longer within what is looked at.
    fn last_beginning(
        &self,
        past: &[PastTurn<'_>],
        spec: &TurnSpec,
        num_ctx: Option<u32>,
    ) -> Option<usize> {
        let (model, num_ctx) = (&spec.model, num_ctx.map_or(0, u64::from));
        let told = past.iter().enumerate().rev().find_map(|(place, turn)| {
            let report = turn.answer.context.filter(|report| report.messages_sent > 0)?;
            let same = report.num_ctx == num_ctx && turn.is_by(model);
            same.then(|| place.checked_sub(turns_before(report.messages_sent)))
        });
        let of_all = (self.page.first == 0).then_some(0);
        told.flatten().or(of_all)
    }
}

/// Tokens that a prompt may have, so that the answer has room in the window.
fn room(spec: &TurnSpec, num_ctx: Option<u32>) -> f64 {
    num_ctx.map_or(f64::INFINITY, |window| {
        let window = f64::from(window);
        window - f64::from(spec.max_tokens).min(window * ANSWER_SHARE)
    })
}

/// How many turns are before the question, where so many messages are sent.
fn turns_before(messages_sent: u64) -> usize {
    usize::try_from(messages_sent.saturating_sub(1) / 2).unwrap_or(usize::MAX)
}

fn chat_message(message: &Message) -> ChatMessage {
    let role = match message.role {
        Role::System => ChatRole::System,
        Role::User => ChatRole::User,
        Role::Assistant => ChatRole::Assistant,
        Role::Tool => ChatRole::Tool,
    };
    ChatMessage { role, content: message.content.clone() }
}

/// A question with its answer, or with as much of it as there was when it was cancelled or failed.
struct PastTurn<'a> {
    question: &'a Message,
    answer: &'a Message,
}

impl PastTurn<'_> {
    /// Whether this model answered, however its name is spelled.
    fn is_by(&self, model: &str) -> bool {
        self.answer.model.as_deref().is_some_and(|by| ModelName::same(by, model))
    }
}

/// The turns that have an answer, oldest first. One that was cancelled or failed before its first
/// word is left out: its user asks again, and a model that is given two questions in a row answers
/// the wrong one, or its template refuses them.
fn past_turns(messages: &[Message]) -> Vec<PastTurn<'_>> {
    let mut turns = Vec::with_capacity(messages.len() / 2);
    let mut asked = None;
    for message in messages {
        match message.role {
            Role::User => asked = Some(message),
            Role::System | Role::Tool => {}
            Role::Assistant => {
                if let Some(question) = asked.take()
                    && !message.content.trim().is_empty()
                {
                    turns.push(PastTurn { question, answer: message });
                }
            }
        }
    }
    turns
}

/// How much of each bound something takes.
#[derive(Clone, Copy, Debug)]
struct Size {
    tokens: f64,
    messages: f64,
    /// As it is stored.
    bytes: f64,
}

impl Size {
    fn fits(self, room: Self, share: f64) -> bool {
        self.tokens <= room.tokens * share
            && self.messages <= room.messages * share
            && self.bytes <= room.bytes * share
    }
}

/// What a prompt takes that begins with each of the turns; the last one has the question only.
fn sizes_from(past: &[PastTurn<'_>], measure: &Measure, always: Size) -> Vec<Size> {
    let mut from = vec![always; past.len() + 1];
    for (at, turn) in past.iter().enumerate().rev() {
        let after = from[at + 1];
        let thoughts = turn.answer.thinking.as_ref().map_or(0, String::len);
        let bytes = turn.question.content.len() + turn.answer.content.len() + thoughts;
        from[at] = Size {
            tokens: after.tokens + measure.text(&turn.question.content) + measure.answer(turn),
            messages: after.messages + 2.0,
            bytes: after.bytes + (bytes + HEADER_BYTES) as f64,
        };
    }
    from
}

/// The turn that the prompt begins with, of those that `from` tells the sizes of.
fn first_turn(from: &[Size], room: Size, last: Option<usize>) -> usize {
    if let Some(last) = last
        && from[last].fits(room, 1.0)
    {
        return last;
    }
    let question_only = from.len() - 1;
    let after_cut = (0..question_only).find(|first| from[*first].fits(room, AFTER_CUT));
    after_cut.unwrap_or_else(|| {
        // A long turn just before the question is worth more than the free quarter.
        let before = question_only.saturating_sub(1);
        if from[before].fits(room, 1.0) { before } else { question_only }
    })
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

/// How many tokens a text is: learned from what the host counted in this conversation, as only it
/// knows its model's tokenizer.
struct Measure {
    bytes_per_token: f64,
}

impl Measure {
    /// From the newest answer of this model that tells what it was given. The system prompt is
    /// taken for the one that it was given, too.
    fn of(past: &[PastTurn<'_>], spec: &TurnSpec) -> Self {
        let system = spec.system.as_ref().map_or(0, String::len);
        let learned = past.iter().enumerate().rev().find_map(|(place, turn)| {
            // Its usage may be an estimate, which nothing can be learned from.
            let report = turn.answer.context?;
            if report.prompt_tokens == 0 || report.messages_sent == 0 || !turn.is_by(&spec.model) {
                return None;
            }
            let first = place.checked_sub(turns_before(report.messages_sent))?;
            let before = past[first..place]
                .iter()
                .map(|turn| turn.question.content.len() + turn.answer.content.len());
            let bytes = before.sum::<usize>() + turn.question.content.len() + system;
            let around = report.messages_sent as f64 * TOKENS_AROUND_MESSAGE;
            let tokens = (report.prompt_tokens as f64 - around).max(1.0);
            Some(bytes as f64 / tokens)
        });
        let bytes_per_token = learned.map_or(BYTES_PER_TOKEN, |bytes| {
            bytes.clamp(*LEARNED.start(), *LEARNED.end()) / CAUTION
        });
        Self { bytes_per_token }
    }

    fn text(&self, text: &str) -> f64 {
        text.len() as f64 / self.bytes_per_token + TOKENS_AROUND_MESSAGE
    }

    /// The host has counted an answer as it generated it, but not what its template puts around it
    /// there: what was learned of whole prompts is taken where that is more.
    fn answer(&self, turn: &PastTurn<'_>) -> f64 {
        let answer = turn.answer;
        let text = self.text(&answer.content);
        match (answer.usage, answer.status) {
            // Thoughts are counted with it and not sent; those that nobody asked for are not even
            // stored.
            (Some(usage), Some(Status::Complete)) if answer.thinking.is_none() => {
                let counted = usage.completion_tokens.min(answer.content.len() as u64);
                text.max(counted as f64 + TOKENS_AROUND_MESSAGE)
            }
            _ => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::session::store::message;
    use crate::session::{SessionId, SessionInfo, Usage};

    const MODELS: [&str; 2] = ["m:latest", "other"];

    fn said(content: &str) -> Message {
        Message { content: content.to_owned(), ..message(Role::User, chrono::Utc::now()) }
    }

    fn answered(sent: u64, prompt_tokens: u64) -> Message {
        Message {
            role: Role::Assistant,
            model: Some("m".to_owned()),
            status: Some(Status::Complete),
            usage: Some(Usage { prompt_tokens, completion_tokens: 5 }),
            context: Some(ContextReport {
                messages_sent: sent,
                prompt_tokens,
                ..ContextReport::default()
            }),
            ..said("an answer")
        }
    }

    fn spec(model: &str, max_tokens: u32, system: Option<&str>) -> TurnSpec {
        TurnSpec {
            model: model.to_owned(),
            temperature: 0.0,
            max_tokens,
            system: system.map(str::to_owned),
            seed: None,
            stop: Vec::new(),
            think: Reasoning::Off,
            message_id: None,
            source: String::new(),
        }
    }

    /// The newest `limit` of these messages.
    fn conversation(messages: &[Message], limit: usize) -> Conversation {
        let now = chrono::Utc::now();
        let first = messages.len().saturating_sub(limit);
        let info = SessionInfo {
            session_id: SessionId::random(),
            title: String::new(),
            model: String::new(),
            created_at: now,
            updated_at: now,
            message_count: messages.len() as u64,
        };
        let messages = messages[first..].to_vec();
        let page = Page { info, running: None, first: first as u64, messages };
        Conversation { page, is_own: false }
    }

    const FITTING: Beginning = Beginning::Fitting { density: 1.0 };

    #[test]
    fn what_the_host_counted_is_the_measure_of_what_comes() {
        let question = "x".repeat(1000);
        let measure = |messages: &[Message], model| {
            Measure::of(&past_turns(messages), &spec(model, 10, None))
        };
        // A thousand bytes were ten tokens more than what stands around a message.
        let learned = measure(&[said(&question), answered(1, 8 + 10)], "m");
        assert!((learned.bytes_per_token - *LEARNED.end() / CAUTION).abs() < 1e-9, "the most");
        let messages = [said(&question), answered(1, 8 + 500)];
        let learned = measure(&messages, "m:latest");
        assert!((learned.bytes_per_token - 2.0 / CAUTION).abs() < 1e-9);
        assert!(learned.text(&question) > 500.0);
        let of_another = measure(&messages, "another model");
        assert!((of_another.bytes_per_token - BYTES_PER_TOKEN).abs() < 1e-9);
    }

    #[test]
    fn a_long_system_prompt_does_not_make_the_conversation_look_long() {
        let system = "s".repeat(9000);
        let messages = [said("a short question"), answered(1, 8 + 3005)];
        let measure = Measure::of(&past_turns(&messages), &spec("m", 10, Some(&system)));
        assert!((measure.bytes_per_token * CAUTION - 3.0).abs() < 0.01);
    }

    #[test]
    fn an_answer_is_as_long_as_the_host_said_but_no_longer_than_its_text_can_be() {
        let measure = Measure { bytes_per_token: BYTES_PER_TOKEN };
        let (question, mut answer) = (said("q"), answered(1, 9));
        let tokens = |answer: &Message| measure.answer(&PastTurn { question: &question, answer });
        assert!((tokens(&answer) - 13.0).abs() < 1e-9);
        // Thoughts that were counted and are not there.
        answer.usage = Some(Usage { prompt_tokens: 9, completion_tokens: 5000 });
        assert!((tokens(&answer) - 17.0).abs() < 1e-9);
    }

    #[test]
    fn a_long_turn_just_before_the_question_is_kept_where_it_fits() {
        let mut messages = vec![said("old"), answered(1, 9)];
        let long = Message { usage: None, ..answered(0, 0) };
        messages.extend([said("q"), Message { content: "x".repeat(2400), ..long }]);
        messages.push(said("and?"));
        // 800 tokens of an answer in a room of 924: more than three quarters.
        let chosen =
            conversation(&messages, 100).request(&spec("m", 100, None), Some(1024), FITTING);
        assert_eq!(chosen.request.messages.len(), 3);
    }

    #[test]
    fn a_larger_window_takes_back_in_what_a_smaller_one_dropped() {
        let mut messages = Vec::new();
        for _ in 0..20 {
            let chosen = {
                messages.push(said(&"a question ".repeat(10)));
                conversation(&messages, 100).request(&spec("m", 100, None), Some(512), FITTING)
            };
            messages.push(Message { context: Some(chosen.report), ..answered(0, 0) });
        }
        messages.push(said("q"));
        let conversation = conversation(&messages, 100);
        let small = conversation.request(&spec("m", 100, None), Some(512), FITTING);
        assert!(small.report.messages_dropped > 20);
        let large = conversation.request(&spec("m", 100, None), Some(8192), FITTING);
        assert_eq!(large.report.messages_dropped, 0);
    }

    #[derive(Clone, Debug)]
    struct Asked {
        question: usize,
        answer: usize,
        model: usize,
        max_tokens: u32,
        system: bool,
    }

    fn asked() -> impl Strategy<Value = Asked> {
        // Every fourth turn ends without a word.
        let answer = prop_oneof![1 => Just(0usize), 3 => 1usize..900];
        (1usize..900, answer, 0usize..2, 1u32..600, any::<bool>()).prop_map(
            |(question, answer, model, max_tokens, system)| Asked {
                question,
                answer,
                model,
                max_tokens,
                system,
            },
        )
    }

    proptest! {
        #[test]
        fn a_prompt_is_whole_turns_that_fit_and_begins_where_the_last_one_did_while_it_can(
            turns in proptest::collection::vec(asked(), 1..60),
            window in 256u32..4096,
            page in 9usize..120,
        ) {
            let mut messages: Vec<Message> = Vec::new();
            for (number, turn) in turns.iter().enumerate() {
                let spec =
                    spec(MODELS[turn.model], turn.max_tokens, turn.system.then_some("Be brief."));
                let question = format!("{number} {}", "q".repeat(turn.question));
                messages.push(said(&question));
                let conversation = conversation(&messages, page);
                let chosen = conversation.request(&spec, Some(window), FITTING);
                let sent: Vec<_> = chosen
                    .request
                    .messages
                    .iter()
                    .skip(usize::from(turn.system))
                    .map(|message| message.content.clone())
                    .collect();
                // Whole turns with an answer, and then the question.
                let past = past_turns(&messages);
                let whole: Vec<_> = past
                    .iter()
                    .flat_map(|turn| [turn.question.content.clone(), turn.answer.content.clone()])
                    .chain([question])
                    .collect();
                prop_assert!(sent.len() % 2 == 1 && whole.ends_with(&sent), "{sent:?}");
                let users = chosen.request.messages.iter().skip(usize::from(turn.system));
                for (at, message) in users.enumerate() {
                    let role = if at % 2 == 0 { ChatRole::User } else { ChatRole::Assistant };
                    prop_assert_eq!(message.role, role);
                }
                let room = room(&spec, Some(window));
                prop_assert!(chosen.estimate <= room || sent.len() == 1);
                let report = chosen.report;
                prop_assert_eq!(report.messages_sent, sent.len() as u64);
                prop_assert_eq!(
                    report.messages_sent + report.messages_dropped,
                    messages.len() as u64
                );
                // The last prompt of this model is stored with its answer.
                let last = past.iter().enumerate().rev().find_map(|(place, turn)| {
                    let report = turn.answer.context.filter(|_| turn.is_by(&spec.model))?;
                    Some(place - turns_before(report.messages_sent))
                });
                let first = past.len() - (sent.len() - 1) / 2;
                if let Some(last) = last.filter(|last| *last != first) {
                    prop_assert!(first > last, "{first} before {last}");
                    let again = conversation.request(
                        &spec,
                        Some(window),
                        Beginning::Sent((past.len() - last) as u64 * 2 + 1),
                    );
                    let looked_at = again.request.messages.len() == (past.len() - last) * 2 + 1
                        + usize::from(turn.system);
                    prop_assert!(!looked_at || again.estimate > room, "cut without need");
                    let roomy = chosen.estimate <= room * AFTER_CUT;
                    prop_assert!(roomy || sent.len() <= 3, "cut by too little");
                }
                // Whoever goes on with the answer gives the model the same.
                let sent_again = Beginning::Sent(report.messages_sent);
                let again = conversation.request(&spec, Some(window), sent_again);
                prop_assert_eq!(&again.request.messages, &chosen.request.messages);
                prop_assert_eq!(again.report, report);
                let bytes: usize = chosen.request.messages.iter().map(|m| m.content.len()).sum();
                let prompt_tokens = bytes as u64 / 4 + 8 * chosen.request.messages.len() as u64;
                messages.push(Message {
                    role: Role::Assistant,
                    model: Some(spec.model.clone()),
                    status: Some(Status::Complete),
                    usage: Some(Usage { prompt_tokens, completion_tokens: turn.answer as u64 / 4 }),
                    context: Some(ContextReport { prompt_tokens, ..report }),
                    ..said(&"a".repeat(turn.answer))
                });
            }
        }
    }
}
