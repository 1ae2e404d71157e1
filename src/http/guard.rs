//! What every request passes: its identifier, log and metrics, and the rules on who may ask.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use axum::Extension;
use axum::extract::{ConnectInfo, FromRef, FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;
use tracing::field::Empty;
use uuid::Uuid;

use crate::api::native::input::hex_digest;
use crate::api::state::{ApiSettings, Shared};
use crate::http::origin;
use crate::http::problem::{NoRoute, Problem};
use crate::session::Owner;
use crate::telemetry::metric;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES: usize = 128;
/// The longest part of a path that may stand in the log; an identifier of a session is longer.
const LOGGED_PART: usize = 24;
/// Digits in such a part, at most: a piece of an identifier has more.
const LOGGED_DIGITS: usize = 4;
/// Parts of a path in the log, at most.
const LOGGED_PARTS: usize = 8;
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Who asks.
pub struct Caller(pub Owner);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(Owner::Anonymous))
    }
}

/// Proxies in front that add to X-Forwarded-For.
#[derive(Clone, Copy, Debug)]
pub struct TrustedProxies(pub usize);

/// Where the caller comes from: a word that is the same for one address, and tells it to nobody.
pub struct Source(pub String);

impl<S> FromRequestParts<S> for Source
where
    S: Send + Sync,
    TrustedProxies: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
        let address = forwarded(&parts.headers, TrustedProxies::from_ref(state).0).or(peer);
        Ok(Self(address.map_or_else(String::new, |address| {
            let mut digest = hex_digest(network(address).to_string().as_bytes());
            digest.truncate(16);
            digest
        })))
    }
}

/// The address that the outermost of our proxies saw.
fn forwarded(headers: &HeaderMap, proxies: usize) -> Option<IpAddr> {
    let hops = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let hops: Vec<&str> = hops.flat_map(|value| value.split(',')).map(str::trim).collect();
    hops.len().checked_sub(proxies).filter(|_| proxies > 0).and_then(|at| hops[at].parse().ok())
}

/// What one subscriber has: an address, of IPv6 the first half of one.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

