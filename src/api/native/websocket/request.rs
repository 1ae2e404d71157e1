//! The requests of a WebSocket's client, which run beside the socket's loop.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tracing::Instrument;
use tracing::field::Empty;
use uuid::Uuid;

use crate::api::native::input::ChatRequest;
use crate::api::native::turns;
use crate::api::native::wire::{self, ClientMessage};
use crate::api::problems::in_time;
use crate::api::state::Shared;
use crate::digest::sha256_hex;
use crate::follow::{self, TurnOutcome};
use crate::generation::{CancelOutcome, Submitted};
use crate::http::middleware;
use crate::http::problem::Problem;
use crate::http::room::{REPLY_BYTES, RoomPermit};
use crate::limits::{LimitRefusal, RequestKind, Subject, TurnPermit};
use crate::session::store::{Found, Page};
use crate::session::{Owner, SessionId, Store, StoreError};
use crate::sign_in::{SignInError, Validity};
use crate::telemetry::traces::{self, Span, TraceContext};

/// The time between the checks of two tokens that come over one socket.
pub const CHECK_PAUSE: Duration = Duration::from_millis(250);

/// A request of the client.
pub struct ClientRequest {
    /// The message.
    pub message: ClientMessage,
    /// The number of the last event that was sent before the request arrived.
    pub last_event: u64,
    /// The bytes of the message as it arrived.
    pub bytes: usize,
    /// The pause before it is handled.
    pub pause: Duration,
}

/// A request that runs.
pub struct RunningRequest {
    /// The kind of the request.
    pub kind: SocketRequestKind,
    /// The number of the last event that was sent before the request arrived.
    pub last_event: u64,
    /// The outcome, once the request has been handled.
    pub outcome: BoxFuture<'static, RequestOutcome>,
}

impl RunningRequest {
    /// Starts a request, which is handled after its pause.
    pub fn begin(
        shared: &Shared,
        subject: &Arc<Subject>,
        session: SessionId,
        trace: Option<TraceContext>,
        ClientRequest { message, last_event, pause, .. }: ClientRequest,
    ) -> Self {
        let kind = match &message {
            ClientMessage::Chat(request) if request.stream == Some(false) => {
                SocketRequestKind::WholeTurn
            }
            ClientMessage::Cancel { .. } => SocketRequestKind::Cancel,
            message if message.is_read() => SocketRequestKind::Read,
            _ => SocketRequestKind::Other,
        };
        // At this level the lines of every other one have its fields.
        let span = tracing::error_span!(
            "request",
            method = "WS",
            path = "/ws",
            session = session.redacted(),
            generation = Empty,
            trace = Empty,
        );
        let handled = handle(shared.clone(), Arc::clone(subject), session, trace, message);
        let outcome = async move {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            handled.await
        };
        Self { kind, last_event, outcome: Box::pin(outcome.instrument(span)) }
    }
}

/// The kind of a request, which decides the events that wait for its outcome.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SocketRequestKind {
    /// A turn whose client wants the whole answer at once.
    WholeTurn,
    /// A cancel.
    Cancel,
    /// A request that has no effect but its reply.
    Read,
    /// Any other request.
    Other,
}

/// The outcome of a request.
pub enum RequestOutcome {
    /// A turn was accepted.
    Submitted {
        /// The submitted turn.
        submitted: Submitted,
        /// The request.
        request: Box<ChatRequest>,
        /// The outcome so far of a turn whose request is a repeat.
        past: TurnOutcome,
    },
    /// A cancel was handled.
    Cancelled(CancelOutcome),
    /// The reply is this event.
    Reply(Utf8Bytes),
    /// The reply is this event, of which the room is kept until it was written.
    History(Utf8Bytes, Option<Box<RoomPermit>>),
    /// The reply is an event that all sockets of the session get.
    Published,
    /// The branch of this message is selected already.
    AlreadySelected(Uuid),
    /// There was no history to clear.
    NothingToClear,
    /// A new token was accepted.
    SignedIn(Validity),
}

