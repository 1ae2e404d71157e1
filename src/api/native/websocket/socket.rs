//! One WebSocket's frames, up to and including the closing handshake.
//!
//! The library's own closing handshake is not used: it sends its answer only when it is polled
//! again, answers a close without a code by one without a code, and leaves the TCP connection to
//! be reset while the client still sends.

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
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use crate::api::native::wire;
use crate::telemetry::{CountedOpen, metric};

/// Bytes of the buffer that each socket keeps. It grows for larger messages and stays large; most
/// messages are small.
const READ_BUFFER: usize = 128;
/// Bytes that are read from the kernel at once. What the buffer has no room for is kept until it is
/// taken.
const READ_AHEAD: usize = 4 << 10;
/// A frame larger than this cannot be sent: it has to hold the largest event.
const WRITE_BUFFER: usize = 2 * wire::EVENT_BYTES;
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
    /// An end that this side begins.
    pub fn server(code: CloseCode, reason: impl Into<Utf8Bytes>) -> Self {
        let mut reason = reason.into();
        if reason.len() > LONGEST_REASON {
            reason = reason.as_str()[..reason.floor_char_boundary(LONGEST_REASON)].into();
        }
        Self::Server(CloseFrame { code, reason })
    }
}

impl From<Error> for CloseReason {
    /// The end that follows an error of the protocol (RFC 6455, section 7.4.1).
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
    _open: CountedOpen,
}

impl Socket {
    /// Takes over a connection after its handshake. A message of the client has at most `largest`
    /// bytes.
    pub async fn new(upgraded: Upgraded, largest: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BUFFER)
            .max_message_size(Some(largest))
            .max_frame_size(Some(largest));
        let io = TokioIo::new(upgraded);
        let transport = Transport { io, ahead: Bytes::new(), output: Output::Sent };
        let frames = WebSocketStream::from_raw_socket(transport, Role::Server, Some(config)).await;
        Self { frames, _open: CountedOpen::new(metrics::gauge!(metric::WEBSOCKETS)) }
    }

    /// Receives the next message. Cancel-safe: dropping the future loses nothing.
    ///
    /// # Errors
    /// Where the client closes the socket, breaks the protocol, or is lost.
    pub async fn receive(&mut self) -> Result<Message, CloseReason> {
        match self.frames.next().await {
            Some(Ok(Message::Close(frame))) => Err(CloseReason::Client(frame)),
            Some(Ok(message)) => Ok(message),
            Some(Err(error)) => Err(error.into()),
            None => Err(CloseReason::Lost),
        }
    }

    /// Receives a message that a lost client sent before it was lost, and sends nothing from now on.
    ///
    /// # Errors
    /// Where there is no further message.
    pub async fn receive_rest(&mut self) -> Result<Message, CloseReason> {
        self.frames.get_mut().output = Output::Dropped;
        self.receive().await
    }

    /// Writes a message. Returns whether the kernel has taken it; otherwise [`Socket::flush`] must
    /// follow before the next message.
    ///
    /// # Errors
    /// Where the connection is lost.
    pub async fn write(&mut self, message: Message) -> Result<bool, CloseReason> {
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
        let sent = timeout(CLOSE_LIMIT, self.frames.get_mut().io.write_all(&bytes)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
        if begun_here {
            let answered = async { while self.receive().await.is_ok() {} };
            let _ = timeout(CLOSE_LIMIT, answered).await;
        }
        let _ = timeout(CLOSE_LIMIT, self.frames.into_inner().end()).await;
    }

    /// Returns the bytes that the library has not sent yet, and drops its output from now on.
    async fn unsent(&mut self) -> Vec<u8> {
        self.frames.get_mut().output = Output::Kept(Vec::new());
        // It does not wait, because nothing is sent.
        let _ = self.frames.flush().await;
        match std::mem::replace(&mut self.frames.get_mut().output, Output::Dropped) {
            Output::Kept(bytes) => bytes,
            Output::Sent | Output::Dropped => Vec::new(),
        }
    }
}

/// The stream of bytes below the frames.
struct Transport {
    io: TokioIo<Upgraded>,
    /// Bytes that were read and not taken yet.
    ahead: Bytes,
    output: Output,
}

/// The destination of the bytes that the library writes.
enum Output {
    Sent,
    Kept(Vec<u8>),
    Dropped,
}

impl Transport {
    /// Ends the stream, and drops the client's bytes until the client has ended its direction.
    async fn end(mut self) -> io::Result<()> {
        self.io.shutdown().await?;
        let mut dropped = vec![0; DROP_BUFFER];
        while self.io.read(&mut dropped).await? > 0 {}
        Ok(())
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            if into.remaining() >= READ_AHEAD {
                return Pin::new(&mut self.io).poll_read(context, into);
            }
            let mut bytes = [MaybeUninit::uninit(); READ_AHEAD];
            let mut read = ReadBuf::uninit(&mut bytes);
            ready!(Pin::new(&mut self.io).poll_read(context, &mut read))?;
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
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.output {
            Output::Sent => return Pin::new(&mut self.io).poll_write(context, bytes),
            Output::Kept(kept) => kept.extend_from_slice(bytes),
            Output::Dropped => {}
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.output {
            Output::Sent => Pin::new(&mut self.io).poll_flush(context),
            Output::Kept(_) | Output::Dropped => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
