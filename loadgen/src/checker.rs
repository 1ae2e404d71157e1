//! Checks one turn as its client sees it, character by character. The functions are pure.

use std::fmt;

use crate::event::{Event, Stored};

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// This many bytes never came.
    Lost(usize),
    /// This many bytes came twice.
    Doubled(usize),
    /// An event came where none of its type may come.
    Reordered(String),
    /// The text differs from the script.
    Wrong(String),
    /// The service has lost an accepted turn, or its end.
    Forgotten(String),
    /// The turn had no end within its time limit.
    Unfinished(String),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(bytes) => write!(f, "lost {bytes} bytes"),
            Self::Doubled(bytes) => write!(f, "{bytes} bytes came twice"),
            Self::Reordered(what) => write!(f, "out of order: {what}"),
            Self::Wrong(what) => write!(f, "wrong answer: {what}"),
            Self::Forgotten(what) => write!(f, "forgotten: {what}"),
            Self::Unfinished(what) => write!(f, "unfinished: {what}"),
        }
    }
}

/// The effect of an event on the turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The event changes nothing that a reader would see.
    None,
    /// The replica has accepted the message.
    Accepted,
    /// The event brings new characters.
    Text,
    /// The text after this many bytes was taken back.
    Restart(usize),
    /// The answer is complete.
    Complete,
    /// The answer ended early, with an error event.
    Failed(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Asked,
    Received,
    Started,
    Done,
    Ended,
}

/// The message of the turn before, beside which a turn goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Its answer is regenerated.
    Answer(String),
    /// Its question is edited.
    Question(String),
}

impl Beside {
    /// Returns the name of the route and of the message of a WebSocket.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Answer(_) => "regenerate",
            Self::Question(_) => "edit",
        }
    }

    /// Returns the identifier of the message.
    pub fn id(&self) -> &str {
        match self {
            Self::Answer(id) | Self::Question(id) => id,
        }
    }
}

/// One turn: its message, the expected answer, and the text so far.
#[derive(Debug)]
pub struct Turn {
    prompt: String,
    expected: String,
    held: String,
    stage: Stage,
    generation: Option<String>,
    /// How often the message was sent; a repeat may be answered from the beginning.
    sends: u32,
    /// Whether the answer may start before the message is acknowledged: a snapshot stood in for the
    /// acknowledgement.
    may_start: bool,
    flaws: Vec<Flaw>,
    beside: Option<Beside>,
}

impl Turn {
    /// Creates a turn whose answer must be `expected`.
    pub fn new(prompt: String, expected: String) -> Self {
        Self {
            prompt,
            expected,
            held: String::new(),
            stage: Stage::Asked,
            generation: None,
            sends: 0,
            may_start: false,
            flaws: Vec::new(),
            beside: None,
        }
    }

    /// Has the turn go beside a message of the one before.
    #[must_use]
    pub fn beside(self, beside: Option<Beside>) -> Self {
        Self { beside, ..self }
    }

    /// Returns the message beside which the turn goes.
    pub fn target(&self) -> Option<&Beside> {
        self.beside.as_ref()
    }

    /// Records the generation, where the answer comes in one piece.
    pub fn is_generation(&mut self, generation: String) {
        self.generation = Some(generation);
    }

    /// Returns the message.
    pub fn prompt(&self) -> &str {
        &self.prompt
    }

    /// Returns the generation, once it is known.
    pub fn generation(&self) -> Option<&str> {
        self.generation.as_deref()
    }

    /// Returns whether the message has to be sent, for the first time or again.
    pub fn is_unacknowledged(&self) -> bool {
        self.stage == Stage::Asked
    }

    /// Returns whether the message was sent more than once: each repeat is answered, even after the
    /// end.
    pub fn was_repeated(&self) -> bool {
        self.sends > 1
    }

