//! Reads the body of a request that begins a turn.

use axum::RequestExt;
use axum::body::HttpBody;
use axum::extract::Request;

use crate::api::state::Shared;
use crate::http::extract::body::{json_position, whole_body};
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::{FieldFault, NotAnObject, Object};
use crate::http::problem::Problem;
use crate::http::room::no_room;
use crate::source::Source;

use super::params::{INVALID_VALUE, error};

/// Bytes of a body whose length is declared, at most. JSON takes more than the text that it holds.
const BODY_BYTES: usize = 2 << 20;

/// Reads the body of a request, and parses it as an object.
///
/// # Errors
/// Where it is too large, broke off, or is not a JSON object.
pub async fn object(mut request: Request, shared: &Shared) -> Result<(Object, Vec<u8>), Problem> {
    let Ok(source) = request.extract_parts_with_state::<Source, _>(shared).await;
    // The connection takes room for a body of the usual size, and for one of unknown length.
    let usual = shared.settings.max_body_bytes;
    let declared = request.body().size_hint().exact();
    let declared = declared.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
    let limit = if declared > usual { BODY_BYTES } else { usual };
    let beyond = declared.min(limit).saturating_sub(usual);
    let network = source.widest_network();
    let _room = shared.room.take(network, beyond).await.ok_or_else(no_room)?;
    let body = whole_body(request, limit).await?;
    let object = Object::parse(&body).map_err(|error| match error {
        NotAnObject::OtherJson => {
            let error = FieldError {
                loc: vec!["body".to_owned()],
                msg: "The body must be a JSON object.".to_owned(),
                kind: "invalid_type",
            };
            vec![error].into()
        }
        NotAnObject::Invalid(error) => Problem::invalid_json(json_position(&error)),
    })?;
    Ok((object, body))
}

/// Checks that every parameter can be read.
///
/// # Errors
/// The first one that cannot.
pub fn check_readable(object: &Object) -> Result<(), FieldError> {
    let Some((name, fault)) = object.unreadable().next() else { return Ok(()) };
    let msg = match fault {
        FieldFault::LoneSurrogate => "holds a lone surrogate, which is no character",
        FieldFault::BeyondBounds => "is nested too deeply, or holds a number that is too large",
    };
    Err(error(name, INVALID_VALUE, msg))
}
