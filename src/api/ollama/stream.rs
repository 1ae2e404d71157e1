//! An answer as a stream of lines, or whole.
//!
//! Lines have no comments: what keeps a connection alive, and is the first byte of a turn that waits,
//! is a line with an empty text, which every client adds to its text.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::future::BoxFuture;
use futures_util::stream;
use tokio::time::{sleep, timeout};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::errors::{error_json, of_model};
use super::lines::Lines;
use crate::api::permits::SocketPermit;
use crate::api::state::Shared;
use crate::follow::{CancelOnDrop, Follow, Update, final_message};
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::http::rate_limit::Standings;
use crate::lifecycle::{Lifecycle, Phase};
use crate::session::model::Failure;
use crate::session::{Change, Control, Message, Status};
use crate::sign_in::Validity;
use crate::telemetry::{CountedOpen, metric};

/// The content type of a stream.
pub const LINES: &str = "application/x-ndjson";
/// How long the response waits for the turn: an error by then has its own status. Proxies and
/// clients get the first byte within a second.
const FIRST_BYTE: Duration = Duration::from_millis(500);

/// How far an answer is.
pub struct Progress {
    follow: Follow,
    /// The lines of the answer.
    pub lines: Lines,
    model: String,
    queue: VecDeque<String>,
    ended: bool,
    guard: Option<CancelOnDrop>,
}

/// A streamed answer.
pub struct AnswerStream {
    progress: Progress,
    lifecycle: Lifecycle,
    heartbeat: Duration,
    _open: TaskTrackerToken,
    _counted: CountedOpen,
    permit: SocketPermit,
}

/// What ends or wakes a stream beside its turn.
struct Watched {
    revoked: BoxFuture<'static, ()>,
    /// Set until something was written after the client's last byte.
    last_byte: Option<LastByte>,
}

impl Progress {
    /// Begins to follow a turn of this model, as the request spells it.
    pub fn new(follow: Follow, lines: Lines, model: &str, guard: Option<CancelOnDrop>) -> Self {
        let (model, queue) = (model.to_owned(), VecDeque::new());
        Self { follow, lines, model, queue, ended: false, guard }
    }

    /// Returns whether the turn is cancelled when the client goes away.
    pub fn is_guarded(&self) -> bool {
        self.guard.is_some()
    }

    /// Cancels the turn, where its client wants that: the client is gone.
    pub fn abandon(&mut self) {
        drop(self.guard.take());
    }

    /// Waits for the end of the turn, and returns the answer. Nothing is sent before, so that an
    /// answer that begins anew takes nothing back. Cancel-safe.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn whole(&mut self) -> Result<Message, Problem> {
        loop {
            let update = self.follow.next().await?;
            if let Some(answer) = self.note(update)? {
                return Ok(answer);
            }
        }
    }

    /// Waits for the next update, and queues its lines. Cancel-safe.
    async fn advance(&mut self) -> Result<(), Problem> {
        let update = self.follow.next().await?;
        // Where the answer begins anew, `Lines` compares it with what was sent.
        if let Update::Delta(delta) = &update {
            match &delta.change {
                Change::Text { offset, text } => {
                    self.queue.extend(self.lines.text(*offset, text)?);
                }
                Change::Reasoning { offset, text } => {
                    self.queue.extend(self.lines.reasoning(*offset, text));
                }
                Change::Event { .. } | Change::Restart { .. } | Change::QueuePosition(_) => {}
            }
        }
        if let Some(answer) = self.note(update)? {
            self.queue.extend(self.lines.end(&answer)?);
        }
        Ok(())
    }

    /// Notes the time of an update, and returns the answer where the turn has ended.
    fn note(&mut self, update: Update) -> Result<Option<Message>, Problem> {
        match update {
            Update::Restart => Ok(None),
            Update::Stored(message) => self.ended(*message).map(Some),
            Update::Delta(delta) => {
                match &delta.change {
                    Change::Text { .. } | Change::Reasoning { .. } => self.lines.clock.text(),
                    Change::Event { event, .. } => {
                        if let Control::Started { .. } = event.control {
                            self.lines.clock.begin();
                        }
                    }
                    Change::Restart { .. } | Change::QueuePosition(_) => {}
                }
                final_message(&delta).map(|message| self.ended(message)).transpose()
            }
        }
    }

    /// Ends the stream with an error. The guard stays, and cancels a turn that goes on.
    fn fail(&mut self, problem: &Problem) {
        self.queue.push_back(error_json(problem) + "\n");
        self.ended = true;
    }

    fn ended(&mut self, answer: Message) -> Result<Message, Problem> {
        self.ended = true;
        if let Some(guard) = &mut self.guard {
            guard.disarm();
        }
        match (answer.status, answer.error) {
            (Some(Status::Failed), Some(failure)) => {
                Err(of_model(&self.model, Failure::into(failure)))
            }
            (Some(Status::Cancelled), _) => {
                let detail = "The generation was cancelled before its end.";
                Err(Problem::new(StatusCode::BAD_GATEWAY, "upstream_interrupted", detail))
            }
            (_, error) => Ok(Message { error, ..answer }),
        }
    }
}

