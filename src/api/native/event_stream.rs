//! A session's events as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use futures_util::stream;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::api::native::schema::{LastEventId, ServerSentEvent};
use crate::api::native::sign_in::{SignInChange, SignInWatch, next_change};
use crate::api::native::wire::{self, Envelope, Native, ServerEvent};
use crate::api::permits::SocketPermit;
use crate::api::problems::in_time;
use crate::api::responses::{InvalidFields, SessionNotFound, TooManyConnections, Unavailable};
use crate::api::state::Shared;
use crate::api::streamed_turn::pass_at_once;
use crate::follow::{AcceptedTurn, CancelOnDrop, Follow, Resumed, Update, snapshot};
use crate::http::extract::fields::Fields;
use crate::http::extract::path::SessionPath;
use crate::http::extract::query::QueryFields;
use crate::http::middleware::OpenedSocket;
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::http::rate_limit::Standings;
use crate::http::room::{FREE_PART, HandedRoom, NoRoom, OutputRoom, REPLY_BYTES, RoomPermit};
use crate::lifecycle::Phase;
use crate::retry::Backoff;
use crate::session::{
    Change, Cursor, Delivered, Delta, GenerationId, Message, Owner, Reader, SessionId, StoreError,
};
use crate::sign_in::{Identity, Validity};
use crate::telemetry::{CountedOpen, LIVE, count_resume, metric};

/// The source of an event stream.
enum StreamSource {
    /// All events of a session; the stream has no end.
    Session(Box<Reader>),
    /// The events of one turn; the stream ends with the turn.
    Turn(Box<Follow>),
}

/// An event that was not sent yet.
struct QueuedEvent {
    event: Event,
    bytes: usize,
    /// Its room, where that was taken before it was made.
    room: Option<RoomPermit>,
}

/// An event stream.
struct EventStream {
    shared: Shared,
    owner: Owner,
    session: SessionId,
    source: StreamSource,
    queue: VecDeque<QueuedEvent>,
    room: OutputRoom,
    /// The room of the frame that is handed over.
    handed: HandedRoom,
    /// The stored answer that is to be sent.
    stored: Option<Box<Message>>,
    /// Whether events were sent that a restart takes back.
    begun: bool,
    ended: bool,
    guard: Option<CancelOnDrop>,
    /// Ends the stream with the sign-in of its caller.
    sign_in: Option<SignInWatch>,
    /// Set until something was written after the client's last byte.
    last_byte: Option<LastByte>,
    /// Pauses before another snapshot is requested from Redis.
    backoff: Backoff,
    _open: TaskTrackerToken,
    _counted: CountedOpen,
    permit: SocketPermit,
}

