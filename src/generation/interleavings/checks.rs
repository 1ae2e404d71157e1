//! The checks after everything has ended.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::holder::parts;
use super::world::{SubmittedTurn, World};
use crate::session::store::Selection;
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
        if let Ok(page) = &page {
            assert_eq!(page.running, None, "nothing runs at the end");
        }
        let stored = self.stored_messages();
        let messages: Vec<&Message> = stored.iter().map(|(.., message)| message).collect();
        self.check_branches(&stored).await;
        let mut answers: HashMap<GenerationId, &Message> = HashMap::new();
        for message in messages.iter().copied().filter(|message| message.role == Role::Assistant) {
            let generation = message.generation_id.expect("a generation");
            assert!(answers.insert(generation, message).is_none(), "two answers of one turn");
        }
        let questions: Vec<_> = messages
            .iter()
            .filter(|message| message.role == Role::User)
            .map(|message| message.content.as_str())
            .collect();
        let events = self.stored_events();
        for turn in &self.submissions {
            let answer = answers.get(&turn.generation).copied();
            if turn.cleared {
                assert!(answer.is_none(), "the answer of a turn that was cleared");
                // An answer that is regenerated has the question of another turn.
                let is_own = !turn.question.is_empty();
                let has_question = questions.contains(&turn.question.as_str());
                assert!(!(is_own && has_question), "a question was cleared");
                let is_published = is_own && events.contains(&turn.question);
                assert!(!(turn.deleted && is_published), "a question of a deleted session");
                continue;
            }
            match answer {
                Some(message) => self.check_answer(turn, message),
                None => assert!(self.may_have_no_answer(turn), "an accepted turn has no answer"),
            }
        }
    }

    /// Checks that the messages are a tree of questions and answers, and that each is reached: it is listed
    /// once its branch is selected, with its siblings.
    async fn check_branches(&self, stored: &[(u64, u64, Message)]) {
        let by_number: HashMap<u64, &Message> =
            stored.iter().map(|(number, _, message)| (*number, message)).collect();
        let mut children: HashMap<u64, Vec<(u64, &Message)>> = HashMap::new();
        for (number, parent, message) in stored {
            let role = by_number.get(parent).map(|parent| parent.role);
            let expected = match message.role {
                Role::User => role.is_none_or(|role| role == Role::Assistant),
                _ => role == Some(Role::User),
            };
            assert!(expected, "an answer follows a question, and a question an answer");
            assert!(*parent == 0 || role.is_some(), "a parent is there");
            children.entry(*parent).or_default().push((*number, message));
        }
        for (number, _, message) in stored {
            let is_answered = message.role != Role::User || children.contains_key(number);
            assert!(is_answered, "a question without an answer");
            let mut selection = Selection::new(&self.owner, self.session, message.id);
            self.stores[0].select(&mut selection).await.expect("every message can be selected");
            let page = self.stores[0].newest(&self.owner, self.session, 500, 1 << 20).await;
            let listed = page.expect("a page").messages;
            let at = listed.iter().position(|listed| listed.id == message.id);
            let at = at.expect("a selected message is listed");
            let (mut parent, mut of) = (0, &children[&0]);
            for listed in &listed[..=at] {
                let ids: Vec<Uuid> = of.iter().map(|(_, sibling)| sibling.id).collect();
                let siblings = listed.siblings.as_ref().map(|siblings| siblings.ids.clone());
                assert_eq!(
                    siblings.unwrap_or_else(|| vec![listed.id]),
                    ids,
                    "siblings of {parent}"
                );
                let found = of.iter().find(|(_, sibling)| sibling.id == listed.id);
                parent = found.expect("a child of the message before").0;
                of = children.get(&parent).unwrap_or(of);
            }
        }
    }

    fn may_have_no_answer(&self, turn: &SubmittedTurn) -> bool {
        // The turn was cancelled while it waited, or before a failover lost all of it. A clear that
        // is applied again clears turns that were accepted before that.
        if turn.cancelled || turn.before_redo {
            return true;
        }
        // Two faults at once: a failover lost the whole session with the claim, and the user sent a
        // turn before a holder that had not heard of the claim restored its own.
        if turn.anonymous && self.started_again {
            return true;
        }
        // A failover lost a turn whose acceptance the client did not get: the client repeats it.
        self.failovers > 0 && !turn.acknowledged
    }

    /// Returns the ends that holders wrote, each once: the copy of an end is the same end.
    fn ends(&self, turn: &SubmittedTurn) -> HashSet<Uuid> {
        turn.enders.iter().map(|at| self.holders[*at].end.0.id).collect()
    }

    fn check_answer(&self, turn: &SubmittedTurn, message: &Message) {
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
        turn: &SubmittedTurn,
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
