use proptest::prelude::*;

use super::*;
use crate::session::model::Failure;

/// A change of a session, as the store would write it.
#[derive(Clone, Debug)]
enum Action {
    Begin,
    /// A piece of reasoning, while the answer has not begun.
    Reason(String),
    Piece(String),
    /// Another writer continues from this fraction of the text.
    Claim(f64),
    Message,
    End,
}

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => Just(Action::Begin),
        4 => "[a-zé三🏳️‍🌈 ]{1,12}".prop_map(Action::Reason),
        8 => "[a-zé三🏳️‍🌈 ]{1,12}".prop_map(Action::Piece),
        1 => (0.0..=1.0f64).prop_map(Action::Claim),
        1 => Just(Action::Message),
        2 => Just(Action::End),
    ]
}

/// The session itself: its whole log and text, as Redis would hold them.
struct Session {
    log: Window,
    ended: Vec<AnswerText>,
}

impl Session {
    fn new() -> Self {
        Self { log: Window::empty(0, Tag::START, None), ended: Vec::new() }
    }

    fn event(&self, generation: Option<GenerationId>, control: Control) -> Event {
        Event {
            number: self.log.tip().0 + 1,
            tag: Tag::random(),
            answer_position: self.log.running().map(|id| (id, self.log.running_length())),
            generation,
            control,
        }
    }

    /// Applies an action, and returns the hint that publishes it.
    fn apply(&mut self, action: &Action) -> Option<SentHint> {
        let running = self.log.running();
        let event = match (action, running) {
            (Action::Begin, None) => {
                let id = GenerationId::random();
                self.ended.extend(self.log.answers.clone());
                let started = Control::Started { model: "m".to_owned() };
                self.event(Some(id), started)
            }
            (Action::Reason(text) | Action::Piece(text), Some(id)) => {
                let held = self.log.answer(id).expect("held");
                let marker = match action {
                    Action::Reason(_) => held.shape.before_reasoning(&held.text)?,
                    _ => held.shape.before_answer(&held.text, text),
                };
                let text = format!("{marker}{text}");
                let offset = self.log.running_length();
                let after = self.log.tip();
                assert_eq!(self.log.push_piece(id, offset, after, &text), Applied::Grown);
                return Some(SentHint::Piece(id, offset, after, text));
            }
            (Action::Claim(share), Some(id)) => {
                let text = &self.log.answer(id).expect("held").text;
                let at = (text.len() as f64 * share) as usize;
                let from = text.floor_char_boundary(at) as u64;
                let mut event = self.event(Some(id), Control::Claimed { from, restarts: 0 });
                event.answer_position = Some((id, from));
                event
            }
            (Action::Message, _) => {
                let accepted = Control::Accepted {
                    anchor: None,
                    message: "q".to_owned(),
                    timestamp: String::new(),
                    message_id: None,
                };
                self.event(None, accepted)
            }
            (Action::End, Some(id)) => {
                let failed = Failure {
                    code: "c".to_owned(),
                    message: String::new(),
                    retryable: false,
                    retry_after: None,
                };
                self.event(Some(id), Control::Failed(failed))
            }
            _ => return None,
        };
        let previous = self.log.tip().1;
        assert_eq!(self.log.push_event(previous, event.clone()), Applied::Grown);
        Some(SentHint::Event(previous, event))
    }

    /// Returns a read of Redis, where nothing is trimmed.
    fn read(&self) -> Window {
        let mut all = self.log.clone();
        for answer in &self.ended {
            if all.answer(answer.generation).is_none() {
                all.answers.push(answer.clone());
            }
        }
        all
    }
}

/// A hint, as the channel delivers it.
enum SentHint {
    Event(Tag, Event),
    Piece(GenerationId, u64, (u64, Tag), String),
}

/// A client, which adds pieces and takes text back at a restart.
struct Client {
    cursor: Cursor,
    reasoning: String,
    text: String,
    events: Vec<u64>,
    answers: Vec<(GenerationId, [String; 2])>,
}