/// Streams the events of a session, from a cursor on.
#[utoipa::path(
    get, path = "/api/v1/chat/sessions/{session_id}/events", tag = "sessions",
    params(
        ("session_id" = SessionId, Path),
        LastEventId,
        ("cursor" = Option<String>, Query, description = "The same, where the header is absent"),
        ("generation_id" = Option<GenerationId>, Query,
            description = "Only the events of this generation; the stream ends with it"),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = ServerSentEvent,
            description = "First a connection event, then the same events as over a WebSocket"),
        (status = 204, description = "The client already has the end of the generation"),
        SessionNotFound, InvalidFields, TooManyConnections, Unavailable,
    ),
)]
pub async fn events(
    State(shared): State<Shared>,
    caller: Identity,
    OpenedSocket { subject, hold }: OpenedSocket,
    SessionPath(session): SessionPath,
    last_byte: LastByte,
    headers: HeaderMap,
    QueryFields(query): QueryFields,
) -> Result<Response, Problem> {
    let mut fields = Fields::new("query", &query);
    let generation = fields.uuid("generation_id").map(GenerationId);
    let query_cursor = fields.text("cursor", usize::MAX);
    fields.finish(())?;
    let permit = shared.admit(&subject.source)?.with(hold);
    // A header that is not text stands for a cursor that is not valid.
    let last = headers.get("last-event-id").map(|id| id.to_str().unwrap_or("?"));
    let last = last.or(query_cursor).filter(|text| !text.is_empty());
    let resumed = last.is_some();
    // A cursor that is not valid leads to a snapshot, as one that is too old.
    let cursor: Option<Cursor> = last.and_then(|text| text.parse().ok());
    let readable = resumed == cursor.is_some();
    in_time(shared.store.describe(&caller.owner, session)).await?;
    match generation {
        None => of_session(shared, caller, session, cursor, resumed, (last_byte, permit)).await,
        Some(generation) => {
            let Identity { owner, validity } = caller;
            let (feeds, store) = (shared.feeds.clone(), shared.store.clone());
            let resume = Follow::resume(feeds, store, owner.clone(), session, generation, cursor);
            let (follow, recovered) = match in_time(resume).await? {
                Resumed::Complete => {
                    count_resume("sse", "complete");
                    return Ok(StatusCode::NO_CONTENT.into_response());
                }
                Resumed::Following { follow, recovered } => (follow, recovered && readable),
            };
            // Until the snapshot is sent, the client's own cursor resumes without a loss.
            let connected_at = match follow.cursor() {
                Some(_) if !recovered => Some(cursor.unwrap_or(Cursor::START)),
                cursor => cursor,
            };
            let source = StreamSource::Turn(follow);
            let mut events = EventStream::new(shared, owner, session, source, (last_byte, permit));
            events.end_with_key(validity);
            events.connect(connected_at, resumed, recovered);
            Ok(events.into_response())
        }
    }
}

async fn of_session(
    shared: Shared,
    Identity { owner, validity }: Identity,
    session: SessionId,
    cursor: Option<Cursor>,
    resumed: bool,
    (last_byte, permit): (LastByte, SocketPermit),
) -> Result<Response, Problem> {
    let reader = in_time(shared.feeds.reader(&owner, session, cursor)).await?;
    let recovered = reader.is_recovered() && resumed == cursor.is_some();
    let connected_at = if recovered { reader.cursor() } else { cursor.unwrap_or(Cursor::START) };
    let source = StreamSource::Session(Box::new(reader));
    let mut events = EventStream::new(shared, owner, session, source, (last_byte, permit));
    events.sign_in = SignInWatch::new(&validity, events.shared.settings.auth_grace);
    events.connect(Some(connected_at), resumed, recovered);
    if !recovered {
        events.send_snapshot().await?;
    }
    Ok(events.into_response())
}

/// Streams the events of a turn that was requested with `stream`.
///
/// # Errors
/// A problem for the client.
pub async fn of_turn(
    shared: Shared,
    Identity { owner, validity }: Identity,
    session: SessionId,
    accepted: AcceptedTurn,
    last_byte: LastByte,
    permit: SocketPermit,
) -> Result<Response, Problem> {
    let AcceptedTurn { submitted, guard } = accepted;
    let follow = Box::new(shared.follow(&owner, session, submitted).await?);
    let connected_at = follow.cursor();
    let source = StreamSource::Turn(follow);
    let mut events = EventStream::new(shared, owner, session, source, (last_byte, permit));
    events.guard = guard;
    events.end_with_key(validity);
    events.connect(connected_at, false, true);
    Ok(events.into_response())
}

/// Why there is no snapshot.
enum NoSnapshot {
    Room(NoRoom),
    Store(StoreError),
}

impl From<NoRoom> for NoSnapshot {
    fn from(refused: NoRoom) -> Self {
        Self::Room(refused)
    }
}