    /// Returns whether the last event of the turn has come.
    pub fn has_ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// Counts that the message is sent; returns how often, this time included.
    pub fn sent(&mut self) -> u32 {
        self.sends += 1;
        self.sends
    }

    /// Expects all text again from its beginning, because the service does not know the client's
    /// cursor.
    pub fn start_over(&mut self) {
        self.held.clear();
        self.stage = self.stage.min(Stage::Received);
        self.sends += 1;
    }

    /// Takes the broken promises since the last call.
    pub fn take_flaws(&mut self) -> Vec<Flaw> {
        std::mem::take(&mut self.flaws)
    }

    /// Applies an event of this turn.
    pub fn take(&mut self, event: &Event) -> Progress {
        self.identify(event);
        match event.kind.as_str() {
            "message_received" => {
                self.stage = self.stage.max(Stage::Received);
                Progress::Accepted
            }
            "stream_start" => {
                self.begin(event);
                Progress::None
            }
            "stream_chunk" if event.done == Some(true) => {
                self.expect_stage(Stage::Started, event);
                self.stage = self.stage.max(Stage::Done);
                Progress::None
            }
            "stream_chunk" => self.piece(event),
            "stream_restart" => self.restart(event),
            "stream_end" => self.end(event, event.full_response.as_deref()),
            "cancelled" => self.fail("cancelled", event),
            "error" => {
                let code = event.code.clone().unwrap_or_default();
                self.fail(&code, event)
            }
            _ => Progress::None,
        }
    }

    /// Applies a snapshot of the session, which stands in for the events that are not kept any
    /// more.
    pub fn take_snapshot(&mut self, event: &Event) -> Progress {
        let stored = self.find(&event.messages);
        if let Some(answer) = stored {
            let (content, status) = (answer.content.clone(), answer.status.clone());
            self.held.clone_from(&content);
            self.stage = Stage::Ended;
            return match status.as_deref() {
                Some("complete") => {
                    self.compare(&content);
                    Progress::Complete
                }
                other => Progress::Failed(other.unwrap_or("no_status").to_owned()),
            };
        }
        let asked = event.messages.last().is_some_and(|last| last.content == self.prompt);
        match &event.answer {
            Some(answer)
                if self.generation.as_ref().is_none_or(|known| *known == answer.generation_id)
                    && asked =>
            {
                self.generation = Some(answer.generation_id.clone());
                self.held.clone_from(&answer.content);
                self.stage = Stage::Started;
                self.compare_from(0);
                Progress::Text
            }
            _ => {
                // A turn that waits, or was never accepted, is sent again: that is right for both.
                // Its answer may start before that message is acknowledged.
                self.held.clear();
                self.stage = if asked { Stage::Received } else { Stage::Asked };
                self.may_start = true;
                Progress::None
            }
        }
    }

    /// Applies an answer that came in one piece.
    pub fn take_whole(&mut self, content: &str, finish_reason: Option<&str>) {
        self.stage = Stage::Ended;
        self.compare(content);
        self.check_reason(finish_reason);
    }

    /// Records that the turn had no end in time.
    pub fn give_up(&mut self) {
        let stage = self.stage;
        let (held, of) = (self.held.len(), self.expected.len());
        self.flaws.push(Flaw::Unfinished(format!("{stage:?}, {held} of {of} bytes")));
    }

    /// Records that the service does not know a turn that it had accepted.
    pub fn forgotten(&mut self, what: &str) {
        self.flaws.push(Flaw::Forgotten(what.to_owned()));
        self.stage = Stage::Ended;
    }

