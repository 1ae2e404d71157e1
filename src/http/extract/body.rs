//! Extracts a request's body as JSON, within bounds of bytes and time.

use std::time::Duration;

use axum::body::HttpBody;
use axum::extract::{FromRef, FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;

use crate::http::extract::fields::FieldError;
use crate::http::extract::object::{NotAnObject, Object, without_bom};
use crate::http::problem::Problem;

/// How long a request's body may take to arrive.
const BODY_LIMIT: Duration = Duration::from_secs(30);

/// The largest body, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimit(pub usize);

/// A body that is a JSON object, whatever its Content-Type. A missing body, and `null`, is an empty
/// object.
pub struct JsonBody(pub Object);

impl<S> FromRequest<S> for JsonBody
where
    S: Send + Sync,
    BodyLimit: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        check_encoding(request.headers())?;
        let read = read_body(request, BodyLimit::from_ref(state).0);
        let body = tokio::time::timeout(BODY_LIMIT, read).await.map_err(|_| {
            let detail = "the body did not arrive in time";
            Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
        })??;
        if matches!(without_bom(&body).trim_ascii(), b"" | b"null") {
            return Ok(Self(Object::default()));
        }
        match Object::parse(&body) {
            Ok(object) => Ok(Self(object)),
            Err(NotAnObject::OtherJson) => {
                let error = FieldError {
                    loc: vec!["body".to_owned()],
                    msg: "must be an object".to_owned(),
                    kind: "dict_type",
                };
                Err(vec![error].into())
            }
            Err(NotAnObject::Invalid(error)) => Err(Problem::invalid_json(json_position(&error))),
        }
    }
}

/// Refuses a compressed body: a few bytes may decompress to gigabytes of text.
///
/// # Errors
/// A 415.
pub fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    let codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let codings = codings.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let plain = |coding: &[u8]| {
        let coding = coding.trim_ascii();
        coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
    };
    if codings.into_iter().all(plain) {
        return Ok(());
    }
    let detail = "the body is compressed; send JSON in UTF-8 as it is, without a Content-Encoding \
        or with identity";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoding_not_supported", detail))
}

/// Reads a body of at most `limit` bytes. exchange.rs handles the rest of a larger one.
async fn read_body(request: Request, limit: usize) -> Result<Vec<u8>, Problem> {
    let large = || {
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        let detail = format!("the body is larger than {limit} bytes; send less");
        Problem::new(status, "body_too_large", detail)
    };
    if request.body().size_hint().lower() > limit as u64 {
        return Err(large());
    }
    // There is room for what was declared, before anything is read.
    let declared = usize::try_from(request.body().size_hint().lower()).unwrap_or(limit);
    let mut chunks = request.into_body().into_data_stream();
    let mut body = Vec::with_capacity(declared.min(limit));
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| {
            Problem::new(StatusCode::BAD_REQUEST, "body_unreadable", "the body broke off")
        })?;
        if body.len() + chunk.len() > limit {
            return Err(large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Returns the position at which a text stops being JSON.
pub fn json_position(error: &serde_json::Error) -> String {
    format!("not valid JSON, at line {} column {}", error.line(), error.column())
}
