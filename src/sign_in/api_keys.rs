//! API keys: how they are made, stored, checked and revoked.
//!
//! Redis holds the digest of each key, never the key. A replica trusts a check for some seconds, so
//! that a request costs no call; a revoked key ends on every replica within five seconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use fred::prelude::Value;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::error::SignInError;
use crate::digest::{hex, sha256_hex};
use crate::owner::User;
use crate::redis::{Call, Redis, RedisError, keys};
use crate::secret::Secret;

/// The beginning of every API key.
pub const API_KEY_PREFIX: &str = "sk-jarvis-";
/// Characters of a key's digest that are its identifier.
const IDENTIFIER_CHARACTERS: usize = 16;
/// Random bytes of a key.
const RANDOM_BYTES: usize = 24;
/// Keys at a time, at most: all of them are listed.
const MOST_KEYS: usize = 10_000;
/// How long a replica trusts a check.
const TRUSTED: Duration = Duration::from_secs(3);
/// How often the keys of open sockets and streams are checked.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// Keys that one call checks.
const BATCH: usize = 100;
/// Keys that a replica remembers, in addition to those of open sockets and streams.
const REMEMBERED: usize = 10_000;

/// A key, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// The beginning of the key's digest, which names it.
    pub id: String,
    /// The user that the key signs in.
    pub user: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// When it was last used, to the minute, in seconds since 1970; none where it never was.
    pub last_used: Option<i64>,
}

/// The outcome of the creation of a key.
#[derive(Debug)]
pub enum CreatedKey {
    /// The key, which cannot be shown again, and its identifier.
    Key(Secret, String),
    /// There are too many keys.
    Full,
}

/// The API keys in Redis. Cloning is cheap.
#[derive(Clone)]
pub struct ApiKeyStore {
    redis: Redis,
}

impl ApiKeyStore {
    /// Creates the store.
    pub fn new(redis: Redis) -> Self {
        Self { redis }
    }

    /// Makes a key for a user.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn create(&self, user: &str) -> Result<CreatedKey, RedisError> {
        let random: [u8; RANDOM_BYTES] = rand::random();
        let key = Secret::new(API_KEY_PREFIX.to_owned() + &hex(&random));
        let call = call("jarvis_create_api_key_1")
            .arg("digest", sha256_hex(key.expose().as_bytes()))
            .arg("user", user)
            .text("limit", MOST_KEYS);
        let id: String = self.redis.call_replicated(call).await?;
        Ok(if id.is_empty() { CreatedKey::Full } else { CreatedKey::Key(key, id) })
    }

    /// Returns all keys.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn list(&self) -> Result<Vec<ApiKey>, RedisError> {
        let (mut keys, mut cursor) = (HashMap::new(), "0".to_owned());
        loop {
            let call = call("jarvis_list_api_keys_1").arg("cursor", cursor);
            let mut page: Vec<String> = self.redis.call_readonly(call).await?;
            if page.is_empty() {
                return Err(RedisError::Unexpected("list_api_keys".to_owned()));
            }
            cursor = page.remove(0);
            // A hash that changes meanwhile may show a key twice.
            for entry in page.as_chunks::<4>().0 {
                let [id, created, last_used, user] = entry.clone();
                let last_used = last_used.parse().ok().filter(|at| *at > 0);
                let created = created.parse().unwrap_or_default();
                keys.insert(id.clone(), ApiKey { id, user, created, last_used });
            }
            if cursor == "0" {
                let mut keys: Vec<ApiKey> = keys.into_values().collect();
                keys.sort_by(|one, other| (one.created, &one.id).cmp(&(other.created, &other.id)));
                return Ok(keys);
            }
        }
    }

    /// Revokes a key. Returns whether there was one with this identifier.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn revoke(&self, id: &str) -> Result<bool, RedisError> {
        let call = call("jarvis_revoke_api_key_1").arg("id", id);
        let revoked: i64 = self.redis.call_replicated(call).await?;
        Ok(revoked == 1)
    }

    /// Notes the use of the keys with these digests, and returns the user of each; none where there
    /// is no such key.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn check(&self, digests: &[String]) -> Result<Vec<Option<String>>, RedisError> {
        let call = call("jarvis_check_api_keys_1")
            .rest("digests", digests.iter().map(|digest| Value::from(digest.as_str())));
        let users: Vec<String> = self.redis.call(call).await?;
        if users.len() != digests.len() {
            return Err(RedisError::Unexpected("check_api_keys".to_owned()));
        }
        Ok(users.into_iter().map(|user| Some(user).filter(|user| !user.is_empty())).collect())
    }
}

