//! A turn as the body of a reply that grows with it, in the dialect of a front.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use futures_util::future::BoxFuture;
use futures_util::stream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::permits::SocketPermit;
use super::state::Shared;
use crate::byte_room::ClientRoom;
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::http::rate_limit::Standings;
use crate::http::room::{FREE_PART, NoRoom, OutputRoom, RoomPermit, hold};
use crate::lifecycle::{Lifecycle, Phase};
use crate::sign_in::Validity;
use crate::telemetry::{CountedOpen, LIVE, metric};

/// How long the response waits for the turn: an error by then has its own status. Proxies and
/// clients get the first byte within a second.
const FIRST_BYTE: Duration = Duration::from_millis(500);

/// The bytes that a front has written and that were not sent yet.
#[derive(Debug, Default)]
pub struct FrontOutput {
    frames: VecDeque<String>,
    has_ended: bool,
    /// The room that the request reserved for its reply: what the front keeps comes out of it.
    pub reserved: Option<RoomPermit>,
}

impl FrontOutput {
    /// Adds a frame.
    pub fn push(&mut self, frame: String) {
        self.frames.push_back(frame);
    }

    /// Adds a frame before all others.
    pub fn push_first(&mut self, frame: String) {
        self.frames.push_front(frame);
    }

    /// Ends the stream behind what was added.
    pub fn end(&mut self) {
        self.has_ended = true;
    }

    /// Returns whether the stream ends behind what was added.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Returns whether nothing was added that was not sent.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

/// Writes a turn in the dialect of a front.
pub trait TurnWriter: Send + 'static {
    /// The content type of the stream.
    const CONTENT_TYPE: &'static str;

    /// Waits for the next update of the turn, and adds what it says. Cancel-safe.
    ///
    /// # Errors
    /// Why the turn ended without an answer.
    fn advance(
        &mut self,
        output: &mut FrontOutput,
    ) -> impl Future<Output = Result<(), Problem>> + Send;

    /// Returns whether the turn is so far that its first byte can be sent before the time for it.
    fn has_begun(&self, output: &FrontOutput) -> bool {
        !output.is_empty()
    }

    /// Returns how many bytes the next frame has at most of those that are made only when they are sent,
    /// behind the frames that were added; none where there is none.
    fn next_size(&mut self) -> Option<usize> {
        None
    }

    /// Makes that frame.
    fn next_frame(&mut self) -> Option<String> {
        None
    }

    /// Returns the bytes that the front keeps of the turn, in addition to its frames.
    fn kept_bytes(&self) -> usize;

    /// Takes the room of what its reader keeps.
    fn charge(&mut self, room: ClientRoom);

    /// Adds what comes before everything else, once the response begins; the turn may still wait.
    ///
    /// # Errors
    /// Why the response is an error with its own status.
    fn begin(&mut self, output: &mut FrontOutput) -> Result<(), Problem>;

    /// Returns the frame of an error. A client takes a stream that only ends for a whole answer.
    fn error(&mut self, problem: &Problem) -> String;

    /// Returns a frame that says nothing, and keeps the connection alive.
    fn heartbeat(&mut self) -> String;
}

/// A turn that is streamed.
pub struct StreamedTurn<W> {
    writer: W,
    output: FrontOutput,
    room: KeptRoom,
    /// Whether what the front has not made yet is not sent, because the stream ends with an error.
    has_failed: bool,
    lifecycle: Lifecycle,
    heartbeat: Duration,
    /// When the client has got nothing for so long.
    silent_until: Instant,
    revoked: BoxFuture<'static, ()>,
    /// Set until something was written after the client's last byte.
    last_byte: Option<LastByte>,
    _open: TaskTrackerToken,
    _counted: CountedOpen,
    _permit: SocketPermit,
}

/// Has proxies pass a stream on as it comes.
pub fn pass_at_once(headers: &mut HeaderMap) {
    let caching = HeaderValue::from_static("no-cache, no-transform");
    headers.insert(header::CACHE_CONTROL, caching);
    let buffering = HeaderName::from_static("x-accel-buffering");
    headers.insert(buffering, HeaderValue::from_static("no"));
}