impl From<StoreError> for NoSnapshot {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<NoSnapshot> for Problem {
    fn from(none: NoSnapshot) -> Self {
        match none {
            NoSnapshot::Room(refused) => refused.into(),
            NoSnapshot::Store(error) => error.into(),
        }
    }
}

impl EventStream {
    fn new(
        shared: Shared,
        owner: Owner,
        session: SessionId,
        source: StreamSource,
        (last_byte, permit): (LastByte, SocketPermit),
    ) -> Self {
        let open = shared.sockets.token();
        let counted =
            CountedOpen::live(metrics::gauge!(metric::EVENT_STREAMS), &LIVE.event_streams);
        let room = shared.output_room(permit.source());
        let mut source = source;
        match &mut source {
            StreamSource::Session(reader) => reader.charge(room.of_client()),
            StreamSource::Turn(follow) => follow.charge(room.of_client()),
        }
        Self {
            shared,
            owner,
            session,
            source,
            queue: VecDeque::new(),
            room,
            handed: HandedRoom::default(),
            stored: None,
            begun: false,
            ended: false,
            guard: None,
            sign_in: None,
            last_byte: Some(last_byte),
            backoff: Backoff::redis(),
            _open: open,
            _counted: counted,
            permit,
        }
    }

    /// Ends the stream when the caller's API key is revoked. The stream of a turn outlives the expiry
    /// of the token with which the turn was requested.
    fn end_with_key(&mut self, validity: Validity) {
        self.sign_in =
            SignInWatch::new(&validity.without_expiry(), self.shared.settings.auth_grace);
    }

    fn generation(&self) -> Option<GenerationId> {
        match &self.source {
            StreamSource::Session(_) => None,
            StreamSource::Turn(follow) => Some(follow.generation()),
        }
    }

    fn connect(&mut self, cursor: Option<Cursor>, resumed: bool, recovered: bool) {
        if resumed {
            count_resume("sse", if recovered { "recovered" } else { "snapshot" });
        }
        let generation = self.generation();
        let json = wire::connection(self.session, cursor, resumed, recovered, generation);
        self.send(&json, cursor);
    }

    fn send(&mut self, json: &Utf8Bytes, cursor: Option<Cursor>) {
        self.send_in(None, json, cursor);
    }

    /// Sends an event for which there is room.
    fn send_in(&mut self, room: Option<RoomPermit>, json: &Utf8Bytes, cursor: Option<Cursor>) {
        let event = Event::default().data(json.as_str());
        let event = match cursor {
            Some(cursor) => event.id(cursor.to_string()),
            None => event,
        };
        self.queue.push_back(QueuedEvent { event, bytes: json.len(), room });
    }

    fn send_delta(&mut self, delta: &Delta) {
        let logged = !matches!(delta.change, Change::QueuePosition(_));
        self.begun |= logged;
        self.send(&delta.encoded::<Native>(), logged.then_some(delta.after));
    }

    /// Sends a generation from its stored message, and ends the stream.
    ///
    /// # Errors
    /// Where there is no room for its events.
    async fn replay(&mut self, message: Box<Message>) -> Result<(), NoRoom> {
        let end = match &self.source {
            StreamSource::Session(reader) => reader.cursor(),
            StreamSource::Turn(follow) => follow.end(),
        };
        let mut room = self.room.part(wire::replay_bytes(&message)).await?;
        let events = wire::replay(&message, false, end);
        drop(message);
        let last = events.len().saturating_sub(1);
        for (index, json) in events.iter().enumerate() {
            let part = match &mut room {
                Some(room) if json.len() > FREE_PART => room.split(json.len()),
                _ => None,
            };
            self.send_in(part, json, (index == last).then_some(end));
        }
        self.end();
        Ok(())
    }

