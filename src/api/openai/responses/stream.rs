//! The events of a response as server-sent events.
//!
//! Some of OpenAI's SDKs fail at a comment with a blank line behind it, and at an `id:` line. So a
//! heartbeat is a comment that belongs to the event after it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use futures_util::future::BoxFuture;
use futures_util::stream;
use tokio::time::{sleep, timeout};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::super::whole::completed;
use super::events::Events;
use super::object::ResponseObject;
use crate::api::permits::SocketPermit;
use crate::api::state::Shared;
use crate::follow::{CancelOnDrop, Follow, FollowError, Update, final_message};
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::http::rate_limit::Standings;
use crate::lifecycle::{Lifecycle, Phase};
use crate::retry::Backoff;
use crate::session::model::ContinuedHow;
use crate::session::{Change, Message, Status, StoreError};
use crate::sign_in::Validity;
use crate::telemetry::{CountedOpen, metric};

/// How long the response waits for the turn: an error by then has its own status. Proxies and
/// clients get the first byte within a second.
const FIRST_BYTE: Duration = Duration::from_millis(500);
/// A comment without a blank line behind it.
const HEARTBEAT: &str = ":\n";

/// The streamed events of a response.
pub struct ResponseStream {
    progress: Progress,
    lifecycle: Lifecycle,
    heartbeat: Duration,
    _open: TaskTrackerToken,
    _counted: CountedOpen,
    permit: SocketPermit,
}

/// How far the response is.
struct Progress {
    follow: Follow,
    events: Events,
    queue: VecDeque<String>,
    /// The update that is to be written next.
    update: Option<Update>,
    /// Whether the next text is the first one, so that the answer may have begun anew before it.
    is_fresh: bool,
    ended: bool,
    /// Why the turn failed.
    failure: Option<Problem>,
    /// Whether a turn that fails before the first byte is an error with a status of its own.
    may_refuse: bool,
    guard: Option<CancelOnDrop>,
}

/// What ends or wakes a stream beside its turn.
struct Watched {
    revoked: BoxFuture<'static, ()>,
    /// Set until something was written after the client's last byte.
    last_byte: Option<LastByte>,
}

impl ResponseStream {
    /// Creates the stream of a response that is created with it.
    pub fn new(
        shared: &Shared,
        follow: Follow,
        response: ResponseObject,
        guard: Option<CancelOnDrop>,
        permit: SocketPermit,
    ) -> Self {
        let may_refuse = !response.request.shown.background;
        let events = Events::new(response, None);
        Self::of(shared, Progress::new(follow, events, may_refuse, guard), permit)
    }

    /// Creates another stream of a response, behind the event with the number `after`.
    pub fn again(
        shared: &Shared,
        follow: Follow,
        response: ResponseObject,
        after: Option<u64>,
        permit: SocketPermit,
    ) -> Self {
        let events = Events::new(response, after);
        Self::of(shared, Progress::new(follow, events, false, None), permit)
    }

    fn of(shared: &Shared, progress: Progress, permit: SocketPermit) -> Self {
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
    /// Why the turn ended by then without an answer, or that its events cannot be sent.
    pub async fn respond(
        mut self,
        validity: Validity,
        last_byte: LastByte,
    ) -> Result<Response, Problem> {
        let begun = async {
            while !self.progress.events.has_answer() && !self.progress.ended {
                self.progress.advance().await?;
            }
            Ok::<_, Problem>(())
        };
        if let Ok(begun) = timeout(FIRST_BYTE, begun).await {
            begun?;
        }
        if let Some(failure) = self.progress.failure.take_if(|_| self.progress.may_refuse) {
            return Err(failure);
        }
        if self.progress.queue.is_empty() && !self.progress.ended {
            self.progress.queue.push_back(HEARTBEAT.to_owned());
        }
        let standings = self.permit.standing().into_iter().collect();
        let watched = Watched { revoked: validity.revoked(), last_byte: Some(last_byte) };
        let events = stream::unfold(Box::new((self, watched)), async |mut state| {
            let (stream, watched) = &mut *state;
            let event = stream.next(watched).await?;
            Some((Ok::<_, Infallible>(Bytes::from(event)), state))
        });
        let mut response = Response::new(Body::from_stream(events));
        response.extensions_mut().insert(Standings(standings));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        let caching = HeaderValue::from_static("no-cache, no-transform");
        headers.insert(header::CACHE_CONTROL, caching);
        let buffering = HeaderName::from_static("x-accel-buffering");
        headers.insert(buffering, HeaderValue::from_static("no"));
        Ok(response)
    }

    /// Returns the next event; none after the last one.
    async fn next(&mut self, watched: &mut Watched) -> Option<String> {
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
                        progress.queue.push_back(progress.events.error(&problem));
                        progress.ended = true;
                    }
                    continue;
                }
                () = lifecycle.reached(Phase::Stopped) => return None,
                () = &mut watched.revoked => return None,
                () = last_byte_received(watched.last_byte.clone()) => {
                    // The system of a client that is gone resets the connection on a write.
                    watched.last_byte = None;
                }
                () = sleep(*heartbeat) => {}
            }
            return Some(HEARTBEAT.to_owned());
        }
    }
}

