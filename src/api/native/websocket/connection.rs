//! One WebSocket: it sends the events of its session, and handles the requests of its client.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::http::StatusCode;
use chrono::Utc;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message as Packet, Utf8Bytes};

use crate::api::message_budget::BudgetShare;
use crate::api::native::input::ChatRequest;
use crate::api::native::sessions::already_ended;
use crate::api::native::sign_in::{SignInChange, SignInWatch, next_change};
use crate::api::native::websocket::request::{
    CHECK_PAUSE, ClientRequest, RequestOutcome, RunningRequest, SocketRequestKind,
};
use crate::api::native::websocket::socket::{CloseReason, Socket};
use crate::api::native::websocket::view::SocketView;
use crate::api::native::wire::{self, ClientMessage, Envelope, ServerEvent};
use crate::api::state::Shared;
use crate::blocking;
use crate::follow::TurnOutcome;
use crate::follow::snapshot;
use crate::generation::{CancelOutcome, Submitted};
use crate::http::problem::Problem;
use crate::http::room::{FREE_PART, NoRoom, REPLY_BYTES, RoomPermit};
use crate::lifecycle::Phase;
use crate::limits::Subject;
use crate::retry::{Backoff, retry_until_ok};
use crate::session::model::rfc3339;
use crate::session::{
    Anchor, Control, Cursor, Delivered, Delta, GenerationId, Reader, SessionId, StoreError,
};
use crate::sign_in::Validity;
use crate::source::ShareKey;
use crate::telemetry::traces::TraceContext;
use crate::telemetry::{count_slow_reader, metric};

/// A write that waited this long and then succeeded shows that the client is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// The pause between the head of the handshake's response and the first event, unless the client
/// sends something first. Simple clients read the head by one call to `recv`, which would return the
/// event too if both had arrived. 1 ms is enough on an idle machine; a client on a busy one was seen
/// to take 20 ms.
const WELCOME_DELAY: Duration = Duration::from_millis(50);
/// Requests that wait while another one runs, at most.
const WAITING_REQUESTS: usize = 16;
/// Bytes of those requests, at most: a client may send two of the largest messages ahead.
const WAITING_BYTES: usize = 1 << 20;
/// Bad messages within ten seconds, at most; one more closes the socket.
const BAD_MESSAGES: u32 = 20;
const BAD_MESSAGES_WINDOW: Duration = Duration::from_secs(10);
/// Seconds over which the clients of a draining replica spread their reconnects.
const RECONNECT_SECONDS: f64 = 5.0;
/// Time limit of the requests that arrived before the end of a socket.
const FINISH_LIMIT: Duration = Duration::from_secs(1);

/// One WebSocket.
pub struct Connection {
    shared: Shared,
    sign_in: Option<SignInWatch>,
    subject: Arc<Subject>,
    session: SessionId,
    /// The place in a trace that the handshake named, to which every turn of the socket belongs.
    trace: Option<Box<TraceContext>>,
    socket: Socket,
    reader: Reader,
    running: Option<Box<RunningRequest>>,
    running_bytes: usize,
    waiting: VecDeque<ClientRequest>,
    /// The share of the running and the waiting requests in those of all sockets.
    share: BudgetShare,
    /// A delta that must wait for the outcome of the running request.
    held: Option<Arc<Delta>>,
    view: SocketView,
    snapshot: Option<BoxFuture<'static, Result<Box<TakenSnapshot>, NoRoom>>>,
    bad_messages: u32,
    bad_since: Instant,
    /// The time from which the next token is checked at once.
    next_check: Instant,
    /// The time of the next ping, or the deadline of its answer.
    heartbeat: Pin<Box<Sleep>>,
    /// Whether a ping waits for its answer.
    pinged: bool,
}

impl Connection {
    /// Creates the connection of an open socket, which sends the events of `reader`.
    pub fn new(
        shared: Shared,
        validity: &Validity,
        subject: Arc<Subject>,
        session: SessionId,
        socket: Socket,
        reader: Reader,
    ) -> Self {
        let sign_in = SignInWatch::new(validity, shared.settings.auth_grace);
        let heartbeat = Box::pin(sleep(shared.settings.heartbeat));
        let view = SocketView::new(reader.cursor());
        let share = shared.waiting_messages.share(&subject.source);
        Self {
            shared,
            sign_in,
            subject,
            session,
            trace: None,
            socket,
            reader,
            running: None,
            running_bytes: 0,
            waiting: VecDeque::new(),
            share,
            held: None,
            view,
            snapshot: None,
            bad_messages: 0,
            bad_since: Instant::now(),
            next_check: Instant::now(),
            heartbeat,
            pinged: false,
        }
    }

