//! The deletion of all sessions of a user, in bounded steps that another replica resumes.
//!
//! The index holds what is left to delete. Each session is deleted as by its own request, with an
//! epoch that belongs to the deletion: a repeat finds it deleted, or created again by the user, and
//! changes nothing then. A session that was created since the deletion began stays, too: it is listed
//! again, and its own time decides then. The clock of its node may differ from that of the index, so no
//! session that is not listed again is compared.

use std::time::Duration;

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::Generations;
use crate::budget::{Deletion, DueSession};
use crate::lifecycle::{TaskEnd, catch_panic};
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
    /// When the deletion began, in microseconds of Redis.
    began: u64,
    /// Each session with what Redis replied, by which only this deletion is applied again, and never
    /// one of a session that was created since.
    sessions: Vec<(SessionId, String)>,
}

impl DeletedSessions {
    /// Returns the bytes of memory that it keeps.
    pub(super) fn bytes(&self) -> usize {
        let sessions = self.sessions.iter();
        let sessions = sessions.map(|(_, done)| size_of::<(SessionId, String)>() + done.len());
        self.owner.key().len() + self.epoch.len() + sessions.sum::<usize>()
    }

    /// Deletes sessions for the first time, and keeps those that there were. After an error a repeat
    /// goes on with the others.
    async fn delete(&mut self, store: &Store, due: &[DueSession]) -> Result<(), StoreError> {
        let is_done = |due: &DueSession| self.sessions.iter().any(|(done, _)| *done == due.session);
        let rest = due.iter().filter(|due| !is_done(due));
        let rest = rest.map(|due| {
            let began = due.is_listed_again.then_some(self.began);
            Clearing::of_deletion(&self.owner, due.session, &self.epoch, began, "")
        });
        let rest = rest.collect();
        let mut failed = Ok(());
        for cleared in clear_all(store, rest).await {
            match cleared {
                Ok(deleted) => self.sessions.extend(deleted),
                Err(error) => failed = Err(error),
            }
        }
        failed
    }

    /// Deletes the sessions again after a failover.
    pub(super) async fn apply(&self, store: &Store) -> Result<(), StoreError> {
        let again = self.sessions.iter().map(|(session, done)| {
            Clearing::of_deletion(&self.owner, *session, &self.epoch, Some(self.began), done)
        });
        let cleared = clear_all(store, again.collect()).await;
        cleared.into_iter().try_for_each(|cleared| cleared.map(drop))
    }
}

/// Returns of each session what Redis replied; none where there is no such session.
async fn clear_all(
    store: &Store,
    clearings: Vec<Clearing>,
) -> Vec<Result<Option<(SessionId, String)>, StoreError>> {
    let clear = |mut clearing: Clearing| {
        let store = store.clone();
        async move {
            match store.clear(&mut clearing).await {
                Ok(_) => Ok(Some((clearing.session(), clearing.done().to_owned()))),
                Err(StoreError::Absent) => Ok(None),
                Err(error) => Err(error),
            }
        }
    };
    // Collected, because the stream would borrow the closure for every lifetime.
    let calls: Vec<_> = clearings.into_iter().map(clear).collect();
    futures_util::stream::iter(calls).buffer_unordered(AT_ONCE).collect().await
}

impl Generations {
    /// Deletes all sessions that a user has now, and none that is created later.
    ///
    /// # Errors
    /// [`StoreError::Redis`]; some are deleted then, or all will be.
    pub async fn delete_all(&self, owner: &Owner) -> Result<DeletedAll, StoreError> {
        let name = Uuid::new_v4().simple().to_string();
        let (count, deletion) = self.budget.delete_all(owner, &name).await?;
        if count == 0 {
            return Ok(DeletedAll::Done(0));
        }
        let generations = self.clone();
        // A client that goes away ends nothing.
        let carried_on =
            catch_panic("deletion", async move { generations.carry_on(deletion).await });
        let running = self.tasks.spawn(carried_on);
        match timeout(REQUEST_LIMIT, running).await {
            Ok(Ok(Ok(Some(deleted)))) => Ok(DeletedAll::Done(deleted)),
            _ => Ok(DeletedAll::Running(count)),
        }
    }

    /// Carries a deletion on to its end. Returns the number of sessions that it deleted; none where
    /// this replica stops, or Redis fails, before.
    async fn carry_on(&self, Deletion { name, began, owner }: Deletion) -> Option<u64> {
        let (mut deleted, mut done) = (0, Vec::new());
        loop {
            let next = || self.budget.delete_next(&name, &done, STEP);
            let due = self.retried(next).await?;
            if due.is_empty() {
                tracing::info!(sessions = deleted, "all sessions of a user deleted");
                return Some(deleted);
            }
            let (owner, epoch) = (owner.clone(), name.clone());
            let step = DeletedSessions { owner, epoch, began, sessions: Vec::new() };
            let step = Mutex::new(step);
            let delete = || async { step.lock().await.delete(&self.store, &due).await };
            self.retried(delete).await?;
            let step = step.into_inner();
            deleted += step.sessions.len() as u64;
            done = due.iter().map(|due| due.session).collect();
            self.keep(step);
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
        for deletion in found {
            generations.carry_on(deletion).await;
        }
    }
}
