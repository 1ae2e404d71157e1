//! Conversations that clients create before their first turn, and what clients add to them outside of
//! turns: on the budgets of their owners, as turns are.

use super::{Generations, SubmitError};
use crate::limits::Subject;
use crate::session::store::{NewConversation, SessionChange, json_bytes};
use crate::session::{Message, Owner, SessionId, StoreError};

impl Generations {
    /// Creates a conversation for a caller, which is one of its sessions.
    ///
    /// # Errors
    /// Where the caller may begin or store no further session, and [`SubmitError::Store`].
    pub async fn create_conversation(
        &self,
        subject: &Subject,
        new: &NewConversation,
    ) -> Result<(), SubmitError> {
        if self.store.lifecycle().is_draining() {
            return Err(SubmitError::Draining);
        }
        let (owner, source, session) = (&subject.owner, &*subject.source.0, new.session);
        let bytes = (json_bytes(&new.messages) + new.metadata.len()) as u64;
        let grant = self.budget.room_with(owner, source, session, bytes).await?;
        let permit = match self.limits.take_session(source, session).await {
            Ok(permit) => permit,
            Err(refusal) => {
                if *owner != Owner::Anonymous {
                    self.budget.withdraw(owner, session, grant).await;
                }
                refusal.count();
                return Err(refusal.into());
            }
        };
        self.store.create_conversation(owner, new).await?;
        permit.accepted(true);
        self.budget.record(source, session).await;
        Ok(())
    }

    /// Adds messages to a conversation of a caller in which no turn runs or waits.
    ///
    /// # Errors
    /// Where the caller may store nothing more, and [`SubmitError::Store`].
    pub async fn add_messages(
        &self,
        subject: &Subject,
        session: SessionId,
        messages: &[Message],
    ) -> Result<(), SubmitError> {
        let (owner, source) = (&subject.owner, &*subject.source.0);
        let bytes = json_bytes(messages) as u64;
        self.budget.room_with(owner, source, session, bytes).await?;
        self.store.add_messages(owner, session, messages).await?;
        self.budget.record(source, session).await;
        Ok(())
    }

    /// Replaces the metadata of a conversation by this JSON.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn set_metadata(
        &self,
        subject: &Subject,
        session: SessionId,
        metadata: &str,
    ) -> Result<(), StoreError> {
        let change = SessionChange { metadata: Some(metadata), ..SessionChange::default() };
        self.store.update(&subject.owner, session, change).await?;
        self.budget.record(&subject.source.0, session).await;
        Ok(())
    }
}
