//! The keys of an outside issuer, read from its JSON Web Key Set.
//!
//! A key has one algorithm, which follows from the key and never from a token. Keys are kept when the
//! issuer cannot be reached, and forgotten once they are old.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use reqwest::redirect::Policy;
use tokio::time::Instant;

use super::error::SignInError;
use super::jwt::{self, Claims};
use crate::config::IssuerOptions;
use crate::lifecycle::spawn_caught;

/// The time between two fetches, at least, however many unknown keys are asked for.
const FETCH_EVERY: Duration = Duration::from_secs(10);
/// The age at which keys are fetched again.
const STALE: Duration = Duration::from_mins(5);
/// The age at which keys that could not be fetched again are forgotten.
const TOO_OLD: Duration = Duration::from_hours(1);
/// Time limit of a fetch.
const FETCH_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of a key set, at most.
const LARGEST_SET: usize = 256 << 10;
/// Keys of a set, at most.
const MOST_KEYS: usize = 100;
/// Bytes of a key's identifier, at most.
const LONGEST_ID: usize = 256;

/// The keys of an outside issuer.
pub struct Issuer {
    options: IssuerOptions,
    client: reqwest::Client,
    clock: KeyClock,
    state: Mutex<State>,
    /// Held during a fetch, so that there is one at a time.
    fetching: tokio::sync::Mutex<()>,
}

/// Returns the time by which keys age.
type KeyClock = Box<dyn Fn() -> Instant + Send + Sync>;

#[derive(Default)]
struct State {
    keys: Arc<HashMap<String, Key>>,
    /// When the keys were fetched.
    fetched: Option<Instant>,
    /// When a fetch was last begun.
    tried: Option<Instant>,
}

#[derive(Clone)]
struct Key {
    key: DecodingKey,
    validation: Validation,
}

impl Issuer {
    /// Creates the issuer without any key: the first token fetches them.
    ///
    /// # Errors
    /// Where no HTTP client can be made.
    pub fn new(options: IssuerOptions) -> anyhow::Result<Arc<Self>> {
        Self::with_clock(options, Box::new(Instant::now))
    }

    fn with_clock(options: IssuerOptions, clock: KeyClock) -> anyhow::Result<Arc<Self>> {
        super::crypto::install();
        let _ = rustls::crypto::ring::default_provider().install_default();
        // A redirect could lead to a server that the operator did not name.
        let client = reqwest::Client::builder().timeout(FETCH_LIMIT).redirect(Policy::none());
        let is_loopback = options.jwks_url.scheme() == "http";
        let client = if is_loopback { client.no_proxy() } else { client };
        let (state, fetching) = (Mutex::default(), tokio::sync::Mutex::default());
        Ok(Arc::new(Self { options, client: client.build()?, clock, state, fetching }))
    }

    /// Returns the name of the issuer.
    pub fn name(&self) -> &str {
        &self.options.issuer
    }

