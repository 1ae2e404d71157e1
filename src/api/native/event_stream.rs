//! A session's events as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use futures_util::stream;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::api::native::turns;
use crate::api::native::wire::{self, Envelope, Native, ServerEvent};
use crate::api::problems::in_time;
use crate::api::state::Shared;
use crate::follow::{AcceptedTurn, CancelOnDrop, Follow, Resumed, Update, snapshot};
use crate::http::extract::caller::Caller;
use crate::http::extract::fields::Fields;
use crate::http::extract::path::SessionPath;
use crate::http::extract::query::QueryFields;
use crate::http::peer::Hangup;
use crate::http::problem::{Problem, ProblemDetails};
use crate::lifecycle::Phase;
use crate::retry::Backoff;
use crate::session::{
    Change, Cursor, Delivered, Delta, GenerationId, Message, Owner, Reader, SessionId, StoreError,
};

/// What an event stream follows.
enum Source {
    /// All of a session; it has no end.
    Session(Box<Reader>),
    /// One generation, with whose end the stream ends.
    Turn(Box<Follow>),
}

/// An event stream.
struct EventStream {
    shared: Shared,
    owner: Owner,
    session: SessionId,
    source: Source,
    queue: VecDeque<Event>,
    /// Whether any of an answer was sent that a new beginning takes back.
    begun: bool,
    ended: bool,
    guard: Option<CancelOnDrop>,
    /// Until something was written to a client that has sent its last byte.
    hangup: Option<Hangup>,
    /// Pauses before Redis is asked again for a snapshot.
    backoff: Backoff,
    _open: TaskTrackerToken,
}

/// The events of a session, from a place on.
#[utoipa::path(
    get, path = "/api/v1/chat/sessions/{session_id}/events", tag = "sessions",
    params(
        ("session_id" = SessionId, Path),
        ("Last-Event-ID" = Option<String>, Header, description = "The cursor to resume after"),
        ("cursor" = Option<String>, Query, description = "The same, where the header is not sent"),
        ("generation_id" = Option<GenerationId>, Query,
            description = "Only this one's events; the stream closes after its end"),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = String,
            description = "First a connection event, then as over the WebSocket"),
        (status = 204, description = "The client has the generation's end already"),
        (status = 404, body = ProblemDetails, content_type = "application/problem+json"),
        (status = 503, body = ProblemDetails, content_type = "application/problem+json"),
    ),
)]
pub async fn events(
    State(shared): State<Shared>,
    Caller(owner): Caller,
    SessionPath(session): SessionPath,
    hangup: Hangup,
    headers: HeaderMap,
    QueryFields(query): QueryFields,
) -> Result<Response, Problem> {
    let mut fields = Fields::new("query", &query);
    let generation = fields.uuid("generation_id").map(GenerationId);
    let query_cursor = fields.text("cursor", usize::MAX);
    fields.finish(())?;
    shared.admit()?;
    // What is no text is no cursor of ours either.
    let last = headers.get("last-event-id").map(|id| id.to_str().unwrap_or("?"));
    let last = last.or(query_cursor).filter(|text| !text.is_empty());
    let resumed = last.is_some();
    // What is none of our cursors gets a snapshot, as one that is no longer kept.
    let cursor: Option<Cursor> = last.and_then(|text| text.parse().ok());
    let readable = resumed == cursor.is_some();
    in_time(shared.store.describe(&owner, session)).await?;
    match generation {
        None => of_session(shared, owner, session, cursor, resumed, hangup).await,
        Some(generation) => {
            let (feeds, store) = (shared.feeds.clone(), shared.store.clone());
            let resume = Follow::resume(feeds, store, owner.clone(), session, generation, cursor);
            let (follow, recovered) = match in_time(resume).await? {
                Resumed::Complete => return Ok(StatusCode::NO_CONTENT.into_response()),
                Resumed::Following { follow, recovered } => (follow, recovered && readable),
            };
            // The client's own cursor, while what follows it is not sent: coming back with it is
            // no loss.
            let place = match follow.cursor() {
                Some(_) if !recovered => Some(cursor.unwrap_or(Cursor::START)),
                at => at,
            };
            let mut events = EventStream::new(shared, owner, session, Source::Turn(follow), hangup);
            events.connect(place, resumed, recovered);
            Ok(events.into_response())
        }
    }
}

async fn of_session(
    shared: Shared,
    owner: Owner,
    session: SessionId,
    cursor: Option<Cursor>,
    resumed: bool,
    hangup: Hangup,
) -> Result<Response, Problem> {
    let reader = in_time(shared.feeds.reader(&owner, session, cursor)).await?;
    let recovered = reader.is_recovered() && resumed == cursor.is_some();
    let place = if recovered { reader.cursor() } else { cursor.unwrap_or(Cursor::START) };
    let source = Source::Session(Box::new(reader));
    let mut events = EventStream::new(shared, owner, session, source, hangup);
    events.connect(Some(place), resumed, recovered);
    if !recovered {
        events.send_snapshot().await?;
    }
    Ok(events.into_response())
}

/// The events of a turn that was asked for with `stream`.
///
/// # Errors
/// As a client is told.
pub async fn of_turn(
    shared: Shared,
    owner: Owner,
    session: SessionId,
    accepted: AcceptedTurn,
    hangup: Hangup,
) -> Result<Response, Problem> {
    let AcceptedTurn { submitted, guard } = accepted;
    let follow = Box::new(turns::follow(&shared, &owner, session, submitted).await?);
    let place = follow.cursor();
    let mut events = EventStream::new(shared, owner, session, Source::Turn(follow), hangup);
    events.guard = guard;
    events.connect(place, false, true);
    Ok(events.into_response())
}