    /// Ends the stream with an error instead of what was not sent.
    fn fail(&mut self, problem: &Problem) {
        self.queue.clear();
        let json = wire::error(problem, None);
        self.send(&json, None);
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

    /// Takes back the sent part of a generation that is sent again from its beginning.
    fn restart(&mut self, generation: Option<GenerationId>) {
        if self.begun && generation.is_some() {
            let envelope = Envelope { generation, cursor: None };
            self.send(&ServerEvent::StreamRestart { from: 0, envelope }.json(), None);
        }
    }

    async fn send_snapshot(&mut self) -> Result<(), NoSnapshot> {
        let store = &self.shared.store;
        let room = self.room.part(REPLY_BYTES).await?;
        let taken = snapshot::take(store, &self.owner, self.session, wire::EVENT_BYTES).await?;
        self.restart(taken.running.as_ref().map(|(generation, _)| *generation));
        let (json, cursor) = wire::snapshot(&taken);
        let room = room.filter(|_| json.len() > FREE_PART).map(|room| room.shrink(json.len()));
        self.send_in(room, &json, Some(cursor));
        if let StreamSource::Session(reader) = &mut self.source {
            reader.move_to(cursor);
        }
        Ok(())
    }

    /// Waits for the next update, and queues its events.
    async fn advance(&mut self) {
        match &mut self.source {
            StreamSource::Session(reader) => match reader.next().await {
                Delivered::Delta(delta) => self.send_delta(&delta),
                Delivered::Transferred => self.end(),
                Delivered::Lost => match self.send_snapshot().await {
                    Ok(()) => self.backoff.reset(),
                    Err(NoSnapshot::Store(error)) => {
                        tracing::debug!(%error, "event stream waiting for redis");
                        let _ = self.backoff.pause().await;
                    }
                    Err(NoSnapshot::Room(refused)) => self.fail(&refused.into()),
                },
            },
            StreamSource::Turn(follow) => {
                let update = follow.next().await;
                let generation = follow.generation();
                match update {
                    Ok(Update::Delta(delta)) => {
                        self.send_delta(&delta);
                        if delta.is_terminal() {
                            self.end();
                        }
                    }
                    Ok(Update::Restart) => self.restart(Some(generation)),
                    Ok(Update::Stored(message)) => self.stored = Some(message),
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
            if let Some(QueuedEvent { event, bytes, room }) = self.queue.pop_front() {
                let room = match room {
                    None => self.room.part(bytes).await,
                    room => Ok(room),
                };
                match room {
                    Ok(room) => self.handed.put(room),
                    Err(refused) => {
                        self.fail(&refused.into());
                        continue;
                    }
                }
                return Some((Ok(event), self));
            }
            if self.ended {
                return None;
            }
            // Not among what is waited for below: what was taken of the turn would be lost.
            if let Some(message) = self.stored.take() {
                if let Err(refused) = self.replay(message).await {
                    self.fail(&refused.into());
                }
                continue;
            }
            // The client of an endless stream reconnects to another replica; a turn may end here.
            let end = match self.source {
                StreamSource::Session(_) => Phase::Draining,
                StreamSource::Turn(_) => Phase::Stopped,
            };
            let lifecycle = self.shared.lifecycle.clone();
            // Taken out, because `advance` borrows the rest.
            let mut sign_in = self.sign_in.take();
            tokio::select! {
                () = lifecycle.reached(end) => {
                    self.disarm();
                    return None;
                }
                change = next_change(&mut sign_in) => {
                    // The client of a stream is not notified before: it can send nothing to prevent it.
                    if !matches!(change, SignInChange::Expiring(_)) {
                        self.disarm();
                        return None;
                    }
                }
                () = LastByte::received_of(self.last_byte.clone()) => {
                    // The system of a client that is gone resets the connection on a write.
                    self.last_byte = None;
                    let event = Event::default().comment("");
                    self.queue.push_back(QueuedEvent { event, bytes: 0, room: None });
                }
                () = self.advance() => {}
            }
            self.sign_in = sign_in;
        }
    }

    fn into_response(self) -> Response {
        let standings = self.permit.standings();
        let heartbeat = KeepAlive::new().interval(self.shared.settings.heartbeat);
        let handed = self.handed.clone();
        let events = stream::unfold(Box::new(self), Self::next);
        let response = Sse::new(events).keep_alive(heartbeat).into_response();
        let mut response = response.map(|body| handed.held_by(body));
        response.extensions_mut().insert(Standings(standings));
        pass_at_once(response.headers_mut());
        response
    }
}
