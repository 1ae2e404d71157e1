//! The selection of a branch, for a client and for a turn that goes to another one.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{SessionKeys, Store, StoreError, Turn, field, json, unexpected};
use crate::session::cursor::Tag;
use crate::session::event::Control;
use crate::session::model::{GenerationId, Owner, SessionId};

/// Calls of one selection, at most. Nearly every one is a single call; each looks into 200 chains, or
/// joins 50 strands.
const CALLS: usize = 1000;

/// A selection of the branch of a message, which can be applied again after a failover lost it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Selection {
    owner: Owner,
    session: SessionId,
    message: Uuid,
    tag: Tag,
    /// The turn that goes to the branch, where a client does not select it.
    #[serde(skip)]
    generation: Option<GenerationId>,
    /// The last message before the selection and the epoch of the session, as Redis replied; empty
    /// before the first reply.
    tip: String,
    epoch: String,
}

impl Selection {
    /// Creates the selection of the branch of a message.
    pub fn new(owner: &Owner, session: SessionId, message: Uuid) -> Self {
        Self {
            owner: owner.clone(),
            session,
            message,
            tag: Tag::random(),
            generation: None,
            tip: String::new(),
            epoch: String::new(),
        }
    }

    /// Creates the selection for a waiting turn.
    pub(super) fn of_turn(turn: &Turn, message: Uuid) -> Self {
        let selection = Self::new(&turn.owner, turn.session, message);
        Self { generation: Some(turn.generation), ..selection }
    }

    /// Returns the bytes of text that it keeps.
    pub fn bytes(&self) -> usize {
        self.owner.key().len() + self.tip.len() + self.epoch.len()
    }

    fn generation(&self) -> String {
        self.generation.map_or_else(|| "-".to_owned(), |id| id.to_string())
    }
}

impl Store {
    /// Selects the branch of a message. Returns whether another one was selected before. A repeat changes
    /// nothing; one after a failover changes nothing either, where the session has gone on since.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::MessageAbsent`], [`StoreError::TurnRuns`],
    /// [`StoreError::Redis`].
    pub async fn select(&self, selection: &mut Selection) -> Result<bool, StoreError> {
        let mut from = String::new();
        for _ in 0..CALLS {
            let call = SessionKeys::of(selection.session)
                .call("jarvis_select_1")
                .arg("owner", selection.owner.key())
                .arg("generation", selection.generation())
                .text("id", selection.message)
                .text("tag", selection.tag)
                .arg("event", json(&Control::Selected { message: selection.message }))
                .arg("tip", selection.tip.as_str())
                .arg("epoch", selection.epoch.as_str())
                .arg("from", from.as_str());
            let reply: Vec<String> = self.redis.call_replicated(call).await?;
            match reply.first().map(String::as_str) {
                Some("ok") => {
                    if selection.epoch.is_empty() {
                        selection.tip = field(&reply, 1)?;
                        selection.epoch = field(&reply, 2)?;
                    }
                    return Ok(field::<u8>(&reply, 3)? == 1);
                }
                Some("more") => {
                    from = field(&reply, 1)?;
                    // Another event is written where a later step writes one, too.
                    selection.tag = Tag::random();
                }
                Some("busy") => {
                    return Err(StoreError::TurnRuns(
                        "A turn of this session runs or waits; select the branch when it has ended.",
                    ));
                }
                Some("none") => return Err(StoreError::MessageAbsent),
                Some("absent") => return Err(StoreError::Absent),
                _ => return Err(unexpected("select")),
            }
        }
        Err(unexpected("branches"))
    }
}
