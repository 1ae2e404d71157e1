//! Reads the body of a request that begins a turn: it may bring images, and is large then.

use axum::RequestExt;
use axum::body::HttpBody;
use axum::extract::Request;

use crate::api::state::Shared;
use crate::http::extract::body::whole_body;
use crate::http::problem::Problem;
use crate::http::room::no_room;
use crate::session::image::REQUEST_IMAGE_BYTES;
use crate::source::Source;

/// Bytes of a body that images add, at most: those of base64, and some more.
pub const IMAGE_BODY_BYTES: usize = REQUEST_IMAGE_BYTES / 2 * 3;

/// A PNG of one pixel in base64, as an example.
pub const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg==";

/// Returns a body of at most `plain` bytes and those of its images, or of `undeclared` bytes where its
/// length is not known. The connection takes room for a body of the usual size, and for one of unknown
/// length; a larger one waits for room.
///
/// # Errors
/// As [`whole_body`].
pub async fn turn_body(
    mut request: Request,
    shared: &Shared,
    plain: usize,
    undeclared: usize,
) -> Result<Vec<u8>, Problem> {
    let Ok(source) = request.extract_parts_with_state::<Source, _>(shared).await;
    let usual = shared.settings.max_body_bytes;
    let declared = request.body().size_hint().exact();
    let declared = declared.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
    let limit = if declared > usual { plain + IMAGE_BODY_BYTES } else { undeclared };
    let beyond = declared.min(limit).saturating_sub(usual);
    let _room = shared.room.take(source.widest_network(), beyond).await.ok_or_else(no_room)?;
    whole_body(request, limit).await
}