fn call(function: &'static str) -> Call {
    Call::new(function).key("keys", keys::API_KEYS.to_owned())
}

/// Returns whether a token has the form of an API key.
fn has_form(token: &str) -> bool {
    let random = token.strip_prefix(API_KEY_PREFIX);
    random.is_some_and(|random| {
        random.len() == 2 * RANDOM_BYTES && random.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// A key that was valid when it was last checked.
#[derive(Debug)]
pub(super) struct CheckedKey {
    /// The identifier of the key.
    pub id: String,
    pub user: User,
    /// Cancelled once the key is revoked.
    pub revoked: CancellationToken,
    checked: Mutex<Instant>,
}

impl CheckedKey {
    fn checked(&self) -> MutexGuard<'_, Instant> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys that this replica has checked.
pub(super) struct ApiKeys {
    store: ApiKeyStore,
    /// By digest. An open socket or stream holds its key, too.
    checked: Mutex<HashMap<String, Arc<CheckedKey>>>,
}

impl ApiKeys {
    pub fn new(store: ApiKeyStore) -> Arc<Self> {
        Arc::new(Self { store, checked: Mutex::default() })
    }

    /// Returns a key that is valid now, or was some seconds ago.
    pub async fn identify(&self, key: &str) -> Result<Arc<CheckedKey>, SignInError> {
        const UNKNOWN: SignInError = SignInError::Invalid("there is no such API key");
        if !has_form(key) {
            return Err(UNKNOWN);
        }
        let digest = sha256_hex(key.as_bytes());
        if let Some(known) = self.trusted(&digest) {
            return Ok(known);
        }
        let asked = Instant::now();
        let users = self.store.check(std::slice::from_ref(&digest)).await?;
        if let Some(user) = users.into_iter().next().flatten() {
            return self.note_valid(digest, &user, asked).ok_or(UNKNOWN);
        }
        self.note_revoked(&digest);
        Err(UNKNOWN)
    }

    /// Returns whether the check of this key takes a call of Redis.
    pub fn asks_redis(&self, key: &str) -> bool {
        has_form(key) && self.trusted(&sha256_hex(key.as_bytes())).is_none()
    }

    /// Returns the key with this digest, where it was checked some seconds ago at most.
    fn trusted(&self, digest: &str) -> Option<Arc<CheckedKey>> {
        let known = self.checked().get(digest).cloned();
        known.filter(|known| known.checked().elapsed() < TRUSTED)
    }

    fn checked(&self) -> MutexGuard<'_, HashMap<String, Arc<CheckedKey>>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_valid(&self, digest: String, user: &str, asked: Instant) -> Option<Arc<CheckedKey>> {
        let mut checked = self.checked();
        if let Some(known) = checked.get(&digest) {
            *known.checked() = asked;
            return Some(Arc::clone(known));
        }
        if checked.len() >= REMEMBERED {
            checked.retain(|_, known| Arc::strong_count(known) > 1);
        }
        let (revoked, asked) = (CancellationToken::new(), Mutex::new(asked));
        let id = digest[..IDENTIFIER_CHARACTERS].to_owned();
        let key = Arc::new(CheckedKey { id, user: User::local(user)?, revoked, checked: asked });
        checked.insert(digest, Arc::clone(&key));
        Some(key)
    }

    fn note_revoked(&self, digest: &str) {
        if let Some(known) = self.checked().remove(digest) {
            known.revoked.cancel();
        }
    }

    /// Checks the keys of open sockets and streams again and again, until the replica has gone.
    pub async fn follow(keys: Weak<Self>) {
        let mut ticks = interval(CHECK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(keys) = keys.upgrade() else { return };
            keys.check_held().await;
        }
    }

    async fn check_held(&self) {
        let held: Vec<String> = {
            let checked = self.checked();
            let held = checked.iter().filter(|(_, key)| Arc::strong_count(key) > 1);
            held.map(|(digest, _)| digest.clone()).collect()
        };
        for digests in held.chunks(BATCH) {
            let asked = Instant::now();
            match self.store.check(digests).await {
                Ok(users) => {
                    for (digest, user) in digests.iter().zip(users) {
                        match user {
                            Some(user) => {
                                self.note_valid(digest.clone(), &user, asked);
                            }
                            None => self.note_revoked(digest),
                        }
                    }
                }
                // Open streams and sockets stay open: no revoked key can be recognised now.
                Err(error) => {
                    tracing::debug!(%error, "api keys not checked");
                    return;
                }
            }
        }
    }
}
