//! The images of the messages of a session.

use axum::Extension;
use axum::extract::{FromRequestParts, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use utoipa::ToSchema;

use crate::api::problems::in_time;
use crate::api::responses::{InvalidFields, SessionNotFound, Unavailable};
use crate::api::state::Shared;
use crate::http::extract::caller::Caller;
use crate::http::extract::fields::FieldError;
use crate::http::extract::path::{SessionPath, path_field};
use crate::http::problem::Problem;
use crate::http::room::{HandedRoom, no_room};
use crate::session::SessionId;
use crate::session::image::{ImageFormat, REQUEST_IMAGE_BYTES};

/// The bytes of an image.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "only its description is used")]
pub struct ImageBytes(Vec<u8>);

/// The digest of an image in the path.
pub struct DigestPath(String);

impl<S: Send + Sync> FromRequestParts<S> for DigestPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let digest = path_field(parts, state, "digest").await;
        let is_digest = |digest: &String| {
            digest.len() == 64
                && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        digest.filter(is_digest).map(Self).ok_or_else(|| {
            let msg = "must be 64 hexadecimal digits in lower case";
            vec![FieldError::new("path", "digest", "invalid_digest", msg)].into()
        })
    }
}

/// Returns an image of a message of the session, as it was sent.
#[utoipa::path(
    get, path = "/api/v1/chat/sessions/{session_id}/images/{digest}", tag = "sessions",
    params(
        ("session_id" = SessionId, Path),
        ("digest" = String, Path, pattern = "^[0-9a-f]{64}$",
            description = "The digest by which the message names it"),
    ),
    responses(
        (status = 200, description = "The image", content(
            (ImageBytes = "image/png"), (ImageBytes = "image/jpeg"), (ImageBytes = "image/webp"),
            (ImageBytes = "image/gif"),
        )),
        SessionNotFound, InvalidFields, Unavailable,
    ),
)]
pub async fn image(
    State(shared): State<Shared>,
    Caller(owner): Caller,
    SessionPath(session): SessionPath,
    DigestPath(digest): DigestPath,
    Extension(reserved): Extension<HandedRoom>,
) -> Result<Response, Problem> {
    // The room of the largest image, before it is read: the layer reserves less, and gives back the rest.
    let room = reserved.take().map(|room| room.resize(REQUEST_IMAGE_BYTES).ok_or_else(no_room));
    reserved.put(room.transpose()?);
    let stored = in_time(shared.store.image_by_digest(&owner, session, &digest)).await?;
    let stored = stored.ok_or_else(Problem::image_not_found)?;
    // Only images are stored.
    let format = ImageFormat::of(&stored).ok_or_else(Problem::image_not_found)?;
    Ok(([(CONTENT_TYPE, format.media_type())], stored).into_response())
}