impl Client {
    fn new() -> Self {
        Self {
            cursor: Cursor::START,
            reasoning: String::new(),
            text: String::new(),
            events: Vec::new(),
            answers: Vec::new(),
        }
    }

    fn take_back(&mut self, from: usize) {
        self.text.truncate(from);
        if from == 0 {
            self.reasoning.clear();
        }
    }

    /// Follows the window to its end. Returns whether it got there without a read of Redis.
    fn follow(&mut self, window: &Window, max_piece: usize) -> bool {
        loop {
            let after = match window.next(&self.cursor, max_piece) {
                Step::Piece { is_reasoning, offset, text, after, .. } => {
                    let seen = if is_reasoning { &mut self.reasoning } else { &mut self.text };
                    assert_eq!(offset, seen.len() as u64, "a hole or a double");
                    assert!(!text.is_empty(), "a piece of nothing");
                    seen.push_str(text);
                    after
                }
                Step::Event { event, answer, after, .. } => {
                    self.events.push(event.number);
                    if matches!(event.control, Control::Started { .. }) {
                        self.take_back(0);
                    }
                    if event.control.is_terminal() {
                        assert_eq!(self.text, answer, "another answer than the pieces");
                        let seen = [self.reasoning.clone(), self.text.clone()];
                        self.answers.extend(event.generation.map(|id| (id, seen)));
                    }
                    after
                }
                Step::Restart { from, after, .. } => {
                    self.events.push(after.events);
                    let held = self.text.len() as u64;
                    assert!(from <= held, "takes back text that was never delivered");
                    self.take_back(from as usize);
                    after
                }
                Step::Silent { after } => {
                    if after.events > self.cursor.events {
                        self.events.push(after.events);
                    }
                    after
                }
                Step::UpToDate => return true,
                Step::Behind => return false,
                Step::Unknown => panic!("a true cursor is not known"),
            };
            self.cursor = after;
        }
    }
}

#[test]
fn a_reader_that_missed_two_claims_takes_back_what_the_later_leaves() {
    let (mut session, mut client) = (Session::new(), Client::new());
    let piece = |text: &str| Action::Piece(text.to_owned());
    let reason = |text: &str| Action::Reason(text.to_owned());
    for action in [Action::Begin, reason("a long thought"), piece("an answer")] {
        session.apply(&action);
    }
    assert!(client.follow(&session.read(), 1000));
    // The first claim is in the answer, the second in the reasoning; then another answer follows.
    for action in [Action::Claim(0.9), Action::Claim(0.1), piece("another answer")] {
        session.apply(&action);
    }
    let step = session.log.next(&client.cursor, 1000);
    assert!(matches!(step, Step::Restart { from: 0, after: Cursor { offset: 0, .. }, .. }));
    assert!(client.follow(&session.read(), 1000));
    assert_eq!((client.reasoning.as_str(), client.text.as_str()), ("a", "another answer"));
}

#[test]
fn a_reader_that_missed_a_claim_within_reasoning_that_is_no_longer_held_reads_redis() {
    let (mut session, mut client) = (Session::new(), Client::new());
    for action in [Action::Begin, Action::Reason("a long thought".to_owned())] {
        session.apply(&action);
    }
    assert!(client.follow(&session.read(), 1000));
    for action in [Action::Claim(0.5), Action::End, Action::Begin, Action::End] {
        session.apply(&action);
    }
    session.apply(&Action::Begin);
    assert_eq!(session.log.next(&client.cursor, 1000), Step::Behind);
    assert!(client.follow(&session.read(), 1000));
    assert_eq!(client.answers[0].1, ["a long", ""].map(str::to_owned));
}