    fn find<'a>(&self, messages: &'a [Stored]) -> Option<&'a Stored> {
        let at = messages
            .iter()
            .rposition(|message| message.role == "user" && message.content == self.prompt)?;
        // The answer that is regenerated is that of the turn before.
        let before = self.beside.as_ref().map(Beside::id);
        let is_new = |message: &&Stored| {
            before.is_none_or(|it| message.generation_id.as_deref() != Some(it))
        };
        messages.get(at + 1).filter(|message| message.role == "assistant").filter(is_new)
    }

    fn identify(&mut self, event: &Event) {
        let Some(generation) = &event.generation_id else { return };
        match &self.generation {
            None => self.generation = Some(generation.clone()),
            Some(known) if known == generation => {}
            Some(known) => {
                self.flaws.push(Flaw::Forgotten(format!(
                    "accepted as {known}, reported as {generation}"
                )));
                self.generation = Some(generation.clone());
            }
        }
    }

    fn expect_stage(&mut self, wanted: Stage, event: &Event) -> bool {
        if self.stage == wanted {
            return true;
        }
        let kind = if event.done == Some(true) { "the last stream_chunk" } else { &event.kind };
        self.flaws.push(Flaw::Reordered(format!("{kind} when {:?}", self.stage)));
        false
    }

    fn begin(&mut self, event: &Event) {
        // A stored answer comes again, from its beginning and without cursors.
        let replayed = self.sends > 1 && event.cursor.is_none();
        if replayed {
            self.held.clear();
        } else if !(self.may_start && self.stage == Stage::Asked) {
            self.expect_stage(Stage::Received, event);
        }
        self.may_start = false;
        self.stage = Stage::Started;
    }

    fn piece(&mut self, event: &Event) -> Progress {
        if !self.expect_stage(Stage::Started, event) && self.stage > Stage::Started {
            return Progress::None;
        }
        self.stage = Stage::Started;
        let content = event.content.as_deref().unwrap_or_default();
        let Some(offset) = event.offset else {
            self.flaws.push(Flaw::Reordered("a piece without an offset".to_owned()));
            return Progress::None;
        };
        let before = self.held.len();
        if offset > before {
            self.flaws.push(Flaw::Lost(offset - before));
            // The missing bytes are filled in, so that each is reported once only.
            let missing = self.expected.get(before..offset).map(str::to_owned);
            self.held.push_str(&missing.unwrap_or_else(|| "\0".repeat(offset - before)));
        } else if offset < before {
            self.flaws.push(Flaw::Doubled((before - offset).min(content.len())));
        }
        let known = self.held.len() - offset;
        if content.len() > known {
            let Some(fresh) = content.get(known..) else {
                self.flaws.push(Flaw::Wrong(format!("a character is cut at {offset}")));
                return Progress::None;
            };
            let from = self.held.len();
            self.held.push_str(fresh);
            self.compare_from(from);
            return Progress::Text;
        }
        Progress::None
    }

    fn restart(&mut self, event: &Event) -> Progress {
        let from = event.from.unwrap_or(0);
        if from > self.held.len() || !self.held.is_char_boundary(from) {
            let held = self.held.len();
            self.flaws.push(Flaw::Reordered(format!("stream_restart from {from} of {held}")));
            return Progress::None;
        }
        self.held.truncate(from);
        Progress::Restart(from)
    }

    fn end(&mut self, event: &Event, whole: Option<&str>) -> Progress {
        if self.stage == Stage::Ended {
            self.flaws.push(Flaw::Reordered("a second end".to_owned()));
            return Progress::None;
        }
        self.expect_stage(Stage::Done, event);
        self.stage = Stage::Ended;
        let whole = whole.unwrap_or_default();
        if whole != self.held {
            let (held, reported) = (self.held.len(), whole.len());
            if whole.starts_with(&self.held) {
                self.flaws.push(Flaw::Lost(reported - held));
            } else {
                let text = format!("full_response has {reported} bytes, the pieces have {held}");
                self.flaws.push(Flaw::Wrong(text));
            }
        }
        self.compare(whole);
        self.check_reason(event.finish_reason.as_deref());
        Progress::Complete
    }

    fn fail(&mut self, code: &str, event: &Event) -> Progress {
        if self.stage == Stage::Ended {
            self.flaws.push(Flaw::Reordered(format!("{} after the end", event.kind)));
            return Progress::None;
        }
        self.stage = Stage::Ended;
        Progress::Failed(code.to_owned())
    }

    fn check_reason(&mut self, reason: Option<&str>) {
        if reason != Some("stop") {
            self.flaws.push(Flaw::Wrong(format!("finish_reason is {reason:?}")));
        }
    }

    /// Compares the text from this byte on.
    fn compare_from(&mut self, from: usize) {
        if self.expected.get(from..self.held.len()) != self.held.get(from..) {
            let at = differs_at(&self.expected, &self.held);
            self.flaws.push(Flaw::Wrong(differing(&self.expected, &self.held, at)));
            // A difference is reported once: the rest is compared with the text that should have
            // been here.
            if let Some(right) = self.expected.get(..self.held.len()) {
                self.held = right.to_owned();
            }
        }
    }

    fn compare(&mut self, whole: &str) {
        if whole != self.expected {
            let at = differs_at(&self.expected, whole);
            self.flaws.push(Flaw::Wrong(differing(&self.expected, whole, at)));
        }
    }
}

