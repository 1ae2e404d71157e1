//! The turns of a conversation that a prompt may have.

use std::collections::HashSet;

use crate::model_name::ModelName;
use crate::session::{Message, Role};

/// A question with its answer, which is incomplete where the turn was cancelled or failed. A message
/// that follows calls of tools belongs to the question that caused them, so that no prompt has a result
/// without its call.
pub(super) struct PastTurn<'a> {
    /// The messages that a client added before the question, outside of a turn.
    pub(super) added: Vec<&'a Message>,
    pub(super) question: &'a Message,
    /// Answers with calls of tools, and the results of the calls, in order.
    pub(super) between: Vec<&'a Message>,
    /// The last answer.
    pub(super) answer: &'a Message,
}

impl<'a> PastTurn<'a> {
    /// Returns whether this model answered, however its name is spelled.
    pub(super) fn is_by(&self, model: &str) -> bool {
        self.answer.model.as_deref().is_some_and(|by| ModelName::same(by, model))
    }

    /// Returns the messages before the last answer.
    pub(super) fn before_answer(&self) -> impl Iterator<Item = &'a Message> + '_ {
        let added = self.added.iter().copied();
        added.chain([self.question]).chain(self.between.iter().copied())
    }

    /// Returns all messages.
    pub(super) fn messages(&self) -> impl Iterator<Item = &'a Message> + '_ {
        self.before_answer().chain([self.answer])
    }
}

/// The messages of a conversation, as a prompt takes them.
pub(super) struct Turns<'a> {
    /// The turns that have an answer, oldest first.
    pub(super) past: Vec<PastTurn<'a>>,
    /// The messages that are always sent: the question, with what was added since the last answer; and
    /// where the question is the result of a call, what led to it from the user's message on.
    pub(super) open: Vec<&'a Message>,
}

impl<'a> Turns<'a> {
    /// Divides a conversation that ends with the message to answer.
    pub(super) fn of(messages: &'a [Message]) -> Self {
        let Some((question, before)) = messages.split_last() else {
            return Self { past: Vec::new(), open: Vec::new() };
        };
        if question.role == Role::Tool
            && !begins_turn(question)
            && let Some(start) = turn_of_call(before, question)
        {
            // A user may have asked something else since the call: that is not a part of its turn.
            let next = before[start + 1..].iter().position(begins_turn);
            let end = next.map_or(before.len(), |next| start + 1 + next);
            let PastTurns { turns: past, mut added } = past_turns(&messages[..start]);
            added.append(&mut kept(before[start..end].iter().chain([question])));
            return Self { past, open: added };
        }
        let PastTurns { turns: past, mut added } = past_turns(before);
        added.push(question);
        Self { past, open: added }
    }

    /// Returns whether the open turn has calls without a result.
    pub(super) fn awaits_results(&self) -> bool {
        // A result that came with its call is a question of its own.
        if self.open.last().is_none_or(|it| it.role != Role::Tool || begins_turn(it)) {
            return false;
        }
        let Some(calling) = self.open.iter().rposition(|message| !message.tool_calls.is_empty())
        else {
            return false;
        };
        let results = || self.open[calling..].iter().flat_map(|it| it.before.iter().chain([*it]));
        self.open[calling]
            .tool_calls
            .iter()
            .any(|call| !results().any(|result| result.tool_call_id.as_deref() == Some(&*call.id)))
    }
}

/// Returns whether a turn begins with this message of a conversation, whatever is before it: with a
/// question, which may be a system message, and with the result of a call that came with the same request.
fn begins_turn(message: &Message) -> bool {
    match message.role {
        _ if message.is_added => false,
        Role::User | Role::System => true,
        Role::Tool => message.before.iter().any(|before| has_call_of(before, message)),
        Role::Assistant => false,
    }
}

/// Returns whether a message has the call that this result is for.
fn has_call_of(message: &Message, result: &Message) -> bool {
    let id = result.tool_call_id.as_deref();
    message.tool_calls.iter().any(|call| Some(&*call.id) == id)
}

