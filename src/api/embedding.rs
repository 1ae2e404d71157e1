//! Embeddings, for every front that has them: they take slots and limits as turns do.

use axum::http::StatusCode;
use tokio::time::timeout;

use super::state::Shared;
use crate::generation::{EmbedRequest, Vectors};
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::lifecycle::Phase;
use crate::limits::TurnPermit;

/// Texts of one request, at most.
pub const TEXTS: usize = 256;

/// Returns the vectors of texts from a host; none where there is no text, and no host is asked then.
/// What no host has worked for costs the caller no turn.
///
/// # Errors
/// A limit of the caller, what keeps this replica from serving, or the host's error.
pub async fn vectors(
    shared: &Shared,
    permit: TurnPermit,
    last_byte: LastByte,
    model: &str,
    request: &EmbedRequest,
) -> Result<Option<Vectors>, Problem> {
    if let Some(refusal) = permit.refusal() {
        refusal.count();
        return Err(Problem::limited(refusal));
    }
    let embedded = async {
        if request.texts.is_empty() {
            shared.generations.check_model(model).await?;
            return Ok(None);
        }
        if let Some(refusal) = shared.readiness.refusal() {
            return Err(refusal.into());
        }
        let vectors = shared.generations.embed(&permit, model, request);
        tokio::select! {
            vectors = timeout(shared.settings.request_timeout, vectors) => {
                Ok(Some(vectors.map_err(|_| out_of_time())??))
            }
            () = shared.lifecycle.reached(Phase::Stopped) => Err(Problem::draining()),
            // A client that is gone looks like one that has sent its last byte.
            () = last_byte.received() => Err(gone()),
        }
    };
    match Box::pin(embedded).await {
        Ok(Some(vectors)) => {
            permit.keep();
            Ok(Some(vectors))
        }
        nothing => {
            permit.give_back().await;
            nothing
        }
    }
}

/// Returns the error of a host whose reply has no vectors.
pub fn none_sent() -> Problem {
    let detail = "The model host's reply has no embeddings.";
    Problem::new(StatusCode::BAD_GATEWAY, "upstream_error", detail)
}

fn out_of_time() -> Problem {
    let detail = "The embeddings took too long; send fewer texts.";
    Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", detail)
}

/// Returns the error that nobody reads.
pub fn gone() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "body_unreadable", "the client is gone")
}
