//! The room for what clients leave unfinished: bodies that have not arrived whole, and replies that
//! are not read yet, of all connections of the process together.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::http::problem::Problem;

/// Bytes of a body or a reply that take no room: as many as other buffers of a connection hold anyway.
pub const FREE_BYTES: usize = 16 << 10;
/// How long a request waits for room.
pub const ROOM_LIMIT: Duration = Duration::from_secs(5);

/// The room of a process, in KiB. Cloning is cheap, and clones share it.
#[derive(Clone, Debug)]
pub struct ByteRoom {
    free: Arc<Semaphore>,
    total: u32,
}

/// A part of the room that is taken until all clones are dropped.
#[derive(Clone, Debug)]
pub struct TakenRoom {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl ByteRoom {
    /// Creates a room of so many MiB.
    pub fn new(mib: u32) -> Self {
        let total = mib.saturating_mul(1 << 10);
        Self { free: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Waits for room for so many bytes, in the order of the calls. More than there is at all count as
    /// all of it. Returns none where there is no room in time.
    pub async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(kib(bytes)).unwrap_or(self.total).min(self.total);
        let free = Arc::clone(&self.free);
        // Only a wait needs a timer.
        match Arc::clone(&free).try_acquire_many_owned(wanted) {
            Ok(permit) => Some(permit),
            Err(_) => timeout(ROOM_LIMIT, free.acquire_many_owned(wanted)).await.ok()?.ok(),
        }
    }
}

impl TakenRoom {
    /// Keeps what was taken.
    pub fn new(permit: OwnedSemaphorePermit) -> Self {
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

/// Gives back what a reservation has beyond so many bytes.
pub fn shrink(mut reserved: OwnedSemaphorePermit, bytes: usize) -> OwnedSemaphorePermit {
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
        let room = ByteRoom::new(1);
        let half = shrink(room.take(1 << 20).await.expect("room"), 512 << 10);
        let held = TakenRoom::new(half).hold(Bytes::from(vec![0; 512 << 10]));
        let part = held.slice(..1);
        drop(held);
        assert!(timeout(Duration::from_millis(50), room.take(1 << 20)).await.is_err());
        assert!(room.take(512 << 10).await.is_some());
        drop(part);
        assert!(room.take(1 << 30).await.is_some(), "all of it");
    }
}
