//! The HTTP client of one Ollama host: its routes, its time limits, its errors.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::breaker::Breakers;
use super::embedding::Vectors;
use super::error::OllamaError;
use super::health::HostHealth;
use super::refusal::refusal;
use super::reply::{LoadedModel, Model, ReplyLine, Show, Tags, Version, without_bom};
use super::wire::KeepAlive;
use crate::blocking;
use crate::source::ShareKey;
use crate::telemetry::traces::{TRACEPARENT, TraceContext};
use crate::tls::TlsOptions;

/// Largest reply that is read, in bytes.
const REPLY_LIMIT: usize = 8 << 20;
/// Largest error text that is read, in bytes.
const REFUSAL_LIMIT: usize = 64 << 10;
/// Time limit of a request that needs no model.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an unused connection stays open.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// How long a connection may be quiet before the kernel probes the other side.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

/// The stable name of a host: scheme, address and path, the same on every replica. It is meant for
/// Redis and for metrics, never for clients.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(Arc<str>);

impl HostId {
    /// Wraps the stable name of a host.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    pub(super) fn of(url: &Url, address: SocketAddr) -> Self {
        let path = url.path().trim_end_matches('/');
        Self(format!("{}://{address}{path}", url.scheme()).into())
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the address and the port of the host.
    pub fn address(&self) -> Option<(String, u16)> {
        let (_, rest) = self.0.split_once("://")?;
        let address: SocketAddr = rest.split('/').next()?.parse().ok()?;
        Some((address.ip().to_string(), address.port()))
    }
}

/// A host's name and port, without the secrets of its URL. It is meant for logs, never for clients.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostName(String);

impl HostName {
    pub(super) fn of(url: &Url) -> Self {
        let host = url.host_str().unwrap_or_default();
        Self(
            url.port_or_known_default()
                .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")),
        )
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The time limits of one answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostTimeouts {
    pub first_token: Duration,
    pub token_gap: Duration,
}

/// The details of a model, from `/api/show`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Details {
    pub num_ctx: Option<u32>,
    pub thinks: bool,
    /// Whether the model takes images.
    pub sees: bool,
}

/// A client of one host.
#[derive(Debug)]
pub(super) struct Host {
    pub id: HostId,
    pub name: HostName,
    pub health: HostHealth,
    pub breakers: Breakers,
    pub limits: HostTimeouts,
    pub keep_alive: KeepAlive,
    base: Url,
    http: reqwest::Client,
}

impl Host {
    pub(super) fn new(
        id: HostId,
        mut base: Url,
        http: reqwest::Client,
        limits: HostTimeouts,
        keep_alive: KeepAlive,
    ) -> Self {
        // `Url::join` keeps the path of the base only where it ends with a slash.
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let name = HostName::of(&base);
        let (health, breakers) = (HostHealth::default(), Breakers::default());
        Self { id, name, health, breakers, limits, keep_alive, base, http }
    }

    /// Checks that the host replies, unless its last outcome is no older than `age`.
    pub(super) async fn check_alive(&self, age: Duration) -> Result<(), OllamaError> {
        match self.health.within(age) {
            Some(true) => return Ok(()),
            // The first caller waits for a dead host; the others need not wait again.
            Some(false) if age > Duration::ZERO => return Err(OllamaError::Unreachable),
            _ => {}
        }
        let reply: Version = self.get("api/version").await?;
        tracing::debug!(host = %self.name, version = reply.text(), "model host healthy");
        Ok(())
    }

    /// Requests the models of the host.
    pub(super) async fn models(&self) -> Result<Vec<Model>, OllamaError> {
        let reply: Tags = self.get("api/tags").await?;
        Ok(reply.into_models())
    }

    /// Requests the models in the host's memory.
    pub(super) async fn loaded(&self) -> Result<Vec<LoadedModel>, OllamaError> {
        let reply: Tags = self.get("api/ps").await?;
        Ok(reply.into_loaded())
    }

    /// Requests the details of one model.
    pub(super) async fn details(&self, model: &str) -> Result<Details, OllamaError> {
        let show: Show = self.show(model).await?;
        Ok(Details { num_ctx: show.context_length(), thinks: show.thinks(), sees: show.sees() })
    }

