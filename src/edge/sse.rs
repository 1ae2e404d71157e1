//! A session's events as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::Utf8Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use futures_util::stream;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::fields::Fields;
use super::guard::Caller;
use super::peer::Hangup;
use super::problem::{Problem, ProblemDetails, QueryFields, SessionPath, in_time};
use super::turns::{self, Asked, CancelOnDrop, Past, Since};
use super::wire::{self, Place, ServerEvent};
use super::{Shared, snapshot};
use crate::session::feed::{Delivered, Frame, FrameKind, Reader};
use crate::session::{Cursor, GenerationId, Message, Owner, SessionId, StoreError};

const RETRY: Duration = Duration::from_millis(500);

/// What an event stream is about.
struct Events {
    shared: Shared,
    owner: Owner,
    session: SessionId,
    /// The only generation that is told of, and with whose end the stream ends.
    generation: Option<GenerationId>,
    reader: Reader,
    queue: VecDeque<Event>,
    /// Whether any of an answer was sent, that a new beginning takes back.
    begun: bool,
    ended: bool,
    guard: Option<CancelOnDrop>,
    /// Until something was written to a client that has sent its last byte.
    hangup: Option<Hangup>,
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
    in_time(shared.store.describe(&owner, session)).await?;
    let reader = in_time(shared.feeds.reader(&owner, session, cursor)).await?;
    let recovered = reader.is_recovered() && resumed == cursor.is_some();
    let told = if recovered { cursor } else { None };
    if let Some(generation) = generation
        && !in_time(shared.store.is_open(&owner, session, generation)).await?
    {
        let store = &shared.store;
        let ahead = match told {
            Some(cursor) => {
                in_time(turns::end_since(store, &owner, session, generation, cursor)).await?
            }
            None => Since::Unknown,
        };
        if !matches!(ahead, Since::Ended(_)) {
            match in_time(turns::stored(store, &owner, session, generation)).await? {
                Some(_) if told.is_some() => return Ok(StatusCode::NO_CONTENT.into_response()),
                Some(message) => {
                    let mut events =
                        Events::new(shared, owner, session, Some(generation), reader, hangup);
                    events.connect(None, resumed, recovered);
                    events.replay(&message);
                    return Ok(events.into_response());
                }
                None => return Err(Problem::generation_not_found()),
            }
        }
    }
    let mut events = Events::new(shared, owner, session, generation, reader, hangup);
    // The client's own place, while what follows it is not told: coming back with it is no loss.
    let place = if recovered { events.reader.cursor() } else { cursor.unwrap_or(Cursor::START) };
    events.connect(Some(place), resumed, recovered);
    if !recovered {
        events.start_over().await?;
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
    asked: Asked,
    hangup: Hangup,
) -> Result<Response, Problem> {
    let Asked { submitted, guard } = asked;
    let generation = submitted.generation;
    let mut reader = in_time(shared.feeds.reader(&owner, session, submitted.before)).await?;
    let mut ended = None;
    if submitted.before.is_none() || !reader.is_recovered() {
        if !reader.is_recovered() {
            reader = in_time(shared.feeds.reader(&owner, session, None)).await?;
        }
        let store = &shared.store;
        match in_time(turns::past(store, &owner, session, generation, submitted.before)).await? {
            Past::Ended { message, .. } => ended = Some(message),
            Past::Unknown => return Err(Problem::generation_not_found()),
            Past::Live => {}
        }
    }
    let mut events = Events::new(shared, owner, session, Some(generation), reader, hangup);
    events.guard = guard;
    if let Some(message) = ended {
        events.connect(None, false, true);
        events.replay(&message);
    } else {
        let place = events.reader.cursor();
        events.connect(Some(place), false, true);
    }
    Ok(events.into_response())
}

impl Events {
    fn new(
        shared: Shared,
        owner: Owner,
        session: SessionId,
        generation: Option<GenerationId>,
        reader: Reader,
        hangup: Hangup,
    ) -> Self {
        let open = shared.sockets.token();
        Self {
            shared,
            owner,
            session,
            generation,
            reader,
            queue: VecDeque::new(),
            begun: false,
            ended: false,
            guard: None,
            hangup: Some(hangup),
            _open: open,
        }
    }

