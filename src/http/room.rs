//! The room for what clients leave unfinished: bodies that have not arrived whole, and replies that
//! are not read yet, of all connections of the process together.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use axum::http::HeaderMap;
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::http::extract::caller::ClientSources;
use crate::http::problem::Problem;
use crate::source::NetworkNumber;

/// Bytes of a body or a reply that take no room: as many as other buffers of a connection hold anyway.
pub const FREE_BYTES: usize = 16 << 10;
/// Bytes of a reply for which a request that only reads reserves room before it is handled. A page is
/// bounded by it, unless its only item is larger.
pub const REPLY_BYTES: usize = 1 << 20;
/// Bytes of a page as JSON, at most: its head and its end are beside it.
pub const PAGE_BYTES: usize = REPLY_BYTES - (16 << 10);
/// How long a request waits for room.
pub const ROOM_LIMIT: Duration = Duration::from_secs(5);
/// The part of the room that one IPv4 address or IPv6 /48 may take, so that none keeps the others out.
const NETWORK_SHARE: u32 = 4;
/// Networks that are remembered before those that take nothing are forgotten.
const NETWORKS_KEPT: usize = 1024;

/// The room of a process, in KiB. Cloning is cheap, and clones share it.
#[derive(Clone, Debug)]
pub struct ByteRoom {
    free: Arc<Semaphore>,
    total: u32,
    sources: ClientSources,
    /// The shares of networks that take room or wait for it.
    shares: Arc<Mutex<HashMap<NetworkNumber, Weak<Semaphore>>>>,
}

/// Room that is taken until it is dropped.
#[derive(Debug)]
pub struct RoomPermit {
    of_process: OwnedSemaphorePermit,
    of_network: Option<OwnedSemaphorePermit>,
    /// KiB that may be taken at most: more count as these.
    most: u32,
}

/// A part of the room that is taken until all clones are dropped.
#[derive(Clone, Debug)]
pub struct TakenRoom {
    _permit: Arc<RoomPermit>,
}

impl ByteRoom {
    /// Creates a room of so many MiB, whose requests have these sources.
    pub fn new(mib: u32, sources: ClientSources) -> Self {
        let total = mib.saturating_mul(1 << 10);
        let free = Arc::new(Semaphore::new(total as usize));
        Self { free, total, sources, shares: Arc::default() }
    }

    /// Returns the network in whose name a request takes room; none of a loopback address.
    pub fn network(&self, peer: IpAddr, headers: &HeaderMap) -> Option<NetworkNumber> {
        self.sources.of(peer, headers).widest_network()
    }

    /// Waits for room for so many bytes, in the order of the calls: in the share of the network, and
    /// then in the whole. More than there may be count as all of it. Returns none where there is no
    /// room in time.
    pub async fn take(&self, network: Option<NetworkNumber>, bytes: usize) -> Option<RoomPermit> {
        let share = self.share_of(network);
        let wanted = u32::try_from(kib(bytes)).unwrap_or(share).min(share);
        let take = async {
            let of_network = match network {
                Some(network) => {
                    Some(self.share(network, share).acquire_many_owned(wanted).await.ok()?)
                }
                None => None,
            };
            let of_process = Arc::clone(&self.free).acquire_many_owned(wanted).await.ok()?;
            Some(RoomPermit { of_process, of_network, most: share })
        };
        timeout(ROOM_LIMIT, take).await.ok()?
    }

    /// Returns how many bytes this network may take at most.
    pub fn most(&self, network: Option<NetworkNumber>) -> usize {
        (self.share_of(network) as usize).saturating_mul(1 << 10)
    }

    /// Returns how many KiB this network may take at most.
    fn share_of(&self, network: Option<NetworkNumber>) -> u32 {
        if network.is_some() { self.total / NETWORK_SHARE } else { self.total }
    }

    /// Returns the share of a network, of so many KiB.
    fn share(&self, network: NetworkNumber, kib: u32) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&network).and_then(Weak::upgrade) {
            return share;
        }
        if shares.len() >= NETWORKS_KEPT {
            // Whoever takes room or waits for it holds the share.
            shares.retain(|_, share| share.strong_count() > 0);
        }
        let share = Arc::new(Semaphore::new(kib as usize));
        shares.insert(network, Arc::downgrade(&share));
        share
    }
}

/// Says that a handler has taken the room for the whole body of its request, so that the connection takes
/// none: who holds room while waiting for more could wait for others that do the same.
#[derive(Clone, Debug, Default)]
pub struct WholeBodyRoom(Arc<AtomicBool>);

impl WholeBodyRoom {
    /// Notes that the room was taken.
    pub fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns whether the room was taken.
    pub fn is_taken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl TakenRoom {
    /// Keeps what was taken.
    pub fn new(permit: RoomPermit) -> Self {
        Self { _permit: Arc::new(permit) }
    }

    /// Returns bytes that keep the room taken until the last part of them is dropped.
    pub fn hold(&self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(HeldBytes { bytes, _room: self.clone() })
    }
}

struct HeldBytes {
    bytes: Bytes,
    _room: TakenRoom,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Returns the size of a reply that needs room; none where it is small, or streamed.
pub fn large_size(response: &Response) -> Option<usize> {
    let size = response.body().size_hint().exact()?;
    usize::try_from(size).ok().filter(|size| *size > FREE_BYTES)
}

impl RoomPermit {
    /// Gives back what it has beyond so many bytes.
    #[must_use]
    pub fn shrink(self, bytes: usize) -> Self {
        let of_network = self.of_network.map(|permit| shrink(permit, bytes));
        Self { of_process: shrink(self.of_process, bytes), of_network, most: self.most }
    }

