//! One Ollama host over HTTP: its routes, its time limits, its errors.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::breaker::Breakers;
use super::error::OllamaError;
use super::health::Health;
use super::refusal::refusal;
use super::reply::{Line, Model, Show, Tags, Version, without_mark};
use super::wire::KeepAlive;
use crate::model_name::ModelName;

/// Largest reply that is read, in bytes.
const REPLY_LIMIT: usize = 8 << 20;
/// Largest error text that is read, in bytes.
const REFUSAL_LIMIT: usize = 64 << 10;
/// How long a question that needs no model may take.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that is not used for so long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// After such a silence the system asks whether the other side is still there.
const KEEP_ALIVE_PROBE: Duration = Duration::from_secs(15);

/// The stable name of a host: scheme, address and path, the same on every replica. For Redis and
/// for metrics, never for clients.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(Arc<str>);

impl HostId {
    /// The host of this name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    pub(super) fn of(url: &Url, address: SocketAddr) -> Self {
        let path = url.path().trim_end_matches('/');
        Self(format!("{}://{address}{path}", url.scheme()).into())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A host's name and port, without what is secret in its URL. For logs, never for clients.
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

/// The separate time limits of one answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostTimeouts {
    pub first_token: Duration,
    pub token_gap: Duration,
}

/// What `/api/show` tells of a model.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Details {
    pub num_ctx: Option<u32>,
    pub thinks: bool,
}

/// A client of one host.
#[derive(Debug)]
pub(super) struct Host {
    pub id: HostId,
    pub name: HostName,
    pub health: Health,
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
        // Only below a path that ends with a slash do relative paths join.
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let name = HostName::of(&base);
        let (health, breakers) = (Health::default(), Breakers::default());
        Self { id, name, health, breakers, limits, keep_alive, base, http }
    }

    /// Asks for a sign of life, unless there was one, good or bad, within `age`.
    pub(super) async fn prove_alive(&self, age: Duration) -> Result<(), OllamaError> {
        match self.health.within(age) {
            Some(true) => return Ok(()),
            // What waits for a dead host waits once, not once for each that wants it.
            Some(false) if age > Duration::ZERO => return Err(OllamaError::Unreachable),
            _ => {}
        }
        let reply: Version = self.get("api/version").await?;
        tracing::debug!(host = %self.name, version = reply.text(), "a model host is well");
        Ok(())
    }

    /// The models that it has.
    pub(super) async fn models(&self) -> Result<Vec<Model>, OllamaError> {
        let reply: Tags = self.get("api/tags").await?;
        Ok(reply.into_models())
    }

    /// The models that it has in memory.
    pub(super) async fn loaded(&self) -> Result<Vec<ModelName>, OllamaError> {
        let reply: Tags = self.get("api/ps").await?;
        Ok(reply.into_models().into_iter().map(|model| model.key).collect())
    }

    /// What it knows of one model.
    pub(super) async fn details(&self, model: &str) -> Result<Details, OllamaError> {
        let body = json!({"model": model});
        let request = self.post("api/show")?.json(&body);
        let deadline = Instant::now() + REPLY_TIMEOUT;
        let show: Show = self.ask(request, model, deadline, OllamaError::ReplyTimeout).await?;
        Ok(Details { num_ctx: show.context_length(), thinks: show.thinks() })
    }

    /// Asks for one object, which may take as long as a first token.
    pub(super) async fn object(
        &self,
        path: &str,
        model: &str,
        body: &impl Serialize,
    ) -> Result<Line, OllamaError> {
        let deadline = Instant::now() + self.limits.first_token;
        let request = self.post(path)?.json(body);
        self.ask(request, model, deadline, OllamaError::FirstTokenTimeout).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, OllamaError> {
        let deadline = Instant::now() + REPLY_TIMEOUT;
        let request = self.http.get(self.url(path)?);
        self.ask(request, "", deadline, OllamaError::ReplyTimeout).await
    }

    pub(super) fn post(&self, path: &str) -> Result<RequestBuilder, OllamaError> {
        Ok(self.http.post(self.url(path)?))
    }

    fn url(&self, path: &str) -> Result<Url, OllamaError> {
        self.base.join(path).map_err(|_| OllamaError::Setting("a model host's URL has no path"))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        model: &str,
        deadline: Instant,
        late: OllamaError,
    ) -> Result<T, OllamaError> {
        let response = self.send(request, model, deadline, late.clone()).await?;
        let body = self.read(response, REPLY_LIMIT, deadline, late).await?;
        // What is not UTF-8 somewhere in it is no reason to know nothing of the rest.
        let text = String::from_utf8_lossy(without_mark(&body));
        let reply = serde_json::from_str(&text).map_err(|error| {
            tracing::warn!(host = %self.name, %error, "a model host's reply is not Ollama's");
            OllamaError::Malformed
        })?;
        self.health.well();
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
            Ok(Err(error)) => return Err(self.broken(&error)),
            Err(_) => return Err(self.late(late)),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        // The status says enough where its text does not come.
        let text = self.read(response, REFUSAL_LIMIT, deadline, late).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        tracing::warn!(host = %self.name, %status, text = %text.trim(), "a model host refused");
        Err(refusal(status.as_u16(), &text, model))
    }

    async fn read(
        &self,
        mut response: Response,
        limit: usize,
        deadline: Instant,
        late: OllamaError,
    ) -> Result<Vec<u8>, OllamaError> {
        let mut body = Vec::new();
        loop {
            match timeout_at(deadline, response.chunk()).await {
                Ok(Ok(Some(chunk))) if body.len() + chunk.len() > limit => {
                    tracing::warn!(host = %self.name, limit, "a model host's reply is too large");
                    return Err(OllamaError::Malformed);
                }
                Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
                Ok(Ok(None)) => return Ok(body),
                Ok(Err(error)) => return Err(self.broken(&error)),
                Err(_) => return Err(self.late(late)),
            }
        }
    }

    /// The connection failed.
    pub(super) fn broken(&self, error: &reqwest::Error) -> OllamaError {
        self.health.failed();
        tracing::warn!(host = %self.name, error = %Causes(error), "a model host failed");
        if !error.is_connect() {
            OllamaError::ConnectionLost
        } else if error.is_timeout() {
            OllamaError::ConnectTimeout
        } else {
            OllamaError::Unreachable
        }
    }

    /// A time limit is over.
    pub(super) fn late(&self, late: OllamaError) -> OllamaError {
        self.health.failed();
        tracing::warn!(host = %self.name, error = %late, "a model host is late");
        late
    }
}

