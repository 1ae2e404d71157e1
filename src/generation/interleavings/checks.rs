//! The checks after everything has ended.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::holder::parts;
use super::world::{Submission, World};
use crate::session::{GenerationId, Message, Owner, Role, Status};

/// Returns reasoning and answer as they are stored.
fn stored(message: &Message) -> [String; 2] {
    [message.thinking.clone().unwrap_or_default(), message.content.clone()]
}

impl World<'_> {
    pub(super) async fn check(&self) {
        if self.owner != Owner::Anonymous {
            let found = self.stores[0].describe(&Owner::Anonymous, self.session).await;
            assert!(found.is_err(), "an anonymous caller finds a session that a user claimed");
        }
        let page = self.stores[0].newest(&self.owner, self.session, 500, 1 << 20).await;
        let messages = page.as_ref().map_or(&[][..], |page| &page.messages);
        if let Ok(page) = &page {
            assert_eq!(page.running, None, "nothing runs at the end");
        }
        let mut answers: HashMap<GenerationId, &Message> = HashMap::new();
        for message in messages.iter().filter(|message| message.role == Role::Assistant) {
            let generation = message.generation_id.expect("a generation");
            assert!(answers.insert(generation, message).is_none(), "two answers of one turn");
        }
        let questions: Vec<_> = messages
            .iter()
            .filter(|message| message.role == Role::User)
            .map(|message| message.content.as_str())
            .collect();
        assert_eq!(questions.len(), answers.len(), "a question without an answer, or vice versa");
        let events = self.stored_events();
        for turn in &self.submissions {
            let answer = answers.get(&turn.generation).copied();
            if turn.cleared {
                assert!(answer.is_none(), "the answer of a turn that was cleared");
                assert!(!questions.contains(&turn.question.as_str()), "a question was cleared");
                let is_published = events.contains(&turn.question);
                assert!(!(turn.deleted && is_published), "a question of a deleted session");
                continue;
            }
            match answer {
                Some(message) => self.check_answer(turn, message),
                None => assert!(self.may_have_no_answer(turn), "an accepted turn has no answer"),
            }
        }
    }

    fn may_have_no_answer(&self, turn: &Submission) -> bool {
        // The turn was cancelled while it waited, or before a failover lost all of it. A clear that
        // is applied again clears turns that were accepted before that.
        if turn.cancelled || turn.before_redo {
            return true;
        }
        // Two faults at once: a failover lost the whole session with the claim, and the user sent a
        // turn before a holder that had not heard of the claim restored its own.
        if turn.anonymous && self.begun_anew {
            return true;
        }
        // A failover lost a turn whose acceptance the client did not get: the client repeats it.
        self.failovers > 0 && !turn.acknowledged
    }

    /// Returns the ends that holders wrote, each once: the copy of an end is the same end.
    fn ends(&self, turn: &Submission) -> HashSet<Uuid> {
        turn.enders.iter().map(|at| self.holders[*at].end.0.id).collect()
    }

    fn check_answer(&self, turn: &Submission, message: &Message) {
        let stored = stored(message);
        if let [ender] = turn.enders[..]
            && message.status == Some(Status::Complete)
        {
            let written = parts(self.holders[ender].state.text());
            assert_eq!(stored, written, "the stored answer is the text of its only ender");
        } else if message.status == Some(Status::Complete) {
            let written = |at: &usize| parts(self.holders[*at].state.text()) == stored;
            assert!(turn.enders.iter().any(written), "the stored answer is that of one ender");
        }
        let delivered = self.client.ended.get(&turn.generation);
        if turn.cancelled {
            self.check_cancelled(turn, message, delivered);
            return;
        }
        // Two faults at once: a failover lost an end, and before the end was written again, another
        // holder ended the turn: the one before it, whose takeover was lost, too, or one that took
        // the turn over meanwhile.
        if let Some(delivered) = delivered.filter(|_| self.ends(turn).len() <= 1) {
            assert_eq!(&stored, delivered, "the stored answer is the delivered one");
        }
    }

    fn check_cancelled(
        &self,
        turn: &Submission,
        message: &Message,
        delivered: Option<&[String; 2]>,
    ) {
        // A failover lost the cancel, and before the cancel was applied again, a holder that had
        // not received its hint ended the turn: then that end came first.
        if turn.ended_after_cancel {
            return;
        }
        assert_eq!(message.status, Some(Status::Cancelled), "the first of cancel and end wins");
        let stored = stored(message);
        match delivered {
            Some(delivered) if self.failovers == 0 => {
                assert_eq!(&stored, delivered, "the stored answer is the delivered one");
            }
            // Two faults at once: the cancel has no text, so that text which a failover lost stays
            // lost, and text before a rewind may be stored again. Or the failover lost an end,
            // another replica took the turn over, and the cancel met that.
            Some(delivered)
                if !turn.rewound && !turn.written_after_cancel && turn.enders.is_empty() =>
            {
                for (delivered, stored) in delivered.iter().zip(&stored) {
                    assert!(delivered.starts_with(stored), "a beginning of the delivered answer");
                }
            }
            _ => {}
        }
    }
}
