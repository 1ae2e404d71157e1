//! Reads the body of a request that begins a turn.

use axum::extract::Request;

use crate::api::large_body;
use crate::api::state::Shared;
use crate::http::extract::body::json_position;
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::{FieldFault, NotAnObject, Object};
use crate::http::problem::Problem;

use super::params::{INVALID_VALUE, error};

/// Reads the body of a request of at most `most` bytes by `read`, which gets the object and its text.
///
/// # Errors
/// Where it is too large, broke off, or is not a JSON object; and the first parameter that is not valid.
pub async fn read<T: Send + 'static>(
    request: Request,
    shared: &Shared,
    most: usize,
    read: fn(&Object, &[u8]) -> Result<T, FieldError>,
) -> Result<T, Problem> {
    let parse = move |text: Vec<u8>| {
        read(&object(&text)?, &text).map_err(|error| Problem::from(vec![error]))
    };
    large_body::read(request, shared, most, parse).await
}

fn object(text: &[u8]) -> Result<Object, Problem> {
    Object::parse(text).map_err(|error| match error {
        NotAnObject::OtherJson => {
            let error = FieldError {
                loc: vec!["body".to_owned()],
                msg: "The body must be a JSON object.".to_owned(),
                kind: "invalid_type",
            };
            vec![error].into()
        }
        NotAnObject::Invalid(error) => Problem::invalid_json(json_position(&error)),
    })
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
