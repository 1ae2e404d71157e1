//! A completion as server-sent events.
//!
//! Some of OpenAI's SDKs fail at a comment or at an `id:` line, so there are only `data:` lines, and
//! a heartbeat is a chunk that says nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response, Sse};
use futures_util::future::BoxFuture;
use futures_util::stream;
use tokio::time::{sleep, timeout};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::chunks::Chunks;
use super::errors::error_json;
use super::request::ChatCompletion;
use super::whole::completed;
use crate::api::permits::SocketPermit;
use crate::api::state::Shared;
use crate::follow::{CancelOnDrop, Follow, Update, final_message};
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::http::rate_limit::Standings;
use crate::lifecycle::{Lifecycle, Phase};
use crate::session::{Change, Message};
use crate::sign_in::Validity;
use crate::telemetry::{CountedOpen, metric};

/// How long the response waits for the turn: an error by then has its own status. Proxies and
/// clients get the first byte within a second.
const FIRST_BYTE: Duration = Duration::from_millis(500);
/// The last line of a stream.
const DONE: &str = "[DONE]";

/// A streamed completion.
pub struct CompletionStream {
    progress: Progress,
    lifecycle: Lifecycle,
    heartbeat: Duration,
    _open: TaskTrackerToken,
    _counted: CountedOpen,
    permit: SocketPermit,
}

/// How far the completion is.
struct Progress {
    follow: Follow,
    chunks: Chunks,
    queue: VecDeque<Event>,
    ended: bool,
    guard: Option<CancelOnDrop>,
}

/// What ends or wakes a stream beside its turn.
struct Watched {
    revoked: BoxFuture<'static, ()>,
    /// Set until something was written after the client's last byte.
    last_byte: Option<LastByte>,
}

impl CompletionStream {
    /// Creates the stream of a turn.
    pub fn new(
        shared: &Shared,
        follow: Follow,
        created: i64,
        request: &ChatCompletion,
        guard: Option<CancelOnDrop>,
        permit: SocketPermit,
    ) -> Self {
        let generation = follow.generation();
        let chunks = Chunks::new(generation, created, &request.spec.model, request.include_usage);
        let progress = Progress { follow, chunks, queue: VecDeque::new(), ended: false, guard };
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
        if let Ok(begun) = timeout(FIRST_BYTE, begun).await {
            begun?;
        }
        let role = self.progress.chunks.role();
        self.progress.queue.push_front(Event::default().data(role));
        let standings = self.permit.standing().into_iter().collect();
        let watched = Watched { revoked: validity.revoked(), last_byte: Some(last_byte) };
        let events = stream::unfold(Box::new((self, watched)), async |mut state| {
            let (stream, watched) = &mut *state;
            let event = stream.next(watched).await?;
            Some((Ok::<_, Infallible>(event), state))
        });
        let mut response = Sse::new(events).into_response();
        response.extensions_mut().insert(Standings(standings));
        let headers = response.headers_mut();
        let caching = HeaderValue::from_static("no-cache, no-transform");
        headers.insert(header::CACHE_CONTROL, caching);
        let buffering = HeaderName::from_static("x-accel-buffering");
        headers.insert(buffering, HeaderValue::from_static("no"));
        Ok(response)
    }

    /// Returns the next event; none after the last one.
    async fn next(&mut self, watched: &mut Watched) -> Option<Event> {
        let Self { progress, lifecycle, heartbeat, .. } = self;
        loop {
            if let Some(event) = progress.queue.pop_front() {
                return Some(event);
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
                // The SDKs take a stream that only ends for a whole completion.
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
            return Some(Event::default().data(progress.chunks.heartbeat()));
        }
    }
}

impl Progress {
    /// Waits for the next update, and queues its chunks. Cancel-safe.
    async fn advance(&mut self) -> Result<(), Problem> {
        match self.follow.next().await? {
            // What follows begins anew, and `Chunks` compares it with what was sent.
            Update::Restart => {}
            Update::Stored(message) => self.end(*message)?,
            Update::Delta(delta) => match &delta.change {
                Change::Text { offset, text } => {
                    if let Some(chunk) = self.chunks.text(*offset, text)? {
                        self.queue.push_back(Event::default().data(chunk));
                    }
                }
                Change::Event { .. } => {
                    if let Some(message) = final_message(&delta) {
                        self.end(message)?;
                    }
                }
                Change::Reasoning { .. } | Change::Restart { .. } | Change::QueuePosition(_) => {}
            },
        }
        Ok(())
    }

    /// Ends the stream with an error. The guard stays, and cancels a turn that goes on.
    fn fail(&mut self, problem: &Problem) {
        self.queue.push_back(Event::default().data(error_json(problem)));
        self.ended = true;
    }

    fn end(&mut self, answer: Message) -> Result<(), Problem> {
        self.ended = true;
        if let Some(guard) = &mut self.guard {
            guard.disarm();
        }
        let last = self.chunks.end(&completed(answer)?)?;
        let last = last.into_iter().chain([DONE.to_owned()]);
        self.queue.extend(last.map(|data| Event::default().data(data)));
        Ok(())
    }
}

/// Resolves when the client has sent its last byte, and never where that was handled already.
async fn last_byte_received(last_byte: Option<LastByte>) {
    match last_byte {
        Some(last_byte) => last_byte.received().await,
        None => std::future::pending().await,
    }
}
