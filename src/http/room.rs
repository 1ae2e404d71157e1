//! The room for what clients leave unfinished: bodies that have not arrived whole, and replies that
//! are not read yet, of all connections of the process together.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::HeaderMap;
use axum::response::Response;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;

use crate::byte_room::{ByteRoom, ClientRoom};
use crate::http::extract::caller::ClientSources;
use crate::http::problem::Problem;
use crate::source::ShareKey;

pub use crate::byte_room::{RoomPermit, kib, resize};

/// Bytes of a body or a reply that take no room: as many as other buffers of a connection hold anyway.
pub const FREE_BYTES: usize = 16 << 10;
/// Bytes of a part of a stream that take no room: a piece of an answer, as JSON, fits.
pub const FREE_PART: usize = 20 << 10;
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

    /// Takes room for so many bytes as [`ConnectionRoom::take`] does. Returns none where there is none at
    /// once: a request that holds room while it waits for more could wait for others that do the same.
    pub fn try_take(&self, network: Option<ShareKey>, bytes: usize) -> Option<RoomPermit> {
        self.room.try_take(network, bytes)
    }

    /// Returns how many bytes this network may take at most.
    pub fn most(&self, network: Option<ShareKey>) -> usize {
        self.room.most(network)
    }
}

/// The room of the body of one request, which its handler and its connection share.
#[derive(Clone, Debug, Default)]
pub struct WholeBodyRoom(Arc<BodyRoomState>);

#[derive(Debug, Default)]
struct BodyRoomState {
    is_taken: AtomicBool,
    /// What the connection took for a body that has arrived whole.
    kept: HandedRoom,
}

impl WholeBodyRoom {
    /// Notes that the handler has taken the room for the whole body, so that the connection takes none: a
    /// request that holds room while it waits for more could wait for others that do the same.
    pub fn note(&self) {
        self.0.is_taken.store(true, Ordering::Relaxed);
    }

    /// Returns whether the handler has taken the room.
    pub fn is_taken(&self) -> bool {
        self.0.is_taken.load(Ordering::Relaxed)
    }

    /// Keeps what the connection took, until the last clone is dropped: a handler that parses the body
    /// keeps one as long.
    pub fn keep(&self, permit: RoomPermit) {
        self.0.kept.put(Some(permit));
    }
}

/// Room that one side took, and that another takes over. Clones share it. The room of a reply is reserved
/// before its request is handled, and the handler of a stream takes it over: a request that holds room while
/// it waits for more could wait for others that do the same.
#[derive(Clone, Debug, Default)]
pub struct HandedRoom(Arc<Mutex<Option<RoomPermit>>>);

impl HandedRoom {
    /// Hands over what was taken, instead of what nobody has taken over.
    pub fn put(&self, room: Option<RoomPermit>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = room;
    }

