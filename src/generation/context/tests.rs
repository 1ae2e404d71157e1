use proptest::prelude::*;

use super::budget::AFTER_DROP;
use super::past_turns::past_turns;
use super::tokens::{CAUTION, COUNTED_BYTES_PER_TOKEN};
use super::*;
use crate::session::store::message;
use crate::session::{SessionId, SessionInfo, Status, Usage};

const MODELS: [&str; 2] = ["m:latest", "other"];

fn user_message(content: &str) -> Message {
    Message { content: content.to_owned(), ..message(Role::User, chrono::Utc::now()) }
}

fn assistant_message(sent: u64, prompt_tokens: u64) -> Message {
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
        ..user_message("an answer")
    }
}

fn spec(model: &str, max_tokens: u32, system: Option<&str>) -> TurnSpec {
    TurnSpec { system: system.map(str::to_owned), ..TurnSpec::least(model, max_tokens) }
}

/// Returns a conversation of the newest `limit` of these messages.
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
        pinned: false,
        archived: false,
        running: true,
    };
    let messages = messages[first..].to_vec();
    let page = Page { info, running: None, first: first as u64, messages };
    Conversation { page, is_of_turn: false }
}

const FITTING: Beginning = Beginning::Fitting { density: 1.0 };

#[test]
fn the_host_s_count_of_a_prompt_is_the_basis_of_the_estimate() {
    let question = "x".repeat(1000);
    let estimate = |messages: &[Message], model| {
        TokenEstimate::of(&past_turns(messages).turns, &spec(model, 10, None))
    };
    // A thousand bytes were ten tokens more than the template puts around a message.
    let counted = estimate(&[user_message(&question), assistant_message(1, 8 + 10)], "m");
    let most = *COUNTED_BYTES_PER_TOKEN.end() / CAUTION;
    assert!((counted.bytes_per_token - most).abs() < 1e-9, "the most");
    let messages = [user_message(&question), assistant_message(1, 8 + 500)];
    let counted = estimate(&messages, "m:latest");
    assert!((counted.bytes_per_token - 2.0 / CAUTION).abs() < 1e-9);
    assert!(counted.of_text(&question) > 500.0);
    let of_another = estimate(&messages, "another model");
    assert!((of_another.bytes_per_token - BYTES_PER_TOKEN).abs() < 1e-9);
}

#[test]
fn a_long_system_prompt_does_not_make_the_conversation_look_long() {
    let system = "s".repeat(9000);
    let messages = [user_message("a short question"), assistant_message(1, 8 + 3005)];
    let estimate = TokenEstimate::of(&past_turns(&messages).turns, &spec("m", 10, Some(&system)));
    assert!((estimate.bytes_per_token * CAUTION - 3.0).abs() < 0.01);
}

#[test]
fn an_answer_has_the_tokens_that_the_host_counted_but_no_more_than_bytes() {
    let estimate = TokenEstimate { bytes_per_token: BYTES_PER_TOKEN };
    let (question, mut answer) = (user_message("q"), assistant_message(1, 9));
    let tokens = |answer: &Message| {
        estimate.of_answer(&PastTurn {
            added: Vec::new(),
            question: &question,
            between: Vec::new(),
            answer,
        })
    };
    assert!((tokens(&answer) - 13.0).abs() < 1e-9);
    // The count includes reasoning that is not stored.
    answer.usage = Some(Usage { prompt_tokens: 9, completion_tokens: 5000 });
    assert!((tokens(&answer) - 17.0).abs() < 1e-9);
}

#[test]
fn a_long_turn_just_before_the_question_is_kept_where_it_fits() {
    let mut messages = vec![user_message("old"), assistant_message(1, 9)];
    let long = Message { usage: None, ..assistant_message(0, 0) };
    messages.extend([user_message("q"), Message { content: "x".repeat(2400), ..long }]);
    messages.push(user_message("and?"));
    // 800 tokens of an answer in a room of 924: more than three quarters.
    let chosen = conversation(&messages, 100).request(&spec("m", 100, None), Some(1024), FITTING);
    assert_eq!(chosen.request.messages.len(), 3);
}

#[test]
fn a_larger_window_includes_turns_again_that_a_smaller_one_dropped() {
    let mut messages = Vec::new();
    for _ in 0..20 {
        let chosen = {
            messages.push(user_message(&"a question ".repeat(10)));
            conversation(&messages, 100).request(&spec("m", 100, None), Some(512), FITTING)
        };
        messages.push(Message { context: Some(chosen.report), ..assistant_message(0, 0) });
    }
    messages.push(user_message("q"));
    let conversation = conversation(&messages, 100);
    let small = conversation.request(&spec("m", 100, None), Some(512), FITTING);
    assert!(small.report.messages_dropped > 20);
    let large = conversation.request(&spec("m", 100, None), Some(8192), FITTING);
    assert_eq!(large.report.messages_dropped, 0);
}

#[derive(Clone, Debug)]
struct GeneratedTurn {
    question: usize,
    answer: usize,
    model: usize,
    max_tokens: u32,
    system: bool,
}

fn generated_turn() -> impl Strategy<Value = GeneratedTurn> {
    // Every fourth turn ends without text.
    let answer = prop_oneof![1 => Just(0usize), 3 => 1usize..900];
    (1usize..900, answer, 0usize..2, 1u32..600, any::<bool>()).prop_map(
        |(question, answer, model, max_tokens, system)| GeneratedTurn {
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
        turns in proptest::collection::vec(generated_turn(), 1..60),
        window in 256u32..4096,
        page in 9usize..120,
    ) {
        let mut messages: Vec<Message> = Vec::new();
        for (number, turn) in turns.iter().enumerate() {
            let spec =
                spec(MODELS[turn.model], turn.max_tokens, turn.system.then_some("Be brief."));
            let question = format!("{number} {}", "q".repeat(turn.question));
            messages.push(user_message(&question));
            let conversation = conversation(&messages, page);
            let chosen = conversation.request(&spec, Some(window), FITTING);
            let sent: Vec<_> = chosen
                .request
                .messages
                .iter()
                .skip(usize::from(turn.system))
                .map(|message| message.content.clone())
                .collect();
            // The prompt is whole turns with an answer, and then the question.
            let past = past_turns(&messages).turns;
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
            let room = token_room(&spec, Some(window));
            prop_assert!(chosen.estimate <= room || sent.len() == 1);
            let report = chosen.report;
            prop_assert_eq!(report.messages_sent, sent.len() as u64);
            prop_assert_eq!(
                report.messages_sent + report.messages_dropped,
                messages.len() as u64
            );
            // The last prompt of this model is stored with its answer.
            let last = past.iter().enumerate().rev().find_map(|(at, turn)| {
                let report = turn.answer.context.filter(|_| turn.is_by(&spec.model))?;
                Some(at - (report.messages_sent as usize - 1) / 2)
            });
            let first = past.len() - (sent.len() - 1) / 2;
            if let Some(last) = last.filter(|last| *last != first) {
                prop_assert!(first > last, "{first} before {last}");
                let again = conversation.request(
                    &spec,
                    Some(window),
                    Beginning::Sent((past.len() - last) as u64 * 2 + 1),
                );
                let is_read = again.request.messages.len() == (past.len() - last) * 2 + 1
                    + usize::from(turn.system);
                prop_assert!(!is_read || again.estimate > room, "turns dropped without need");
                let has_room = chosen.estimate <= room * AFTER_DROP;
                prop_assert!(has_room || sent.len() <= 3, "too few turns dropped");
            }
            // A replica that continues the answer sends the model the same.
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
                ..user_message(&"a".repeat(turn.answer))
            });
        }
    }
}