    /// Requests the description of one model.
    pub(super) async fn show<T: DeserializeOwned>(&self, model: &str) -> Result<T, OllamaError> {
        let request = self.post("api/show")?.json(&json!({"model": model}));
        let limits = ReplyLimits::of(REPLY_TIMEOUT, OllamaError::ReplyTimeout);
        let body = self.fetch(request, model, limits).await?;
        self.parsed(serde_json::from_slice(&utf8(body)))
    }

    /// Requests the vectors of texts, within the time limit of the first token. Where they are several,
    /// a reply that is late or too large is no fault of the host. It is parsed in the name of the client's
    /// network, where it has one.
    pub(super) async fn embed(
        &self,
        path: &str,
        model: &str,
        body: &impl Serialize,
        has_several: bool,
        client: Option<ShareKey>,
    ) -> Result<Vectors, OllamaError> {
        let (late, large) = if has_several {
            (OllamaError::TooManyTexts, OllamaError::TooManyTexts)
        } else {
            (OllamaError::FirstTokenTimeout, OllamaError::ReplyTooLarge)
        };
        let limits =
            ReplyLimits { deadline: Instant::now() + self.limits.first_token, late, large };
        let request = self.post(path)?.json(body);
        let body = self.fetch(request, model, limits).await?;
        let vectors = blocking::run(client, body.len(), move || Vectors::parse(&utf8(body))).await;
        self.parsed(vectors)
    }