    /// Sets the place in a trace that the client named.
    pub fn with_trace(self, trace: Option<Box<TraceContext>>) -> Self {
        Self { trace, ..self }
    }

    /// Sends the first event, serves the client until either side ends the socket, and closes it.
    /// Boxed, because a future stores its arguments twice.
    pub async fn run(mut self: Box<Self>, welcome: Utf8Bytes, recovered: bool) {
        // Boxed, because the future is large, and its room is needed only once.
        let end = match Box::pin(self.welcome(welcome, recovered)).await {
            Ok(()) => self.serve().await,
            Err(end) => end,
        };
        if matches!(end, CloseReason::Lost) {
            Box::pin(self.receive_rest()).await;
        }
        // The line of its handshake has the same session, and the id of that request.
        tracing::info!(code = end.code(), session = self.session.redacted(), "websocket closed");
        let (socket, requests) = self.into_parts();
        // The closing handshake needs only the socket, so all else is dropped before.
        Box::pin(async {
            let ((), _in_time) =
                tokio::join!(socket.close(end), timeout(FINISH_LIMIT, requests.finish()));
        })
        .await;
    }

    /// Queues the requests that a lost client sent before it was lost.
    async fn receive_rest(&mut self) {
        let rest = async {
            while let Ok(packet) = self.socket.receive_rest().await {
                self.enqueue(packet).await;
            }
        };
        let _ = timeout(FINISH_LIMIT, rest).await;
    }

    /// Queues a request whose reply cannot be delivered.
    async fn enqueue(&mut self, packet: Packet) {
        let Packet::Text(text) = packet else { return };
        let bytes = text.len();
        let parse = move || wire::parse_client_message(text.as_bytes());
        let parsed = blocking::run(self.network(), bytes, parse).await;
        self.socket.parsed();
        if let Ok(message) = parsed
            // A request for a reply alone takes no room of one with an effect.
            && !message.is_read()
            && self.takes_room(bytes)
        {
            count(message.kind());
            self.waiting.push_back(ClientRequest {
                message,
                last_event: 0,
                bytes,
                pause: Duration::ZERO,
            });
        }
    }

    /// Returns whether one more request of so many bytes may wait, and takes the room for it.
    fn takes_room(&mut self, bytes: usize) -> bool {
        let waiting = self.waiting_bytes() + bytes;
        self.waiting.len() < WAITING_REQUESTS
            && waiting <= WAITING_BYTES
            && self.share.set(self.running_bytes + waiting)
    }

    fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(|request| request.bytes).sum()
    }

    fn into_parts(self: Box<Self>) -> (Socket, Unfinished) {
        let Self { shared, subject, session, trace, socket, running, waiting, share, .. } = *self;
        let requests =
            Unfinished { shared, subject, session, trace, running, waiting, _share: share };
        (socket, requests)
    }

    /// Sends the first event, shortly after the head of the handshake's response.
    async fn welcome(&mut self, welcome: Utf8Bytes, recovered: bool) -> Result<(), CloseReason> {
        let early = tokio::select! {
            packet = self.socket.receive() => Some(packet?),
            () = sleep(WELCOME_DELAY) => None,
        };
        let sent = self.send(welcome).await;
        if let (Err(_), Some(packet)) = (&sent, early.clone()) {
            self.enqueue(packet).await;
        }
        sent?;
        if !recovered {
            self.request_snapshot();
        }
        match early {
            Some(packet) => self.receive(packet).await,
            None => Ok(()),
        }
    }

    async fn serve(&mut self) -> CloseReason {
        let lifecycle = self.shared.lifecycle.clone();
        let mut drains = pin!(lifecycle.reached(Phase::Draining));
        loop {
            let step = tokio::select! {
                () = &mut drains => return draining(),
                packet = self.socket.receive() => match packet {
                    Ok(packet) => SocketStep::Received(packet),
                    Err(end) => return end,
                },
                outcome = outcome(&mut self.running) => SocketStep::Finished(outcome),
                snapshot = snapshot(&mut self.snapshot) => SocketStep::Snapshot(snapshot),
                delivered = self.reader.next(),
                    if self.held.is_none() && self.snapshot.is_none() => SocketStep::Delivered(delivered),
                () = &mut self.heartbeat => SocketStep::Heartbeat,
                change = next_change(&mut self.sign_in) => SocketStep::SignIn(change),
            };
            let done = match step {
                SocketStep::Delivered(Delivered::Delta(delta)) => self.deliver(delta).await,
                // Boxed, because every idle socket would reserve the room of the largest step.
                step => Box::pin(self.take(step)).await,
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    async fn take(&mut self, step: SocketStep) -> Result<(), CloseReason> {
        match step {
            SocketStep::Received(packet) => self.receive(packet).await,
            SocketStep::Finished(outcome) => self.finish_request(outcome).await,
            SocketStep::Snapshot(snapshot) => self.send_snapshot(snapshot).await,
            SocketStep::Delivered(Delivered::Delta(delta)) => self.deliver(delta).await,
            SocketStep::Delivered(Delivered::Lost) => {
                self.request_snapshot();
                Ok(())
            }
            SocketStep::Delivered(Delivered::Transferred) => Err(CloseReason::server(
                CloseCode::Policy,
                "the session belongs to a user now; sign in to continue",
            )),
            SocketStep::Heartbeat => self.send_heartbeat().await,
            SocketStep::SignIn(change) => self.sign_in_changed(change).await,
        }
    }

    async fn send(&mut self, json: Utf8Bytes) -> Result<(), CloseReason> {
        if json.len() > FREE_PART {
            // Boxed and rare: a piece of an answer is smaller.
            return Box::pin(self.send_large(json)).await;
        }
        self.send_packet(Packet::Text(json)).await
    }

    /// Sends an event that takes room until it was written.
    async fn send_large(&mut self, json: Utf8Bytes) -> Result<(), CloseReason> {
        let mut room = self.shared.output_room(&self.subject.source);
        let room = room.part(json.len()).await.map_err(no_room)?;
        self.send_in(room, json).await
    }

    /// Sends an event, and keeps its room until it was written.
    async fn send_in(
        &mut self,
        room: Option<RoomPermit>,
        json: Utf8Bytes,
    ) -> Result<(), CloseReason> {
        self.socket.hold(room);
        self.send_packet(Packet::Text(json)).await?;
        self.socket.hold(None);
        Ok(())
    }

    fn network(&self) -> Option<ShareKey> {
        self.subject.source.widest_network()
    }

    async fn send_packet(&mut self, packet: Packet) -> Result<(), CloseReason> {
        if self.socket.write(packet).await? {
            return Ok(());
        }
        // Boxed and rare: the kernel mostly takes an event at once.
        Box::pin(self.wait_for_room()).await
    }

    /// Waits until the kernel has taken what was written.
    async fn wait_for_room(&mut self) -> Result<(), CloseReason> {
        let started = Instant::now();
        match timeout(self.shared.settings.read_timeout, self.socket.flush()).await {
            Ok(Ok(())) => {
                if started.elapsed() > SIGN_OF_LIFE {
                    self.note_sign_of_life();
                }
                Ok(())
            }
            Ok(Err(end)) => Err(end),
            Err(_) => Err(too_slow()),
        }
    }

    async fn sign_in_changed(&mut self, change: SignInChange) -> Result<(), CloseReason> {
        let reason = match change {
            SignInChange::Expiring(at) => {
                let expires_at = rfc3339_of(at);
                return self.send(ServerEvent::AuthExpiring { expires_at }.json()).await;
            }
            SignInChange::Expired => "the token has expired; reconnect with a new one",
            SignInChange::Revoked => "the API key was revoked",
        };
        // The requests that wait were sent by a caller that is no longer signed in.
        self.waiting.clear();
        self.share.set(self.running_bytes);
        Err(CloseReason::server(CloseCode::Policy, reason))
    }

    fn note_sign_of_life(&mut self) {
        if self.pinged {
            self.pinged = false;
            let next = Instant::now() + self.shared.settings.heartbeat;
            self.heartbeat.as_mut().reset(next);
        }
    }

    async fn send_heartbeat(&mut self) -> Result<(), CloseReason> {
        if self.pinged {
            return Err(too_slow());
        }
        self.pinged = true;
        self.heartbeat.as_mut().reset(Instant::now() + self.shared.settings.read_timeout);
        self.send_packet(Packet::Ping(bytes::Bytes::new())).await
    }

    async fn receive(&mut self, packet: Packet) -> Result<(), CloseReason> {
        self.note_sign_of_life();
        #[cfg(test)]
        crate::api::tests::panic_on_poison(&packet);
        match packet {
            Packet::Text(text) => {
                let bytes = text.len();
                let parse = move || wire::parse_client_message(text.as_bytes());
                // Boxed, because few messages are large.
                let parsed = Box::pin(blocking::run(self.network(), bytes, parse)).await;
                self.socket.parsed();
                match parsed {
                    Ok(message) => self.handle(message, bytes).await,
                    Err(bad) => self.refuse(&bad.problem, bad.message_id.as_deref()).await,
                }
            }
            Packet::Binary(_) => {
                self.socket.parsed();
                let detail = "Binary messages are not supported; send text.";
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                self.refuse(&Problem::new(status, "binary_message", detail), None).await
            }
            // The library answers a ping, `Socket` handles a close, and no raw frames arrive.
            Packet::Ping(_) | Packet::Pong(_) | Packet::Close(_) | Packet::Frame(_) => Ok(()),
        }
    }

    async fn refuse(
        &mut self,
        problem: &Problem,
        message_id: Option<&str>,
    ) -> Result<(), CloseReason> {
        count("bad");
        if self.bad_since.elapsed() > BAD_MESSAGES_WINDOW {
            self.bad_messages = 0;
        }
        if self.bad_messages == 0 {
            self.bad_since = Instant::now();
        }
        self.bad_messages += 1;
        if self.bad_messages > BAD_MESSAGES {
            return Err(CloseReason::server(CloseCode::Policy, "too many bad messages"));
        }
        self.send(wire::error(problem, message_id)).await
    }

    async fn handle(&mut self, message: ClientMessage, bytes: usize) -> Result<(), CloseReason> {
        count(message.kind());
        if message == ClientMessage::Ping {
            return self.send(wire::pong()).await;
        }
        if !self.takes_room(bytes) {
            let detail = "Too many requests, or too large ones, wait on this connection or on others; \
                retry after 1 s.";
            let status = StatusCode::TOO_MANY_REQUESTS;
            let problem = Problem::new(status, "too_many_requests", detail).retry_after(1);
            return self.send(wire::error(&problem, message.message_id())).await;
        }
        let last_event = self.view.sent().events;
        self.waiting.push_back(ClientRequest { message, last_event, bytes, pause: Duration::ZERO });
        self.begin_next();
        Ok(())
    }

    /// Starts the next request where no other runs, so that requests take effect in their order.
    fn begin_next(&mut self) {
        if self.running.is_some() {
            return;
        }
        let Some(mut request) = self.waiting.pop_front() else { return };
        let (shared, subject) = (&self.shared, &self.subject);
        let trace = self.trace.as_deref().copied();
        self.running_bytes = request.bytes;
        if matches!(request.message, ClientMessage::Auth { .. }) {
            let now = Instant::now();
            request.pause = self.next_check.saturating_duration_since(now);
            self.next_check = now + request.pause + CHECK_PAUSE;
        }
        self.running =
            Some(Box::new(RunningRequest::begin(shared, subject, self.session, trace, request)));
    }

    async fn finish_request(&mut self, outcome: RequestOutcome) -> Result<(), CloseReason> {
        let last_event = self.running.take().map_or(0, |running| running.last_event);
        self.running_bytes = 0;
        self.share.set(self.waiting_bytes());
        match outcome {
            RequestOutcome::Submitted { submitted, request, past } => {
                self.accepted(submitted, &request, past, last_event).await?;
            }
            RequestOutcome::Cancelled(CancelOutcome::Cancelled { generation, upstream_closed }) => {
                self.view.cancelled(generation, upstream_closed);
            }
            RequestOutcome::Cancelled(CancelOutcome::AlreadyEnded) => {
                self.send(wire::error(&already_ended(), None)).await?;
            }
            RequestOutcome::Published => {}
            RequestOutcome::Reply(json) => self.send(json).await?,
            RequestOutcome::History(json, room) => {
                self.send_in(room.map(|room| *room), json).await?;
            }
            RequestOutcome::SignedIn(validity) => {
                let expires_at = validity.expires.map(rfc3339_of);
                self.sign_in = SignInWatch::new(&validity, self.shared.settings.auth_grace);
                // Later requests count for the limits of the new key, or of none.
                let key = validity.key_id().map(str::to_owned);
                self.subject = Arc::new(Subject { key, ..Subject::clone(&self.subject) });
                self.send(ServerEvent::Authenticated { expires_at }.json()).await?;
            }
            RequestOutcome::AlreadySelected(message_id) => {
                let envelope = Envelope { generation: None, cursor: Some(self.view.sent()) };
                self.send(ServerEvent::BranchSelected { message_id, envelope }.json()).await?;
            }
            RequestOutcome::NothingToClear => {
                let envelope = Envelope { generation: None, cursor: Some(self.view.sent()) };
                let session_id = self.session;
                self.send(ServerEvent::HistoryCleared { session_id, envelope }.json()).await?;
            }
        }
        if let Some(delta) = self.held.take() {
            self.deliver(delta).await?;
        }
        self.begin_next();
        Ok(())
    }

    async fn accepted(
        &mut self,
        submitted: Submitted,
        request: &ChatRequest,
        past: TurnOutcome,
        last_event: u64,
    ) -> Result<(), CloseReason> {
        let generation = submitted.generation;
        let whole = request.stream == Some(false);
        let before = submitted.before;
        let is_accepted_sent = before.is_none_or(|before| before.events < self.view.sent().events);
        if submitted.repeated && is_accepted_sent {
            let cursor = Some(self.view.sent());
            let envelope = Envelope { generation: Some(generation), cursor };
            let received = ServerEvent::MessageReceived {
                message: &request.message,
                timestamp: &rfc3339(&Utc::now()),
                message_id: request.message_id.as_deref(),
                regenerated: request.anchor.and_then(Anchor::regenerated),
                edited: request.anchor.and_then(Anchor::edited),
                envelope,
            };
            self.send(received.json()).await?;
        }
        match past {
            TurnOutcome::Open => {
                if whole {
                    self.view.withhold(generation);
                }
                Ok(())
            }
            // The reader delivers the end, or has delivered it since the request arrived.
            TurnOutcome::Ended { number, .. }
                if !is_accepted_sent
                    || self.view.streaming() == Some(generation)
                    || number.is_some_and(|number| number > last_event) =>
            {
                Ok(())
            }
            TurnOutcome::Ended { message, .. } => {
                let mut room = self.shared.output_room(&self.subject.source);
                let room = room.part(wire::replay_bytes(&message)).await.map_err(no_room)?;
                self.socket.hold(room);
                let events = wire::replay(&message, whole, self.view.sent());
                drop(message);
                for json in events {
                    self.send_packet(Packet::Text(json)).await?;
                }
                self.socket.hold(None);
                Ok(())
            }
            TurnOutcome::Unknown => {
                let problem = Problem::generation_not_found();
                self.send(wire::error(&problem, request.message_id.as_deref())).await
            }
        }
    }

    async fn deliver(&mut self, delta: Arc<Delta>) -> Result<(), CloseReason> {
        if self.must_wait(&delta) {
            self.held = Some(delta);
            return Ok(());
        }
        let Some(json) = self.view.event(&delta) else { return Ok(()) };
        // It has the whole answer where it ends one.
        drop(delta);
        self.send(json).await
    }

    /// Returns whether the running request decides how this delta is sent.
    fn must_wait(&self, delta: &Delta) -> bool {
        let Some(event) = delta.event() else { return false };
        matches!(
            (&event.control, self.running.as_ref().map(|running| running.kind)),
            (Control::Started { .. }, Some(SocketRequestKind::WholeTurn))
                | (Control::Cancelled {}, Some(SocketRequestKind::Cancel))
        )
    }

    /// Requests a snapshot, because the events that this socket missed are no longer stored.
    fn request_snapshot(&mut self) {
        let (store, owner, session) =
            (self.shared.store.clone(), self.subject.owner.clone(), self.session);
        let (shared, source) = (self.shared.clone(), self.subject.source.clone());
        self.snapshot = Some(Box::pin(async move {
            // A replica whose Redis does not reply holds no room meanwhile.
            let take = async || {
                let room = match shared.output_room(&source).part(REPLY_BYTES).await {
                    Ok(room) => room,
                    Err(refused) => return Ok(Err(refused)),
                };
                let snapshot = snapshot::take(&store, &owner, session, wire::EVENT_BYTES).await?;
                let (json, cursor) = wire::snapshot(&snapshot);
                let room = room.map(|room| room.shrink(json.len()));
                let running = snapshot.running.map(|(generation, _)| generation);
                Ok(Ok(Box::new(TakenSnapshot { json, cursor, running, room })))
            };
            let failed = |error: StoreError| tracing::debug!(%error, "snapshot waiting for redis");
            retry_until_ok(Backoff::redis(), take, failed).await
        }));
    }

    async fn send_snapshot(
        &mut self,
        snapshot: Result<Box<TakenSnapshot>, NoRoom>,
    ) -> Result<(), CloseReason> {
        self.snapshot = None;
        let TakenSnapshot { json, cursor, running, room } = *snapshot.map_err(no_room)?;
        if let Some(generation) = self.view.streaming() {
            // The cursor is too old, so a client that reconnects with it before it has read the
            // history gets the history again.
            let cursor = Some(self.reader.cursor());
            let envelope = Envelope { generation: Some(generation), cursor };
            self.send(ServerEvent::StreamRestart { from: 0, envelope }.json()).await?;
        }
        self.send_in(room, json).await?;
        self.reader.move_to(cursor);
        self.view.reset(cursor, running);
        Ok(())
    }
}

/// A snapshot as it is sent.
struct TakenSnapshot {
    json: Utf8Bytes,
    /// The cursor after it.
    cursor: Cursor,
    /// The running generation whose answer has started.
    running: Option<GenerationId>,
    /// The room of the event.
    room: Option<RoomPermit>,
}

/// The next step of a socket.
enum SocketStep {
    Received(Packet),
    Finished(RequestOutcome),
    Snapshot(Result<Box<TakenSnapshot>, NoRoom>),
    Delivered(Delivered),
    Heartbeat,
    SignIn(SignInChange),
}

/// The unfinished requests of a socket that has ended, in their order.
struct Unfinished {
    shared: Shared,
    subject: Arc<Subject>,
    session: SessionId,
    trace: Option<Box<TraceContext>>,
    running: Option<Box<RunningRequest>>,
    waiting: VecDeque<ClientRequest>,
    _share: BudgetShare,
}

impl Unfinished {
    /// Finishes the requests, because a client may send a last message and leave. The replies reach
    /// no client, so requests without another effect are skipped.
    async fn finish(mut self) {
        let mut running = self.running.take();
        loop {
            if let Some(request) =
                running.take_if(|running| running.kind != SocketRequestKind::Read)
            {
                request.outcome.await;
            }
            let Some(request) = self.waiting.pop_front() else { return };
            let (shared, subject) = (&self.shared, &self.subject);
            let trace = self.trace.as_deref().copied();
            running = Some(Box::new(RunningRequest::begin(
                shared,
                subject,
                self.session,
                trace,
                request,
            )));
        }
    }
}

fn count(kind: &'static str) {
    metrics::counter!(metric::WEBSOCKET_MESSAGES_TOTAL, "type" => kind).increment(1);
}

fn rfc3339_of(time: SystemTime) -> String {
    rfc3339(&time.into())
}

fn draining() -> CloseReason {
    let seconds = rand::random_range(0.0..RECONNECT_SECONDS);
    CloseReason::server(CloseCode::Restart, format!(r#"{{"retry_after":{seconds:.1}}}"#))
}

fn too_slow() -> CloseReason {
    count_slow_reader("websocket");
    CloseReason::server(CloseCode::Again, "read too slowly; resume with the last cursor")
}

fn no_room(NoRoom: NoRoom) -> CloseReason {
    let reason =
        "this replica holds as many unread bytes as it may; resume with the last cursor in 5 s";
    CloseReason::server(CloseCode::Again, reason)
}

async fn outcome(running: &mut Option<Box<RunningRequest>>) -> RequestOutcome {
    match running {
        Some(running) => running.outcome.as_mut().await,
        None => std::future::pending().await,
    }
}

async fn snapshot<T>(requested: &mut Option<BoxFuture<'static, T>>) -> T {
    match requested {
        Some(requested) => requested.as_mut().await,
        None => std::future::pending().await,
    }
}
