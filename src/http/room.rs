//! The room for what clients leave unfinished: bodies that have not arrived whole, and replies that
//! are not read yet, of all connections of the process together.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use axum::http::HeaderMap;
use axum::response::Response;

use crate::byte_room::ByteRoom;
use crate::http::extract::caller::ClientSources;
use crate::http::problem::Problem;
use crate::source::ShareKey;

pub use crate::byte_room::{RoomPermit, kib, resize};

/// Bytes of a body or a reply that take no room: as many as other buffers of a connection hold anyway.
pub const FREE_BYTES: usize = 16 << 10;
/// Bytes of a reply for which a request that only reads reserves room before it is handled. A page is
/// bounded by it, unless its only item is larger.
pub const REPLY_BYTES: usize = 1 << 20;
/// Bytes of a page as JSON, at most: its head and its end are beside it.
pub const PAGE_BYTES: usize = REPLY_BYTES - (16 << 10);
/// The part of the room that one IPv4 address or IPv6 /48 may take.
const NETWORK_SHARE: u32 = 4;
/// How long a request waits for room.
pub const ROOM_LIMIT: Duration = Duration::from_secs(5);

/// The room of the connections of a process. Cloning is cheap, and clones share it.
#[derive(Clone, Debug)]
pub struct ConnectionRoom {
    room: ByteRoom,
    sources: ClientSources,
}

/// A part of the room that is taken until all clones are dropped.
#[derive(Clone, Debug)]
pub struct TakenRoom {
    _permit: Arc<RoomPermit>,
}

impl ConnectionRoom {
    /// Creates a room of so many MiB, whose requests have these sources.
    pub fn new(mib: u32, sources: ClientSources) -> Self {
        Self { room: ByteRoom::new(mib, mib / NETWORK_SHARE), sources }
    }

    /// Returns the network in whose name a request takes room; none of a loopback address.
    pub fn network(&self, peer: IpAddr, headers: &HeaderMap) -> Option<ShareKey> {
        self.sources.of(peer, headers).widest_network()
    }

    /// Waits for room for so many bytes, for [`ROOM_LIMIT`] at most, as [`ByteRoom::take`] does.
    pub async fn take(&self, network: Option<ShareKey>, bytes: usize) -> Option<RoomPermit> {
        self.room.take(network, bytes, ROOM_LIMIT).await
    }

    /// Returns how many bytes this network may take at most.
    pub fn most(&self, network: Option<ShareKey>) -> usize {
        self.room.most(network)
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

/// Returns the refusal of a request for which the process has no room.
pub fn no_room() -> Problem {
    let detail = "This replica holds as many bytes of unfinished requests and of unread replies as it \
        may; retry after 5 s.";
    Problem::unavailable("too_many_connections", detail, ROOM_LIMIT.as_secs())
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn bytes_keep_their_room_until_the_last_part_is_dropped() {
        let room = ConnectionRoom::new(1, ClientSources::default());
        let half = room.take(None, 1 << 20).await.expect("room").shrink(512 << 10);
        let held = TakenRoom::new(half).hold(Bytes::from(vec![0; 512 << 10]));
        let part = held.slice(..1);
        drop(held);
        assert!(timeout(Duration::from_millis(50), room.take(None, 1 << 20)).await.is_err());
        assert!(room.take(None, 512 << 10).await.is_some());
        drop(part);
        assert!(room.take(None, 1 << 30).await.is_some(), "all of it");
    }
}