async fn handle(
    shared: Shared,
    subject: Arc<Subject>,
    session: SessionId,
    trace: Option<TraceContext>,
    message: ClientMessage,
) -> RequestOutcome {
    let id = message.message_id().map(str::to_owned);
    let permit = match admit(&shared, &subject, &message).await {
        Ok(permit) => permit,
        Err(refusal) => {
            let problem = Problem::limited(&refusal);
            return RequestOutcome::Reply(wire::error(&problem, id.as_deref()));
        }
    };
    let owner = &subject.owner;
    let done = match message {
        ClientMessage::Ping => Ok(RequestOutcome::Reply(wire::pong())),
        ClientMessage::Chat(request) => {
            let mut span = Span::of_request(trace, || "WS chat".into());
            span.set("http.route", "/ws");
            span.set("network.protocol.name", "websocket");
            traces::record_in_log(span.context(), &tracing::Span::current());
            let submitted = submit(&shared, permit, session, request);
            let submitted = traces::within(span.context(), submitted).await;
            if let Err(problem) = &submitted {
                span.fail(&problem.code);
            }
            submitted
        }
        ClientMessage::History { limit, before, .. } => {
            let taken = shared.output_room(&subject.source).part(REPLY_BYTES).await;
            match taken {
                Ok(room) => {
                    let read =
                        history(&shared.store, owner, session, limit, (before, id.as_deref()));
                    in_time(read).await.map(|json| {
                        let room = room.map(|room| room.shrink(json.len()));
                        RequestOutcome::History(json, room.map(Box::new))
                    })
                }
                Err(refused) => Err(refused.into()),
            }
        }
        ClientMessage::ClearHistory => {
            match in_time(async {
                Ok::<_, Problem>(shared.generations.clear(owner, session, false).await)
            })
            .await
            {
                Ok(Ok(_)) => return RequestOutcome::Published,
                Ok(Err(StoreError::Absent)) => Ok(RequestOutcome::NothingToClear),
                Ok(Err(error)) => Err(error.into()),
                Err(problem) => Err(problem),
            }
        }
        ClientMessage::Branch { message, .. } => {
            match in_time(shared.generations.select(owner, session, message)).await {
                Ok(true) => Ok(RequestOutcome::Published),
                Ok(false) => Ok(RequestOutcome::AlreadySelected(message)),
                Err(problem) => Err(problem),
            }
        }
        ClientMessage::Cancel { generation } => {
            match shared.generations.cancel(owner, session, generation).await {
                Ok(outcome) => Ok(RequestOutcome::Cancelled(outcome)),
                Err(error) => Err(error.into()),
            }
        }
        ClientMessage::Auth { token } => sign_in_again(&shared, &subject, token.expose()).await,
    };
    done.unwrap_or_else(|problem| RequestOutcome::Reply(wire::error(&problem, id.as_deref())))
}

/// Checks the new token of a socket's caller. One that is not valid, or is another user's, costs a
/// request of the limit of the caller's address. A valid one costs nothing, but a socket has few checked:
/// the check of a signature takes a tenth of a millisecond.
async fn sign_in_again(
    shared: &Shared,
    subject: &Subject,
    token: &str,
) -> Result<RequestOutcome, Problem> {
    let (limits, source) = (&shared.limits, &subject.source);
    let identity = middleware::identify(&shared.sign_in, limits, source, token).await?;
    if identity.owner == subject.owner {
        return Ok(RequestOutcome::SignedIn(identity.validity));
    }
    Err(middleware::refuse(limits, source, &SignInError::OtherUser).await)
}

/// Takes what a message costs from the limits of its caller, and returns the right to one turn where
/// it begins one.
async fn admit(
    shared: &Shared,
    subject: &Arc<Subject>,
    message: &ClientMessage,
) -> Result<Option<TurnPermit>, LimitRefusal> {
    let kind = match message {
        ClientMessage::Ping | ClientMessage::Auth { .. } => return Ok(None),
        ClientMessage::Chat(_) => RequestKind::Turn,
        _ => RequestKind::Plain,
    };
    // The prefix keeps the name apart from those of REST.
    let key = message.message_id().map(|id| format!("ws\n{id}"));
    Ok(shared.limits.admit(subject, kind, key.as_deref()).await?.turn)
}

async fn submit(
    shared: &Shared,
    permit: Option<TurnPermit>,
    session: SessionId,
    mut request: Box<ChatRequest>,
) -> Result<RequestOutcome, Problem> {
    let permit = permit.ok_or_else(Problem::internal)?;
    let subject = Arc::clone(&permit.subject);
    let owner = &subject.owner;
    // The prefix keeps the key apart from REST's idempotency keys.
    let key = request.message_id.as_ref().map(|id| sha256_hex(format!("ws\n{id}").as_bytes()));
    let submitted = turns::submit(shared, permit, session, &mut request, key).await?.submitted;
    let past = if submitted.repeated {
        let (generation, before) = (submitted.generation, submitted.before);
        in_time(follow::outcome(&shared.store, owner, session, generation, before)).await?
    } else {
        TurnOutcome::Open
    };
    Ok(RequestOutcome::Submitted { submitted, request, past })
}

async fn history(
    store: &Store,
    owner: &Owner,
    session: SessionId,
    limit: u64,
    (before, id): (Option<Uuid>, Option<&str>),
) -> Result<Utf8Bytes, Problem> {
    let page = match before {
        None => store.newest(owner, session, limit, wire::EVENT_BYTES).await,
        Some(id) => match store.find_message(owner, session, id).await {
            Ok(Some(Found { position: Some(position), .. })) => {
                store.page_before(owner, session, position, limit).await
            }
            Ok(_) => return Err(Problem::message_not_found()),
            Err(error) => Err(error),
        },
    };
    let (messages, first) = match page {
        Ok(Page { messages, first, .. }) => (messages, first),
        // The session begins with its first turn.
        Err(StoreError::Absent) => (Vec::new(), 0),
        Err(error) => return Err(error.into()),
    };
    Ok(wire::history(&messages, first > 0, None, id).0)
}
