//! Reads and parses the body of a request that brings its own conversation or images, which may be larger
//! than others.

use axum::RequestExt;
use axum::body::{Bytes, HttpBody};
use axum::extract::Request;

use crate::api::state::Shared;
use crate::blocking;
use crate::http::extract::body::whole_body;
use crate::http::problem::Problem;
use crate::http::room::{RoomPermit, WholeBodyRoom, no_room};
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

/// The room of a large body, and of what was read from it. It is kept until the request was accepted or
/// refused.
#[must_use]
pub struct HeldRoom {
    _permit: Option<RoomPermit>,
}

/// Reads a body of at most `most` bytes where its length is declared, and else of at most the usual size,
/// and parses it. The parse of a large body leaves the threads of the connections alone, and ends before
/// its result is returned: `parse` keeps nothing of what it does not return.
///
/// # Errors
/// A 400, 408, 413, 415 or 503, or the error of `parse`.
pub async fn read<T: Send + 'static>(
    mut request: Request,
    shared: &Shared,
    most: usize,
    parse: impl FnOnce(Bytes) -> Result<T, Problem> + Send + 'static,
) -> Result<(T, HeldRoom), Problem> {
    let Ok(source) = request.extract_parts_with_state::<Source, _>(shared).await;
    let network = source.widest_network();
    let usual = shared.settings.max_body_bytes;
    let declared = request.body().size_hint().exact();
    let declared = declared.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let bytes = declared.unwrap_or(usual);
    let limit = if bytes > usual { most } else { usual };
    // The connection takes room for a small body, until that was read; a large one, and one of unknown
    // length, takes its room here, at once, and keeps it.
    let whole = request.extensions().get::<WholeBodyRoom>().cloned();
    let permit = match whole.filter(|_| bytes > blocking::SMALL && bytes <= limit) {
        Some(whole) => {
            let taken = shared.room.take(network, bytes).await;
            whole.note();
            Some(taken.ok_or_else(no_room)?)
        }
        None => None,
    };
    let body = whole_body(request, limit).await?;
    let permit = permit.map(|permit| permit.shrink(body.len()));
    // Kept with the text, also where nobody waits for the parse any more.
    let parse = move |text| (parse(text), HeldRoom { _permit: permit });
    let (parsed, room) = blocking::run(network, body.len(), move || parse(body.into())).await;
    Ok((parsed?, room))
}
