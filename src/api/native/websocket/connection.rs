//! One socket: what its session does goes out, what its client asks for comes in.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use chrono::Utc;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message as Packet, Utf8Bytes};

use crate::api::native::input::ChatRequest;
use crate::api::native::sessions::already_ended;
use crate::api::native::websocket::request::{Kind, Outcome, Request, UnderWay};
use crate::api::native::websocket::socket::{CloseReason, Socket};
use crate::api::native::websocket::view::View;
use crate::api::native::wire::{self, ClientMessage, Envelope, ServerEvent};
use crate::api::state::Shared;
use crate::follow::TurnOutcome;
use crate::follow::snapshot::{self, Snapshot};
use crate::generation::{CancelOutcome, Submitted};
use crate::http::listener;
use crate::http::problem::Problem;
use crate::lifecycle::Phase;
use crate::retry::{Backoff, retry_until_ok};
use crate::session::model::rfc3339;
use crate::session::{Control, Delivered, Delta, Owner, Reader, SessionId};
use crate::telemetry::metric;

/// A client that let an event wait for so long, and then took it, is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// Between the head of the handshake's response and the first event, unless the client speaks
/// first. Simple clients read the head by one call to `recv`, which would return the event too if
/// both were there. On an idle machine 1 ms is enough; a client that waits for its turn on a busy
/// one was seen to take 20 ms.
const WELCOME_DELAY: Duration = Duration::from_millis(50);
/// Requests that wait while one is under way.
const QUEUE: usize = 16;
/// More bad messages than so many in so long, and the socket is closed.
const BAD_MESSAGES: u32 = 20;
const BAD_MESSAGES_IN: Duration = Duration::from_secs(10);
/// Seconds over which the clients of a draining replica are spread.
const RECONNECT_SECONDS: f64 = 5.0;
/// How long the requests that came before the end of a socket may take.
const FINISH_LIMIT: Duration = Duration::from_secs(1);

/// One socket.
pub struct Connection {
    shared: Shared,
    owner: Owner,
    source: String,
    session: SessionId,
    socket: Socket,
    reader: Reader,
    under_way: Option<UnderWay>,
    queue: VecDeque<Request>,
    /// A delta that cannot be sent before the request under way has ended.
    held: Option<Arc<Delta>>,
    view: View,
    recovering: Option<BoxFuture<'static, Snapshot>>,
    bad: u32,
    bad_since: Instant,
    /// The next ping, or the end of the wait for a sign of life.
    heartbeat: Pin<Box<Sleep>>,
    pinged: bool,
}

impl Connection {
    /// A socket that has just been opened, and follows `reader`.
    pub fn new(
        shared: Shared,
        owner: Owner,
        source: String,
        session: SessionId,
        socket: Socket,
        reader: Reader,
    ) -> Self {
        let heartbeat = Box::pin(sleep(shared.settings.heartbeat));
        let view = View::new(reader.cursor());
        Self {
            shared,
            owner,
            source,
            session,
            socket,
            reader,
            under_way: None,
            queue: VecDeque::new(),
            held: None,
            view,
            recovering: None,
            bad: 0,
            bad_since: Instant::now(),
            heartbeat,
            pinged: false,
        }
    }

    /// Welcomes the client, serves it until either side ends the socket, and closes it. Boxed: a
    /// future keeps room for what it is given and again for what it works on.
    pub async fn run(mut self: Box<Self>, hello: Utf8Bytes, recovered: bool) {
        let end = match self.welcome(hello, recovered).await {
            Ok(()) => self.serve().await,
            Err(end) => end,
        };
        if matches!(end, CloseReason::Lost) {
            Box::pin(self.gather()).await;
        }
        let (socket, requests) = self.into_parts();
        // A socket that is closing keeps nothing else.
        Box::pin(async {
            let ((), _in_time) =
                tokio::join!(socket.close(end), timeout(FINISH_LIMIT, requests.finish()));
        })
        .await;
    }

