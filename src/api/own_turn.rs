//! A turn that brings its own conversation, as the fronts of other APIs have it: it begins a session of
//! its own, which a repeat with the same key finds.

use axum::http::HeaderMap;

use crate::api::idempotency;
use crate::api::state::Shared;
use crate::digest::sha256_hex;
use crate::follow::{self, AcceptedTurn, Submission};
use crate::http::problem::Problem;
use crate::limits::TurnPermit;
use crate::session::store::{Attached, IdempotencyKey, NewTurn, OwnConversation};
use crate::session::{Image, Message, Owner, SessionId, TurnSpec};

/// The session of a request, and its idempotency key.
pub struct OwnTurn {
    /// The session: of the key where there is one, else a random one.
    pub session: SessionId,
    kind: &'static str,
    key: Option<String>,
    is_by_proxy: bool,
}

/// The parts of a request that brings its own conversation.
pub struct OwnQuestion {
    /// The request without its messages.
    pub spec: TurnSpec,
    /// The messages before the question.
    pub conversation: OwnConversation,
    /// The question.
    pub question: Message,
    /// The images of all messages.
    pub images: Vec<Image>,
    /// The digest of the request, by which a repeat is known.
    pub digest: String,
    /// Whether the turn goes on without its client.
    pub is_background: bool,
}

impl OwnTurn {
    /// Begins a turn with the key of the request. `kind` keeps the sessions of fronts apart.
    ///
    /// # Errors
    /// Where this replica cannot serve, or the key is not valid.
    pub fn begin(
        shared: &Shared,
        owner: &Owner,
        headers: &HeaderMap,
        kind: &'static str,
    ) -> Result<Self, Problem> {
        if let Some(refusal) = shared.readiness.refusal() {
            return Err(refusal.into());
        }
        let key = idempotency::key(headers, owner)?;
        let session = match &key {
            Some(key) => idempotency::session(owner, kind, key),
            None => SessionId::random(),
        };
        tracing::Span::current().record("session", session.redacted());
        Ok(Self { session, kind, key, is_by_proxy: idempotency::is_by_proxy(headers) })
    }

    /// Checks the turn before what is left of the conversation that it goes on with is read. Returns the
    /// right to submit it.
    ///
    /// # Errors
    /// Why it would not be accepted.
    pub async fn check_early(
        &self,
        shared: &Shared,
        permit: TurnPermit,
        turn: &NewTurn,
    ) -> Result<TurnPermit, Problem> {
        Ok(follow::check_early(&shared.generations, permit, self.session, turn).await?)
    }

    /// Submits a question, as [`OwnTurn::submit_turn`] does.
    ///
    /// # Errors
    /// Why it was not accepted.
    pub async fn submit(
        self,
        shared: &Shared,
        permit: TurnPermit,
        asked: OwnQuestion,
    ) -> Result<AcceptedTurn, Problem> {
        let is_background = asked.is_background;
        let turn = self.turn(&permit, asked);
        self.submit_turn(shared, permit, turn, is_background).await
    }

    /// Submits the turn. Without an idempotency key of its client it is cancelled when the client goes
    /// away, because the client could not find its answer again, unless it runs in the background.
    ///
    /// # Errors
    /// Why it was not accepted.
    pub async fn submit_turn(
        self,
        shared: &Shared,
        permit: TurnPermit,
        turn: NewTurn,
        is_background: bool,
    ) -> Result<AcceptedTurn, Problem> {
        let cancel_on_disconnect = !is_background && self.key.is_none();
        let submission = Submission { session: self.session, turn, permit, cancel_on_disconnect };
        Ok(follow::submit(&shared.generations, submission).await?)
    }

    /// Returns the turn of a question.
    pub fn turn(&self, permit: &TurnPermit, asked: OwnQuestion) -> NewTurn {
        let OwnQuestion { spec, conversation, question, images, digest, is_background } = asked;
        let (kind, key, is_by_proxy) = (self.kind, self.key.clone(), self.is_by_proxy);
        let origin = TurnOrigin { kind, key, is_by_proxy, digest, is_background };
        let turn = origin.turn(permit, spec, question, images);
        NewTurn { conversation: Some(conversation), ..turn }
    }
}

/// What the request of a turn is known by, and whether the turn goes on without its client.
pub struct TurnOrigin {
    /// What keeps the keys of fronts apart.
    pub kind: &'static str,
    /// The idempotency key.
    pub key: Option<String>,
    /// Whether a proxy made the key.
    pub is_by_proxy: bool,
    /// The digest of the request, by which a repeat is known.
    pub digest: String,
    /// Whether the turn goes on without its client.
    pub is_background: bool,
}

impl TurnOrigin {
    /// Returns whether the turn is cancelled when its client goes away, because the client could not find the
    /// answer again.
    pub fn cancels_on_disconnect(&self) -> bool {
        !self.is_background && self.key.is_none()
    }

    /// Returns the turn of a question, without a conversation of its own.
    pub fn turn(
        self,
        permit: &TurnPermit,
        spec: TurnSpec,
        mut question: Message,
        images: Vec<Image>,
    ) -> NewTurn {
        let Self { kind, key, is_by_proxy, digest, is_background } = self;
        let has_own_key = key.is_some() && !is_by_proxy;
        NewTurn {
            spec: TurnSpec {
                source: permit.subject.source.0.clone(),
                needs_listener: !is_background && !has_own_key,
                ..spec
            },
            content: std::mem::take(&mut question.content),
            conversation: None,
            attached: Attached { question: Some(Box::new(question)), images },
            key: key.map(|key| IdempotencyKey {
                key: sha256_hex(format!("{kind}{key}").as_bytes()),
                body: digest,
            }),
        }
    }
}
