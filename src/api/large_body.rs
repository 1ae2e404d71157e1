//! Reads the body of a request that brings its own conversation, which may be larger than others.

use axum::RequestExt;
use axum::body::HttpBody;
use axum::extract::Request;

use crate::api::state::Shared;
use crate::http::extract::body::whole_body;
use crate::http::problem::Problem;
use crate::http::room::no_room;
use crate::source::Source;

/// Bytes of a body whose length is declared, at most. JSON takes more than the text that it holds.
const BODY_BYTES: usize = 2 << 20;

/// Returns a body of at most 2 MiB where its length is declared, and else of at most the usual size.
///
/// # Errors
/// A 400, 408, 413, 415 or 503.
pub async fn read(mut request: Request, shared: &Shared) -> Result<Vec<u8>, Problem> {
    let Ok(source) = request.extract_parts_with_state::<Source, _>(shared).await;
    // The connection takes room for a body of the usual size, and for one of unknown length.
    let usual = shared.settings.max_body_bytes;
    let declared = request.body().size_hint().exact();
    let declared = declared.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
    let limit = if declared > usual { BODY_BYTES } else { usual };
    let beyond = declared.min(limit).saturating_sub(usual);
    let _room = shared.room.take(source.widest_network(), beyond).await.ok_or_else(no_room)?;
    whole_body(request, limit).await
}