    /// Takes or gives back the difference to so many bytes. Returns none where there is no room for more
    /// at once: what needs it is in memory already, so many that wait would hold more than the room.
    #[must_use]
    pub fn resize(self, bytes: usize) -> Option<Self> {
        let of_network = match self.of_network {
            Some(permit) => Some(resize(permit, bytes, self.most)?),
            None => None,
        };
        let of_process = resize(self.of_process, bytes, self.most)?;
        Some(Self { of_process, of_network, most: self.most })
    }
}

/// Takes or gives back the difference of a reservation to so many bytes, of which more than `most` KiB
/// count as these. Returns none where there is no room for more at once.
pub fn resize(
    mut reserved: OwnedSemaphorePermit,
    bytes: usize,
    most: u32,
) -> Option<OwnedSemaphorePermit> {
    let wanted = u32::try_from(kib(bytes)).unwrap_or(most).min(most);
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

/// Returns the refusal of a request for which the process has no room.
pub fn no_room() -> Problem {
    let detail = "This replica holds as many bytes of unfinished requests and of unread replies as it \
        may; retry after 5 s.";
    Problem::unavailable("too_many_connections", detail, ROOM_LIMIT.as_secs())
}

/// Returns how many KiB so many bytes take.
pub fn kib(bytes: usize) -> usize {
    bytes.div_ceil(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_keep_their_room_until_the_last_part_is_dropped() {
        let room = ByteRoom::new(1, ClientSources::default());
        let half = room.take(None, 1 << 20).await.expect("room").shrink(512 << 10);
        let held = TakenRoom::new(half).hold(Bytes::from(vec![0; 512 << 10]));
        let part = held.slice(..1);
        drop(held);
        assert!(timeout(Duration::from_millis(50), room.take(None, 1 << 20)).await.is_err());
        assert!(room.take(None, 512 << 10).await.is_some());
        drop(part);
        assert!(room.take(None, 1 << 30).await.is_some(), "all of it");
    }

    #[tokio::test]
    async fn room_grows_to_the_true_size_of_a_reply_where_there_is_room_at_once() {
        let room = ByteRoom::new(8, ClientSources::default());
        let mib = |count: usize| count << 20;
        let soon = async |network, bytes| {
            timeout(Duration::from_millis(50), room.take(network, bytes)).await.ok().flatten()
        };
        let grown = room.take(None, mib(1)).await.and_then(|permit| permit.resize(mib(6)));
        let grown = grown.expect("room");
        assert!(soon(None, mib(3)).await.is_none(), "2 MiB are left");
        let other = room.take(None, mib(1)).await.expect("room");
        assert!(other.resize(mib(3)).is_none(), "1 MiB is left");
        let shrunk = grown.resize(mib(2)).expect("less");
        assert!(soon(None, mib(6)).await.is_some(), "what was refused gave back its own");
        assert!(shrunk.resize(mib(100)).is_some(), "all of it");
        let address = "192.0.2.1".parse().expect("an address");
        let network = room.network(address, &HeaderMap::new());
        let one = room.take(network, mib(1)).await.expect("room");
        let same = room.take(network, mib(1)).await.expect("room");
        assert!(one.resize(mib(2)).is_none(), "the share is spent");
        assert!(same.resize(mib(100)).is_some(), "all of the share");
    }

    #[tokio::test]
    async fn a_network_that_takes_its_share_waits_and_keeps_no_other_out() {
        let room = ByteRoom::new(8, ClientSources::default());
        let network = |address: &str| {
            let address = address.parse().expect("an address");
            let network = room.network(address, &HeaderMap::new());
            assert!(network.is_some());
            network
        };
        let soon = async |network, bytes| {
            timeout(Duration::from_millis(50), room.take(network, bytes)).await.ok().flatten()
        };
        let (one, same) = (network("2001:db8:0:1::1"), network("2001:db8:0:ff00::1"));
        let mut held = Vec::new();
        while let Some(permit) = soon(one, 1 << 20).await {
            held.push(permit);
        }
        assert_eq!(held.len(), 2, "a quarter of 8 MiB");
        assert!(soon(same, 1 << 20).await.is_none(), "of the same /48");
        let others = ["192.0.2.1", "192.0.2.2", "2001:db8:1::1"].map(network);
        for other in others {
            held.push(soon(other, 100 << 20).await.expect("as much as a network may have"));
        }
        drop(held);
        assert!(soon(same, 1 << 20).await.is_some());
        assert!(soon(None, 100 << 20).await.is_some(), "loopback has no share");
        for number in 0..=NETWORKS_KEPT {
            let address = format!("198.51.{}.{}", number / 256, number % 256);
            assert!(soon(network(&address), 1).await.is_some());
        }
        let kept = room.shares.lock().unwrap_or_else(PoisonError::into_inner).len();
        assert!(kept < NETWORKS_KEPT, "{kept}: networks that take nothing are forgotten");
    }
}