/// An error with what caused it: reqwest's own text leaves that out.
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

/// The HTTP client of one host, whatever address its name has by now; `tls` where it needs it.
pub(super) fn http_client(
    connect_timeout: Duration,
    tls: bool,
    pinned: Option<(&str, SocketAddr)>,
) -> Result<reqwest::Client, OllamaError> {
    let provider = rustls::crypto::ring::default_provider();
    let builder = reqwest::Client::builder();
    let builder = if tls {
        // reqwest takes the process's provider, and panics without one. That another part was
        // faster to install one does no harm.
        let _ = provider.install_default();
        builder.tls_backend_rustls()
    } else {
        // The system's certificates are neither needed nor, in a small container, there.
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .map_err(|_| OllamaError::Setting("TLS cannot be set up"))?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        builder.tls_backend_preconfigured(config)
    };
    let builder = match pinned {
        Some((name, address)) => builder.resolve(name, address),
        None => builder,
    };
    builder
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .tcp_keepalive(KEEP_ALIVE_PROBE)
        .pool_idle_timeout(IDLE)
        // One generation, one connection: closing it stops exactly that one.
        .http1_only()
        // Conversations go to the hosts that were named, and nowhere else.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| {
            tracing::error!(error = %Causes(&error), "no HTTP client for model hosts");
            OllamaError::Setting("the HTTP client for model hosts cannot be built")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_holds_no_password() {
        let url = "https://user:secret@ollama.example/prefix".parse().expect("a URL");
        assert_eq!(HostName::of(&url).to_string(), "ollama.example:443");
    }

    #[test]
    fn a_base_with_a_path_keeps_it() {
        let http = http_client(Duration::from_secs(1), false, None).expect("a client");
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
