//! The deletion of all sessions of a user, in bounded steps that another replica resumes.
//!
//! The index holds what is left to delete. Each session is deleted as by its own request, with an
//! epoch that belongs to the deletion: a repeat finds it deleted, or created again by the user, and
//! changes nothing then.

use std::time::Duration;

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::Generations;
use super::redo::RedoEntry;
use crate::lifecycle::TaskEnd;
use crate::retry::{Backoff, retry};
use crate::session::store::Clearing;
use crate::session::{Owner, SessionId, Store, StoreError};

/// Sessions of one step.
const STEP: usize = 64;
/// Sessions that are deleted at the same time.
const AT_ONCE: usize = 16;
/// How long a request waits for the end of a deletion.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);
/// How long a call of Redis is repeated.
const RETRY_LIMIT: Duration = Duration::from_secs(10);
/// The time between two looks for deletions that no replica carries on.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The outcome of a deletion of all sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeletedAll {
    /// All are deleted. The number counts those of this deletion.
    Done(u64),
    /// So many are to be deleted, and that goes on.
    Running(u64),
}

/// Sessions of a user that were deleted by one step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct DeletedSessions {
    owner: Owner,
    /// The random part of the epoch in which the deletion leaves them.
    epoch: String,
    sessions: Vec<SessionId>,
}

impl DeletedSessions {
    /// Returns the bytes of memory that it keeps.
    pub(super) fn bytes(&self) -> usize {
        self.owner.key().len() + self.epoch.len() + self.sessions.len() * size_of::<SessionId>()
    }

    /// Deletes the sessions. Returns the number of those that there were.
    pub(super) async fn apply(&self, store: &Store) -> Result<u64, StoreError> {
        let clearings: Vec<_> = self
            .sessions
            .iter()
            .map(|session| Clearing::in_epoch(&self.owner, *session, self.epoch.clone()))
            .collect();
        let mut deletions = futures_util::stream::iter(clearings)
            .map(|mut clearing| {
                let store = store.clone();
                async move {
                    match store.clear(&mut clearing).await {
                        Ok(_) => Ok(1),
                        Err(StoreError::Absent) => Ok(0),
                        Err(error) => Err(error),
                    }
                }
            })
            .buffer_unordered(AT_ONCE);
        let mut deleted = 0;
        while let Some(one) = deletions.next().await {
            deleted += one?;
        }
        Ok(deleted)
    }
}

impl Generations {
    /// Deletes all sessions that a user has now, and none that is created later.
    ///
    /// # Errors
    /// [`StoreError::Redis`]; some are deleted then, or all will be.
    pub async fn delete_all(&self, owner: &Owner) -> Result<DeletedAll, StoreError> {
        let deletion = Uuid::new_v4().simple().to_string();
        let count = self.budget.delete_all(owner, &deletion).await?;
        if count == 0 {
            return Ok(DeletedAll::Done(0));
        }
        let (generations, owner) = (self.clone(), owner.clone());
        // A client that goes away ends nothing.
        let running =
            self.tasks.spawn(async move { generations.carry_on(&owner, &deletion).await });
        match timeout(REQUEST_LIMIT, running).await {
            Ok(Ok(Some(deleted))) => Ok(DeletedAll::Done(deleted)),
            _ => Ok(DeletedAll::Running(count)),
        }
    }

    /// Carries a deletion on to its end. Returns the number of sessions that it deleted; none where
    /// this replica stops, or Redis fails, before.
    async fn carry_on(&self, owner: &Owner, deletion: &str) -> Option<u64> {
        let mut step = DeletedSessions {
            owner: owner.clone(),
            epoch: deletion.to_owned(),
            sessions: Vec::new(),
        };
        let mut deleted = 0;
        loop {
            let next = || self.budget.delete_next(deletion, &step.sessions, STEP);
            step.sessions = self.retried(next).await?;
            if step.sessions.is_empty() {
                tracing::info!(sessions = deleted, "all sessions of a user deleted");
                return Some(deleted);
            }
            deleted += self.retried(|| step.apply(&self.store)).await?;
            self.keep(RedoEntry::Deleted(step.clone()));
        }
    }

    /// Repeats a call that Redis did not answer, for a while: another replica resumes later.
    async fn retried<T, E, Called>(&self, call: impl FnMut() -> Called) -> Option<T>
    where
        Called: Future<Output = Result<T, E>>,
    {
        let retrying = timeout(RETRY_LIMIT, retry(Backoff::redis(), call, |_| true));
        tokio::select! {
            done = retrying => done.ok()?.ok(),
            () = self.stop.cancelled() => None,
        }
    }
}

/// Resumes deletions that no replica carries on.
pub(super) async fn resume(generations: Generations) -> TaskEnd {
    loop {
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            () = generations.stop.cancelled() => return TaskEnd::Done,
        }
        let found = match generations.budget.abandoned_deletions().await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "deletions not looked for");
                continue;
            }
        };
        for (deletion, owner) in found {
            generations.carry_on(&owner, &deletion).await;
        }
    }
}
