//! A server that is polled, a sentinel or the primary, over a connection of its own.

use std::time::Duration;

use fred::prelude::{
    Builder, Client, ClientLike, Config, Error, EventInterface, Options, PerformanceConfig,
    ReconnectPolicy, Server, ServerConfig,
};
use fred::types::{ClusterHash, CustomCommand};
use tokio::sync::broadcast;
use tokio::time::{Instant, timeout};

use super::view::SentinelView;
use crate::lifecycle::spawn_caught;
use crate::redis::error::{RedisError, classify};

/// Time limit of a command, and of a connection.
const LIMIT: Duration = Duration::from_millis(500);
/// Time until another client tries credentials again that the server refused, because they may have
/// been corrected there.
const REFUSED_AGAIN: Duration = Duration::from_secs(1);

/// A user name and a password.
pub(super) type Credentials = (Option<String>, Option<String>);

/// Why a sentinel is of no use until an operator corrects the Redis URL or the sentinel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SentinelFault {
    /// The server refuses the user name or the password.
    Credentials,
    /// The server is no sentinel.
    NotASentinel,
    /// The sentinel monitors no primary of the name.
    UnknownService,
}

impl SentinelFault {
    fn of(error: &Error) -> Option<Self> {
        match classify(error.clone()) {
            RedisError::Credentials => Some(Self::Credentials),
            RedisError::NotASentinel => Some(Self::NotASentinel),
            RedisError::UnknownService => Some(Self::UnknownService),
            _ => None,
        }
    }

    /// Returns the error for calls of Redis.
    pub(crate) fn error(self) -> RedisError {
        match self {
            Self::Credentials => RedisError::SentinelCredentials,
            Self::NotASentinel => RedisError::NotASentinel,
            Self::UnknownService => RedisError::UnknownService,
        }
    }
}

/// A server that is polled over a connection of its own.
pub(super) struct PolledServer {
    /// The configuration whose TLS settings count here, too.
    config: Config,
    server: Server,
    credentials: Credentials,
    client: Client,
    errors: Errors,
    /// When the client was created.
    created: Instant,
    /// Why the server is of no use, unless it has replied properly since.
    fault: Option<SentinelFault>,
}

impl PolledServer {
    /// Starts to connect. Returns none where no client can be built.
    pub(super) fn new(config: &Config, server: Server, credentials: Credentials) -> Option<Self> {
        let (client, errors) = client(config, server.clone(), credentials.clone())?;
        let created = Instant::now();
        let config = config.clone();
        Some(Self { config, server, credentials, client, errors, created, fault: None })
    }

    /// Returns the server.
    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// Returns why the server is of no use.
    pub(super) fn fault(&self) -> Option<SentinelFault> {
        self.fault
    }

    /// Reads the server's clock, in microseconds; none without a reply.
    pub(super) async fn time(&mut self) -> Option<i64> {
        let time = server_time(&self.client).await;
        self.learn(time.is_some(), None);
        time
    }

    /// Reads the view of a sentinel; none without a reply.
    pub(super) async fn view(&mut self, name: &str) -> Option<SentinelView> {
        let view = Box::pin(view(&self.client, name)).await;
        let error = view.as_ref().err().and_then(Option::as_ref).and_then(SentinelFault::of);
        self.learn(view.is_ok(), error);
        view.ok()
    }

    /// Sends a command; none without a reply.
    pub(super) async fn command(
        &self,
        command: &'static str,
        arguments: Vec<&str>,
    ) -> Option<Vec<String>> {
        send(&self.client, command, arguments).await.ok()
    }

    /// Ends the connection.
    pub(super) async fn quit(self) {
        let _ = timeout(LIMIT, self.client.quit()).await;
    }