/// Gives a request its identifier, span and metrics, and lets it pass if the rules allow it.
pub async fn observe(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = method_label(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    let id = request_id(request.headers());
    let span = tracing::info_span!(
        "request",
        request_id = id.to_str().unwrap_or_default(),
        method,
        path = route.map_or_else(|| redacted(request.uri().path()), str::to_owned),
        session = Empty,
        generation = Empty,
    );
    let mut response = guard(&shared.settings, request, next).instrument(span.clone()).await;
    let elapsed = started.elapsed().as_secs_f64();
    let status = response.status().as_u16();
    span.in_scope(|| tracing::info!(status, seconds = elapsed, "answered"));
    let met = response.extensions().get::<NoRoute>().is_none();
    let route = route.filter(|_| met).unwrap_or("none").to_owned();
    metrics::counter!(
        metric::HTTP_REQUESTS_TOTAL,
        "method" => method, "route" => route.clone(), "status" => status.to_string(),
    )
    .increment(1);
    metrics::histogram!(metric::HTTP_REQUEST_SECONDS, "method" => method, "route" => route)
        .record(elapsed);
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    if shared.lifecycle.is_draining() && status != 101 {
        // So that a load balancer does not keep the connection for more.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Only names that are known: a label that clients choose would grow without bound.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}

/// A path that no route has, for the log: without the parts that may hold the identifier of a
/// session, which is the only key of an anonymous one.
fn redacted(path: &str) -> String {
    let mut redacted = String::new();
    for (number, part) in path.trim_start_matches('/').split('/').enumerate() {
        if number == LOGGED_PARTS {
            redacted.push_str("/...");
            break;
        }
        let digits = part.bytes().filter(u8::is_ascii_digit).count();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let harmless =
            part.len() <= LOGGED_PART && digits <= LOGGED_DIGITS && part.bytes().all(plain);
        redacted.push('/');
        redacted.push_str(if harmless { part } else { "{redacted}" });
    }
    redacted
}

fn request_id(headers: &HeaderMap) -> HeaderValue {
    let usable = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=REQUEST_ID_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    let made = || HeaderValue::try_from(Uuid::new_v4().to_string()).ok();
    headers
        .get(REQUEST_ID)
        .filter(usable)
        .cloned()
        .or_else(made)
        .unwrap_or_else(|| HeaderValue::from_static("none"))
}

async fn guard(settings: &ApiSettings, request: Request, next: Next) -> Response {
    let (headers, uri) = (request.headers(), request.uri());
    let refuse = |problem: Problem| {
        let mut response = problem.into_response();
        response.extensions_mut().insert(NoRoute);
        response
    };
    if let Err(problem) = check_host(settings, headers, uri) {
        return refuse(problem);
    }
    let listed = listed_origin(settings, headers);
    let preflight = request.method() == Method::OPTIONS
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if listed.is_none()
        && changes_something(request.method(), headers)
        && let Err(problem) = check_origin(headers, uri)
    {
        return refuse(problem);
    }
    let mut response = match listed {
        Some(_) if preflight => (Extension(NoRoute), StatusCode::NO_CONTENT).into_response(),
        _ => next.run(request).await,
    };
    if let Some(origin) = listed {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        for (name, value) in if preflight { PREFLIGHT } else { READABLE } {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    response
}

const PREFLIGHT: &[(HeaderName, &str)] = &[
    (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PATCH, DELETE"),
    (
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        "authorization, content-type, idempotency-key, last-event-id, x-request-id",
    ),
    (header::ACCESS_CONTROL_MAX_AGE, "600"),
];
const READABLE: &[(HeaderName, &str)] =
    &[(header::ACCESS_CONTROL_EXPOSE_HEADERS, "retry-after, x-request-id")];

fn changes_something(method: &Method, headers: &HeaderMap) -> bool {
    let handshake = headers
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    handshake || !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// The request's origin, where it is one that may call from elsewhere.
fn listed_origin(settings: &ApiSettings, headers: &HeaderMap) -> Option<HeaderValue> {
    let given = headers.get(header::ORIGIN)?;
    let allowed = &settings.allowed_origins;
    let named = || {
        let given = given.to_str().ok().map(origin::canonical);
        given.is_some_and(|given| allowed.iter().any(|allowed| *allowed == given))
    };
    let listed =
        allowed.iter().any(|allowed| allowed == origin::ANY) || (!allowed.is_empty() && named());
    listed.then(|| given.clone())
}

/// Any web page may send such a request for whoever visits it, as a body without a Content-Type is
/// read as JSON; its browser says so here.
fn check_origin(headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    let foreign = match headers.get(header::ORIGIN) {
        Some(origin) => {
            let own = host(headers, uri);
            let theirs = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
            match (theirs, own) {
                (Some((scheme, authority)), Some(own)) => {
                    let port = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
                    let bare = |name: &str| name.strip_suffix(port).unwrap_or(name).to_lowercase();
                    bare(authority) != bare(own)
                }
                _ => true,
            }
        }
        None => false,
    };
    let cross_site = headers.get(FETCH_SITE).is_some_and(|site| site == "cross-site");
    if foreign || cross_site {
        let detail = "this origin may not call this service; its operator can list it in \
            JARVIS_ALLOWED_ORIGINS (--allowed-origins)";
        return Err(Problem::new(StatusCode::FORBIDDEN, "origin_not_allowed", detail));
    }
    Ok(())
}

/// Probes and Prometheus come by address.
fn check_host(settings: &ApiSettings, headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    let path = uri.path();
    if settings.allowed_hosts.is_empty() || path.starts_with("/health") || path == "/metrics" {
        return Ok(());
    }
    let host = host(headers, uri).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let allowed =
        |allowed: &String| allowed.eq_ignore_ascii_case(name) || allowed.eq_ignore_ascii_case(host);
    if settings.allowed_hosts.iter().any(allowed) {
        return Ok(());
    }
    let detail = "this service is not known by this Host; its operator can list it in \
        JARVIS_ALLOWED_HOSTS (--allowed-hosts)";
    Err(Problem::new(StatusCode::FORBIDDEN, "host_not_allowed", detail))
}

fn host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    match headers.get(header::HOST) {
        Some(host) => host.to_str().ok(),
        None => uri.authority().map(axum::http::uri::Authority::as_str),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    fn passes(pairs: &[(&'static str, &'static str)]) -> bool {
        check_origin(&headers(pairs), &Uri::from_static("/")).is_ok()
    }

    #[test]
    fn a_foreign_page_may_not_ask_and_a_program_may() {
        assert!(passes(&[("host", "a.example")]));
        assert!(passes(&[("host", "a.example"), ("origin", "https://a.example")]));
        assert!(passes(&[("host", "A.example:443"), ("origin", "https://a.example")]));
        assert!(passes(&[("host", "127.0.0.1:10200"), ("origin", "http://127.0.0.1:10200")]));
        assert!(!passes(&[("host", "127.0.0.1:10200"), ("origin", "http://127.0.0.1:3000")]));
        assert!(!passes(&[("host", "a.example"), ("origin", "https://b.example")]));
        assert!(!passes(&[("host", "a.example"), ("origin", "null")]));
        assert!(!passes(&[("origin", "https://a.example")]));
        assert!(!passes(&[("host", "a.example"), ("sec-fetch-site", "cross-site")]));
    }

    #[test]
    fn an_origin_is_listed_with_and_without_its_default_port() {
        let listed = |allowed: &str, origin: &'static str| {
            let allowed = origin::listed_origin(allowed).expect("an origin");
            let settings = ApiSettings { allowed_origins: vec![allowed], ..ApiSettings::default() };
            listed_origin(&settings, &headers(&[("origin", origin)])).is_some()
        };
        assert!(listed("https://h:443", "https://h"));
        assert!(listed("https://h", "https://h:443"));
        assert!(listed("http://h:80", "http://h"));
        assert!(listed("HTTPS://H/", "https://h"));
        assert!(listed("*", "null"));
        assert!(!listed("https://h", "http://h"));
        assert!(!listed("https://h", "https://h:444"));
        assert!(!listed("https://h", "https://h.evil.example"));
        assert!(!listed("https://h", "null"));
    }

    #[test]
    fn no_identifier_of_a_session_is_left_in_a_path() {
        let id = "6b1f0c3e-52a4-4c1d-9a57-3f0d84be2c16";
        let simple = id.replace('-', "");
        let encoded = id.replace("6b", "%36%62");
        for id in [id, &*simple, &*encoded, &format!("urn:uuid:{id}"), &id.to_uppercase()] {
            let path = redacted(&format!("/api/v1/chat/session/{id}/messages"));
            assert_eq!(path, "/api/v1/chat/session/{redacted}/messages", "{id}");
        }
        assert_eq!(redacted("/"), "/");
        assert_eq!(redacted("/wp-login.php"), "/wp-login.php");
        assert_eq!(redacted(&"/a".repeat(100)), format!("{}/...", "/a".repeat(8)));
    }

    #[test]
    fn a_host_is_checked_where_a_list_is_set() {
        let settings =
            ApiSettings { allowed_hosts: vec!["a.example".into()], ..ApiSettings::default() };
        let check = |host, path| {
            check_host(&settings, &headers(&[("host", host)]), &Uri::from_static(path)).is_ok()
        };
        assert!(check("a.example", "/ws"));
        assert!(check("A.example:10200", "/ws"));
        assert!(!check("b.example", "/ws"));
        assert!(check("10.0.0.7:10200", "/health/ready"));
    }

    #[test]
    fn a_request_id_is_echoed_only_if_it_is_fit_for_a_log_line() {
        assert_eq!(request_id(&headers(&[("x-request-id", "abc-1")])), "abc-1");
        assert_ne!(request_id(&headers(&[("x-request-id", "a b")])), "a b");
        assert_eq!(request_id(&HeaderMap::new()).len(), 36);
    }
}
