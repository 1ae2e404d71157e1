//! Calls of Redis that a running turn cannot do without.

use crate::retry::{Backoff, retry_until_ok};
use crate::session::StoreError;

/// Repeats a call of Redis until it succeeds.
pub(super) async fn call_redis<T, F>(call: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, StoreError>>,
{
    let on_error = |error| tracing::warn!(%error, "turn waiting for redis");
    retry_until_ok(Backoff::redis(), call, on_error).await
}
