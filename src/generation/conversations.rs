//! Conversations that clients create before their first turn, and what clients add to them outside of
//! turns: on the budgets of their owners, as turns are.

use std::future::Future;

use tracing::Instrument as _;

use super::{Generations, SubmitError};
use crate::lifecycle::spawn_caught;
use crate::limits::Subject;
use crate::session::store::{NewConversation, SessionChange, json_bytes};
use crate::session::{Message, SessionId, StoreError};

impl Generations {
    /// Creates a conversation for a caller, which is one of its sessions, even if the caller goes away
    /// meanwhile.
    ///
    /// # Errors
    /// Where the caller may begin or store no further session, and [`SubmitError::Store`].
    pub async fn create_conversation(
        &self,
        subject: &Subject,
        new: NewConversation,
    ) -> Result<(), SubmitError> {
        if self.store.lifecycle().is_draining() {
            return Err(SubmitError::Draining);
        }
        let (generations, subject) = (self.clone(), subject.clone());
        to_its_end(async move { generations.create(&subject, &new).await }).await
    }

    async fn create(&self, subject: &Subject, new: &NewConversation) -> Result<(), SubmitError> {
        let (owner, source, session) = (&subject.owner, &*subject.source.0, new.session);
        let bytes = (json_bytes(&new.messages) + new.metadata.len()) as u64;
        let grant = self.budget.room_with(owner, source, session, bytes).await?;
        let permit = match self.limits.take_session(source, session).await {
            Ok(permit) => permit,
            Err(refusal) => {
                self.budget.withdraw(owner, session, grant).await;
                refusal.count();
                return Err(refusal.into());
            }
        };
        self.store.create_conversation(owner, new).await?;
        permit.accepted(true);
        self.budget.record(source, session).await;
        Ok(())
    }

    /// Adds messages to a conversation of a caller in which no turn runs or waits, even if the caller goes
    /// away meanwhile. Returns them.
    ///
    /// # Errors
    /// Where the caller may store nothing more, and [`SubmitError::Store`].
    pub async fn add_messages(
        &self,
        subject: &Subject,
        session: SessionId,
        messages: Vec<Message>,
    ) -> Result<Vec<Message>, SubmitError> {
        let (generations, subject) = (self.clone(), subject.clone());
        let bytes = json_bytes(&messages) as u64;
        to_its_end(async move {
            let Self { store, .. } = &generations;
            let added = store.add_messages(&subject.owner, session, &messages);
            generations.store_more(&subject, session, bytes, added).await?;
            Ok(messages)
        })
        .await
    }

    /// Replaces the metadata of a conversation by this JSON, even if the caller goes away meanwhile. Returns
    /// it.
    ///
    /// # Errors
    /// Where the caller may store nothing more, and [`SubmitError::Store`].
    pub async fn set_metadata(
        &self,
        subject: &Subject,
        session: SessionId,
        metadata: String,
    ) -> Result<String, SubmitError> {
        let (generations, subject) = (self.clone(), subject.clone());
        let bytes = metadata.len() as u64;
        to_its_end(async move {
            let change =
                SessionChange { metadata: Some(metadata.clone()), ..SessionChange::default() };
            let updated = generations.update(&subject.owner, session, change);
            generations.store_more(&subject, session, bytes, updated).await?;
            Ok(metadata)
        })
        .await
    }

    /// Makes a change that stores so many bytes in a session that exists, within its owner's budget.
    async fn store_more(
        &self,
        subject: &Subject,
        session: SessionId,
        bytes: u64,
        change: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<(), SubmitError> {
        let (owner, source) = (&subject.owner, &*subject.source.0);
        let grant = self.budget.room_with(owner, source, session, bytes).await?;
        match change.await {
            Ok(()) => self.budget.record(source, session).await,
            Err(error) => {
                // It may have been deleted meanwhile: the check has listed it again.
                if matches!(error, StoreError::Absent) {
                    self.budget.withdraw(owner, session, grant).await;
                }
                return Err(error.into());
            }
        }
        Ok(())
    }
}

/// Makes a change to its end in a task of its own: what it has stored is recorded for its owner, although a
/// request may be dropped at any point.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, SubmitError>> + Send + 'static,
) -> Result<T, SubmitError> {
    match spawn_caught("submission", change.in_current_span()).await {
        Ok(Ok(changed)) => changed,
        Ok(Err(_)) | Err(_) => Err(SubmitError::Internal),
    }
}
