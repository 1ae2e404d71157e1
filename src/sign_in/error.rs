//! Why a caller is not signed in.

use crate::redis::RedisError;

/// Why a caller is not signed in.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    /// The caller sent no token, and the service requires one.
    #[error("This service requires a token; send it as Authorization: Bearer <token>.")]
    Required,
    /// The caller sent more than one token.
    #[error(
        "The request has more than one token; send one Authorization header, or one subprotocol \
         bearer.<token> of a WebSocket."
    )]
    Ambiguous,
    /// The token is not valid; the text says why.
    #[error("The token is not valid: {0}; sign in again.")]
    Invalid(&'static str),
    /// The token has expired.
    #[error("The token has expired; sign in again.")]
    Expired,
    /// The token is of another user than the socket.
    #[error("The token is of another user; open another WebSocket with it.")]
    OtherUser,
    /// The keys of the outside issuer cannot be had.
    #[error("The keys of the token's issuer cannot be read; retry after 10 s.")]
    NoKeys,
    /// An API key cannot be checked.
    #[error("The API key cannot be checked: {0}")]
    Redis(#[from] RedisError),
}

impl SignInError {
    /// Returns whether the token is at fault, and not a part of this service that is away.
    pub fn is_of_caller(&self) -> bool {
        !matches!(self, Self::NoKeys | Self::Redis(_))
    }
}