    /// Returns what was handed over, where nobody has taken it yet.
    pub fn take(&self) -> Option<RoomPermit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns a body each of whose large frames keeps what was handed over for it.
    pub fn held_by(self, body: Body) -> Body {
        let hold = move |data: Bytes| {
            if data.len() > FREE_PART { hold(data, self.take()) } else { data }
        };
        Body::new(body.map_frame(move |frame| frame.map_data(&hold)))
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

/// Returns bytes that keep their own room, where they have any, until the last part of them is dropped.
pub fn hold(bytes: Bytes, permit: Option<RoomPermit>) -> Bytes {
    match permit {
        Some(permit) => TakenRoom::new(permit).hold(bytes),
        None => bytes,
    }
}

/// The room of what one stream or socket sends, in the name of its network: what it keeps while it is open,
/// and each part until it was written. Up to [`FREE_BYTES`] of what is kept, and parts of up to
/// [`FREE_PART`], take none.
#[derive(Debug)]
pub struct OutputRoom {
    of_client: ClientRoom,
    /// How long room is waited for.
    limit: Duration,
    kept: Option<RoomPermit>,
    /// Room that is waited for: a call that is dropped keeps its place.
    awaited: Option<AwaitedRoom>,
}

struct AwaitedRoom {
    bytes: usize,
    taken: BoxFuture<'static, Option<RoomPermit>>,
}

impl fmt::Debug for AwaitedRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwaitedRoom").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// There is no room for what a stream or a socket sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

impl OutputRoom {
    /// Creates the room of a stream or a socket, of which nothing is taken. It waits for [`ROOM_LIMIT`].
    pub fn new(room: &ConnectionRoom, network: Option<ShareKey>) -> Self {
        let of_client = ClientRoom::new(room.room.clone(), network);
        Self { of_client, limit: ROOM_LIMIT, kept: None, awaited: None }
    }

    /// Waits for room for so long.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Returns the room of what the reader of a session keeps.
    pub fn of_client(&self) -> ClientRoom {
        self.of_client.clone()
    }

    /// Waits for the room of a part of so many bytes, before it is made. Cancel-safe: a call with the same
    /// bytes goes on waiting.
    ///
    /// # Errors
    /// Where there is none in time.
    pub async fn part(&mut self, bytes: usize) -> Result<Option<RoomPermit>, NoRoom> {
        if bytes <= FREE_PART {
            return Ok(None);
        }
        // More than it can ever have counts as all of it.
        let kept = self.kept.as_ref().map_or(0, RoomPermit::bytes);
        self.taken(bytes.min(self.of_client.most().saturating_sub(kept))).await.map(Some)
    }

    /// Waits for the room of what a stream will keep, before it begins, where that needs any.
    ///
    /// # Errors
    /// Where there is none in time.
    pub async fn reserve(&mut self, bytes: usize) -> Result<Option<RoomPermit>, NoRoom> {
        if bytes <= FREE_BYTES {
            return Ok(None);
        }
        self.taken(bytes.next_multiple_of(FREE_BYTES) + FREE_BYTES).await.map(Some)
    }

    /// Keeps so much of what was reserved for a reply as these bytes need, and gives back the rest.
    pub fn keep_of(&mut self, reserved: Option<RoomPermit>, bytes: usize) {
        if bytes > FREE_BYTES {
            self.kept = reserved.map(|permit| permit.shrink(bytes.next_multiple_of(FREE_BYTES)));
        }
    }

    /// Waits for the room of so many bytes that are kept as long as this is. It is taken in steps.
    /// Cancel-safe: a call with the same bytes goes on waiting.
    ///
    /// # Errors
    /// Where there is none in time.
    pub async fn keep(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let missing = self.missing(bytes);
        if missing > 0 {
            let more = self.taken(missing).await?;
            self.add(more);
        }
        Ok(())
    }

    /// Takes the room of so many bytes that are kept, where it is free.
    pub fn keep_if_free(&mut self, bytes: usize) {
        let missing = self.missing(bytes);
        if missing > 0
            && let Some(more) = self.of_client.try_take(missing)
        {
            self.add(more);
        }
    }

    /// Gives up what is waited for.
    pub fn stop_waiting(&mut self) {
        self.awaited = None;
    }

    /// Returns how much room is to be taken for so many bytes that are kept.
    pub fn missing(&self, bytes: usize) -> usize {
        let most = self.of_client.most();
        let kept = self.kept.as_ref().map_or(0, RoomPermit::bytes);
        if bytes.min(most) <= FREE_BYTES.max(kept) {
            return 0;
        }
        (bytes - kept).next_multiple_of(FREE_BYTES).min(most - kept)
    }

    fn add(&mut self, more: RoomPermit) {
        match &mut self.kept {
            Some(kept) => kept.merge(more),
            None => self.kept = Some(more),
        }
    }

    async fn taken(&mut self, bytes: usize) -> Result<RoomPermit, NoRoom> {
        let awaited = match &mut self.awaited {
            Some(awaited) if awaited.bytes == bytes => awaited,
            other => {
                let (room, limit) = (self.of_client.clone(), self.limit);
                let taken = async move { room.take(bytes, limit).await }.boxed();
                other.insert(AwaitedRoom { bytes, taken })
            }
        };
        let taken = (&mut awaited.taken).await;
        self.awaited = None;
        taken.ok_or(NoRoom)
    }
}

impl From<NoRoom> for Problem {
    fn from(NoRoom: NoRoom) -> Self {
        no_room()
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
    use std::convert::Infallible;

    use futures_util::{StreamExt, stream};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_a_stream_keeps_and_each_part_of_it_take_room_and_little_takes_none() {
        let soon = Duration::from_millis(50);
        let room = ConnectionRoom::new(1, ClientSources::default());
        let mut output = OutputRoom::new(&room, None);
        assert!(output.missing(FREE_BYTES) == 0 && output.keep(FREE_BYTES).await.is_ok());
        assert!(output.part(FREE_PART).await.is_ok_and(|permit| permit.is_none()));
        output.keep(FREE_BYTES + 1).await.expect("room");
        assert_eq!(output.missing(2 * FREE_BYTES), 0, "it is taken in steps");
        output.keep(500 << 10).await.expect("room");
        let part = output.part(500 << 10).await.expect("room");
        assert!(part.is_some());
        let mut other = OutputRoom::new(&room, None);
        assert!(timeout(soon, other.part(100 << 10)).await.is_err());
        assert!(timeout(soon, output.keep(700 << 10)).await.is_err());
        output.keep_if_free(700 << 10);
        assert!(output.missing(700 << 10) > 0, "it goes on without");
        drop((part, output));
        assert!(other.part(1 << 20).await.is_ok(), "it does not come back");
        let mut all = OutputRoom::new(&room, None);
        assert!(all.keep(1 << 30).await.is_ok(), "more than there may be counts as all of it");
    }

    #[tokio::test]
    async fn what_waits_for_room_keeps_its_place_where_the_call_is_dropped() {
        let soon = Duration::from_millis(50);
        let room = ConnectionRoom::new(1, ClientSources::default());
        let all = room.take(None, 1 << 20).await.expect("room");
        let mut first = OutputRoom::new(&room, None);
        assert!(timeout(soon, first.part(600 << 10)).await.is_err());
        let mut second = OutputRoom::new(&room, None);
        assert!(timeout(soon, second.part(500 << 10)).await.is_err());
        drop(all);
        assert!(timeout(soon, second.part(500 << 10)).await.is_err(), "the first one is before it");
        let part = first.part(600 << 10).await.expect("room");
        assert!(timeout(soon, second.part(500 << 10)).await.is_err());
        drop(part);
        assert!(second.part(500 << 10).await.is_ok());
        let mut limited = OutputRoom::new(&room, None).with_limit(soon);
        let _all = room.take(None, 1 << 20).await.expect("room");
        assert_eq!(limited.keep(500 << 10).await, Err(NoRoom));
    }

    #[tokio::test]
    async fn a_part_that_has_room_beside_what_its_stream_keeps_counts_as_all_of_that() {
        let room = ConnectionRoom::new(1, ClientSources::default());
        let mut output = OutputRoom::new(&room, None).with_limit(Duration::from_millis(50));
        output.keep(700 << 10).await.expect("room");
        assert!(output.part(700 << 10).await.is_ok());
    }

    #[tokio::test]
    async fn a_frame_that_a_library_makes_keeps_the_room_that_was_handed_over_for_it() {
        let room = ConnectionRoom::new(1, ClientSources::default());
        let mut output = OutputRoom::new(&room, None);
        let handed = HandedRoom::default();
        let frames = [vec![0; 8], vec![0; 1 << 20], vec![0; 8]].map(Ok::<_, Infallible>);
        let body = handed.clone().held_by(Body::from_stream(stream::iter(frames)));
        let mut body = body.into_data_stream();
        let mut next = async || body.next().await.expect("a frame").expect("no error");
        drop(next().await);
        handed.put(output.part(1 << 20).await.expect("room"));
        let large = next().await;
        handed.put(None);
        drop(next().await);
        let soon = Duration::from_millis(50);
        assert!(timeout(soon, output.part(1 << 20)).await.is_err(), "the frame is not dropped");
        drop(large);
        assert!(output.part(1 << 20).await.is_ok());
    }

    #[tokio::test]
    async fn a_body_that_was_read_keeps_its_room_as_long_as_its_handler_wants() {
        let room = ConnectionRoom::new(1, ClientSources::default());
        let of_connection = WholeBodyRoom::default();
        let of_handler = of_connection.clone();
        of_connection.keep(room.take(None, 1 << 20).await.expect("room"));
        drop(of_connection);
        let soon = Duration::from_millis(50);
        assert!(timeout(soon, room.take(None, 1 << 20)).await.is_err());
        drop(of_handler);
        assert!(room.take(None, 1 << 20).await.is_some());
    }

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
