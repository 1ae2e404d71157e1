//! The list of a user's sessions, and the deletion of all of them.
//!
//! Both are parts of the budgets' index, which lies in another hash slot than the sessions. The
//! sessions are the truth: an entry without a session goes when it is read, and a session that is
//! missing comes back with its next turn.

use super::{Budget, call, payer};
use crate::redis::RedisError;
use crate::session::{Owner, SessionId};

/// An entry without a session stays for this time: the session may be created just now.
const YOUNG_ENTRY_SECONDS: u64 = 60;
/// After this time without a step, another replica resumes a deletion.
const DELETION_LEASE_SECONDS: u64 = 15;

/// A deletion of all sessions of a user.
#[derive(Clone, Debug)]
pub struct Deletion {
    /// Its random name.
    pub name: String,
    /// When it began, in microseconds of Redis.
    pub began: u64,
    /// The user.
    pub owner: Owner,
}

/// A session that a deletion of all sessions is to delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueSession {
    /// The session.
    pub session: SessionId,
    /// Whether it was listed again since the deletion began: it was used, or created again.
    pub is_listed_again: bool,
}

/// The order of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListOrder {
    /// The session that was used last comes first.
    Newest,
    /// The session that was used last comes last: one that is used meanwhile moves to the end, and
    /// is not missed.
    Oldest,
}

impl ListOrder {
    fn as_str(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::Oldest => "oldest",
        }
    }
}

/// The position behind an entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListPosition {
    /// The score of the entry, as Redis writes it.
    pub score: String,
    /// The session of the entry.
    pub session: SessionId,
}

impl std::fmt::Display for ListPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{}", self.score, self.session)
    }
}

impl ListPosition {
    /// Reads a position that was written before; none where the text is no position.
    pub fn parse(text: &str) -> Option<Self> {
        let (score, session) = text.split_once('_')?;
        let is_number = score.len() <= 32
            && score.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
            && score.parse::<f64>().is_ok();
        let session = session.parse().ok()?;
        is_number.then(|| Self { score: score.to_owned(), session })
    }
}

/// An entry of a list.
#[derive(Clone, Debug)]
pub struct ListEntry {
    /// The position behind the entry, with its session.
    pub position: ListPosition,
    /// Whether the bytes of the session are recorded for the user.
    pub is_recorded: bool,
}

/// Entries that one call reads, at most, so that it does not take Redis long.
const LISTED_AT_ONCE: usize = 200;

/// A page of a list.
#[derive(Debug)]
pub struct ListPage {
    /// Its entries, in the order of the list.
    pub entries: Vec<ListEntry>,
    /// Whether the list has no entries behind them.
    pub is_last: bool,
}

impl Budget {
    /// Returns a page of a user's sessions, behind a position or from the beginning: at most `limit`
    /// entries, and at most 200.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn list(
        &self,
        owner: &Owner,
        order: ListOrder,
        after: Option<&ListPosition>,
        limit: usize,
    ) -> Result<ListPage, RedisError> {
        let limit = limit.min(LISTED_AT_ONCE);
        let call = call("jarvis_budget_list_1")
            .arg("payer", payer(owner, ""))
            .arg("order", order.as_str())
            .arg("score", after.map_or("", |after| after.score.as_str()))
            .arg("session", after.map_or_else(String::new, |after| after.session.to_string()))
            .text("limit", limit);
        let reply: Vec<String> = self.store.redis().call_readonly(call).await?;
        let entries = reply.chunks_exact(3).filter_map(|entry| {
            let position =
                ListPosition { session: entry[0].parse().ok()?, score: entry[1].clone() };
            Some(ListEntry { position, is_recorded: entry[2] == "1" })
        });
        Ok(ListPage { entries: entries.collect(), is_last: reply.len() / 3 < limit })
    }

    /// Removes entries from a user's list that have no session of that user. Young ones stay.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn unlist_gone(
        &self,
        owner: &Owner,
        sessions: &[SessionId],
    ) -> Result<(), RedisError> {
        let call = call("jarvis_budget_unlist_1")
            .arg("payer", payer(owner, ""))
            .text("seconds", YOUNG_ENTRY_SECONDS)
            .rest("sessions", sessions.iter().map(|session| session.to_string().into()));
        self.store.redis().call(call).await
    }

    /// Begins the deletion of all sessions that a user has now. Returns their number.
    ///
    /// # Errors
    /// [`RedisError`]; the deletion may have begun then.
    pub async fn delete_all(
        &self,
        owner: &Owner,
        name: &str,
    ) -> Result<(u64, Deletion), RedisError> {
        let call = call("jarvis_budget_delete_all_1")
            .arg("payer", payer(owner, ""))
            .arg("deletion", name)
            .text("lease_seconds", DELETION_LEASE_SECONDS);
        let (count, began) = self.store.redis().call_replicated(call).await?;
        Ok((count, Deletion { name: name.to_owned(), began, owner: owner.clone() }))
    }

    /// Returns the next sessions of a deletion, after those that are deleted by now. There are none
    /// where it has ended.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn delete_next(
        &self,
        deletion: &str,
        deleted: &[SessionId],
        limit: usize,
    ) -> Result<Vec<DueSession>, RedisError> {
        let call = call("jarvis_budget_delete_next_1")
            .arg("deletion", deletion)
            .text("lease_seconds", DELETION_LEASE_SECONDS)
            .text("limit", limit)
            .rest("deleted", deleted.iter().map(|session| session.to_string().into()));
        let next: Vec<String> = self.store.redis().call(call).await?;
        let due = next.chunks_exact(2).filter_map(|entry| {
            Some(DueSession { session: entry[0].parse().ok()?, is_listed_again: entry[1] == "1" })
        });
        Ok(due.collect())
    }

    /// Returns the deletions that no replica has carried on for a while.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn abandoned_deletions(&self) -> Result<Vec<Deletion>, RedisError> {
        let call = call("jarvis_budget_deletions_1").text("lease_seconds", DELETION_LEASE_SECONDS);
        let found: Vec<String> = self.store.redis().call(call).await?;
        let deletions = found.chunks_exact(3).filter_map(|deletion| {
            let [name, began, owner] = deletion else { return None };
            let (name, owner) = (name.clone(), Owner::from_key(owner));
            Some(Deletion { name, began: began.parse().ok()?, owner })
        });
        Ok(deletions.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_back_as_it_was_written_and_no_other_text_is_one() {
        let position =
            ListPosition { score: "1764165699.123456".to_owned(), session: SessionId::random() };
        assert_eq!(ListPosition::parse(&position.to_string()), Some(position));
        let session = SessionId::random();
        for text in [
            String::new(),
            format!("_{session}"),
            format!("inf_{session}"),
            format!("-1_{session}"),
            format!("(1_{session}"),
            format!("1 2_{session}"),
            "1_x".to_owned(),
            format!("1.2.3_{session}"),
        ] {
            assert_eq!(ListPosition::parse(&text), None, "{text}");
        }
    }
}
