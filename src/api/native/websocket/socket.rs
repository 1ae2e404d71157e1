//! One WebSocket's frames, up to and including the closing handshake.
//!
//! The library's own closing handshake is not used: it sends its answer only when it is polled
//! again, answers a close without a code by one without a code, and leaves the TCP connection to
//! be reset while the client still sends.
//!
//! The library keeps the buffers that a large message needed, and has no limit for the time of a
//! message. So the stream of bytes below it counts what has not arrived whole, and the library's
//! side is made again once a large message is over.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use crate::api::message_budget::BudgetShare;
use crate::api::native::websocket::scanner::FrameScanner;
use crate::api::native::wire;
use crate::http::room::RoomPermit;
use crate::telemetry::{CountedOpen, LIVE, count_close, metric};

/// Bytes of the buffer that each socket keeps. It grows for larger messages and stays large; most
/// messages are small.
const READ_BUFFER: usize = 128;
/// Bytes that are read from the kernel at once. Bytes for which the buffer has no room are kept until they
/// are taken.
const READ_AHEAD: usize = 4 << 10;
/// A frame larger than this cannot be sent: it has to hold the largest event.
const WRITE_BUFFER: usize = 2 * wire::EVENT_BYTES;
/// Bytes of a message after which the library's buffers are given back. A piece of an answer that
/// is being streamed fits.
const KEPT_BYTES: usize = 20 << 10;
/// How long a message may take from its first byte to its last.
const MESSAGE_LIMIT: Duration = Duration::from_secs(10);
/// Each step of a closing handshake takes at most this long.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// Bytes that are read and dropped at once after the close frame was sent.
const DROP_BUFFER: usize = 16 << 10;
/// The longest reason that fits into a close frame, in bytes.
const LONGEST_REASON: usize = 123;

/// Why a socket ends.
pub enum CloseReason {
    /// The client closes it, with this code and reason if it gave any.
    Client(Option<CloseFrame>),
    /// This side closes it, with this code and reason.
    Server(CloseFrame),
    /// The connection is lost, so no close frame can reach the client.
    Lost,
}

impl CloseReason {
    /// Creates an end that this side begins.
    pub fn server(code: CloseCode, reason: impl Into<Utf8Bytes>) -> Self {
        let mut reason = reason.into();
        if reason.len() > LONGEST_REASON {
            reason = reason.as_str()[..reason.floor_char_boundary(LONGEST_REASON)].into();
        }
        Self::Server(CloseFrame { code, reason })
    }
}

impl CloseReason {
    /// Returns the code by which the close is counted: 1005 for a close without a code, and 1006 for
    /// a lost connection, as RFC 6455 reserves them.
    pub fn code(&self) -> u16 {
        match self {
            Self::Client(Some(frame)) | Self::Server(frame) => frame.code.into(),
            Self::Client(None) => 1005,
            Self::Lost => 1006,
        }
    }
}

impl From<Error> for CloseReason {
    /// Creates the end that follows an error of the protocol (RFC 6455, section 7.4.1).
    fn from(error: Error) -> Self {
        match error {
            // The protocol error: the client ended its direction without a close frame.
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
            | Error::Io(_)
            | Error::ConnectionClosed
            | Error::AlreadyClosed => Self::Lost,
            Error::Protocol(error) => Self::server(CloseCode::Protocol, error.to_string()),
            Error::Utf8(_) => Self::server(CloseCode::Invalid, "the text is not UTF-8"),
            Error::Capacity(_) => Self::server(CloseCode::Size, "the message is too large"),
            _ => Self::server(CloseCode::Error, "internal error"),
        }
    }
}

/// One open WebSocket.
pub struct Socket {
    frames: WebSocketStream<Transport>,
    /// The room of the message that is being written, where it is large; boxed, because an idle socket has
    /// none.
    writing: Option<Box<RoomPermit>>,
    _open: CountedOpen,
}