/// Returns the response to a request for a stream, at the latest after [`FIRST_BYTE`]. `output` is what
/// the front has written by now.
///
/// # Errors
/// Why the turn ended by then without an answer.
pub async fn respond<W: TurnWriter>(
    shared: &Shared,
    mut writer: W,
    mut output: FrontOutput,
    permit: SocketPermit,
    validity: Validity,
    last_byte: LastByte,
) -> Result<Response, Problem> {
    let (open, counted) = (
        shared.sockets.token(),
        CountedOpen::live(metrics::gauge!(metric::EVENT_STREAMS), &LIVE.event_streams),
    );
    // A stream whose client cannot ask for the rest of its answer waits for room as long as for its client.
    let room = shared.output_room(permit.source()).with_limit(shared.settings.read_timeout);
    let mut room = KeptRoom { room, known: 0, began: Instant::now() };
    writer.charge(room.room.of_client());
    room.room.keep_of(output.reserved.take(), writer.kept_bytes());
    let begun = async {
        while !writer.has_begun(&output) && !output.has_ended {
            writer.advance(&mut output).await?;
        }
        Ok::<_, Problem>(())
    };
    if let Ok(begun) = timeout(FIRST_BYTE, begun).await {
        begun?;
    }
    writer.begin(&mut output)?;
    let standings = permit.standings();
    let turn = StreamedTurn {
        writer,
        output,
        room,
        has_failed: false,
        lifecycle: shared.lifecycle.clone(),
        heartbeat: shared.settings.heartbeat,
        silent_until: Instant::now() + shared.settings.heartbeat,
        revoked: validity.revoked(),
        last_byte: Some(last_byte),
        _open: open,
        _counted: counted,
        _permit: permit,
    };
    let frames = stream::unfold(Box::new(turn), async |mut turn| {
        let frame = turn.next().await?;
        turn.silent_until = Instant::now() + turn.heartbeat;
        Some((Ok::<_, Infallible>(frame), turn))
    });
    let mut response = Response::new(Body::from_stream(frames));
    response.extensions_mut().insert(Standings(standings));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(W::CONTENT_TYPE));
    pass_at_once(headers);
    Ok(response)
}

impl<W: TurnWriter> StreamedTurn<W> {
    /// Returns the next frame; none after the last one.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let Self { writer, output, room, has_failed, lifecycle, revoked, .. } = self;
            let problem = tokio::select! {
                // What is written already goes before everything else.
                biased;
                next = next_of_turn(writer, output, room, *has_failed) => match next {
                    Ok(frame) => return frame,
                    Err(problem) => problem,
                },
                () = lifecycle.reached(Phase::Stopped) => Problem::draining(),
                () = &mut *revoked => Problem::key_revoked(),
                () = LastByte::received_of(self.last_byte.clone()) => {
                    // The system of a client that is gone resets the connection on a write.
                    self.last_byte = None;
                    return Some(writer.heartbeat().into());
                }
                // Updates of which the dialect says nothing do not postpone it.
                () = sleep_until(self.silent_until) => return Some(writer.heartbeat().into()),
            };
            self.fail(&problem);
        }
    }

    /// Ends the stream with an error instead of what was not sent. The writer keeps its guard, which
    /// cancels a turn that goes on.
    fn fail(&mut self, problem: &Problem) {
        self.output.frames.clear();
        self.output.push(self.writer.error(problem));
        self.output.end();
        self.room.room.stop_waiting();
        self.has_failed = true;
    }
}

/// Returns the next frame, and waits for the turn until the front has written one; none after the last
/// frame. Cancel-safe.
///
/// # Errors
/// Where there is no room for a frame, and why the turn ended without an answer.
async fn next_of_turn<W: TurnWriter>(
    writer: &mut W,
    output: &mut FrontOutput,
    room: &mut KeptRoom,
    has_failed: bool,
) -> Result<Option<Bytes>, Problem> {
    loop {
        match written(writer, output, room, has_failed).await? {
            None if !output.has_ended => writer.advance(output).await?,
            frame => return Ok(frame),
        }
    }
}

