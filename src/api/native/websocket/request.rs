//! What a client asks for over a WebSocket, done beside the socket's own loop.

use axum::http::StatusCode;
use futures_util::future::BoxFuture;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::api::native::input::ChatRequest;
use crate::api::native::turns;
use crate::api::native::wire::{self, ClientMessage};
use crate::api::problems::in_time;
use crate::api::state::Shared;
use crate::digest::sha256_hex;
use crate::follow::{self, TurnOutcome};
use crate::generation::{CancelOutcome, Submitted};
use crate::http::problem::Problem;
use crate::session::store::Page;
use crate::session::{Owner, SessionId, Store, StoreError};

/// What a client asks for.
pub struct Request {
    /// In its own words.
    pub message: ClientMessage,
    /// The last event that it was told of before.
    pub asked_after: u64,
}

/// What is under way for this socket.
pub struct UnderWay {
    /// What it is.
    pub kind: Kind,
    /// The last event that the client was told of before it asked.
    pub asked_after: u64,
    /// What comes of it.
    pub outcome: BoxFuture<'static, Outcome>,
}

impl UnderWay {
    /// Begins to do what a client asks for.
    pub fn begin(
        shared: &Shared,
        owner: &Owner,
        source: &str,
        session: SessionId,
        Request { message, asked_after }: Request,
    ) -> Self {
        let kind = match &message {
            ClientMessage::Chat(request) if request.stream == Some(false) => Kind::WholeTurn,
            ClientMessage::Cancel { .. } => Kind::Cancel,
            ClientMessage::History { .. } => Kind::Read,
            _ => Kind::Other,
        };
        let outcome = attend(shared.clone(), owner.clone(), source.to_owned(), session, message);
        Self { kind, asked_after, outcome: Box::pin(outcome) }
    }
}

/// What decides how events are told meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A turn whose answer is wanted in one piece.
    WholeTurn,
    /// The end of a generation.
    Cancel,
    /// A reply, and nothing else.
    Read,
    /// Nothing that does.
    Other,
}

/// What became of it.
pub enum Outcome {
    /// A turn was accepted.
    Submitted {
        /// By the generation side.
        submitted: Submitted,
        /// What was asked.
        request: Box<ChatRequest>,
        /// What has become of it, where it is a repeat.
        past: TurnOutcome,
    },
    /// A generation was to be stopped.
    Cancelled(CancelOutcome),
    /// This is the answer.
    Reply(Utf8Bytes),
    /// What comes of it comes to all sockets of the session.
    Nothing,
    /// There was no history to clear.
    NothingToClear,
}

async fn attend(
    shared: Shared,
    owner: Owner,
    source: String,
    session: SessionId,
    message: ClientMessage,
) -> Outcome {
    let id = message.message_id().map(str::to_owned);
    let done = match message {
        ClientMessage::Ping => Ok(Outcome::Reply(wire::pong())),
        ClientMessage::Chat(request) => submit(&shared, &owner, &source, session, request).await,
        ClientMessage::History { limit, before } => {
            in_time(history(&shared.store, &owner, session, limit, before)).await
        }
        ClientMessage::ClearHistory => {
            match in_time(async {
                Ok::<_, Problem>(shared.generations.clear(&owner, session, false).await)
            })
            .await
            {
                // The event comes to all sockets of the session.
                Ok(Ok(_)) => return Outcome::Nothing,
                Ok(Err(StoreError::Absent)) => Ok(Outcome::NothingToClear),
                Ok(Err(error)) => Err(error.into()),
                Err(problem) => Err(problem),
            }
        }
        ClientMessage::Cancel { generation } => {
            match shared.generations.cancel(&owner, session, generation).await {
                Ok(outcome) => Ok(Outcome::Cancelled(outcome)),
                Err(error) => Err(error.into()),
            }
        }
    };
    done.unwrap_or_else(|problem| Outcome::Reply(wire::error(&problem, id.as_deref())))
}

async fn submit(
    shared: &Shared,
    owner: &Owner,
    source: &str,
    session: SessionId,
    request: Box<ChatRequest>,
) -> Result<Outcome, Problem> {
    // Beside the keys of REST, whose form clients do not choose.
    let key = request.message_id.as_ref().map(|id| sha256_hex(format!("ws\n{id}").as_bytes()));
    let asked = turns::submit(shared, owner, session, &request, key, source).await?;
    let submitted = asked.submitted;
    let past = if submitted.repeated {
        let (generation, before) = (submitted.generation, submitted.before);
        in_time(follow::outcome(&shared.store, owner, session, generation, before)).await?
    } else {
        TurnOutcome::Open
    };
    Ok(Outcome::Submitted { submitted, request, past })
}

async fn history(
    store: &Store,
    owner: &Owner,
    session: SessionId,
    limit: u64,
    before: Option<uuid::Uuid>,
) -> Result<Outcome, Problem> {
    let page = match before {
        None => store.newest(owner, session, limit, wire::EVENT_BYTES).await,
        Some(id) => match store.find_message(owner, session, id).await {
            Ok(Some((place, _))) => store.page_before(owner, session, place, limit).await,
            Ok(None) => {
                let detail = "there is no such message in this session";
                return Err(Problem::new(StatusCode::NOT_FOUND, "message_not_found", detail));
            }
            Err(error) => Err(error),
        },
    };
    let (messages, first) = match page {
        Ok(Page { messages, first, .. }) => (messages, first),
        // A session begins with its first turn.
        Err(StoreError::Absent) => (Vec::new(), 0),
        Err(error) => return Err(error.into()),
    };
    Ok(Outcome::Reply(wire::history(&messages, first > 0, None).0))
}