    /// Queues what a lost client sent before it was lost.
    async fn gather(&mut self) {
        let rest = async {
            while let Ok(packet) = self.socket.receive_rest().await {
                self.enqueue(&packet);
            }
        };
        let _ = timeout(FINISH_LIMIT, rest).await;
    }

    /// Queues a request to which nobody reads the reply.
    fn enqueue(&mut self, packet: &Packet) {
        if let Packet::Text(text) = packet
            && let Ok(message) = wire::parse_client_message(text.as_bytes())
            && self.queue.len() < QUEUE
        {
            count(message.kind());
            self.queue.push_back(Request { message, asked_after: 0 });
        }
    }

    fn into_parts(self: Box<Self>) -> (Socket, Unfinished) {
        let Self { shared, owner, source, session, socket, under_way, queue, .. } = *self;
        (socket, Unfinished { shared, owner, source, session, under_way, queue })
    }

    /// Sends the first event, a moment after the head of the handshake's response.
    async fn welcome(&mut self, hello: Utf8Bytes, recovered: bool) -> Result<(), CloseReason> {
        let early = tokio::select! {
            packet = self.socket.receive() => Some(packet?),
            () = sleep(WELCOME_DELAY) => None,
        };
        let sent = self.send(hello).await;
        if let (Err(_), Some(packet)) = (&sent, &early) {
            self.enqueue(packet);
        }
        sent?;
        if !recovered {
            self.recover();
        }
        match early {
            Some(packet) => self.receive(packet).await,
            None => Ok(()),
        }
    }