impl Progress {
    fn new(
        follow: Follow,
        mut events: Events,
        may_refuse: bool,
        guard: Option<CancelOnDrop>,
    ) -> Self {
        let queue = events.take().into_iter().map(|event| event.text).collect();
        Self {
            follow,
            events,
            queue,
            update: None,
            is_fresh: true,
            ended: false,
            failure: None,
            may_refuse,
            guard,
        }
    }

    /// Waits for the next update, and queues its events. Cancel-safe.
    async fn advance(&mut self) -> Result<(), Problem> {
        if self.update.is_none() {
            self.update = Some(self.follow.next().await?);
        }
        if let Some(restarts) = self.restarts_before_update().await? {
            self.events.note_restarts(restarts)?;
            self.is_fresh = false;
        }
        let Some(update) = self.update.take() else { return Ok(()) };
        match update {
            // What follows begins anew, and `Events` compares it with what was sent.
            Update::Restart => self.is_fresh = true,
            Update::Stored(message) => self.end(*message)?,
            Update::Delta(delta) => match &delta.change {
                Change::Text { offset, text } => self.events.add_text(*offset, text)?,
                Change::Reasoning { offset, text } => self.events.add_reasoning(*offset, text)?,
                Change::Restart { from } => self.is_fresh |= *from == 0,
                Change::Event { .. } => {
                    if let Some(message) = final_message(&delta) {
                        self.end(message)?;
                    }
                }
                Change::QueuePosition(_) => {}
            },
        }
        self.queue.extend(self.events.take().into_iter().map(|event| event.text));
        Ok(())
    }

    /// Returns how often the answer has begun anew, where the update brings its first text or its end.
    async fn restarts_before_update(&self) -> Result<Option<u32>, Problem> {
        let until = match &self.update {
            _ if !self.is_fresh => return Ok(None),
            Some(Update::Stored(message)) => return Ok(Some(restarts_of(message))),
            Some(Update::Delta(delta)) => match &delta.change {
                Change::Text { .. } | Change::Reasoning { .. } => delta.after.events,
                Change::Event { event, .. } if event.control.is_terminal() => event.number,
                _ => return Ok(None),
            },
            _ => return Ok(None),
        };
        let mut backoff = Backoff::redis();
        loop {
            match self.follow.restarts(until).await {
                Err(FollowError::Store(StoreError::Redis(error))) => {
                    tracing::debug!(%error, "response stream waiting for redis");
                    let _ = backoff.pause().await;
                }
                restarts => return Ok(Some(restarts?)),
            }
        }
    }

    fn end(&mut self, answer: Message) -> Result<(), Problem> {
        self.ended = true;
        if let Some(guard) = &mut self.guard {
            guard.disarm();
        }
        self.events.end(&answer)?;
        if answer.status == Some(Status::Failed) {
            self.failure = completed(answer).err();
        }
        Ok(())
    }
}

/// Returns how often an answer began anew, as it is stored.
fn restarts_of(answer: &Message) -> u32 {
    let restarts = answer.continued.iter().filter(|it| it.how == ContinuedHow::Restarted);
    u32::try_from(restarts.count()).unwrap_or(u32::MAX)
}

/// Resolves when the client has sent its last byte, and never where that was handled already.
async fn last_byte_received(last_byte: Option<LastByte>) {
    match last_byte {
        Some(last_byte) => last_byte.received().await,
        None => std::future::pending().await,
    }
}
