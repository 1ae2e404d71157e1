//! The newest messages of a conversation, with the calls of tools that an input may answer.

use crate::session::{Message, Owner, SessionId, Store, StoreError};

/// Messages that are searched for the calls of tools, from the newest back, and their bytes.
const MESSAGES: u64 = 200;
const BYTES: usize = 512 << 10;

/// Returns the messages in which a call is looked for, oldest first.
///
/// # Errors
/// [`StoreError::Absent`], [`StoreError::Redis`].
pub async fn newest_messages(
    store: &Store,
    owner: &Owner,
    session: SessionId,
) -> Result<Vec<Message>, StoreError> {
    Ok(store.newest(owner, session, MESSAGES, BYTES).await?.messages)
}
