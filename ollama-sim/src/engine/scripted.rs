//! Plays a script: from the end of a raw prompt, at the requested pace.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Piece, Reason, Step, Task};
use crate::images;
use crate::script::directive::Directives;
use crate::script::{self, Ending, Part, Script};
use crate::template;
use crate::tokens::first_tokens;

/// The most pieces that are handed over at once.
const BATCH: usize = 64;

/// The settings that a message may override.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Length of an answer in tokens.
    pub tokens: usize,
    /// Tokens per second; 0 is as fast as possible.
    pub rate: f64,
    /// Time before the first token.
    pub first: Duration,
    /// The answer to a message without directives.
    pub say: Option<Arc<str>>,
}

/// A script that is being played.
pub struct Scripted {
    script: Script,
    next: usize,
    at: usize,
    end: usize,
    reason: Reason,
    tokens_before: usize,
    tokens_at_end: usize,
    show_marks: bool,
    rate: f64,
    first_at: Instant,
    started: bool,
}

impl Scripted {
    /// Finds the position in the script, and where the answer will end.
    pub fn new(task: &Task, pace: &Pace) -> Self {
        let turn = template::parse(&task.prompt);
        let directives = Directives::parse(turn.user);
        let forbidden = turn.without_reasoning && (task.raw || !directives.unasked);
        let thinks = task.thinks && !forbidden;
        let seed = task.options.seed;
        let user = match &task.formatted {
            Some(json) => Cow::Owned(format!("[[say]]{json}")),
            // A model that calls a tool says nothing else, unless the message wants that.
            None if !task.calls.is_empty() && directives.tokens.is_none() => {
                Cow::Borrowed("[[tokens=0]]")
            }
            None => match (images::answer(turn.user, &task.images), &pace.say) {
                (Some(answer), _) => Cow::Owned(format!("[[say]]{answer}")),
                (None, Some(answer)) if directives == Directives::default() => {
                    Cow::Owned(format!("[[say]]{answer}"))
                }
                (None, _) => Cow::Borrowed(turn.user),
            },
        };
        let mut script = script::script(&task.model, &user, seed, pace.tokens, thinks);
        if task.beheaded {
            script = Script::empty();
        }
        let repeats = script.ending == Ending::Silent;
        let from = if repeats { 0 } else { position(&script.text, turn.answer_so_far) };
        if directives.strict {
            script.stray(from);
        }
        let before = script.counter_at(from);
        let mut end = script.text.len();
        let mut reason = if repeats { Reason::Repetition } else { Reason::Stop };
        if let Some(stop) = stop_at(&script, &task.options.stop, task.raw) {
            end = stop.max(from);
            reason = Reason::Stop;
        }
        if let Some(limit) = task.limit() {
            let fitting = from + first_tokens(before, &script.text[from..], limit).len();
            let is_whole = reason == Reason::Stop && end == script.text.len();
            let answer_tokens = script.counter_at(end).count() - before.count();
            // A model that has used its last token cannot send the end of its turn.
            if fitting < end || (is_whole && answer_tokens >= limit) {
                end = end.min(fitting);
                reason = Reason::Length;
            }
        }
        let tokens_at_end = script.counter_at(end).count();
        Self {
            next: script.pieces.partition_point(|piece| piece.end <= from),
            at: from,
            end,
            reason,
            tokens_before: before.count(),
            tokens_at_end,
            show_marks: task.raw,
            rate: directives.rate.unwrap_or(pace.rate),
            first_at: Instant::now()
                + directives.first_ms.map_or(pace.first, Duration::from_millis),
            script,
            started: false,
        }
    }

    /// Waits until a piece is due, and returns all that are due.
    pub async fn next(&mut self) -> Step {
        if !self.started {
            tokio::time::sleep_until(self.first_at).await;
            self.started = true;
        } else if self.rate == 0.0 {
            // Other tasks must get their turn, and this one must notice that its client has left.
            tokio::task::yield_now().await;
        }
        let mut pieces = Vec::new();
        while self.at < self.end && pieces.len() < BATCH {
            let Some(boundary) = self.script.pieces.get(self.next).copied() else {
                break;
            };
            let tokens = boundary.tokens.min(self.tokens_at_end) - self.tokens_before;
            if self.rate > 0.0 {
                let due = self.due(tokens);
                if due > Instant::now() {
                    if !pieces.is_empty() {
                        break;
                    }
                    tokio::time::sleep_until(due).await;
                }
            }
            let until = boundary.end.min(self.end);
            let text = self.script.text[self.at..until].to_owned();
            self.at = until;
            self.next += 1;
            if boundary.part != Part::Mark || self.show_marks {
                pieces.push(Piece { text, tokens, part: boundary.part });
            }
        }
        if pieces.is_empty() {
            return Step::End {
                evaluated: None,
                reason: self.reason,
                prompt_tokens: None,
                tokens: self.tokens_at_end - self.tokens_before,
            };
        }
        Step::Pieces(pieces)
    }

    /// Returns when the token is due. The time is absolute, so that a late wake-up is made up for.
    fn due(&self, tokens: usize) -> Instant {
        let after = tokens.saturating_sub(1) as f64 / self.rate;
        self.first_at + Duration::try_from_secs_f64(after).unwrap_or(Duration::from_hours(24))
    }
}

impl Script {
    fn empty() -> Self {
        let mut script = script::script("", "[[tokens=0]]", None, 0, false);
        script.ending = Ending::Done;
        script
    }
}

/// Returns where an answer continues; a text that is not from this script continues at its own
/// length.
fn position(script: &str, so_far: &str) -> usize {
    script.floor_char_boundary(so_far.len())
}

/// Returns where the first stop text begins, within the answer (or anywhere in a raw prompt).
fn stop_at(script: &Script, stops: &[String], raw: bool) -> Option<usize> {
    let from = if raw {
        0
    } else {
        script
            .pieces
            .iter()
            .take_while(|piece| piece.part != Part::Answer)
            .last()
            .map_or(0, |piece| piece.end)
    };
    let answer = &script.text[from..];
    stops.iter().filter_map(|stop| answer.find(stop.as_str())).min().map(|at| from + at)
}
