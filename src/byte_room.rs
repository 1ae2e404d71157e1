//! A bounded number of bytes in memory, of which one network or user may take a share, so that none keeps
//! the others out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::source::ShareKey;

/// Shares that are remembered before those of which nothing is taken are forgotten.
const SHARES_KEPT: usize = 1024;

/// A room of bytes, counted in KiB. Cloning is cheap, and clones share it.
#[derive(Clone, Debug)]
pub struct ByteRoom(Arc<Whole>);

#[derive(Debug)]
struct Whole {
    free: Arc<Semaphore>,
    total: u32,
    /// The KiB of one share.
    share: u32,
    shares: Shares,
}

/// The shares of those that take a part of something, or wait for it. Cloning is cheap, and clones share
/// it.
#[derive(Clone, Debug)]
pub struct Shares {
    /// The permits of one share.
    permits: usize,
    of_key: Arc<Mutex<HashMap<ShareKey, Weak<Semaphore>>>>,
}

/// A room, of which one client takes parts in the name of its network or user. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct ClientRoom {
    room: ByteRoom,
    key: Option<ShareKey>,
}

/// Room that is taken until it is dropped.
#[derive(Debug)]
pub struct RoomPermit {
    of_process: OwnedSemaphorePermit,
    of_share: Option<OwnedSemaphorePermit>,
    /// KiB that may be taken at most: more count as these.
    most: u32,
}

impl ByteRoom {
    /// Creates a room of so many MiB, of which one network or user may take so many.
    pub fn new(mib: u32, share_mib: u32) -> Self {
        let [total, share] = [mib, share_mib].map(|mib| mib.saturating_mul(1 << 10));
        let free = Arc::new(Semaphore::new(total as usize));
        Self(Arc::new(Whole { free, total, share, shares: Shares::new(share as usize) }))
    }

    /// Waits for room for so many bytes, in the order of the calls: in the share of this key, and then
    /// in the whole. More than there may be count as all of it. Returns none where there is no
    /// room within this time.
    pub async fn take(
        &self,
        key: Option<ShareKey>,
        bytes: usize,
        limit: Duration,
    ) -> Option<RoomPermit> {
        let most = self.most_kib(key);
        let wanted = kib_of(bytes, most);
        let take = async {
            let of_share = match key {
                Some(key) => Some(self.0.shares.of(key).acquire_many_owned(wanted).await.ok()?),
                None => None,
            };
            let of_process = Arc::clone(&self.0.free).acquire_many_owned(wanted).await.ok()?;
            Some(RoomPermit { of_process, of_share, most })
        };
        timeout(limit, take).await.ok()?
    }

    /// Takes room for so many bytes as [`ByteRoom::take`] does. Returns none where there is none at
    /// once.
    pub fn try_take(&self, key: Option<ShareKey>, bytes: usize) -> Option<RoomPermit> {
        let most = self.most_kib(key);
        let wanted = kib_of(bytes, most);
        let of_share = match key {
            Some(key) => Some(self.0.shares.of(key).try_acquire_many_owned(wanted).ok()?),
            None => None,
        };
        let of_process = Arc::clone(&self.0.free).try_acquire_many_owned(wanted).ok()?;
        Some(RoomPermit { of_process, of_share, most })
    }

    /// Returns how many bytes may be taken with this key at most: a share, and the whole without one.
    pub fn most(&self, key: Option<ShareKey>) -> usize {
        (self.most_kib(key) as usize).saturating_mul(1 << 10)
    }

    fn most_kib(&self, key: Option<ShareKey>) -> u32 {
        if key.is_some() { self.0.share } else { self.0.total }
    }
}

impl Shares {
    /// Creates shares of so many permits each.
    pub fn new(permits: usize) -> Self {
        Self { permits, of_key: Arc::default() }
    }

    /// Returns the share of a network or a user.
    pub fn of(&self, key: ShareKey) -> Arc<Semaphore> {
        let mut shares = self.of_key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&key).and_then(Weak::upgrade) {
            return share;
        }
        if shares.len() >= SHARES_KEPT {
            // Every permit and every waiting caller holds the share.
            shares.retain(|_, share| share.strong_count() > 0);
        }
        let share = Arc::new(Semaphore::new(self.permits));
        shares.insert(key, Arc::downgrade(&share));
        share
    }
}

impl ClientRoom {
    /// Creates the room of a client.
    pub fn new(room: ByteRoom, key: Option<ShareKey>) -> Self {
        Self { room, key }
    }

    /// Waits for room for so many bytes, as [`ByteRoom::take`] does.
    pub async fn take(&self, bytes: usize, limit: Duration) -> Option<RoomPermit> {
        self.room.take(self.key, bytes, limit).await
    }

    /// Takes room for so many bytes, as [`ByteRoom::try_take`] does.
    pub fn try_take(&self, bytes: usize) -> Option<RoomPermit> {
        self.room.try_take(self.key, bytes)
    }

    /// Returns how many bytes the client may take at most.
    pub fn most(&self) -> usize {
        self.room.most(self.key)
    }
}

impl RoomPermit {
    /// Gives back what it has beyond so many bytes.
    #[must_use]
    pub fn shrink(self, bytes: usize) -> Self {
        let of_share = self.of_share.map(|permit| shrink(permit, bytes));
        Self { of_process: shrink(self.of_process, bytes), of_share, most: self.most }
    }

