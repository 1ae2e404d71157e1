//! Reads the body of a request that begins a turn.

use axum::body::Bytes;
use axum::extract::Request;

use crate::api::large_body::{self, HeldRoom};
use crate::api::state::Shared;
use crate::http::extract::body::json_position;
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::{FieldFault, NotAnObject, Object, TOO_MANY_VALUES};
use crate::http::problem::Problem;

use super::params::{INVALID_VALUE, JsonObject, error, shown_name};

/// Reads the body of a request of at most `most` bytes, parses it as an object, and reads that with its
/// text. The room of the body is kept until it is dropped.
///
/// # Errors
/// Where it is too large, broke off, is not a JSON object, or `read` refuses it.
pub async fn read<T: Send + 'static>(
    request: Request,
    shared: &Shared,
    most: usize,
    read: fn(&Object, &[u8]) -> Result<T, FieldError>,
) -> Result<(T, HeldRoom), Problem> {
    let parse = move |body: Bytes| {
        let object = object(body.clone())?;
        read(&object, &body).map_err(|error| vec![error].into())
    };
    large_body::read(request, shared, most, parse).await
}

fn object(body: Bytes) -> Result<Object, Problem> {
    Object::of(body).map_err(|error| match error {
        NotAnObject::OtherJson => {
            let error = FieldError {
                loc: vec!["body".to_owned()],
                msg: "The body must be a JSON object.".to_owned(),
                kind: "invalid_type",
            };
            vec![error].into()
        }
        NotAnObject::TooManyFields => Problem::too_many_fields(),
        NotAnObject::Invalid(error) => Problem::invalid_json(json_position(&error)),
    })
}

/// Reads every parameter: this front refuses those that it does not know.
///
/// # Errors
/// The first one that cannot be read.
pub fn parameters(object: &Object) -> Result<JsonObject, FieldError> {
    object.read_all().map_err(|(name, fault)| {
        let kind = match fault {
            FieldFault::TooManyValues => TOO_MANY_VALUES,
            FieldFault::LoneSurrogate | FieldFault::BeyondBounds => INVALID_VALUE,
        };
        error(shown_name(name), kind, fault.text())
    })
}
