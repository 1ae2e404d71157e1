//! Sign-in: who a caller is, by the token that it sends. docs/SIGN_IN.md describes it.

mod crypto;
mod error;
mod jwt;
mod secret;

pub use error::SignInError;
pub use jwt::{LEEWAY, issue};
pub use secret::Secret;

use std::time::SystemTime;

use futures_util::future::BoxFuture;

use crate::session::{Owner, User};

use self::jwt::LocalKey;

/// Whether callers have to sign in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SignInMode {
    /// A caller without a token is anonymous.
    #[default]
    Optional,
    /// A caller without a token is refused.
    Required,
}

/// What sign-in needs to know.
#[derive(Clone, Debug, Default)]
pub struct SignInOptions {
    /// Whether callers have to sign in.
    pub mode: SignInMode,
    /// The secret of the service's own tokens; without it there are none.
    pub secret: Option<Secret>,
}

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
}

impl Validity {
    /// Returns whether the caller stays signed in for ever, as an anonymous one does.
    pub fn is_unlimited(&self) -> bool {
        self.expires.is_none()
    }

    /// Returns a future that resolves when the caller's API key is revoked.
    pub fn revoked(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// Checks tokens.
pub struct SignIn {
    mode: SignInMode,
    local: Option<LocalKey>,
}

impl SignIn {
    /// Creates it from the settings.
    pub fn new(options: &SignInOptions) -> Self {
        Self {
            mode: options.mode,
            local: options.secret.as_ref().map(|secret| LocalKey::new(secret, None)),
        }
    }

    /// Returns whether callers have to sign in.
    pub fn mode(&self) -> SignInMode {
        self.mode
    }

    /// Returns the caller with this token.
    ///
    /// # Errors
    /// [`SignInError`]: a token that is not valid never makes its caller anonymous.
    pub async fn identify(&self, token: &str) -> Result<Identity, SignInError> {
        if token.len() > LONGEST_TOKEN {
            return Err(SignInError::Invalid("it is longer than 8192 bytes"));
        }
        self.by_secret(token)
    }

    fn by_secret(&self, token: &str) -> Result<Identity, SignInError> {
        let Some(key) = &self.local else {
            return Err(SignInError::Invalid("this service has no key for it"));
        };
        let claims = key.verify(token)?;
        let user = User::local(&claims.sub).ok_or(SignInError::Invalid(UNUSABLE_SUBJECT))?;
        let validity = Validity { expires: Some(claims.expires()) };
        Ok(Identity { owner: Owner::User(user), validity })
    }
}

/// Characters of a token, at most.
pub const LONGEST_TOKEN: usize = 8192;
const UNUSABLE_SUBJECT: &str =
    "its subject is empty, longer than 255 bytes, or holds control characters";