    /// Learns whether the server is of use, from whether it just replied properly, from the fault in
    /// its reply, and from the errors of the connection. A client whose credentials were refused
    /// does not reconnect, so it is replaced.
    fn learn(&mut self, has_replied: bool, fault: Option<SentinelFault>) {
        while let Ok((error, _)) = self.errors.try_recv() {
            self.fault = SentinelFault::of(&error).or(self.fault);
        }
        self.fault = if has_replied { None } else { fault.or(self.fault) };
        if self.fault == Some(SentinelFault::Credentials)
            && self.created.elapsed() >= REFUSED_AGAIN
            && let Some((next, errors)) =
                client(&self.config, self.server.clone(), self.credentials.clone())
        {
            (self.errors, self.created) = (errors, Instant::now());
            let last = std::mem::replace(&mut self.client, next);
            spawn_caught("redis", async move {
                let _ = timeout(LIMIT, last.quit()).await;
            });
        }
    }
}

/// The errors of a connection.
type Errors = broadcast::Receiver<(Error, Option<Server>)>;

/// Creates a client of one server, and begins to connect.
fn client(like: &Config, server: Server, credentials: Credentials) -> Option<(Client, Errors)> {
    let config = Config {
        server: ServerConfig::Centralized { server },
        username: credentials.0,
        password: credentials.1,
        tls: like.tls.clone(),
        ..Config::default()
    };
    let client = Builder::from_config(config)
        .with_connection_config(|connection| {
            connection.connection_timeout = LIMIT;
            connection.internal_command_timeout = LIMIT;
        })
        .with_performance_config(|performance: &mut PerformanceConfig| {
            performance.default_command_timeout = LIMIT;
        })
        .set_policy(ReconnectPolicy::new_constant(0, 500))
        .build()
        .ok()?;
    // Before it connects: a refusal is reported once, and may come at once.
    let errors = client.error_rx();
    client.connect();
    Some((client, errors))
}

async fn send(
    client: &Client,
    command: &'static str,
    arguments: Vec<&str>,
) -> Result<Vec<String>, Option<Error>> {
    if !client.is_connected() {
        return Err(None);
    }
    let command = CustomCommand::new_static(command, ClusterHash::Random, false);
    let once = Options { max_attempts: Some(1), ..Options::default() };
    Ok(client.with_options(&once).custom(command, arguments).await?)
}

async fn server_time(client: &Client) -> Option<i64> {
    let reply = send(client, "TIME", Vec::new()).await.ok()?;
    let [seconds, micros] = reply.as_slice() else { return None };
    Some(seconds.parse::<i64>().ok()? * 1_000_000 + micros.parse::<i64>().ok()?)
}

/// Reads the view of a sentinel.
///
/// # Errors
/// The error of the sentinel; none where it did not reply, or in an unknown form.
async fn view(sentinel: &Client, name: &str) -> Result<SentinelView, Option<Error>> {
    let (address, state) = tokio::join!(
        send(sentinel, "SENTINEL", vec!["get-master-addr-by-name", name]),
        send(sentinel, "SENTINEL", vec!["master", name]),
    );
    // The address of an unknown name is empty, and its state is an error.
    let (state, address) = (state?, address?);
    parse_view(&address, &state).ok_or(None)
}

fn parse_view(address: &[String], state: &[String]) -> Option<SentinelView> {
    let [host, port] = address else { return None };
    let field = |name: &str| {
        state.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_str())
    };
    // Between promotion and the end of a failover the address is that of the new server, and the
    // state is that of the old one.
    let is_same = field("ip") == Some(host.as_str()) && field("port") == Some(port.as_str());
    let flags = field("flags")?;
    let has = |flag: &str| is_same && flags.split(',').any(|name| name == flag);
    Some(SentinelView {
        server: Server::new(host, port.parse().ok()?),
        up: !has("s_down") && !has("o_down"),
        failing_over: has("failover_in_progress"),
        epoch: field("config-epoch")?.parse().ok()?,
        down_after: Duration::from_millis(field("down-after-milliseconds")?.parse().ok()?),
    })
}