    /// Takes apart what it has for so many bytes, or all of it where it has less.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Option<Self> {
        let split = |permit: &mut OwnedSemaphorePermit| {
            let count = kib(bytes).min(permit.num_permits());
            permit.split(count)
        };
        let of_share = self.of_share.as_mut().and_then(split);
        let of_process = split(&mut self.of_process)?;
        Some(Self { of_process, of_share, most: self.most })
    }

    /// Takes or gives back the difference to so many bytes. Returns none where there is no room for more
    /// at once: what needs it is in memory already, so many that wait would hold more than the room.
    #[must_use]
    pub fn resize(self, bytes: usize) -> Option<Self> {
        let of_share = match self.of_share {
            Some(permit) => Some(resize(permit, bytes, self.most)?),
            None => None,
        };
        let of_process = resize(self.of_process, bytes, self.most)?;
        Some(Self { of_process, of_share, most: self.most })
    }

    /// Adds what another permit of the same room and share has.
    pub fn merge(&mut self, other: Self) {
        self.of_process.merge(other.of_process);
        if let (Some(of_share), Some(other)) = (&mut self.of_share, other.of_share) {
            of_share.merge(other);
        }
    }

    /// Returns the bytes that it has.
    pub fn bytes(&self) -> usize {
        self.of_process.num_permits() << 10
    }
}

/// Takes or gives back the difference of a reservation to so many bytes, of which more than `most` KiB
/// count as these. Returns none where there is no room for more at once.
pub fn resize(
    mut reserved: OwnedSemaphorePermit,
    bytes: usize,
    most: u32,
) -> Option<OwnedSemaphorePermit> {
    let wanted = kib_of(bytes, most);
    let held = u32::try_from(reserved.num_permits()).unwrap_or(u32::MAX);
    if let Some(missing) = wanted.checked_sub(held).filter(|missing| *missing > 0) {
        let more = Arc::clone(reserved.semaphore()).try_acquire_many_owned(missing).ok()?;
        reserved.merge(more);
        return Some(reserved);
    }
    Some(shrink(reserved, bytes))
}

/// Gives back what a reservation has beyond so many bytes.
fn shrink(mut reserved: OwnedSemaphorePermit, bytes: usize) -> OwnedSemaphorePermit {
    let surplus = reserved.num_permits().saturating_sub(kib(bytes));
    drop(reserved.split(surplus));
    reserved
}

/// Returns how many KiB so many bytes take, of which more than `most` count as these.
fn kib_of(bytes: usize, most: u32) -> u32 {
    u32::try_from(kib(bytes)).unwrap_or(most).min(most)
}

/// Returns how many KiB so many bytes take.
pub fn kib(bytes: usize) -> usize {
    bytes.div_ceil(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SourceKey;

    /// Long enough for room that is free, and short where there is none.
    const SOON: Duration = Duration::from_millis(50);

    fn networks<const COUNT: usize>(addresses: [&str; COUNT]) -> [Option<ShareKey>; COUNT] {
        let key = SourceKey::default();
        addresses.map(|address| {
            let network = key.source(address.parse().expect("an address")).widest_network();
            assert!(network.is_some());
            network
        })
    }

    #[tokio::test]
    async fn room_grows_to_the_true_size_of_a_reply_where_there_is_room_at_once() {
        let room = ByteRoom::new(8, 2);
        let mib = |count: usize| count << 20;
        let soon = async |network, bytes| room.take(network, bytes, SOON).await;
        let grown = soon(None, mib(1)).await.and_then(|permit| permit.resize(mib(6)));
        let grown = grown.expect("room");
        assert_eq!(grown.bytes(), mib(6));
        assert!(soon(None, mib(3)).await.is_none(), "2 MiB are left");
        let other = soon(None, mib(1)).await.expect("room");
        assert!(other.resize(mib(3)).is_none(), "1 MiB is left");
        let shrunk = grown.resize(mib(2)).expect("less");
        assert!(soon(None, mib(6)).await.is_some(), "what was refused gave back its own");
        assert!(shrunk.resize(mib(100)).is_some(), "all of it");
        let [network] = networks(["192.0.2.1"]);
        let one = soon(network, mib(1)).await.expect("room");
        let same = soon(network, mib(1)).await.expect("room");
        assert!(one.resize(mib(2)).is_none(), "the share is spent");
        assert!(same.resize(mib(100)).is_some(), "all of the share");
    }

    #[tokio::test]
    async fn a_network_that_takes_its_share_waits_and_keeps_no_other_out() {
        let room = ByteRoom::new(8, 2);
        let soon = async |network, bytes| room.take(network, bytes, SOON).await;
        let [one, same, others @ ..] = networks([
            "2001:db8:0:1::1",
            "2001:db8:0:ff00::1",
            "192.0.2.1",
            "192.0.2.2",
            "2001:db8:1::1",
        ]);
        // The networks of one key only are the same.
        assert_eq!(one, same);
        let mut held = Vec::new();
        while let Some(permit) = soon(one, 1 << 20).await {
            held.push(permit);
        }
        assert_eq!(held.len(), 2, "a quarter of 8 MiB");
        assert!(soon(same, 1 << 20).await.is_none(), "of the same /48");
        assert!(room.try_take(same, 1).is_none());
        for other in others {
            held.push(room.try_take(other, 100 << 20).expect("as much as a network may have"));
        }
        assert!(room.try_take(None, 1).is_none(), "all of it is taken");
        drop(held);
        assert!(soon(same, 1 << 20).await.is_some());
        assert!(soon(None, 100 << 20).await.is_some(), "loopback has no share");
        let key = SourceKey::default();
        for number in 0..=SHARES_KEPT {
            let address = format!("198.51.{}.{}", number / 256, number % 256);
            let network = key.source(address.parse().expect("an address")).widest_network();
            assert!(room.try_take(network, 1).is_some());
        }
        let kept = room.0.shares.of_key.lock().unwrap_or_else(PoisonError::into_inner).len();
        assert!(kept < SHARES_KEPT, "{kept}: networks that take nothing are forgotten");
    }
}
