//! The turns of a conversation that a prompt may have.

use crate::model_name::ModelName;
use crate::session::{Message, Role};

/// A question with its answer, which is incomplete where the turn was cancelled or failed.
pub(super) struct PastTurn<'a> {
    pub(super) question: &'a Message,
    pub(super) answer: &'a Message,
}

impl PastTurn<'_> {
    /// Returns whether this model answered, however its name is spelled.
    pub(super) fn is_by(&self, model: &str) -> bool {
        self.answer.model.as_deref().is_some_and(|by| ModelName::same(by, model))
    }
}

/// Returns the turns that have an answer, oldest first. A turn that was cancelled or failed before
/// its answer had text is left out: its user asks again, and a model that gets two questions in a
/// row answers the wrong one, or its template refuses them.
pub(super) fn past_turns(messages: &[Message]) -> Vec<PastTurn<'_>> {
    let mut turns = Vec::with_capacity(messages.len() / 2);
    let mut unanswered = None;
    for message in messages {
        match message.role {
            Role::User => unanswered = Some(message),
            Role::System | Role::Tool => {}
            Role::Assistant => {
                if let Some(question) = unanswered.take()
                    && !message.content.trim().is_empty()
                {
                    turns.push(PastTurn { question, answer: message });
                }
            }
        }
    }
    turns
}

/// Returns the number of turns before the question in a prompt of `messages_sent` messages.
pub(super) fn turns_before(messages_sent: u64) -> usize {
    usize::try_from(messages_sent.saturating_sub(1) / 2).unwrap_or(usize::MAX)
}
