//! WebSockets: each has one task, which answers pings while a request runs.

mod connection;
mod request;
mod scanner;
mod socket;
mod view;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;

use self::connection::Connection;
use self::socket::Socket;
use crate::api::native::wire;
use crate::api::problems::in_time;
use crate::api::responses::{InvalidFields, TooManyConnections, Unavailable};
use crate::api::state::Shared;
use crate::http::extract::fields::Fields;
use crate::http::extract::query::QueryFields;
use crate::http::middleware::OpenedSocket;
use crate::http::problem::{Problem, ProblemDetails};
use crate::http::rate_limit::Standings;
use crate::lifecycle::catch_panic;
use crate::session::{Cursor, SessionId};
use crate::sign_in::Identity;
use crate::telemetry::count_resume;
use crate::telemetry::traces::TraceContext;

fn upgrade_required() -> Response {
    let detail = "This path serves WebSockets; send an upgrade request.";
    let problem = Problem::new(StatusCode::UPGRADE_REQUIRED, "websocket_expected", detail);
    let protocol = [
        (header::UPGRADE, "websocket"),
        (header::CONNECTION, "upgrade"),
        (header::SEC_WEBSOCKET_VERSION, "13"),
    ];
    (protocol, problem).into_response()
}

/// Characters of a key, at the end of which the padding of base64 stands.
const KEY_CHARACTERS: usize = 24;
const KEY_PADDING: &str = "==";

/// Checks the key of a handshake: 16 bytes in base64, in one header (RFC 6455, section 4.1). The answer
/// to any other would prove nothing to a client, or a cache between.
fn check_key(headers: &HeaderMap) -> Result<(), Problem> {
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    let key = keys.next().and_then(|key| key.to_str().ok()).filter(|_| keys.next().is_none());
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/".contains(&byte);
    let is_key = |key: &str| {
        let digits = key.strip_suffix(KEY_PADDING);
        key.len() == KEY_CHARACTERS && digits.is_some_and(|digits| digits.bytes().all(is_base64))
    };
    if key.is_some_and(is_key) {
        return Ok(());
    }
    let detail = "Sec-WebSocket-Key is not valid; send 16 random bytes in base64, in one header.";
    Err(Problem::new(StatusCode::BAD_REQUEST, "handshake_key_invalid", detail))
}

fn is_handshake(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE);
    upgrade.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The subprotocol of this server. A browser offers it beside the one that carries its token, and the
/// answer never repeats a token.
const PROTOCOL: &str = "jarvis.v1";

fn offers_protocol(headers: &HeaderMap) -> bool {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    offered
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|protocol| protocol.trim() == PROTOCOL)
}

/// Opens a WebSocket.
#[utoipa::path(
    get, path = "/ws", tag = "chat",
    params(
        ("session_id" = Option<SessionId>, Query,
            description = "The session; a new one where absent or empty"),
        ("cursor" = Option<String>, Query, description = "The cursor to resume after"),
    ),
    responses(
        (status = 101, description = "JSON text frames follow"),
        (status = 400, body = ProblemDetails, content_type = "application/problem+json",
            description = "The handshake has a body, or its key is not valid"),
        InvalidFields,
        (status = 426, body = ProblemDetails, content_type = "application/problem+json"),
        TooManyConnections,
        Unavailable,
    ),
)]
pub async fn upgrade(
    State(shared): State<Shared>,
    caller: Identity,
    OpenedSocket { subject, hold }: OpenedSocket,
    QueryFields(query): QueryFields,
    mut request: Request,
) -> Result<Response, Problem> {
    if is_handshake(request.headers()) {
        check_key(request.headers())?;
    }
    let Ok(mut response) = create_response_with_body(&request, Body::empty) else {
        return Ok(upgrade_required());
    };
    // The bytes of a body could not be distinguished from frames.
    if !request.body().is_end_stream() {
        let detail = "a WebSocket handshake has no body; leave out Content-Length and \
            Transfer-Encoding";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "handshake_with_body", detail));
    }
    let mut fields = Fields::new("query", &query);
    let session = fields.session();
    let given = fields.text("cursor", usize::MAX).filter(|text| !text.is_empty());
    fields.finish(())?;
    let permit = shared.admit(&subject.source)?.with(hold);
    let resumed = given.is_some();
    let cursor: Option<Cursor> = given.and_then(|text| text.parse().ok());
    let session = session.unwrap_or_else(SessionId::random);
    tracing::Span::current().record("session", session.redacted());
    let mut reader = in_time(shared.feeds.reader(&caller.owner, session, cursor)).await?;
    reader.charge(shared.output_room(&subject.source).of_client());
    // A cursor that is not valid leads to a snapshot, as one that is too old.
    let recovered = reader.is_recovered() && resumed == cursor.is_some();
    if resumed {
        count_resume("websocket", if recovered { "recovered" } else { "snapshot" });
    }
    let connected_at = if recovered { reader.cursor() } else { cursor.unwrap_or(Cursor::START) };
    let welcome = wire::connection(session, Some(connected_at), resumed, recovered, None);
    if offers_protocol(request.headers()) {
        let protocol = HeaderValue::from_static(PROTOCOL);
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    let standings = permit.standings();
    response.extensions_mut().insert(Standings(standings));
    let tracker = shared.sockets.clone();
    let trace = TraceContext::of_client(request.headers());
    let upgrading = hyper::upgrade::on(&mut request);
    let largest = shared.settings.max_frame_bytes;
    let share = shared.unfinished_messages.share(&subject.source);
    // Boxed, because the task would keep the room of everything that it captures.
    let create: Box<dyn FnOnce(Socket) -> Box<Connection> + Send> = Box::new(move |socket| {
        let validity = &caller.validity;
        let connection = Connection::new(shared, validity, subject, session, socket, reader);
        Box::new(connection.with_trace(trace.map(Box::new)))
    });
    let open = async move {
        let _permit = permit;
        // It fails where the client leaves before the head of the response is sent.
        let Ok(upgraded) = upgrading.await else { return };
        // Boxed, because the future is large, and its room is needed only once.
        let connection = create(Box::pin(Socket::new(upgraded, largest, share)).await);
        // A panic closes the socket; its client reconnects with its cursor.
        let _ = catch_panic("websocket", connection.run(welcome, recovered)).await;
    };
    // Not in the span of the handshake, which an idle socket would keep: each request has its own.
    tracker.spawn(open);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_sixteen_bytes_in_base64_in_one_header() {
        let check = |keys: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for key in keys {
                headers.append(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static(key));
            }
            check_key(&headers).map_err(|problem| problem.status.as_u16())
        };
        assert_eq!(check(&["dGhlIHNhbXBsZSBub25jZQ=="]), Ok(()));
        assert_eq!(check(&["+/+/+/+/+/+/+/+/+/+/+Q=="]), Ok(()));
        for wrong in [
            &[][..],
            &[""],
            &["x"],
            &["dGhlIHNhbXBsZQ=="],
            &["dGhlIHNhbXBsZSBub25jZQ=== "],
            &["dGhlIHNhbXBsZSBub25jZTEy"],
            &["dGhlIHNhbXBsZSBub25jZQ=a"],
            &["dGhlIHNhbXBsZSBub25_ZQ=="],
            &["dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ=="],
            &["dGhlIHNhbXBsZSBub25jZQ==, dGhlIHNhbXBsZSBub25jZQ=="],
        ] {
            assert_eq!(check(wrong), Err(400), "{wrong:?}");
        }
    }
}
