//! Takes what a request costs from the limits of its caller, before the body is read, and reports in
//! the response what is left.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{ConnectInfo, FromRef, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::FrontRules;
use super::public::is_public;
use crate::http::extract::caller::TrustedProxies;
use crate::http::problem::Problem;
use crate::http::rate_limit::{Standings, add_headers};
use crate::limits::{Admission, RateLimits, Standing, Subject, TurnPermit, UserSocket};
use crate::session::Owner;
use crate::sign_in::Identity;
use crate::source::{Source, SourceKey};

/// The state of this layer.
#[derive(Clone)]
pub struct LimitLayer {
    /// The limits.
    pub limits: RateLimits,
    /// The networks of the proxies in front.
    pub proxies: TrustedProxies,
    /// The key of the digests of addresses.
    pub source_key: SourceKey,
    /// The rules of the fronts about their routes.
    pub rules: FrontRules,
}

/// The permits of an admitted request, until its handler takes them.
#[derive(Clone, Default)]
struct Admitted(Arc<Mutex<(Option<TurnPermit>, Option<UserSocket>)>>);

impl Admitted {
    fn with<T>(&self, take: impl FnOnce(&mut (Option<TurnPermit>, Option<UserSocket>)) -> T) -> T {
        take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The subject whose limits a request counts for, as handlers extract it.
#[derive(Clone)]
pub struct LimitedCaller(pub Arc<Subject>);

/// The socket that a request opens.
pub struct OpenedSocket {
    /// The subject.
    pub subject: Arc<Subject>,
    /// Its hold over all replicas, where the sockets of its caller are limited.
    pub hold: Option<UserSocket>,
}

pub(super) async fn check(
    State(layer): State<LimitLayer>,
    source: Source,
    mut request: Request,
    next: Next,
) -> Response {
    if let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<SocketAddr>>() {
        layer.proxies.note_untrusted_forward(peer.ip(), request.headers());
    }
    if is_public(request.uri().path()) {
        // Open metrics take a request of their address themselves.
        return with_headers(next.run(request).await, Vec::new());
    }
    if source.is_limited() && !layer.source_key.is_agreed() {
        // Its digest is by a key that no other replica has.
        return Problem::store_unavailable().into_response();
    }
    let kind = (layer.rules.kind)(request.method(), request.uri().path());
    // A repeat of a turn that was accepted is answered also where no turn and no request is left.
    let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok());
    let key = key.map(str::to_owned);
    let subject = Arc::new(subject(&request, source));
    // Boxed: this future exists for as long as the request does, and the call to Redis is large.
    let Admission { standings, turn, socket } =
        match Box::pin(layer.limits.admit(&subject, kind, key.as_deref())).await {
            Ok(admission) => admission,
            Err(refusal) => {
                return with_headers(Problem::limited(&refusal).into_response(), Vec::new());
            }
        };
    let given_back = turn.as_ref().map(TurnPermit::given_back);
    let admitted = Admitted::default();
    admitted.with(|admitted| *admitted = (turn, socket));
    request.extensions_mut().insert(LimitedCaller(subject));
    request.extensions_mut().insert(admitted.clone());
    let response = next.run(request).await;
    // An amount that no handler took, because an extractor before it refused the request, is given back.
    drop(admitted.with(std::mem::take));
    let standings = match given_back {
        Some(given_back) => given_back.apply(standings),
        None => standings,
    };
    with_headers(response, standings)
}

fn subject(request: &Request, source: Source) -> Subject {
    let identity = request.extensions().get::<Identity>();
    Subject {
        owner: identity.map_or(Owner::Anonymous, |identity| identity.owner.clone()),
        key: identity.and_then(|identity| identity.validity.key_id()).map(str::to_owned),
        source,
    }
}

impl FromRef<LimitLayer> for TrustedProxies {
    fn from_ref(layer: &LimitLayer) -> Self {
        layer.proxies.clone()
    }
}

impl FromRef<LimitLayer> for SourceKey {
    fn from_ref(layer: &LimitLayer) -> Self {
        layer.source_key.clone()
    }
}

/// Adds what is left of the limits of a request, and of those that the response names itself.
pub(super) fn with_headers(mut response: Response, mut standings: Vec<Standing>) -> Response {
    if let Some(Standings(named)) = response.extensions_mut().remove() {
        for standing in named {
            match standings.iter_mut().find(|known| known.kind == standing.kind) {
                Some(known) => *known = standing,
                None => standings.push(standing),
            }
        }
    }
    add_headers(response.headers_mut(), &standings);
    // A front may name them in headers of its own, too.
    response.extensions_mut().insert(Standings(standings));
    response
}

impl<S: Sync> FromRequestParts<S> for LimitedCaller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(unlimited)
    }
}

impl<S: Sync> FromRequestParts<S> for TurnPermit {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let admitted = parts.extensions.get::<Admitted>();
        admitted.and_then(|admitted| admitted.with(|(turn, _)| turn.take())).ok_or_else(unlimited)
    }
}

impl<S: Sync> FromRequestParts<S> for OpenedSocket {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let LimitedCaller(subject) = LimitedCaller::from_request_parts(parts, state).await?;
        let admitted = parts.extensions.get::<Admitted>().ok_or_else(unlimited)?;
        Ok(Self { subject, hold: admitted.with(|(_, socket)| socket.take()) })
    }
}

/// Returns the error of a route that begins turns, or opens sockets, and is not listed as one.
fn unlimited() -> Problem {
    tracing::error!("route without limits");
    Problem::internal()
}