/// Returns where the turn begins that has the call which this result is for. Before the first turn, a client
/// may have added the call: then it is the first message that was added.
fn turn_of_call(messages: &[Message], result: &Message) -> Option<usize> {
    let calling = messages.iter().rposition(|message| has_call_of(message, result))?;
    let before = &messages[..=calling];
    let begun = before[..calling].iter().rposition(begins_turn);
    begun.or_else(|| before.iter().position(|message| message.is_added))
}

/// Returns where the turns of these messages begin. The first one may begin with the result of a call that a
/// client has added. A result whose call is not read belongs to a turn that is not read.
fn starts(messages: &[Message]) -> Vec<usize> {
    let mut starts: Vec<usize> = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        let answers_added = || {
            let mut added = messages[..at].iter().filter(|before| before.is_added);
            message.role == Role::Tool
                && !message.is_added
                && added.any(|before| has_call_of(before, message))
        };
        if begins_turn(message) || starts.is_empty() && answers_added() {
            starts.push(at);
        }
    }
    starts
}

/// The turns before a question.
pub(super) struct PastTurns<'a> {
    /// The turns that have an answer, oldest first.
    pub(super) turns: Vec<PastTurn<'a>>,
    /// The messages that were added since: they belong to the turn that follows.
    pub(super) added: Vec<&'a Message>,
}

/// Returns the turns that have an answer, oldest first. A turn that was cancelled or failed before
/// its answer had text is left out: its user asks again, and a model that gets two questions in a
/// row answers the wrong one, or its template refuses them. Messages that were added outside of a turn stay.
pub(super) fn past_turns(messages: &[Message]) -> PastTurns<'_> {
    let starts = starts(messages);
    let first = starts.first().copied().unwrap_or(messages.len());
    let ends = starts.iter().skip(1).copied().chain([messages.len()]);
    let mut turns = Vec::new();
    let mut added: Vec<&Message> = messages[..first].iter().filter(|it| it.is_added).collect();
    for (start, end) in starts.iter().zip(ends) {
        let mut kept = kept(messages[*start..end].iter());
        let is_answer = |message: &&Message| message.role == Role::Assistant && !message.is_added;
        let last = kept.iter().rposition(is_answer);
        // Results that no answer follows, too, are left out.
        let rest = kept.split_off(last.map_or(1, |last| last + 1));
        if last.is_some()
            && let Some(answer) = kept.pop()
        {
            let question = kept.remove(0);
            let added = std::mem::take(&mut added);
            turns.push(PastTurn { added, question, between: kept, answer });
        }
        added.extend(rest.into_iter().filter(|message| message.is_added));
    }
    PastTurns { turns, added }
}

/// Returns the messages of a prompt, each behind those that came before it with its request, without
/// results whose calls the prompt does not have. The question is always there.
pub(super) fn with_those_before<'a>(sent: &[&'a Message]) -> Vec<&'a Message> {
    let all: Vec<&Message> = sent.iter().flat_map(|it| it.before.iter().chain([*it])).collect();
    let last = all.len().saturating_sub(1);
    let (mut calls, mut kept) = (HashSet::new(), Vec::with_capacity(all.len()));
    for (at, message) in all.into_iter().enumerate() {
        calls.extend(message.tool_calls.iter().map(|call| call.id.as_str()));
        let result_of = message.tool_call_id.as_deref().filter(|_| message.role == Role::Tool);
        if at == last || result_of.is_none_or(|call| calls.contains(call)) {
            kept.push(message);
        }
    }
    kept
}