    /// Returns the claims of a token, whose header names its key.
    ///
    /// # Errors
    /// Where the token is not valid, or its key cannot be had.
    pub async fn verify(
        self: &Arc<Self>,
        token: &str,
        key_id: Option<&str>,
    ) -> Result<Claims, SignInError> {
        let key = self.key(key_id.unwrap_or_default()).await?;
        let claims = jwt::verify(token, &key.key, &key.validation)?;
        claims.check_issuer(&self.options.issuer)?;
        claims.check_kind()?;
        Ok(claims)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn since(&self, before: Instant) -> Duration {
        (self.clock)().saturating_duration_since(before)
    }

    /// Returns the keys that are young enough, and whether they have to be fetched again.
    fn known(&self) -> (Option<Arc<HashMap<String, Key>>>, bool) {
        let state = self.state();
        let age = state.fetched.map(|fetched| self.since(fetched));
        let usable = age.is_some_and(|age| age < TOO_OLD);
        let is_stale = age.is_none_or(|age| age >= STALE);
        (usable.then(|| Arc::clone(&state.keys)), is_stale)
    }

    async fn key(self: &Arc<Self>, id: &str) -> Result<Key, SignInError> {
        let (keys, is_stale) = self.known();
        if let Some(found) = keys.as_ref().and_then(|keys| keys.get(id)) {
            if is_stale && !self.was_tried() {
                // The key is good enough meanwhile: an issuer that is away delays nobody.
                let issuer = Arc::clone(self);
                spawn_caught("issuer", async move { issuer.fetch_again().await });
            }
            return Ok(found.clone());
        }
        // In a task of its own, because a caller that leaves must not end what others wait for.
        let issuer = Arc::clone(self);
        let _ = spawn_caught("issuer", async move { issuer.fetch_again().await }).await;
        let (keys, _) = self.known();
        match keys {
            None => Err(SignInError::NoKeys),
            Some(keys) => {
                keys.get(id).cloned().ok_or(SignInError::Invalid("its issuer has no such key"))
            }
        }
    }

    /// Returns whether a fetch was begun a moment ago.
    fn was_tried(&self) -> bool {
        self.state().tried.is_some_and(|tried| self.since(tried) < FETCH_EVERY)
    }

    /// Fetches the keys, unless that was tried a moment ago. Waits for a fetch that runs.
    async fn fetch_again(&self) {
        let _one = self.fetching.lock().await;
        if self.was_tried() {
            return;
        }
        self.state().tried = Some((self.clock)());
        match self.fetch().await {
            Ok(keys) => {
                let mut state = self.state();
                state.keys = Arc::new(keys);
                state.fetched = Some((self.clock)());
            }
            // The address and the issuer's answer are the operator's business, not the client's.
            Err(error) => tracing::warn!(%error, "keys of the issuer not read"),
        }
    }

    async fn fetch(&self) -> anyhow::Result<HashMap<String, Key>> {
        let request = self.client.get(self.options.jwks_url.clone());
        let mut response = request.send().await.map_err(reqwest::Error::without_url)?;
        let status = response.status();
        anyhow::ensure!(status == 200, "the issuer answers {status}");
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(reqwest::Error::without_url)? {
            anyhow::ensure!(body.len() + part.len() <= LARGEST_SET, "the key set is too large");
            body.extend_from_slice(&part);
        }
        self.keys_of(&body)
    }

    /// Returns the identifiers of the usable keys of a set.
    ///
    /// # Errors
    /// Where it is no key set, or has no usable key.
    pub fn key_ids(&self, set: &[u8]) -> anyhow::Result<Vec<String>> {
        Ok(self.keys_of(set)?.into_keys().collect())
    }

    /// Returns the usable keys of a set. A key that this service cannot use is left out.
    fn keys_of(&self, body: &[u8]) -> anyhow::Result<HashMap<String, Key>> {
        #[derive(serde::Deserialize)]
        struct KeySet {
            keys: Vec<serde_json::Value>,
        }
        let KeySet { keys: listed } = serde_json::from_slice(body)?;
        anyhow::ensure!(listed.len() <= MOST_KEYS, "the key set has more than {MOST_KEYS} keys");
        let mut keys = HashMap::new();
        for key in listed {
            let Ok(jwk) = serde_json::from_value::<Jwk>(key) else { continue };
            let id = jwk.common.key_id.clone().unwrap_or_default();
            if id.len() <= LONGEST_ID
                && let Some(key) = self.key_of(&jwk)
            {
                keys.insert(id, key);
            }
        }
        anyhow::ensure!(!keys.is_empty(), "the key set has no key for RS256, ES256 or EdDSA");
        Ok(keys)
    }

    fn key_of(&self, jwk: &Jwk) -> Option<Key> {
        let is_for_signatures =
            jwk.common.public_key_use.as_ref().is_none_or(|it| *it == PublicKeyUse::Signature);
        let algorithm = algorithm_of(jwk)?;
        let key = DecodingKey::from_jwk(jwk).ok().filter(|_| is_for_signatures)?;
        let mut validation = jwt::validation(algorithm);
        validation.set_required_spec_claims(&["exp", "sub", "iss", "aud"]);
        validation.set_issuer(&[&self.options.issuer]);
        validation.set_audience(&[&self.options.audience]);
        Some(Key { key, validation })
    }
}

/// Returns the one algorithm of a key; none where this service does not use it. A key of type `oct`
/// is a secret that everybody can read.
fn algorithm_of(jwk: &Jwk) -> Option<Algorithm> {
    let (algorithm, name) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        _ => return None,
    };
    jwk.common.key_algorithm.as_ref().is_none_or(|named| *named == name).then_some(algorithm)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::get;
    use tokio::net::TcpListener;
    use tokio::time::{sleep, timeout};