fn differs_at(one: &str, other: &str) -> usize {
    one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count()
}

fn differing(expected: &str, got: &str, at: usize) -> String {
    let near = |text: &str| {
        let bytes = text.as_bytes();
        let end = (at + 24).min(bytes.len());
        String::from_utf8_lossy(bytes.get(at.min(end)..end).unwrap_or_default()).into_owned()
    };
    format!(
        "at byte {at} of {} ({} came): {:?} instead of {:?}",
        expected.len(),
        got.len(),
        near(got),
        near(expected)
    )
}

/// One turn as it should be in the session's history.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The message.
    pub prompt: String,
    /// The answer; none where the turn ended with an error.
    pub answer: Option<String>,
}

/// Compares a session's stored messages with those that its client sent and received.
pub fn check_history(sent: &[Sent], messages: &[Stored]) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    let mut next = 0;
    for turn in sent {
        let place = messages
            .iter()
            .enumerate()
            .skip(next)
            .find(|(_, message)| message.role == "user" && message.content == turn.prompt);
        let Some((at, _)) = place else {
            let earlier = messages.iter().take(next).any(|message| message.content == turn.prompt);
            flaws.push(if earlier {
                Flaw::Reordered("a message stands before an earlier one".to_owned())
            } else if turn.answer.is_some() {
                Flaw::Forgotten("a message that was answered is not in the history".to_owned())
            } else {
                continue;
            });
            continue;
        };
        next = at + 1;
        let again = messages.iter().skip(next).any(|message| message.content == turn.prompt);
        if again {
            flaws.push(Flaw::Doubled(turn.prompt.len()));
        }
        let Some(answer) = &turn.answer else { continue };
        match messages.get(next) {
            Some(stored) if stored.role == "assistant" && stored.content == *answer => next += 1,
            Some(stored) if stored.role == "assistant" => {
                let at = differs_at(answer, &stored.content);
                let text = differing(answer, &stored.content, at);
                flaws.push(Flaw::Wrong(format!("in the history, {text}")));
                next += 1;
            }
            _ => flaws.push(Flaw::Forgotten("an answer is not in the history".to_owned())),
        }
    }
    flaws
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const ANSWER: &str = "one 世界 two three";

    fn event(json: Value) -> Event {
        serde_json::from_value(json).expect("an event")
    }

    fn chunk(offset: usize, content: &str) -> Event {
        event(json!({"type": "stream_chunk", "content": content, "done": false, "offset": offset,
            "generation_id": "g", "cursor": "c"}))
    }

    fn named(kind: &str) -> Event {
        event(json!({"type": kind, "generation_id": "g", "cursor": "c"}))
    }

    fn last_chunk() -> Event {
        event(json!({"type": "stream_chunk", "content": "", "done": true, "generation_id": "g"}))
    }

    fn end(whole: &str) -> Event {
        event(json!({"type": "stream_end", "full_response": whole, "finish_reason": "stop",
            "generation_id": "g", "cursor": "c"}))
    }

    /// Returns a stream without a flaw, one event after another.
    fn clean() -> Vec<Event> {
        vec![
            named("message_received"),
            named("stream_start"),
            chunk(0, "one "),
            chunk(4, "世界"),
            chunk(10, " two"),
            chunk(14, " three"),
            last_chunk(),
            end(ANSWER),
        ]
    }

    fn check(events: &[Event]) -> Vec<Flaw> {
        let mut turn = Turn::new("q".to_owned(), ANSWER.to_owned());
        turn.sent();
        for event in events {
            turn.take(event);
        }
        turn.take_flaws()
    }

    #[test]
    fn a_clean_stream_has_no_flaw() {
        assert_eq!(check(&clean()), []);
    }

    #[test]
    fn a_dropped_piece_is_lost_wherever_it_was() {
        for (dropped, bytes) in [(2, 4), (3, 6), (4, 4), (5, 6)] {
            let mut events = clean();
            events.remove(dropped);
            assert_eq!(check(&events), [Flaw::Lost(bytes)], "without {dropped}");
        }
    }

    #[test]
    fn a_piece_that_comes_twice_is_doubled_wherever_it_was() {
        for (doubled, bytes) in [(2, 4), (3, 6), (4, 4), (5, 6)] {
            let mut events = clean();
            events.insert(doubled, events[doubled].clone());
            assert_eq!(check(&events), [Flaw::Doubled(bytes)], "twice {doubled}");
        }
    }

    #[test]
    fn two_pieces_in_the_wrong_order_are_noticed() {
        let mut events = clean();
        events.swap(3, 4);
        assert_eq!(check(&events), [Flaw::Lost(6), Flaw::Doubled(6)]);
    }

    #[test]
    fn events_in_the_wrong_order_are_noticed() {
        for (one, other) in [(0, 1), (1, 2), (5, 6), (6, 7)] {
            let mut events = clean();
            events.swap(one, other);
            let flaws = check(&events);
            assert!(
                flaws.iter().any(|flaw| matches!(flaw, Flaw::Reordered(_))),
                "{one} and {other}: {flaws:?}"
            );
        }
    }

    #[test]
    fn a_second_end_is_noticed() {
        for last in [end(ANSWER), named("cancelled"), named("error")] {
            let mut events = clean();
            events.push(last);
            assert!(matches!(check(&events)[..], [Flaw::Reordered(_)]));
        }
    }

    #[test]
    fn a_repeat_may_be_answered_after_the_end_and_is_checked_again() {
        let replayed = |events: Vec<Event>| -> Vec<Event> {
            events.into_iter().map(|event| Event { cursor: None, ..event }).collect()
        };
        let mut turn = Turn::new("q".to_owned(), ANSWER.to_owned());
        turn.sent();
        turn.sent();
        for event in clean().iter().chain(&replayed(clean())) {
            turn.take(event);
        }
        assert_eq!(turn.take_flaws(), []);
        let mut short = replayed(clean());
        short.remove(3);
        for event in &short {
            turn.take(event);
        }
        assert_eq!(turn.take_flaws(), [Flaw::Lost(6)]);
    }

    #[test]
    fn another_text_of_the_same_length_is_wrong() {
        let mut events = clean();
        events[4] = chunk(10, " tow");
        assert!(matches!(check(&events)[..], [Flaw::Wrong(_)]), "{:?}", check(&events));
        let mut events = clean();
        events[7] = end("one 世界 two threE");
        assert!(matches!(check(&events)[..], [Flaw::Wrong(_), Flaw::Wrong(_)]));
    }

    #[test]
    fn an_answer_that_ends_too_early_is_wrong() {
        let mut events = clean();
        events.remove(5);
        events[6] = end("one 世界 two");
        assert!(matches!(check(&events)[..], [Flaw::Wrong(_)]), "{:?}", check(&events));
    }

    #[test]
    fn text_that_is_taken_back_comes_again_without_a_double() {
        let mut events = clean();
        let restart = event(json!({"type": "stream_restart", "from": 4, "generation_id": "g"}));
        events.splice(5..5, [restart, chunk(4, "世界 two")]);
        assert_eq!(check(&events), []);
        let mut beyond = clean();
        beyond.insert(3, event(json!({"type": "stream_restart", "from": 9, "generation_id": "g"})));
        assert!(matches!(check(&beyond)[..], [Flaw::Reordered(_)]));
    }

    #[test]
    fn another_generation_for_the_same_message_is_noticed() {
        let mut events = clean();
        let other = json!({"type": "message_received", "generation_id": "h", "cursor": "c"});
        events.insert(1, event(other));
        assert!(matches!(check(&events)[..], [Flaw::Forgotten(_), Flaw::Forgotten(_)]));
    }

    #[test]
    fn a_turn_continues_from_a_snapshot() {
        let mut turn = Turn::new("q".to_owned(), ANSWER.to_owned());
        turn.sent();
        turn.take(&named("message_received"));
        let history = json!({"type": "history", "messages": [{"role": "user", "content": "q"}],
            "answer": {"generation_id": "g", "content": "one 世", "offset": 7}});
        assert_eq!(turn.take_snapshot(&event(history)), Progress::Text);
        turn.take(&chunk(7, "界 two three"));
        turn.take(&last_chunk());
        assert_eq!(turn.take(&end(ANSWER)), Progress::Complete);
        assert_eq!(turn.take_flaws(), []);
    }

    #[test]
    fn a_snapshot_without_the_message_has_it_sent_again() {
        let mut turn = Turn::new("q".to_owned(), ANSWER.to_owned());
        turn.sent();
        let history = json!({"type": "history", "messages": []});
        assert_eq!(turn.take_snapshot(&event(history)), Progress::None);
        assert!(turn.is_unacknowledged());
    }

    #[test]
    fn after_a_snapshot_the_answer_may_start_before_the_message_is_acknowledged_and_once_only() {
        for messages in [json!([]), json!([{"role": "user", "content": "q"}])] {
            let mut turn = Turn::new("q".to_owned(), ANSWER.to_owned());
            turn.sent();
            turn.take(&named("message_received"));
            turn.take(&named("stream_start"));
            turn.take_snapshot(&event(json!({"type": "history", "messages": messages})));
            turn.take(&named("stream_start"));
            turn.take(&named("message_received"));
            assert_eq!(turn.take_flaws(), []);
            turn.take(&named("stream_start"));
            assert!(matches!(turn.take_flaws()[..], [Flaw::Reordered(_)]));
        }
    }

    #[test]
    fn a_history_that_lacks_doubles_or_changes_a_message_is_noticed() {
        let sent: Vec<Sent> = ["a", "b"]
            .map(|name| Sent { prompt: name.to_owned(), answer: Some(name.to_uppercase()) })
            .into();
        let stored = |texts: &[&str]| -> Vec<Stored> {
            let role = |text: &str| if text.to_uppercase() == text { "assistant" } else { "user" };
            texts
                .iter()
                .map(|text| Stored {
                    role: role(text).to_owned(),
                    content: (*text).to_owned(),
                    ..Stored::default()
                })
                .collect()
        };
        assert_eq!(check_history(&sent, &stored(&["a", "A", "b", "B"])), []);
        for bad in [
            &["a", "A"][..],
            &["a", "A", "b"],
            &["b", "B", "a", "A"],
            &["a", "A", "a", "A", "b", "B"],
            &["a", "X", "b", "B"],
        ] {
            assert!(!check_history(&sent, &stored(bad)).is_empty(), "{bad:?}");
        }
    }
}