/// Returns the messages of one turn, its first one always, without answers that have neither text nor calls,
/// and without results of calls that it does not have. Of two results of one call, the last counts.
fn kept<'a>(turn: impl Iterator<Item = &'a Message>) -> Vec<&'a Message> {
    let mut kept: Vec<&Message> = Vec::new();
    for message in turn {
        match message.role {
            _ if kept.is_empty() => kept.push(message),
            Role::User | Role::System => kept.push(message),
            Role::Assistant => {
                if !message.tool_calls.is_empty() || !message.content.trim().is_empty() {
                    kept.push(message);
                }
            }
            Role::Tool => {
                let Some(id) = message.tool_call_id.as_deref() else { continue };
                let mut calls = kept.iter().flat_map(|before| &before.tool_calls);
                if calls.any(|call| call.id == id) {
                    let is_other = |before: &Message| before.tool_call_id.as_deref() != Some(id);
                    // What came before the first message with its request goes with it.
                    let first = kept[0];
                    kept.retain(|before| std::ptr::eq(*before, first) || is_other(before));
                    kept.push(message);
                }
            }
        }
    }
    kept
}

/// Returns the turn that a prompt of `sent` messages began with, whose last `own` messages were
/// behind the turns before `at`. None where that is beyond the messages that are read.
pub(super) fn first_of_prompt(
    past: &[PastTurn<'_>],
    at: usize,
    own: usize,
    sent: u64,
) -> Option<usize> {
    let mut left = usize::try_from(sent).unwrap_or(usize::MAX).saturating_sub(own);
    let mut first = at;
    while left > 0 {
        first = first.checked_sub(1)?;
        left = left.saturating_sub(past[first].messages().count());
    }
    Some(first)
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;
    use crate::session::model::ToolCall;
    use crate::session::store;

    fn said(role: Role, content: &str) -> Message {
        Message { content: content.to_owned(), ..store::message(role, Utc::now()) }
    }

    fn called(ids: &[&str]) -> Message {
        let call = |id: &&str| ToolCall {
            id: (*id).to_owned(),
            name: "f".to_owned(),
            arguments: "{}".to_owned(),
        };
        Message { tool_calls: ids.iter().map(call).collect(), ..said(Role::Assistant, "") }
    }

    fn result(id: &str) -> Message {
        Message { tool_call_id: Some(id.to_owned()), ..said(Role::Tool, id) }
    }

    #[test]
    fn a_result_that_comes_behind_another_question_answers_the_turn_of_its_call() {
        let messages = [
            said(Role::User, "before"),
            said(Role::Assistant, "yes"),
            said(Role::User, "one"),
            called(&["1", "2"]),
            result("2"),
            said(Role::User, "two"),
            said(Role::Assistant, "answered"),
            result("1"),
        ];
        let turns = Turns::of(&messages);
        let open: Vec<&str> = turns.open.iter().map(|message| &*message.content).collect();
        assert_eq!(open, ["one", "", "2", "1"]);
        assert!(!turns.awaits_results());
        assert_eq!(turns.past.len(), 1);
        let early = Turns::of(&messages[..5]);
        assert!(early.awaits_results(), "the other result is not there yet");
    }

    fn added(role: Role, content: &str) -> Message {
        Message { is_added: true, ..said(role, content) }
    }

    fn contents<'a>(messages: &[&'a Message]) -> Vec<&'a str> {
        messages.iter().map(|message| &*message.content).collect()
    }

    #[test]
    fn what_was_added_outside_of_a_turn_goes_with_the_next_one_that_is_answered() {
        let messages = [
            added(Role::System, "rules"),
            added(Role::User, "example"),
            added(Role::Assistant, "shown"),
            said(Role::User, "failed"),
            said(Role::Assistant, ""),
            said(Role::User, "one"),
            said(Role::Assistant, "first"),
            added(Role::User, "by the way"),
            said(Role::User, "two"),
        ];
        let turns = Turns::of(&messages);
        assert_eq!(turns.past.len(), 1);
        let past: Vec<_> = turns.past[0].messages().collect();
        assert_eq!(contents(&past), ["rules", "example", "shown", "one", "first"]);
        assert_eq!(contents(&turns.open), ["by the way", "two"]);
        let only_added = Turns::of(&messages[..4]);
        assert_eq!(contents(&only_added.open), ["rules", "example", "shown", "failed"]);
    }

    #[test]
    fn a_turn_that_a_system_message_asks_stays_in_later_prompts_with_what_came_before_it() {
        let rule =
            Message { before: vec![said(Role::User, "one")], ..said(Role::System, "briefly") };
        let messages = [
            said(Role::User, "zero"),
            said(Role::Assistant, "none"),
            rule,
            said(Role::Assistant, "first"),
            said(Role::System, "failed"),
            said(Role::Assistant, ""),
            said(Role::User, "two"),
        ];
        let turns = Turns::of(&messages);
        assert_eq!(turns.past.len(), 2);
        let all = turns.past.iter().flat_map(PastTurn::messages).chain(turns.open.iter().copied());
        let all = with_those_before(&all.collect::<Vec<_>>());
        assert_eq!(contents(&all), ["zero", "none", "one", "briefly", "first", "two"]);
    }

    #[test]
    fn a_turn_that_answers_a_call_of_its_own_request_or_one_that_was_added_stays_in_later_prompts()
    {
        let own = Message { before: vec![said(Role::User, "one"), called(&["1"])], ..result("1") };
        let messages = [
            said(Role::User, "zero"),
            said(Role::Assistant, "none"),
            own,
            said(Role::Assistant, "first"),
            said(Role::User, "two"),
        ];
        let wanted = ["zero", "none", "one", "", "1", "first", "two"];
        for (given, wanted) in [(&messages[..], &wanted[..]), (&messages[..3], &wanted[..5])] {
            let turns = Turns::of(given);
            assert!(!turns.awaits_results());
            let all = turns.past.iter().flat_map(PastTurn::messages);
            let all = all.chain(turns.open.iter().copied());
            assert_eq!(contents(&with_those_before(&all.collect::<Vec<_>>())), wanted);
        }
        let call = Message { is_added: true, ..called(&["1", "2"]) };
        let messages = [
            added(Role::User, "one"),
            call,
            Message { before: vec![result("2")], ..result("1") },
            said(Role::Assistant, "first"),
            called(&["3"]),
            result("3"),
            said(Role::Assistant, "second"),
            said(Role::User, "two"),
        ];
        let wanted = ["one", "", "2", "1", "first", "", "3", "second", "two"];
        for (given, wanted) in [
            (&messages[..], &wanted[..]),
            (&messages[..6], &wanted[..7]),
            (&messages[..3], &wanted[..4]),
        ] {
            let turns = Turns::of(given);
            assert!(!turns.awaits_results(), "{wanted:?}");
            let all = turns.past.iter().flat_map(PastTurn::messages);
            let all = all.chain(turns.open.iter().copied());
            assert_eq!(contents(&with_those_before(&all.collect::<Vec<_>>())), wanted);
        }
        // The turn of a result whose call is not read is not read either.
        let cut = [result("9"), said(Role::Assistant, "rest"), said(Role::User, "two")];
        let turns = Turns::of(&cut);
        assert_eq!((turns.past.len(), contents(&turns.open)), (0, vec!["two"]));
    }

    #[test]
    fn results_that_one_request_brings_are_all_sent_behind_their_calls() {
        let last = Message { before: vec![result("1")], ..result("2") };
        let messages = [said(Role::User, "both"), called(&["1", "2"]), last];
        let turns = Turns::of(&messages);
        assert!(!turns.awaits_results());
        assert_eq!(contents(&with_those_before(&turns.open)), ["both", "", "1", "2"]);
        let asks = Message { before: vec![result("1")], ..said(Role::User, "and now?") };
        let asked = [said(Role::User, "one"), called(&["1"]), asks];
        let turns = Turns::of(&asked);
        let past = turns.past.iter().flat_map(PastTurn::messages);
        let all: Vec<_> = past.chain(turns.open.iter().copied()).collect();
        assert_eq!(contents(&with_those_before(&all)), ["one", "", "1", "and now?"]);
        let without_call = with_those_before(&turns.open);
        assert_eq!(contents(&without_call), ["and now?"], "no result without its call");
    }
}