impl AnswerStream {
    /// Creates the stream of a turn.
    pub fn new(shared: &Shared, progress: Progress, permit: SocketPermit) -> Self {
        Self {
            progress,
            lifecycle: shared.lifecycle.clone(),
            heartbeat: shared.settings.heartbeat,
            _open: shared.sockets.token(),
            _counted: CountedOpen::new(metrics::gauge!(metric::EVENT_STREAMS)),
            permit,
        }
    }

    /// Returns the response, at the latest after [`FIRST_BYTE`].
    ///
    /// # Errors
    /// Why the turn ended by then without an answer.
    pub async fn respond(
        mut self,
        validity: Validity,
        last_byte: LastByte,
    ) -> Result<Response, Problem> {
        let begun = async {
            while self.progress.queue.is_empty() && !self.progress.ended {
                self.progress.advance().await?;
            }
            Ok::<_, Problem>(())
        };
        match timeout(FIRST_BYTE, begun).await {
            Ok(begun) => begun?,
            Err(_) => self.progress.queue.push_back(self.progress.lines.heartbeat()),
        }
        let standings = self.permit.standing().into_iter().collect();
        let watched = Watched { revoked: validity.revoked(), last_byte: Some(last_byte) };
        let lines = stream::unfold(Box::new((self, watched)), |state| async {
            let (mut stream, mut watched) = *state;
            let line = stream.next(&mut watched).await?;
            Some((Ok::<_, Infallible>(line), Box::new((stream, watched))))
        });
        let mut response = Response::new(Body::from_stream(lines));
        response.extensions_mut().insert(Standings(standings));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(LINES));
        let caching = HeaderValue::from_static("no-cache, no-transform");
        headers.insert(header::CACHE_CONTROL, caching);
        let buffering = HeaderName::from_static("x-accel-buffering");
        headers.insert(buffering, HeaderValue::from_static("no"));
        Ok(response)
    }

    /// Returns the next line; none after the last one.
    async fn next(&mut self, watched: &mut Watched) -> Option<String> {
        let Self { progress, lifecycle, heartbeat, .. } = self;
        loop {
            if let Some(line) = progress.queue.pop_front() {
                return Some(line);
            }
            if progress.ended {
                return None;
            }
            tokio::select! {
                advanced = progress.advance() => {
                    if let Err(problem) = advanced {
                        progress.fail(&problem);
                    }
                    continue;
                }
                // The packages take a stream that only ends for a whole answer.
                () = lifecycle.reached(Phase::Stopped) => {
                    progress.fail(&Problem::draining());
                    continue;
                }
                () = &mut watched.revoked => {
                    progress.fail(&Problem::key_revoked());
                    continue;
                }
                () = last_byte_received(watched.last_byte.clone()) => {
                    // The system of a client that is gone resets the connection on a write.
                    watched.last_byte = None;
                }
                () = sleep(*heartbeat) => {}
            }
            return Some(progress.lines.heartbeat());
        }
    }
}

/// Resolves when the client has sent its last byte, and never where that was handled already.
async fn last_byte_received(last_byte: Option<LastByte>) {
    match last_byte {
        Some(last_byte) => last_byte.received().await,
        None => std::future::pending().await,
    }
}
