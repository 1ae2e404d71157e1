//! Extracts a request's body as JSON, within bounds of bytes and time.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use axum::RequestExt;
use axum::body::{Bytes, HttpBody};
use axum::extract::{FromRef, FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;

use crate::blocking::{self, SMALL};
use crate::http::extract::caller::TrustedProxies;
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::{NotAnObject, Object, without_bom};
use crate::http::problem::Problem;
use crate::http::room::{WholeBodyRoom, no_room};
use crate::source::{Source, SourceKey};

/// How long a request's body may take to arrive.
const BODY_LIMIT: Duration = Duration::from_secs(30);

/// The largest body, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimit(pub usize);

/// A type that is read from a body for a handler.
pub trait ReadBody: Sized + Send + 'static {
    /// Reads the fields of a body.
    ///
    /// # Errors
    /// Every field that is not valid.
    fn read(object: &Object) -> Result<Self, Vec<FieldError>>;
}

/// A body that is a JSON object, whatever its Content-Type, with what a handler reads of it. A missing
/// body, and `null`, is an empty object. The fields are read where the body is parsed: a field is parsed
/// once it is read, and a large one would delay every other connection of the handler's thread.
pub struct JsonBody<T>(pub T);

impl<T, S> FromRequest<S> for JsonBody<T>
where
    T: ReadBody,
    S: Send + Sync,
    BodyLimit: FromRef<S>,
    TrustedProxies: FromRef<S>,
    SourceKey: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(mut request: Request, state: &S) -> Result<Self, Problem> {
        let is_small = request.body().size_hint().upper().is_some_and(|it| it <= SMALL as u64);
        let network = if is_small {
            None
        } else {
            let Ok(source) = request.extract_parts_with_state::<Source, S>(state).await;
            source.widest_network()
        };
        // Its room is kept until it was parsed.
        let _room = request.extensions().get::<WholeBodyRoom>().cloned();
        let body = whole_body(request, BodyLimit::from_ref(state).0).await?;
        blocking::run(network, body.len(), move || Ok(Self(T::read(&parse_object(body.into())?)?)))
            .await
    }
}

/// Parses a body. A missing one, and `null`, is an empty object.
///
/// # Errors
/// Where it is no object: a 422.
pub fn parse_object(body: Bytes) -> Result<Object, Problem> {
    if matches!(without_bom(&body).trim_ascii(), b"" | b"null") {
        return Ok(Object::default());
    }
    match Object::of(body) {
        Ok(object) => Ok(object),
        Err(NotAnObject::OtherJson) => {
            let error = FieldError {
                loc: vec!["body".to_owned()],
                msg: "must be an object".to_owned(),
                kind: "dict_type",
            };
            Err(vec![error].into())
        }
        Err(NotAnObject::TooManyFields) => Err(Problem::too_many_fields()),
        Err(NotAnObject::Invalid(error)) => Err(Problem::invalid_json(json_position(&error))),
    }
}

/// Returns a body of at most `limit` bytes that is not compressed, within the time limit of bodies.
///
/// # Errors
/// A 400, 408, 413, 415 or 503.
pub async fn whole_body(request: Request, limit: usize) -> Result<Vec<u8>, Problem> {
    check_encoding(request.headers())?;
    tokio::time::timeout(BODY_LIMIT, read_body(request, limit)).await.map_err(|_| {
        let detail = "The body did not arrive in time; send it again.";
        Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
    })?
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
    let detail = "The body is compressed; send JSON in UTF-8 as it is, without a Content-Encoding \
        or with identity.";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoding_not_supported", detail))
}

/// Reads a body of at most `limit` bytes. exchange.rs handles the rest of a larger one.
async fn read_body(request: Request, limit: usize) -> Result<Vec<u8>, Problem> {
    let large = || {
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        let detail = format!("The body is larger than {limit} bytes; send less.");
        Problem::new(status, "body_too_large", detail)
    };
    if request.body().size_hint().lower() > limit as u64 {
        return Err(large());
    }
    let declared = request.body().size_hint().exact().unwrap_or_default();
    let mut chunks = request.into_body().into_data_stream();
    let mut body = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            if is_without_room(&error) {
                return no_room();
            }
            let detail = "The body broke off; send it again.";
            Problem::new(StatusCode::BAD_REQUEST, "body_unreadable", detail)
        })?;
        if body.len() + chunk.len() > limit {
            return Err(large());
        }
        if body.capacity() == 0 {
            // A part of a large body came, so there is room for the whole of it. To grow would copy it,
            // and need twice its bytes for a moment.
            body.reserve_exact(usize::try_from(declared).unwrap_or(limit).min(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Returns whether a body was not read because there was no room for it.
fn is_without_room(error: &axum::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::OutOfMemory)
}

/// Returns the position at which a text stops being JSON.
pub fn json_position(error: &serde_json::Error) -> String {
    format!("not valid JSON, at line {} column {}", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use std::thread::{self, ThreadId};

    use axum::body::Body;

    use super::*;

    #[derive(Clone)]
    struct Limit;

    impl FromRef<Limit> for BodyLimit {
        fn from_ref(_: &Limit) -> Self {
            Self(1 << 20)
        }
    }

    impl FromRef<Limit> for TrustedProxies {
        fn from_ref(_: &Limit) -> Self {
            Self::default()
        }
    }

    impl FromRef<Limit> for SourceKey {
        fn from_ref(_: &Limit) -> Self {
            Self::default()
        }
    }

    /// Notes on which thread a field is read, which parses it.
    struct ReadOn(ThreadId);

    impl ReadBody for ReadOn {
        fn read(object: &Object) -> Result<Self, Vec<FieldError>> {
            assert!(object.get("title").is_ok_and(|title| title.is_some()));
            Ok(Self(thread::current().id()))
        }
    }

    #[tokio::test]
    async fn a_large_field_is_read_beside_the_connections_on_every_route() {
        let read = async |bytes: usize| {
            let body = format!("{{\"title\":\"{}\"}}", "x".repeat(bytes));
            let read = JsonBody::from_request(Request::new(Body::from(body)), &Limit).await;
            let JsonBody(ReadOn(thread)) = read.unwrap_or_else(|_| panic!("an object"));
            thread
        };
        let here = thread::current().id();
        assert_eq!(read(1_000).await, here);
        assert_ne!(read(100_000).await, here);
    }
}
