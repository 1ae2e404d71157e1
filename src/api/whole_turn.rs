//! A turn as one reply: waits for its whole answer.

use std::pin::pin;

use axum::http::{HeaderMap, StatusCode};
use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout_at};

use crate::api::embedding::gone;
use crate::api::idempotency;
use crate::api::state::Shared;
use crate::follow::CancelOnDrop;
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::lifecycle::Phase;
use crate::session::model::Failure;
use crate::session::{Message, Status};

/// The guards of a request that waits for an answer: each may end the wait.
pub struct PendingReply {
    /// Cancels the turn when the client goes away.
    guard: Option<CancelOnDrop>,
    /// Whether a proxy sends the request again elsewhere where it breaks off.
    is_by_proxy: bool,
    /// Resolves when the client has sent its last byte, or is gone.
    last_byte: LastByte,
    /// When the wait ends.
    end: Instant,
}

impl PendingReply {
    /// Begins to wait for the reply to a request that came at `started` with these headers.
    pub fn begin(
        shared: &Shared,
        started: Instant,
        headers: &HeaderMap,
        last_byte: LastByte,
        guard: Option<CancelOnDrop>,
    ) -> Self {
        let is_by_proxy = idempotency::is_by_proxy(headers);
        Self { guard, is_by_proxy, last_byte, end: started + shared.settings.request_timeout }
    }
}

/// Waits for the answer that `follow` brings: as it is stored, however it ended.
///
/// # Errors
/// Why there is no answer by the end of the wait.
pub async fn answer<E: Into<Problem>>(
    shared: &Shared,
    follow: BoxFuture<'_, Result<Box<Message>, E>>,
    PendingReply { mut guard, is_by_proxy, last_byte, end }: PendingReply,
) -> Result<Message, Problem> {
    let mut whole = pin!(timeout_at(end, follow));
    let answered = loop {
        tokio::select! {
            biased;
            answered = &mut whole => break answered,
            () = shared.lifecycle.reached(Phase::Stopped) => return Err(Problem::draining()),
            // A client that is gone looks like one that has sent its last byte.
            () = last_byte.received(), if guard.is_some() || is_by_proxy => {
                if guard.take().is_none() {
                    // The proxy may have sent the request to another replica, which joins the turn.
                    return Err(gone());
                }
            }
        }
    };
    let answer = answered.map_err(|_| out_of_time())?.map_err(Into::into)?;
    if let Some(guard) = &mut guard {
        guard.disarm();
    }
    Ok(*answer)
}

/// Returns an answer that is complete.
///
/// # Errors
/// Why it failed, or that it was cancelled.
pub fn completed(answer: Message) -> Result<Message, Problem> {
    match (answer.status, answer.error) {
        (Some(Status::Failed), Some(failure)) => Err(Failure::into(failure)),
        (Some(Status::Cancelled), _) => Err(cancelled()),
        (_, error) => Ok(Message { error, ..answer }),
    }
}

fn cancelled() -> Problem {
    let detail = "The answer was cancelled before its end.";
    Problem::new(StatusCode::BAD_GATEWAY, "upstream_interrupted", detail)
}

fn out_of_time() -> Problem {
    let detail = "The answer took too long for one reply; request it as a stream.";
    Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", detail)
}