    fn connect(&mut self, cursor: Option<Cursor>, resumed: bool, recovered: bool) {
        let json = wire::connection(self.session, cursor, resumed, recovered, self.generation);
        self.send(&json, cursor);
    }

    fn send(&mut self, json: &Utf8Bytes, cursor: Option<Cursor>) {
        let event = Event::default().data(json.as_str());
        self.queue.push_back(match cursor {
            Some(cursor) => event.id(cursor.to_string()),
            None => event,
        });
    }

    /// Tells a generation's end from what is stored, and ends.
    fn replay(&mut self, message: &Message) {
        let end = self.reader.cursor();
        let events = wire::replay(message, false, end);
        let last = events.len().saturating_sub(1);
        for (at, json) in events.iter().enumerate() {
            self.send(json, (at == last).then_some(end));
        }
        self.end();
    }

    fn end(&mut self) {
        self.ended = true;
        if let Some(guard) = &mut self.guard {
            guard.disarm();
        }
    }

    fn take_in(&mut self, frame: &Frame) {
        if self.generation.is_some() && frame.generation != self.generation {
            return;
        }
        if let FrameKind::Queued = frame.kind {
            return self.send(&frame.json, None);
        }
        self.begun = true;
        self.send(&frame.json, Some(frame.after));
        if let FrameKind::Control(event) = &frame.kind
            && event.control.is_terminal()
            && self.generation.is_some()
        {
            self.end();
        }
    }

    /// Goes on where the reader's place is not known.
    async fn start_over(&mut self) -> Result<(), StoreError> {
        let (owner, session) = (self.owner.clone(), self.session);
        let shared = self.shared.clone();
        if let Some(generation) = self.generation {
            let reader = shared.feeds.reader(&owner, session, None).await?;
            match turns::past(&shared.store, &owner, session, generation, None).await? {
                Past::Live => {
                    self.reader = reader;
                    self.restart(Some(generation));
                }
                Past::Ended { message, .. } => {
                    self.restart(Some(generation));
                    self.replay(&message);
                }
                Past::Unknown => {
                    let json = wire::error(&Problem::generation_not_found(), None);
                    self.send(&json, None);
                    self.end();
                }
            }
            return Ok(());
        }
        let taken = snapshot::take(&shared.store, &owner, session).await?;
        self.restart(taken.running);
        self.send(&taken.json, Some(taken.cursor));
        self.reader.move_to(taken.cursor);
        Ok(())
    }

    fn restart(&mut self, generation: Option<GenerationId>) {
        if self.begun && generation.is_some() {
            let place = Place { generation, cursor: None };
            self.send(&ServerEvent::StreamRestart { from: 0, place }.json(), None);
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
            let close = match self.generation {
                None => &self.shared.drain,
                Some(_) => &self.shared.leave,
            };
            let delivered = tokio::select! {
                () = close.cancelled() => {
                    if let Some(guard) = &mut self.guard {
                        guard.disarm();
                    }
                    return None;
                }
                () = hung_up(self.hangup.as_ref()) => {
                    // A client that is gone resets what is written to it, and so gives itself away.
                    self.hangup = None;
                    self.queue.push_back(Event::default().comment(""));
                    continue;
                }
                delivered = self.reader.next() => delivered,
            };
            match delivered {
                Delivered::Frame(frame) => self.take_in(&frame),
                Delivered::Lost => {
                    if let Err(error) = self.start_over().await {
                        tracing::debug!(%error, "an event stream waits for the store");
                        tokio::time::sleep(RETRY).await;
                    }
                }
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
async fn hung_up(hangup: Option<&Hangup>) {
    match hangup {
        Some(hangup) => hangup.happened().await,
        None => std::future::pending().await,
    }
}
