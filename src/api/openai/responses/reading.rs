//! Bounds the stored responses that are read at the same time: their requests and answers are in memory
//! several times, as they are stored, parsed and written, which is more than the room of one page.

use std::sync::{Arc, LazyLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::byte_room::Shares;
use crate::limits::Subject;
use crate::session::Owner;
use crate::source::ShareKey;

/// Responses that are read at the same time, at most.
const AT_ONCE: usize = 16;
/// Those of one network or user: half of them, so that those of others wait for no slow one of it.
const OF_CLIENT: usize = AT_ONCE / 2;

static READING: LazyLock<Reading> = LazyLock::new(Reading::default);

/// The right to read a response, until it is dropped. Nothing but calls of the store is waited for with it.
#[must_use]
pub struct ReadPermit {
    _of_process: OwnedSemaphorePermit,
    _of_client: Option<OwnedSemaphorePermit>,
}

struct Reading {
    of_process: Arc<Semaphore>,
    shares: Shares,
}

impl Default for Reading {
    fn default() -> Self {
        Self { of_process: Arc::new(Semaphore::new(AT_ONCE)), shares: Shares::new(OF_CLIENT) }
    }
}

impl Reading {
    /// Waits for the right to read, first in the share of a client, so that those that wait there keep nothing
    /// from others.
    async fn take(&self, client: Option<ShareKey>) -> Option<ReadPermit> {
        // The semaphores are never closed.
        let of_client = match client {
            Some(client) => Some(self.shares.of(client).acquire_owned().await.ok()?),
            None => None,
        };
        let of_process = Arc::clone(&self.of_process).acquire_owned().await.ok()?;
        Some(ReadPermit { _of_process: of_process, _of_client: of_client })
    }
}

/// Waits for the right to read a response in the name of a client.
pub async fn permit(client: Option<ShareKey>) -> Option<ReadPermit> {
    READING.take(client).await
}

/// Returns in whose share a caller reads: the user's, or that of the network of one that is not signed in. A
/// caller on the same machine has none.
pub fn client(subject: &Subject) -> Option<ShareKey> {
    match &subject.owner {
        Owner::User(_) => Some(ShareKey::of_user(&subject.owner.key())),
        Owner::Anonymous => subject.source.widest_network(),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::source::SourceKey;

    #[tokio::test]
    async fn one_client_that_reads_many_responses_leaves_room_for_others() {
        let key = SourceKey::default();
        let anonymous = |address: &str| Subject {
            owner: Owner::Anonymous,
            key: None,
            source: key.source(address.parse().expect("an address")),
        };
        let user = |name: &str, address: &str| Subject {
            owner: Owner::from_key(&format!("user:local:{name}")),
            ..anonymous(address)
        };
        let reading = Reading::default();
        let flood = client(&anonymous("2001:db8:0:1::1"));
        let mut held = Vec::new();
        for _ in 0..OF_CLIENT {
            held.push(reading.take(flood).now_or_never().expect("at once"));
        }
        let same_network = client(&anonymous("2001:db8:0:2::1"));
        assert!(reading.take(same_network).now_or_never().is_none(), "its share is taken");
        let alice = client(&user("alice", "192.0.2.1"));
        assert_eq!(alice, client(&user("alice", "192.0.2.2")), "wherever she is");
        for other in [alice, client(&anonymous("192.0.2.1")), client(&anonymous("127.0.0.1"))] {
            assert!(reading.take(other).now_or_never().is_some(), "of others");
        }
        held.pop();
        assert!(reading.take(same_network).now_or_never().is_some(), "it has a part again");
    }
}