#[test]
fn a_reader_beyond_what_redis_holds_of_a_claim_goes_back_to_what_is_there() {
    let (mut session, mut client) = (Session::new(), Client::new());
    for action in [Action::Begin, Action::Reason("two".to_owned())] {
        session.apply(&action);
    }
    assert!(client.follow(&session.read(), 1000));
    assert_eq!(client.reasoning, "two");
    // A failover lost the text; the writer takes back all but its first byte before it has written
    // that byte again.
    let running = session.log.running().expect("a running generation");
    session.log.cut(running, 0);
    let mut claimed = session.event(Some(running), Control::Claimed { from: 1, restarts: 0 });
    claimed.answer_position = Some((running, 0));
    let previous = session.log.tip().1;
    assert_eq!(session.log.push_event(previous, claimed), Applied::Grown);
    assert!(client.follow(&session.read(), 1000));
    assert_eq!(client.reasoning, "");
    for action in [Action::Reason("three".to_owned()), Action::Piece("answer".to_owned())] {
        session.apply(&action);
    }
    assert!(client.follow(&session.read(), 1000));
    assert_eq!((client.reasoning.as_str(), client.text.as_str()), ("three", "answer"));
}

#[test]
fn a_hint_that_follows_on_another_event_than_the_last_one_held_is_a_hole() {
    let mut session = Session::new();
    session.apply(&Action::Begin);
    let mut feed = session.read();
    let running = feed.running().expect("a running generation");
    let (number, tag) = feed.tip();
    let other = Tag(tag.0 ^ 1);
    let message = session.apply(&Action::Message);
    let Some(SentHint::Event(previous, event)) = message else { panic!("no event") };
    // A failover lost the last event held, and another event has its number.
    assert_eq!(feed.push_event(other, event.clone()), Applied::Hole);
    assert_eq!(feed.push_piece(running, 0, (number, other), "text"), Applied::Hole);
    assert_eq!(feed.push_piece(running, 0, (number, tag), "text"), Applied::Grown);
    assert_eq!(feed.push_event(previous, event), Applied::Grown);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Readers are slow, hints are lost and windows are trimmed: each client gets every event once,
    /// in order, and each answer with its reasoning as they are stored.
    #[test]
    fn every_reader_gets_every_event_once_and_reasoning_and_answer_as_they_are_stored(
        history in proptest::collection::vec((actions(), any::<bool>(), any::<bool>()), 1..80),
        max_piece in 4usize..32,
        kept in 1usize..6,
    ) {
        let mut session = Session::new();
        let mut feed = Window::empty(0, Tag::START, None);
        let mut client = Client::new();
        for (action, hint_is_lost, client_reads) in &history {
            let sent = session.apply(action);
            let applied = match sent {
                Some(SentHint::Event(previous, event)) if !hint_is_lost => {
                    feed.push_event(previous, event)
                }
                Some(SentHint::Piece(id, offset, after, text)) if !hint_is_lost => {
                    feed.push_piece(id, offset, after, &text)
                }
                _ => Applied::Known,
            };
            if applied == Applied::Hole {
                prop_assert_ne!(feed.absorb(&session.read()), Applied::Hole);
            }
            feed.trim(kept);
            if *client_reads && !client.follow(&feed, max_piece) {
                prop_assert!(client.follow(&session.read(), max_piece));
            }
        }
        prop_assert_ne!(feed.absorb(&session.read()), Applied::Hole);
        if !client.follow(&feed, max_piece) {
            prop_assert!(client.follow(&session.read(), max_piece));
        }
        let all: Vec<u64> = (1..=session.log.tip().0).collect();
        prop_assert_eq!(client.events, all);
        let all = session.read();
        let stored = |generation| {
            let held = all.answer(generation).expect("held");
            let reasoning = held.shape.reasoning(&held.text).unwrap_or_default();
            [reasoning.to_owned(), held.answer().to_owned()]
        };
        for (generation, seen) in client.answers {
            prop_assert_eq!(seen, stored(generation));
        }
        if let Some(running) = session.log.running() {
            prop_assert_eq!([client.reasoning, client.text], stored(running));
        }
    }
}