/// Returns the next frame that the front has written, or makes it, with its room; none where it waits for
/// the turn. Cancel-safe.
///
/// # Errors
/// Where there is no room for it, or for much that the front keeps.
async fn written<W: TurnWriter>(
    writer: &mut W,
    output: &mut FrontOutput,
    room: &mut KeptRoom,
    has_failed: bool,
) -> Result<Option<Bytes>, NoRoom> {
    if let Some(frame) = output.frames.front() {
        let permit = if has_failed { None } else { room.room.part(frame.len()).await? };
        return Ok(output.frames.pop_front().map(|frame| hold(frame.into(), permit)));
    }
    if has_failed {
        return Ok(None);
    }
    room.keep(writer.kept_bytes()).await?;
    let Some(bytes) = writer.next_size() else { return Ok(None) };
    let permit = room.room.part(bytes).await?;
    let Some(frame) = writer.next_frame() else { return Ok(None) };
    let permit = permit.map(|permit| permit.shrink(frame.len()));
    Ok(Some(hold(frame.into(), permit)))
}

/// The room of a stream, with what its front keeps.
struct KeptRoom {
    room: OutputRoom,
    /// The bytes that the front kept last.
    known: usize,
    began: Instant,
}

impl KeptRoom {
    /// Bytes that a stream may keep without room, and how many more with each second: more than a host
    /// writes for one stream, and less than an answer that is stored or caught up with comes at.
    const WITHOUT: usize = 64 << 10;
    const WITHOUT_EACH_SECOND: usize = 4 << 10;

    /// Returns how many bytes the stream may keep without room by now.
    fn without(&self) -> usize {
        let seconds = usize::try_from(self.began.elapsed().as_secs()).unwrap_or(usize::MAX);
        Self::WITHOUT + seconds.saturating_mul(Self::WITHOUT_EACH_SECOND)
    }

    /// Takes the room of what the front keeps. An answer that grows while the model writes it goes on where
    /// there is none: clients that fill the room with cheap replies must not stop it. What comes faster, as
    /// an answer that is stored, waits.
    ///
    /// # Errors
    /// Where there is no room for what came faster.
    async fn keep(&mut self, bytes: usize) -> Result<(), NoRoom> {
        self.room.keep_if_free(bytes);
        let missing = self.room.missing(bytes);
        if missing > 0 && (bytes > self.known + FREE_PART || missing > self.without()) {
            self.room.keep(bytes).await?;
        }
        self.known = bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::extract::caller::ClientSources;
    use crate::http::room::ConnectionRoom;

    #[tokio::test]
    async fn a_stream_without_room_goes_on_as_fast_as_a_host_writes_and_a_replay_waits() {
        let all = ConnectionRoom::new(1, ClientSources::default());
        let _taken = all.take(None, 1 << 20).await.expect("room");
        let room = OutputRoom::new(&all, None).with_limit(Duration::from_millis(50));
        let mut kept = KeptRoom { room, known: 0, began: Instant::now() };
        let mut bytes = 0;
        while bytes + 2 * FREE_PART <= KeptRoom::WITHOUT {
            bytes += FREE_PART;
            kept.keep(bytes).await.expect("a stream that begins");
        }
        let replayed = KeptRoom::WITHOUT + KeptRoom::WITHOUT_EACH_SECOND;
        assert_eq!(kept.keep(replayed).await, Err(NoRoom), "it is faster than a host");
        kept.began -= Duration::from_mins(1);
        for _ in 0..30 {
            bytes += KeptRoom::WITHOUT_EACH_SECOND;
            kept.keep(bytes).await.expect("a model writes no faster");
        }
        assert_eq!(kept.keep(bytes + 2 * FREE_PART).await, Err(NoRoom), "a stored answer at once");
    }
}