    /// Requests one object, within the time limit of the first token.
    pub(super) async fn object(
        &self,
        path: &str,
        model: &str,
        body: &impl Serialize,
        trace: Option<TraceContext>,
    ) -> Result<ReplyLine, OllamaError> {
        let limits = ReplyLimits::of(self.limits.first_token, OllamaError::FirstTokenTimeout);
        let request = self.post_in(trace, path)?.json(body);
        let body = self.fetch(request, model, limits).await?;
        self.parsed(ReplyLine::parse(&utf8(body)))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, OllamaError> {
        let limits = ReplyLimits::of(REPLY_TIMEOUT, OllamaError::ReplyTimeout);
        let request = self.http.get(self.url(path)?);
        let body = self.fetch(request, "", limits).await?;
        self.parsed(serde_json::from_slice(&utf8(body)))
    }

    fn post(&self, path: &str) -> Result<RequestBuilder, OllamaError> {
        Ok(self.http.post(self.url(path)?))
    }

    /// Begins a request that belongs to a trace.
    pub(super) fn post_in(
        &self,
        trace: Option<TraceContext>,
        path: &str,
    ) -> Result<RequestBuilder, OllamaError> {
        let request = self.post(path)?;
        Ok(match trace.and_then(|trace| trace.header()) {
            Some(header) => request.header(TRACEPARENT, header),
            None => request,
        })
    }

    fn url(&self, path: &str) -> Result<Url, OllamaError> {
        self.base.join(path).map_err(|_| OllamaError::Setting("a model host's URL has no path"))
    }

    /// Returns the body of a reply.
    async fn fetch(
        &self,
        request: RequestBuilder,
        model: &str,
        limits: ReplyLimits,
    ) -> Result<Vec<u8>, OllamaError> {
        let response = self.send(request, model, limits.deadline, limits.late.clone()).await?;
        self.read(response, REPLY_LIMIT, limits).await
    }

    /// Records whether a reply of the host could be parsed.
    fn parsed<T>(&self, reply: Result<T, serde_json::Error>) -> Result<T, OllamaError> {
        let reply = reply.map_err(|error| {
            tracing::warn!(host = %self.name, %error, "malformed reply of a model host");
            OllamaError::Malformed
        })?;
        self.health.succeeded();
        Ok(reply)
    }

    pub(super) async fn send(
        &self,
        request: RequestBuilder,
        model: &str,
        deadline: Instant,
        late: OllamaError,
    ) -> Result<Response, OllamaError> {
        let response = match timeout_at(deadline, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.record_failure(&error)),
            Err(_) => return Err(self.record_timeout(late)),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        // The status is enough where the text does not arrive.
        let limits = ReplyLimits { deadline, late, large: OllamaError::Malformed };
        let text = self.read(response, REFUSAL_LIMIT, limits).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        tracing::warn!(host = %self.name, %status, text = %text.trim(), "request refused by a model host");
        Err(refusal(status.as_u16(), &text, model))
    }

    async fn read(
        &self,
        mut response: Response,
        limit: usize,
        ReplyLimits { deadline, late, large }: ReplyLimits,
    ) -> Result<Vec<u8>, OllamaError> {
        let mut body = Vec::new();
        loop {
            match timeout_at(deadline, response.chunk()).await {
                Ok(Ok(Some(chunk))) if body.len() + chunk.len() > limit => {
                    tracing::warn!(host = %self.name, limit, "oversized reply of a model host");
                    return Err(large);
                }
                Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
                Ok(Ok(None)) => return Ok(body),
                Ok(Err(error)) => return Err(self.record_failure(&error)),
                Err(_) => return Err(self.record_timeout(late)),
            }
        }
    }

    /// Records a failed connection, and returns its error.
    pub(super) fn record_failure(&self, error: &reqwest::Error) -> OllamaError {
        self.health.failed();
        tracing::warn!(host = %self.name, error = %Causes(error), "connection to a model host failed");
        if !error.is_connect() {
            OllamaError::ConnectionLost
        } else if error.is_timeout() {
            OllamaError::ConnectTimeout
        } else {
            OllamaError::Unreachable
        }
    }

    /// Records that a time limit was exceeded, and returns its error.
    pub(super) fn record_timeout(&self, late: OllamaError) -> OllamaError {
        if late.fault().is_some() {
            self.health.failed();
        }
        tracing::warn!(host = %self.name, error = %late, "model host timed out");
        late
    }
}

/// The limits of one reply.
struct ReplyLimits {
    deadline: Instant,
    /// The error of a reply that is not there by then.
    late: OllamaError,
    /// The error of a reply that has too many bytes.
    large: OllamaError,
}

impl ReplyLimits {
    /// Limits a reply that a host is at fault for where it is late or too large.
    fn of(limit: Duration, late: OllamaError) -> Self {
        Self { deadline: Instant::now() + limit, late, large: OllamaError::Malformed }
    }
}

/// Returns a reply as UTF-8, without a byte order mark. Bytes that are not UTF-8 cost only the field that
/// they stand in.
fn utf8(body: Vec<u8>) -> Vec<u8> {
    match String::from_utf8(body) {
        Ok(text) if without_bom(text.as_bytes()).len() == text.len() => text.into_bytes(),
        Ok(text) => without_bom(text.as_bytes()).to_vec(),
        Err(error) => {
            String::from_utf8_lossy(without_bom(error.as_bytes())).into_owned().into_bytes()
        }
    }
}

/// An error with its causes, which reqwest's own text leaves out.
struct Causes<'a>(&'a reqwest::Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)?;
        let mut cause = std::error::Error::source(self.0);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Creates the HTTP client of one host, which connects to the pinned address of its name, and sends
/// the header with every request. `tls` is set for `https`.
pub(super) fn http_client(
    connect_timeout: Duration,
    tls: Option<&TlsOptions>,
    authorization: Option<&HeaderValue>,
    pinned: Option<(&str, SocketAddr)>,
) -> Result<reqwest::Client, OllamaError> {
    let provider = rustls::crypto::ring::default_provider();
    let builder = reqwest::Client::builder();
    let builder = match tls {
        Some(tls) if tls.authorities.is_some() => {
            let config = tls.client_config();
            let config = config.map_err(|_| OllamaError::Setting("TLS cannot be set up"))?;
            builder.tls_backend_preconfigured(config)
        }
        Some(_) => {
            // reqwest panics where the process has no provider. One that is already installed is fine.
            let _ = provider.install_default();
            builder.tls_backend_rustls()
        }
        None => {
            // The system's certificates are not needed, and a small container has none.
            let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
                .with_safe_default_protocol_versions()
                .map_err(|_| OllamaError::Setting("TLS cannot be set up"))?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            builder.tls_backend_preconfigured(config)
        }
    };
    let authorization = authorization.map(|value| (AUTHORIZATION, value.clone()));
    let builder = builder.default_headers(authorization.into_iter().collect());
    let builder = match pinned {
        Some((name, address)) => builder.resolve(name, address),
        None => builder,
    };
    builder
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .tcp_keepalive(TCP_KEEPALIVE)
        .pool_idle_timeout(IDLE_LIMIT)
        // Each generation has its own connection: closing it stops that generation alone.
        .http1_only()
        // Conversations go to the configured hosts, and nowhere else.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| {
            tracing::error!(error = %Causes(&error), "HTTP client for model hosts not built");
            OllamaError::Setting("the HTTP client for model hosts cannot be built")
        })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;
    use crate::source::SourceKey;

    /// Starts a host that replies to each request with a vector of so many bytes.
    async fn host_of_vectors(bytes: usize) -> Host {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let vector = format!("{{\"embedding\":[{}0]}}", "0,".repeat(bytes / 2));
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{vector}", vector.len());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let reply = reply.clone();
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(b"{}") {
                        stream.read_buf(&mut request).await.expect("a request");
                    }
                    stream.write_all(reply.as_bytes()).await.expect("a client");
                });
            }
        });
        let limit = Duration::from_secs(10);
        let http = http_client(limit, None, None, None).expect("a client");
        let limits = HostTimeouts { first_token: limit, token_gap: limit };
        let base = base.parse().expect("a URL");
        Host::new(HostId::new("h"), base, http, limits, KeepAlive::from("5m"))
    }

    #[tokio::test]
    async fn large_vectors_are_parsed_in_the_share_of_the_network_that_asked_for_them() {
        let host = host_of_vectors(200_000).await;
        let key = SourceKey::default();
        let network =
            |address: &str| key.source(address.parse().expect("an address")).widest_network();
        let (one, other) = (network("192.0.2.1"), network("192.0.2.2"));
        let embed = async |client| {
            host.embed("api/embed", "m", &serde_json::json!({}), false, client).await
        };
        assert!(embed(one).await.is_ok_and(|vectors| vectors.bytes > 200_000));
        // Work that waits for its end takes all of one network's share.
        let (ends, waits): (Vec<_>, Vec<_>) = (0..4).map(|_| mpsc::sync_channel::<()>(1)).unzip();
        let holds = waits.into_iter().map(|end| {
            blocking::run(one, blocking::SMALL + 1, move || {
                // Its other half is dropped.
                let _ = end.recv();
            })
        });
        let mut held = Box::pin(join_all(holds));
        assert!((&mut held).now_or_never().is_none());
        let mut of_one = Box::pin(embed(one));
        assert!(timeout(Duration::from_millis(500), &mut of_one).await.is_err(), "it has no share");
        let of_other = timeout(Duration::from_secs(10), embed(other)).await;
        assert!(of_other.is_ok_and(|it| it.is_ok()));
        drop(ends);
        let (_, of_one) = tokio::join!(held, of_one);
        assert!(of_one.is_ok());
    }

    #[test]
    fn a_name_holds_no_password() {
        let url = "https://user:secret@ollama.example/prefix".parse().expect("a URL");
        assert_eq!(HostName::of(&url).to_string(), "ollama.example:443");
    }

    #[test]
    fn a_base_with_a_path_keeps_it() {
        let http = http_client(Duration::from_secs(1), None, None, None).expect("a client");
        let limits =
            HostTimeouts { first_token: Duration::from_secs(1), token_gap: Duration::from_secs(1) };
        for base in ["http://h/ollama", "http://h/ollama/"] {
            let base = base.parse().expect("a URL");
            let host =
                Host::new(HostId::new("h"), base, http.clone(), limits, KeepAlive::from("5m"));
            let url = host.url("api/tags").expect("a URL");
            assert_eq!(url.as_str(), "http://h/ollama/api/tags");
        }
    }
}