impl EventStream {
    fn new(
        shared: Shared,
        owner: Owner,
        session: SessionId,
        source: Source,
        hangup: Hangup,
    ) -> Self {
        let open = shared.sockets.token();
        Self {
            shared,
            owner,
            session,
            source,
            queue: VecDeque::new(),
            begun: false,
            ended: false,
            guard: None,
            hangup: Some(hangup),
            backoff: Backoff::redis(),
            _open: open,
        }
    }

    fn generation(&self) -> Option<GenerationId> {
        match &self.source {
            Source::Session(_) => None,
            Source::Turn(follow) => Some(follow.generation()),
        }
    }

    fn connect(&mut self, cursor: Option<Cursor>, resumed: bool, recovered: bool) {
        let generation = self.generation();
        let json = wire::connection(self.session, cursor, resumed, recovered, generation);
        self.send(&json, cursor);
    }

    fn send(&mut self, json: &Utf8Bytes, cursor: Option<Cursor>) {
        let event = Event::default().data(json.as_str());
        self.queue.push_back(match cursor {
            Some(cursor) => event.id(cursor.to_string()),
            None => event,
        });
    }

    fn send_delta(&mut self, delta: &Delta) {
        let logged = !matches!(delta.change, Change::QueuePosition(_));
        self.begun |= logged;
        self.send(&delta.encoded::<Native>(), logged.then_some(delta.after));
    }

    /// Sends a generation from what is stored of it, and ends.
    fn replay(&mut self, message: &Message, end: Cursor) {
        let events = wire::replay(message, false, end);
        let last = events.len().saturating_sub(1);
        for (at, json) in events.iter().enumerate() {
            self.send(json, (at == last).then_some(end));
        }
        self.end();
    }

    fn end(&mut self) {
        self.ended = true;
        self.disarm();
    }

    fn disarm(&mut self) {
        if let Some(guard) = &mut self.guard {
            guard.disarm();
        }
    }

    /// Takes back what was sent of a generation that is told again from its beginning.
    fn restart(&mut self, generation: Option<GenerationId>) {
        if self.begun && generation.is_some() {
            let place = Envelope { generation, cursor: None };
            self.send(&ServerEvent::StreamRestart { from: 0, place }.json(), None);
        }
    }

    async fn send_snapshot(&mut self) -> Result<(), StoreError> {
        let store = &self.shared.store;
        let taken = snapshot::take(store, &self.owner, self.session, wire::EVENT_BYTES).await?;
        self.restart(taken.running.as_ref().map(|(generation, _)| *generation));
        let (json, cursor) = wire::snapshot(&taken);
        self.send(&json, Some(cursor));
        if let Source::Session(reader) = &mut self.source {
            reader.move_to(cursor);
        }
        Ok(())
    }

    /// Waits for what comes next.
    async fn advance(&mut self) {
        match &mut self.source {
            Source::Session(reader) => match reader.next().await {
                Delivered::Delta(delta) => self.send_delta(&delta),
                Delivered::Lost => {
                    if let Err(error) = self.send_snapshot().await {
                        tracing::debug!(%error, "event stream waiting for redis");
                        let _ = self.backoff.pause().await;
                    } else {
                        self.backoff.reset();
                    }
                }
            },
            Source::Turn(follow) => {
                let update = follow.next().await;
                let (generation, end) = (follow.generation(), follow.end());
                match update {
                    Ok(Update::Delta(delta)) => {
                        self.send_delta(&delta);
                        if delta.is_terminal() {
                            self.end();
                        }
                    }
                    Ok(Update::Restart) => self.restart(Some(generation)),
                    Ok(Update::Stored(message)) => self.replay(&message, end),
                    Err(error) => {
                        let json = wire::error(&error.into(), None);
                        self.send(&json, None);
                        self.end();
                    }
                }
            }
        }
    }

    async fn next(mut self: Box<Self>) -> Option<(Result<Event, Infallible>, Box<Self>)> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some((Ok(event), self));
            }
            if self.ended {
                return None;
            }
            // Another replica goes on with what has no end; an answer may end here.
            let end = match self.source {
                Source::Session(_) => Phase::Draining,
                Source::Turn(_) => Phase::Stopped,
            };
            let lifecycle = self.shared.lifecycle.clone();
            tokio::select! {
                () = lifecycle.reached(end) => {
                    self.disarm();
                    return None;
                }
                () = hung_up(self.hangup.clone()) => {
                    // A client that is gone resets what is written to it, and so gives itself away.
                    self.hangup = None;
                    self.queue.push_back(Event::default().comment(""));
                }
                () = self.advance() => {}
            }
        }
    }

    fn into_response(self) -> Response {
        let heartbeat = KeepAlive::new().interval(self.shared.settings.heartbeat);
        let events = stream::unfold(Box::new(self), Self::next);
        let mut response = Sse::new(events).keep_alive(heartbeat).into_response();
        let headers = response.headers_mut();
        let caching = HeaderValue::from_static("no-cache, no-transform");
        headers.insert(header::CACHE_CONTROL, caching);
        let buffering = HeaderName::from_static("x-accel-buffering");
        headers.insert(buffering, HeaderValue::from_static("no"));
        response
    }
}

/// Resolves when the client has sent its last byte, if that is still to be noticed.
async fn hung_up(hangup: Option<Hangup>) {
    match hangup {
        Some(hangup) => hangup.happened().await,
        None => std::future::pending().await,
    }
}