    use super::*;

    const SET: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    /// The state that a test knows and sets: the issuer is away or not, and how far the clock is ahead.
    #[derive(Default)]
    struct Served {
        ahead: Mutex<Duration>,
        is_away: AtomicBool,
        fetches: AtomicUsize,
    }

    impl Served {
        fn set_ahead(&self, time: Duration) {
            *self.ahead.lock().expect("no panic") += time;
        }

        fn fetches(&self) -> usize {
            self.fetches.load(Ordering::SeqCst)
        }
    }

    async fn issuer() -> (Arc<Issuer>, Arc<Served>) {
        let served = Arc::<Served>::default();
        let of_route = Arc::clone(&served);
        let answer = async move || {
            of_route.fetches.fetch_add(1, Ordering::SeqCst);
            if of_route.is_away.load(Ordering::SeqCst) {
                Err(StatusCode::INTERNAL_SERVER_ERROR)
            } else {
                Ok(SET)
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let routes = Router::new().route("/keys", get(answer));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let options = IssuerOptions {
            jwks_url: format!("{url}/keys").parse().expect("a URL"),
            issuer: url,
            audience: "jarvis".to_owned(),
        };
        let of_clock = Arc::clone(&served);
        let clock = move || Instant::now() + *of_clock.ahead.lock().expect("no panic");
        (Issuer::with_clock(options, Box::new(clock)).expect("an issuer"), served)
    }

    async fn until(condition: impl Fn() -> bool) {
        let wait = async {
            while !condition() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), wait).await.expect("in time");
    }

    const MINUTE: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn keys_are_fetched_again_after_five_minutes_and_delay_nobody() {
        let (issuer, served) = issuer().await;
        assert!(issuer.key("k").await.is_ok());
        served.set_ahead(4 * MINUTE);
        assert!(issuer.key("k").await.is_ok());
        assert_eq!(served.fetches(), 1, "the keys are young");
        served.set_ahead(MINUTE);
        let fetched = issuer.state().fetched;
        assert!(issuer.key("k").await.is_ok());
        until(|| served.fetches() == 2 && issuer.state().fetched > fetched).await;
        // They are young again.
        served.set_ahead(4 * MINUTE);
        assert!(issuer.key("k").await.is_ok());
        assert_eq!(served.fetches(), 2);
    }

    #[tokio::test]
    async fn old_keys_outlive_an_issuer_that_is_away_by_an_hour_and_come_back_with_it() {
        let (issuer, served) = issuer().await;
        assert!(issuer.key("k").await.is_ok());
        served.is_away.store(true, Ordering::SeqCst);
        for minute in (5..60).step_by(6) {
            served.set_ahead(if minute == 5 { 5 * MINUTE } else { 6 * MINUTE });
            let before = served.fetches();
            assert!(issuer.key("k").await.is_ok(), "minute {minute}");
            until(|| served.fetches() == before + 1).await;
        }
        // It is minute 59.
        assert!(issuer.key("k").await.is_ok());
        served.set_ahead(MINUTE);
        let refused = issuer.key("k").await.err();
        assert!(matches!(refused, Some(SignInError::NoKeys)), "{refused:?}");
        // The issuer is back, and is asked within ten seconds.
        served.is_away.store(false, Ordering::SeqCst);
        assert!(issuer.key("k").await.is_err(), "asked more than once in ten seconds");
        served.set_ahead(FETCH_EVERY);
        assert!(issuer.key("k").await.is_ok());
    }
}