impl Socket {
    /// Takes over a connection after its handshake. A message of the client has at most `largest`
    /// bytes; what has not arrived whole, or was not parsed, is charged to `share`.
    pub async fn new(upgraded: Upgraded, largest: usize, share: BudgetShare) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BUFFER)
            .max_message_size(Some(largest))
            .max_frame_size(Some(largest));
        let transport = Transport {
            io: Some(TokioIo::new(upgraded)),
            ahead: Bytes::new(),
            output: SocketOutput::Sent,
            input: Input::new(share),
            has_grown: false,
            refusal: None,
        };
        let frames = WebSocketStream::from_raw_socket(transport, Role::Server, Some(config)).await;
        metrics::counter!(metric::WEBSOCKETS_OPENED_TOTAL).increment(1);
        let open = CountedOpen::live(metrics::gauge!(metric::WEBSOCKETS), &LIVE.websockets);
        Self { frames, writing: None, _open: open }
    }

    /// Receives the next message. Cancel-safe: dropping the future loses nothing.
    ///
    /// # Errors
    /// Where the client closes the socket, breaks the protocol, takes too long for a message, or is
    /// lost, and where the messages of all sockets have no room for this one.
    pub async fn receive(&mut self) -> Result<Message, CloseReason> {
        loop {
            match poll_fn(|context| self.poll_receive(context)).await {
                Received::Message(Message::Close(frame)) => {
                    return Err(CloseReason::Client(frame));
                }
                Received::Message(message) => return Ok(message),
                Received::Failed(error) => {
                    let refusal = self.frames.get_mut().refusal.take();
                    return Err(refusal.map_or_else(|| error.into(), |refusal| *refusal));
                }
                Received::Nothing => return Err(CloseReason::Lost),
                // Boxed and rare: every idle socket would reserve the room of a transport.
                Received::AtRest => Box::pin(self.renew()).await,
            }
        }
    }

    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Received> {
        match self.frames.poll_next_unpin(context) {
            Poll::Ready(Some(Ok(message))) => Poll::Ready(Received::Message(message)),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Received::Failed(error)),
            Poll::Ready(None) => Poll::Ready(Received::Nothing),
            // The library has delivered every message, and has no byte of the next one.
            Poll::Pending if self.frames.get_ref().may_be_renewed() => {
                Poll::Ready(match ready!(self.frames.poll_flush_unpin(context)) {
                    Ok(()) => Received::AtRest,
                    Err(error) => Received::Failed(error),
                })
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Replaces the library's side of the socket, with its buffers, which are empty now.
    async fn renew(&mut self) {
        let config = *self.frames.get_config();
        let transport = self.frames.get_mut().take();
        // It does not wait, so that a receive that is dropped loses nothing.
        self.frames = WebSocketStream::from_raw_socket(transport, Role::Server, Some(config)).await;
    }

    /// Receives a message that a lost client sent before it was lost, and sends nothing from now on.
    ///
    /// # Errors
    /// Where there is no further message.
    pub async fn receive_rest(&mut self) -> Result<Message, CloseReason> {
        self.frames.get_mut().output = SocketOutput::Dropped;
        self.receive().await
    }

    /// Gives back the share of the message that was received last, which has been parsed.
    pub fn parsed(&mut self) {
        self.frames.get_mut().input.parsed();
    }

    /// Keeps the room of the next message that is written, or gives back that of the last one. A
    /// message that the socket has not written when it ends keeps its room until the socket is gone.
    pub fn hold(&mut self, room: Option<RoomPermit>) {
        self.writing = room.map(Box::new);
    }

    /// Writes a message. Returns whether the kernel has taken it; otherwise [`Socket::flush`] must
    /// follow before the next message.
    ///
    /// # Errors
    /// Where the connection is lost.
    pub async fn write(&mut self, message: Message) -> Result<bool, CloseReason> {
        self.frames.get_mut().has_grown |= message.len() > KEPT_BYTES;
        self.frames.start_send_unpin(message)?;
        let flushed = poll_fn(|context| Poll::Ready(self.frames.poll_flush_unpin(context))).await;
        Ok(match flushed {
            Poll::Ready(flushed) => flushed.map(|()| true)?,
            Poll::Pending => false,
        })
    }

    /// Waits until the kernel has taken everything that was written.
    ///
    /// # Errors
    /// Where the connection is lost.
    pub async fn flush(&mut self) -> Result<(), CloseReason> {
        Ok(self.frames.flush().await?)
    }

    /// Carries out the closing handshake: the close frame, the end of the stream, and then the
    /// client's remaining input is dropped, because a reset would discard a frame that the client
    /// has not read yet. It takes at most three times `CLOSE_LIMIT`.
    pub async fn close(mut self, end: CloseReason) {
        count_close(end.code());
        let mut bytes = self.unsent().await;
        let (frame, begun_here) = match end {
            CloseReason::Client(frame) => {
                // The library has added its own answer, which lacks a code where the client's does.
                let answer = Frame::close(frame.clone()).len();
                bytes.truncate(bytes.len().saturating_sub(answer));
                let normal = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
                (frame.unwrap_or(normal), false)
            }
            CloseReason::Server(frame) => (frame, true),
            CloseReason::Lost => return,
        };
        // Writing to memory does not fail.
        let _ = Frame::close(Some(frame)).format(&mut bytes);
        let sent = timeout(CLOSE_LIMIT, self.frames.get_mut().write(&bytes)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
        if begun_here {
            let answered = async {
                while self.receive().await.is_ok() {
                    self.parsed();
                }
            };
            let _ = timeout(CLOSE_LIMIT, answered).await;
        }
        let _ = timeout(CLOSE_LIMIT, self.frames.into_inner().end()).await;
    }

    /// Returns the bytes that the library has not sent yet, and drops its output from now on.
    async fn unsent(&mut self) -> Vec<u8> {
        self.frames.get_mut().output = SocketOutput::Kept(Vec::new());
        // It does not wait, because nothing is sent.
        let _ = self.frames.flush().await;
        match std::mem::replace(&mut self.frames.get_mut().output, SocketOutput::Dropped) {
            SocketOutput::Kept(bytes) => bytes,
            SocketOutput::Sent | SocketOutput::Dropped => Vec::new(),
        }
    }
}

/// The outcome of waiting for a message.
enum Received {
    Message(Message),
    Failed(Error),
    /// The stream is over.
    Nothing,
    /// No byte of a message is under way in either direction.
    AtRest,
}

/// The stream of bytes below the frames.
struct Transport {
    /// The connection; none once another transport has taken it.
    io: Option<TokioIo<Upgraded>>,
    /// Bytes that were read and not taken yet, fewer than [`READ_AHEAD`].
    ahead: Bytes,
    output: SocketOutput,
    input: Input,
    /// Whether the library's buffers have grown.
    has_grown: bool,
    /// Why no more is read of the client; boxed, because an idle socket has none.
    refusal: Option<Box<CloseReason>>,
}

/// The message of the client that has not arrived whole, or was not parsed.
struct Input {
    scanner: FrameScanner,
    share: BudgetShare,
    /// When its first byte arrived.
    begun: Option<Instant>,
    /// The end of the time that it may take, while the rest is waited for.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Bytes of a message that has arrived whole and was not parsed.
    whole: usize,
}

impl Input {
    fn new(share: BudgetShare) -> Self {
        let scanner = FrameScanner::default();
        Self { scanner, share, begun: None, deadline: None, whole: 0 }
    }

    /// Takes bytes that were read.
    ///
    /// # Errors
    /// The end of the socket, where the message takes too long or has no room.
    fn take(&mut self, bytes: &[u8]) -> Result<(), CloseReason> {
        if self.scanner.feed(bytes) {
            (self.begun, self.deadline) = (None, None);
        }
        let unfinished = self.scanner.unfinished();
        // Less than one more fits into what is read ahead, and that is free.
        self.whole = self.whole.max(self.scanner.take_whole());
        if !self.share.set(self.scanner.held() + self.whole) {
            return Err(CloseReason::server(
                CloseCode::Again,
                "too many messages have not arrived whole; send this one later",
            ));
        }
        if unfinished == 0 {
            return Ok(());
        }
        let begun = *self.begun.get_or_insert_with(Instant::now);
        if begun.elapsed() >= MESSAGE_LIMIT { Err(too_late()) } else { Ok(()) }
    }

    /// Gives back the share of a message that was parsed.
    fn parsed(&mut self) {
        if self.whole > 0 {
            self.whole = 0;
            // Less than before has room.
            self.share.set(self.scanner.held());
        }
    }

    /// Resolves when the message takes too long.
    fn poll_limit(&mut self, context: &mut Context<'_>) -> Poll<CloseReason> {
        let Some(begun) = self.begun else { return Poll::Pending };
        let deadline =
            self.deadline.get_or_insert_with(|| Box::pin(sleep_until(begun + MESSAGE_LIMIT)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(too_late())
    }
}

fn too_late() -> CloseReason {
    let seconds = MESSAGE_LIMIT.as_secs();
    let reason = format!("a message must arrive whole within {seconds} s");
    CloseReason::server(CloseCode::Policy, reason)
}

/// The destination of the bytes that the library writes.
enum SocketOutput {
    Sent,
    Kept(Vec<u8>),
    Dropped,
}

impl Transport {
    /// Returns whether the library's buffers have grown and hold nothing that was received.
    fn may_be_renewed(&self) -> bool {
        self.has_grown && self.input.scanner.unfinished() == 0 && self.ahead.is_empty()
    }

    /// Takes the connection, and leaves a transport without one.
    fn take(&mut self) -> Self {
        let share = self.input.share.take();
        Self {
            io: self.io.take(),
            ahead: std::mem::take(&mut self.ahead),
            output: std::mem::replace(&mut self.output, SocketOutput::Dropped),
            input: Input { whole: self.input.whole, ..Input::new(share) },
            has_grown: false,
            refusal: self.refusal.take(),
        }
    }

    fn io(&mut self) -> io::Result<&mut TokioIo<Upgraded>> {
        self.io.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Writes bytes beside the library.
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io()?.write_all(bytes).await
    }

    /// Ends the stream, and drops the client's bytes until the client has ended its direction.
    async fn end(mut self) -> io::Result<()> {
        let io = self.io()?;
        io.shutdown().await?;
        let mut dropped = vec![0; DROP_BUFFER];
        while io.read(&mut dropped).await? > 0 {}
        Ok(())
    }

    /// Takes bytes of the client: those that were read before, or else those that the kernel has.
    fn poll_take(
        &mut self,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            if into.remaining() >= READ_AHEAD {
                return Pin::new(self.io()?).poll_read(context, into);
            }
            let mut bytes = [MaybeUninit::uninit(); READ_AHEAD];
            let mut read = ReadBuf::uninit(&mut bytes);
            ready!(Pin::new(self.io()?).poll_read(context, &mut read))?;
            let (taken, rest) = read.filled().split_at(read.filled().len().min(into.remaining()));
            into.put_slice(taken);
            if !rest.is_empty() {
                self.ahead = Bytes::copy_from_slice(rest);
            }
            return Poll::Ready(Ok(()));
        }
        let count = self.ahead.len().min(into.remaining());
        into.put_slice(&self.ahead.split_to(count));
        if self.ahead.is_empty() {
            self.ahead = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the input with a reason, which the library does not know.
    fn refuse(&mut self, reason: CloseReason) -> Poll<io::Result<()>> {
        self.refusal = Some(Box::new(reason));
        Poll::Ready(Err(io::ErrorKind::Other.into()))
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        match self.poll_take(context, into) {
            Poll::Pending => {
                let reason = ready!(self.input.poll_limit(context));
                self.refuse(reason)
            }
            // A byte that is kept for later is counted when it is taken, so that the scanner knows what the
            // library has.
            Poll::Ready(Ok(())) => match self.input.take(&into.filled()[before..]) {
                Ok(()) => {
                    self.has_grown |= self.input.scanner.unfinished() > KEPT_BYTES;
                    Poll::Ready(Ok(()))
                }
                Err(reason) => self.refuse(reason),
            },
            failed @ Poll::Ready(Err(_)) => failed,
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.output {
            SocketOutput::Sent => return Pin::new(self.io()?).poll_write(context, bytes),
            SocketOutput::Kept(kept) => kept.extend_from_slice(bytes),
            SocketOutput::Dropped => {}
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.output {
            SocketOutput::Sent => Pin::new(self.io()?).poll_flush(context),
            SocketOutput::Kept(_) | SocketOutput::Dropped => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.io()?).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::message_budget::MessageBudget;
    use crate::source::SourceKey;

    /// Bytes of the largest message, and how many of these one network may have at a time.
    const LARGEST: usize = 512 << 10;
    const AT_A_TIME: usize = 4;

    #[tokio::test]
    async fn a_message_that_has_arrived_whole_keeps_its_share_until_it_was_parsed() {
        let budget = MessageBudget::default();
        let source = SourceKey::default().source("192.0.2.1".parse().expect("an address"));
        let mut frame = vec![0x81, 0xff];
        frame.extend((LARGEST as u64).to_be_bytes());
        frame.resize(frame.len() + 4 + LARGEST, 0);
        let mut inputs: Vec<_> =
            (0..=AT_A_TIME).map(|_| Input::new(budget.share(&source))).collect();
        let (first, others) = inputs.split_first_mut().expect("one");
        assert!(first.take(&frame).is_ok());
        assert_eq!(first.scanner.unfinished(), 0);
        let taken = others.iter_mut().filter_map(|input| input.take(&frame).ok()).count();
        assert_eq!(taken, AT_A_TIME - 1, "of {AT_A_TIME} messages of one network");
        first.parsed();
        let last = others.last_mut().expect("one");
        assert!(last.take(&frame).is_ok(), "the share does not come back");
    }
}