    async fn serve(&mut self) -> CloseReason {
        loop {
            let step = tokio::select! {
                () = self.shared.lifecycle.reached(Phase::Draining) => Err(draining()),
                packet = self.socket.receive() => match packet {
                    Ok(packet) => self.receive(packet).await,
                    Err(end) => Err(end),
                },
                outcome = outcome(&mut self.under_way) => self.conclude(outcome).await,
                snapshot = recovered(&mut self.recovering) => self.go_on(snapshot).await,
                delivered = self.reader.next(),
                    if self.held.is_none() && self.recovering.is_none() => match delivered {
                    Delivered::Delta(delta) => self.deliver(delta).await,
                    Delivered::Lost => {
                        self.recover();
                        Ok(())
                    }
                },
                () = &mut self.heartbeat => self.beat().await,
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn send(&mut self, json: Utf8Bytes) -> Result<(), CloseReason> {
        self.send_packet(Packet::Text(json)).await
    }

    async fn send_packet(&mut self, packet: Packet) -> Result<(), CloseReason> {
        let started = Instant::now();
        match timeout(self.shared.settings.read_timeout, self.socket.send(packet)).await {
            Ok(Ok(())) => {
                if started.elapsed() > SIGN_OF_LIFE {
                    self.is_alive();
                }
                Ok(())
            }
            Ok(Err(end)) => Err(end),
            Err(_) => Err(too_slow()),
        }
    }

    fn is_alive(&mut self) {
        if self.pinged {
            self.pinged = false;
            let next = Instant::now() + self.shared.settings.heartbeat;
            self.heartbeat.as_mut().reset(next);
        }
    }

    async fn beat(&mut self) -> Result<(), CloseReason> {
        if self.pinged {
            return Err(too_slow());
        }
        self.pinged = true;
        self.heartbeat.as_mut().reset(Instant::now() + self.shared.settings.read_timeout);
        self.send_packet(Packet::Ping(bytes::Bytes::new())).await
    }

    async fn receive(&mut self, packet: Packet) -> Result<(), CloseReason> {
        self.is_alive();
        #[cfg(test)]
        crate::api::panics::strike(&packet);
        match packet {
            Packet::Text(text) => match wire::parse_client_message(text.as_bytes()) {
                Ok(message) => self.hear(message).await,
                Err(bad) => self.refuse(&bad.problem, bad.message_id.as_deref()).await,
            },
            Packet::Binary(_) => {
                let detail = "binary messages are not understood; send text";
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                self.refuse(&Problem::new(status, "binary_message", detail), None).await
            }
            // The library answers a ping; `Socket` takes a close, and frames are not handed out.
            Packet::Ping(_) | Packet::Pong(_) | Packet::Close(_) | Packet::Frame(_) => Ok(()),
        }
    }

    async fn refuse(
        &mut self,
        problem: &Problem,
        message_id: Option<&str>,
    ) -> Result<(), CloseReason> {
        count("bad");
        if self.bad_since.elapsed() > BAD_MESSAGES_IN {
            self.bad = 0;
        }
        if self.bad == 0 {
            self.bad_since = Instant::now();
        }
        self.bad += 1;
        if self.bad > BAD_MESSAGES {
            return Err(CloseReason::server(CloseCode::Policy, "too many bad messages"));
        }
        self.send(wire::error(problem, message_id)).await
    }

    async fn hear(&mut self, message: ClientMessage) -> Result<(), CloseReason> {
        count(message.kind());
        if message == ClientMessage::Ping {
            return self.send(wire::pong()).await;
        }
        if self.queue.len() >= QUEUE {
            let detail = "too many requests wait on this connection";
            let status = StatusCode::TOO_MANY_REQUESTS;
            let problem = Problem::new(status, "too_many_requests", detail).retry_after(1);
            return self.send(wire::error(&problem, message.message_id())).await;
        }
        let asked_after = self.view.sent().events;
        self.queue.push_back(Request { message, asked_after });
        self.begin_next();
        Ok(())
    }

    /// One request at a time, so that they take effect in the order in which they came.
    fn begin_next(&mut self) {
        if self.under_way.is_some() {
            return;
        }
        let Some(request) = self.queue.pop_front() else { return };
        self.under_way =
            Some(UnderWay::begin(&self.shared, &self.owner, &self.source, self.session, request));
    }

    async fn conclude(&mut self, outcome: Outcome) -> Result<(), CloseReason> {
        let asked_after = self.under_way.take().map_or(0, |under_way| under_way.asked_after);
        match outcome {
            Outcome::Submitted { submitted, request, past } => {
                self.accepted(submitted, &request, past, asked_after).await?;
            }
            Outcome::Cancelled(CancelOutcome::Cancelled { generation, upstream_closed }) => {
                self.view.cancelled(generation, upstream_closed);
            }
            Outcome::Cancelled(CancelOutcome::AlreadyEnded) => {
                self.send(wire::error(&already_ended(), None)).await?;
            }
            Outcome::Nothing => {}
            Outcome::Reply(json) => self.send(json).await?,
            Outcome::NothingToClear => {
                let place = Envelope { generation: None, cursor: Some(self.view.sent()) };
                let session_id = self.session;
                self.send(ServerEvent::HistoryCleared { session_id, place }.json()).await?;
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
        asked_after: u64,
    ) -> Result<(), CloseReason> {
        let generation = submitted.generation;
        let whole = request.stream == Some(false);
        let told = submitted.before.is_none_or(|before| before.events < self.view.sent().events);
        if submitted.repeated && told {
            let place = Envelope { generation: Some(generation), cursor: Some(self.view.sent()) };
            let received = ServerEvent::MessageReceived {
                message: &request.message,
                timestamp: &rfc3339(&Utc::now()),
                message_id: request.message_id.as_deref(),
                place,
            };
            self.send(received.json()).await?;
        }
        match past {
            TurnOutcome::Open => {
                if whole {
                    self.view.want_whole(generation);
                }
                Ok(())
            }
            // Its end comes to this socket by itself, or came since the client asked.
            TurnOutcome::Ended { number, .. }
                if !told
                    || self.view.streaming() == Some(generation)
                    || number.is_some_and(|number| number > asked_after) =>
            {
                Ok(())
            }
            TurnOutcome::Ended { message, .. } => {
                for json in wire::replay(&message, whole, self.view.sent()) {
                    self.send(json).await?;
                }
                Ok(())
            }
            TurnOutcome::Unknown => {
                let problem = Problem::generation_not_found();
                self.send(wire::error(&problem, request.message_id.as_deref())).await
            }
        }
    }

    async fn deliver(&mut self, delta: Arc<Delta>) -> Result<(), CloseReason> {
        if self.has_to_wait(&delta) {
            self.held = Some(delta);
            return Ok(());
        }
        match self.view.of(&delta) {
            Some(json) => self.send(json).await,
            None => Ok(()),
        }
    }

    /// Whether the request under way decides how this delta is sent.
    fn has_to_wait(&self, delta: &Delta) -> bool {
        let Some(event) = delta.event() else { return false };
        matches!(
            (&event.control, self.under_way.as_ref().map(|under_way| under_way.kind)),
            (Control::Started { .. }, Some(Kind::WholeTurn))
                | (Control::Cancelled {}, Some(Kind::Cancel))
        )
    }

    /// Begins to take a snapshot, as what this socket missed cannot be told.
    fn recover(&mut self) {
        let (store, owner, session) = (self.shared.store.clone(), self.owner.clone(), self.session);
        self.recovering = Some(Box::pin(async move {
            let take = || snapshot::take(&store, &owner, session, wire::EVENT_BYTES);
            let failed = |error| tracing::debug!(%error, "snapshot waiting for redis");
            retry_until_ok(Backoff::redis(), take, failed).await
        }));
    }

    async fn go_on(&mut self, snapshot: Snapshot) -> Result<(), CloseReason> {
        self.recovering = None;
        if let Some(generation) = self.view.streaming() {
            // With the cursor that is no good any more: a client that comes back with it before it
            // has read the history gets that again.
            let cursor = Some(self.reader.cursor());
            let place = Envelope { generation: Some(generation), cursor };
            self.send(ServerEvent::StreamRestart { from: 0, place }.json()).await?;
        }
        let (json, cursor) = wire::snapshot(&snapshot);
        self.send(json).await?;
        self.reader.move_to(cursor);
        self.view.reset(cursor, snapshot.running.map(|(generation, _)| generation));
        Ok(())
    }
}

/// The requests of a socket that has ended, in the order in which they came.
struct Unfinished {
    shared: Shared,
    owner: Owner,
    source: String,
    session: SessionId,
    under_way: Option<UnderWay>,
    queue: VecDeque<Request>,
}

impl Unfinished {
    /// Carries them out, as a client that says something and leaves means what it said. Nobody
    /// reads the replies, so a request that asks for nothing else is left out.
    async fn finish(mut self) {
        let mut under_way = self.under_way.take();
        loop {
            if let Some(UnderWay { outcome, .. }) =
                under_way.take().filter(|under_way| under_way.kind != Kind::Read)
            {
                outcome.await;
            }
            let Some(request) = self.queue.pop_front() else { return };
            under_way = Some(UnderWay::begin(
                &self.shared,
                &self.owner,
                &self.source,
                self.session,
                request,
            ));
        }
    }
}

fn count(kind: &'static str) {
    metrics::counter!(metric::WEBSOCKET_MESSAGES_TOTAL, "type" => kind).increment(1);
}

fn draining() -> CloseReason {
    let seconds = rand::random_range(0.0..RECONNECT_SECONDS);
    CloseReason::server(CloseCode::Restart, format!(r#"{{"retry_after":{seconds:.1}}}"#))
}

fn too_slow() -> CloseReason {
    listener::too_slow("websocket");
    CloseReason::server(CloseCode::Again, "read too slowly; resume with the last cursor")
}

async fn outcome(under_way: &mut Option<UnderWay>) -> Outcome {
    match under_way {
        Some(under_way) => under_way.outcome.as_mut().await,
        None => std::future::pending().await,
    }
}

async fn recovered(recovering: &mut Option<BoxFuture<'static, Snapshot>>) -> Snapshot {
    match recovering {
        Some(recovering) => recovering.as_mut().await,
        None => std::future::pending().await,
    }
}
