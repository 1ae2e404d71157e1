//! Reads the body of a request that brings its own conversation or images, which may be larger than
//! others.

use axum::RequestExt;
use axum::body::HttpBody;
use axum::extract::Request;

use crate::api::state::Shared;
use crate::blocking;
use crate::http::extract::body::whole_body;
use crate::http::problem::Problem;
use crate::http::room::{WholeBodyRoom, no_room};
use crate::session::image::REQUEST_IMAGE_BYTES;
use crate::source::Source;

/// Bytes of a body with a conversation, at most. JSON takes more than the text that it holds.
pub const CONVERSATION_BYTES: usize = 2 << 20;
/// Bytes that images add to a body, at most: those of base64, and some more.
pub const IMAGE_BYTES: usize = REQUEST_IMAGE_BYTES / 2 * 3;
/// Bytes of a body with a conversation and its images, at most.
pub const WITH_IMAGES: usize = CONVERSATION_BYTES + IMAGE_BYTES;

/// A PNG of one pixel in base64, as an example.
pub const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg==";

/// Returns what `parse` makes of a body of at most `most` bytes where its length is declared, and else of
/// at most the usual size. A large one is parsed beside the threads of connections, and keeps its room until
/// then.
///
/// # Errors
/// A 400, 408, 413, 415 or 503, and those of `parse`.
pub async fn read<T: Send + 'static>(
    mut request: Request,
    shared: &Shared,
    most: usize,
    parse: impl FnOnce(Vec<u8>) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let Ok(source) = request.extract_parts_with_state::<Source, _>(shared).await;
    // The connection takes room for a body of the usual size, and for one of unknown length; a larger
    // one takes its room here, at once.
    let usual = shared.settings.max_body_bytes;
    let declared = request.body().size_hint().exact();
    let declared = declared.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
    let limit = if declared > usual { most } else { usual };
    let whole = request.extensions().get::<WholeBodyRoom>().cloned();
    let room = match whole.filter(|_| declared > usual && declared <= limit) {
        Some(whole) => {
            let taken = shared.room.take(source.widest_network(), declared).await;
            whole.note();
            Some(taken.ok_or_else(no_room)?)
        }
        None => None,
    };
    let body = whole_body(request, limit).await?;
    blocking::run(body.len(), move || {
        let _room = room;
        parse(body)
    })
    .await
}
