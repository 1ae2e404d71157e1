//! Sign-in: who a caller is, by the token that it sends. docs/SIGN_IN.md describes it.

mod api_keys;
mod crypto;
mod error;
mod jwks;
mod jwt;

pub use api_keys::{API_KEY_PREFIX, ApiKey, ApiKeyStore, CreatedKey};
pub use error::SignInError;
pub use jwks::Issuer;
pub use jwt::{Claims, LEEWAY, LocalKey, issue};

use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use jsonwebtoken::Algorithm;

use self::api_keys::{ApiKeys, CheckedKey};
use crate::config::{SignInMode, SignInOptions};
use crate::lifecycle::TaskEnd;
use crate::owner::{Owner, User};
use crate::redis::Redis;

/// A caller, and how long it stays signed in.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The caller, as the owner of its sessions.
    pub owner: Owner,
    /// How long the caller stays signed in.
    pub validity: Validity,
}

/// How long a caller stays signed in.
#[derive(Clone, Debug, Default)]
pub struct Validity {
    /// When its token expires.
    pub expires: Option<SystemTime>,
    /// Its API key. A key that is held is checked again and again.
    key: Option<Arc<CheckedKey>>,
}

impl Validity {
    /// Creates the validity of a token that expires.
    pub fn until(expires: SystemTime) -> Self {
        Self { expires: Some(expires), key: None }
    }

    /// Returns the validity without the expiry.
    #[must_use]
    pub fn without_expiry(self) -> Self {
        Self { expires: None, ..self }
    }

    /// Returns whether the caller stays signed in forever, as an anonymous one does.
    pub fn is_unlimited(&self) -> bool {
        self.expires.is_none() && self.key.is_none()
    }

    /// Returns the identifier of the caller's API key; none where it signed in by a token.
    pub fn key_id(&self) -> Option<&str> {
        self.key.as_ref().map(|key| &*key.id)
    }

    /// Returns a future that resolves when the caller's API key is revoked.
    pub fn revoked(&self) -> BoxFuture<'static, ()> {
        match self.key.clone() {
            // The future holds the key, so that it is checked as long as somebody waits.
            Some(key) => Box::pin(async move { key.revoked.cancelled().await }),
            None => Box::pin(std::future::pending()),
        }
    }
}

/// Checks tokens.
pub struct SignIn {
    mode: SignInMode,
    local: Option<LocalKey>,
    issuer: Option<Arc<Issuer>>,
    keys: Arc<ApiKeys>,
}

impl SignIn {
    /// Creates it from the settings, and checks API keys in this Redis.
    ///
    /// # Errors
    /// Where no client of the outside issuer can be made.
    pub fn start(options: &SignInOptions, redis: &Redis) -> anyhow::Result<Self> {
        let keys = ApiKeys::new(ApiKeyStore::new(redis.clone()));
        let followed = ApiKeys::follow(Arc::downgrade(&keys));
        redis.lifecycle().spawn("api keys", async move {
            followed.await;
            TaskEnd::Done
        });
        let audience = options.audience.as_deref();
        Ok(Self {
            mode: options.mode,
            local: options.secret.as_ref().map(|secret| LocalKey::new(secret, audience)),
            issuer: options.issuer.clone().map(Issuer::new).transpose()?,
            keys,
        })
    }

    /// Returns whether callers have to sign in.
    pub fn mode(&self) -> SignInMode {
        self.mode
    }

    /// Returns whether the check of this token takes a call of Redis: it is an API key, and this
    /// replica has not checked it within the last seconds.
    pub fn asks_redis(&self, token: &str) -> bool {
        token.len() <= LONGEST_TOKEN && self.keys.asks_redis(token)
    }

    /// Returns the caller with this token.
    ///
    /// # Errors
    /// [`SignInError`]: a token that is not valid never makes its caller anonymous.
    pub async fn identify(&self, token: &str) -> Result<Identity, SignInError> {
        if token.len() > LONGEST_TOKEN {
            return Err(SignInError::Invalid("it is longer than 8192 bytes"));
        }
        if token.starts_with(API_KEY_PREFIX) {
            let key = self.keys.identify(token).await?;
            let owner = Owner::User(key.user.clone());
            return Ok(Identity { owner, validity: Validity { expires: None, key: Some(key) } });
        }
        // The header only chooses among the keys; a key then accepts its own algorithm alone.
        let header = jsonwebtoken::decode_header(token)
            .map_err(|_| SignInError::Invalid("its form is not that of a token"))?;
        let (issuer, claims) = match (header.alg, &self.local, &self.issuer) {
            (Algorithm::HS256, Some(local), _) => (User::LOCAL, local.verify(token)?),
            (Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA, _, Some(issuer)) => {
                (issuer.name(), issuer.verify(token, header.kid.as_deref()).await?)
            }
            _ => return Err(SignInError::Invalid("this service has no key for it")),
        };
        let user = User::new(issuer, &claims.sub).ok_or(SignInError::Invalid(UNUSABLE_SUBJECT))?;
        Ok(Identity { owner: Owner::User(user), validity: Validity::until(claims.expires()) })
    }
}

/// Characters of a token, at most.
pub const LONGEST_TOKEN: usize = 8192;
const UNUSABLE_SUBJECT: &str =
    "its subject is empty, longer than 255 bytes, or holds control characters";
