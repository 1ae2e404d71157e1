//! Which server the sentinels say is the primary, and until when it is sure to stay it.
//!
//! A primary that was stopped wakes up as one. For the eight seconds or so until the sentinels make
//! it a replica, it takes writes, those too that were sent to it before, and all of them are lost
//! then; and what it is asked it answers out of date. So every call is refused by a server whose
//! *lease* is over: a time on its own clock, kept in a key. It is put off as long as the server answers
//! and the sentinels, asked after that, see nothing wrong with it: a server that answered then is not
//! replaced before they have missed it for `down-after-milliseconds`.

use std::collections::HashMap;
use std::time::Duration;

use fred::prelude::{
    Builder, Client, ClientLike, Config, Error, ErrorKind, EventInterface, Options,
    PerformanceConfig, ReconnectPolicy, Server, ServerConfig,
};
use fred::types::{ClusterHash, CustomCommand};
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::error::{RedisError, refuses_credentials};
use crate::lifecycle::{Lifecycle, TaskEnd};

const INTERVAL: Duration = Duration::from_millis(250);
const LIMIT: Duration = Duration::from_millis(500);
/// A lease is no longer, from when the server last answered.
const LONGEST_LEASE: Duration = Duration::from_millis(1500);
/// A server that refused the password is asked anew after this: it may have been corrected there.
const REFUSED_AGAIN: Duration = Duration::from_secs(1);
/// Without most of the sentinels nobody can replace the primary. When they have not been reached for
/// so long, the service goes on without them.
const BLIND: Duration = Duration::from_secs(5);

/// Where a server keeps its lease.
const TERM: &str = "jarvis:primary_lease";
/// A replica that was late must not shorten a lease. One that ends ten seconds later is of another
/// server, whose clock is wrong.
const PROLONG: &str = "#!lua flags=allow-oom
    local lease, longer = tonumber(redis.call('GET', KEYS[1]) or 0), tonumber(ARGV[1])
    if lease < longer or lease > longer + 10000000 then
      redis.call('SET', KEYS[1], ARGV[1])
    end
    return 'ok'";

/// The primary that the sentinels name. Where there are none, nothing is known of it and its lease
/// has no end.
#[derive(Clone)]
pub(super) struct Primary {
    server: watch::Receiver<Option<Server>>,
    /// When the lease ends, on our clock.
    lease: Option<watch::Receiver<Instant>>,
    /// Whether the sentinels refuse the user name or the password.
    refused: watch::Receiver<bool>,
}

impl Primary {
    /// Resolves when another server is the primary; an error where there are no sentinels.
    pub(super) async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.server.changed().await
    }

    /// What most of the sentinels say; none before they were asked, and where there are none.
    pub(super) fn server(&mut self) -> watch::Ref<'_, Option<Server>> {
        self.server.borrow_and_update()
    }

    /// Whether so many sentinels refuse the user name or the password that the others are too few.
    pub(super) fn refuses_credentials(&self) -> bool {
        *self.refused.borrow()
    }

    /// What the functions are given last: where the lease is kept. Where the primary is in
    /// doubt, this waits until it is not.
    ///
    /// # Errors
    /// [`RedisError::Unavailable`] and [`RedisError::SentinelCredentials`], if that takes longer than
    /// `limit`.
    pub(super) async fn lease(&self, limit: Duration) -> Result<&'static str, RedisError> {
        let Some(lease) = &self.lease else { return Ok("-") };
        let lasts = |end: &Instant| Instant::now() < *end;
        let now = *lease.borrow();
        if lasts(&now) || matches!(timeout(limit, lease.clone().wait_for(lasts)).await, Ok(Ok(_))) {
            return Ok(TERM);
        }
        if self.refuses_credentials() {
            return Err(RedisError::SentinelCredentials);
        }
        let details = "the sentinels name no primary that is sure to stay it";
        Err(RedisError::Unavailable(Error::new(ErrorKind::Sentinel, details)))
    }
}

/// Asks the sentinels of a configuration as long as anybody wants to know.
pub(super) fn follow(config: &Config, lifecycle: &Lifecycle) -> Primary {
    let (server_told, server) = watch::channel(None);
    let ServerConfig::Sentinel { hosts, service_name, username, password } = &config.server else {
        return Primary { server, lease: None, refused: watch::channel(false).1 };
    };
    let sentinels = hosts
        .iter()
        .filter_map(|host| {
            let credentials = (username.clone(), password.clone());
            Peer::new(config, host.clone(), credentials)
        })
        .collect();
    let (refused_told, refused) = watch::channel(false);
    let (lease_sender, lease) = watch::channel(Instant::now());
    let watcher = Watcher {
        config: config.clone(),
        sentinels,
        name: service_name.clone(),
        pulse: None,
        sighted: Instant::now(),
        server: server_told,
        lease: lease_sender,
        refused: refused_told,
    };
    lifecycle.spawn("sentinels", watcher.run());
    Primary { server, lease: Some(lease), refused }
}

/// A client of one server.
fn client(
    like: &Config,
    server: Server,
    credentials: (Option<String>, Option<String>),
) -> Option<Client> {
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
    client.connect();
    Some(client)
}

struct Watcher {
    config: Config,
    sentinels: Vec<Peer>,
    name: String,
    /// Tells the time of the primary.
    pulse: Option<Peer>,
    /// When most of the sentinels last answered.
    sighted: Instant,
    server: watch::Sender<Option<Server>>,
    lease: watch::Sender<Instant>,
    refused: watch::Sender<bool>,
}

/// A server that is asked over a connection of its own.
struct Peer {
    like: Config,
    server: Server,
    credentials: (Option<String>, Option<String>),
    client: Client,
    errors: broadcast::Receiver<(Error, Option<Server>)>,
    /// When the client was made.
    made: Instant,
    /// Whether the server refused the user name or the password, and has not answered since.
    refuses: bool,
}

impl Peer {
    fn new(
        like: &Config,
        server: Server,
        credentials: (Option<String>, Option<String>),
    ) -> Option<Self> {
        let client = client(like, server.clone(), credentials.clone())?;
        let (errors, made) = (client.error_rx(), Instant::now());
        Some(Self { like: like.clone(), server, credentials, client, errors, made, refuses: false })
    }

    /// Learns whether the server refuses the credentials, from whether it just answered and from the
    /// errors of the connection. A client that was refused does not connect again: another one does.
    fn learn(&mut self, answered: bool) {
        while let Ok((error, _)) = self.errors.try_recv() {
            self.refuses |= refuses_credentials(&error);
        }
        self.refuses &= !answered;
        if self.refuses
            && self.made.elapsed() >= REFUSED_AGAIN
            && let Some(next) = client(&self.like, self.server.clone(), self.credentials.clone())
        {
            (self.errors, self.made) = (next.error_rx(), Instant::now());
            quit(std::mem::replace(&mut self.client, next));
        }
    }

    /// What it says as a sentinel; none where it does not answer.
    async fn view(&mut self, name: &str) -> Option<View> {
        let view = Box::pin(view(&self.client, name)).await;
        self.learn(view.is_some());
        view
    }
}

/// Ends a client that is no longer needed, without waiting for it.
fn quit(client: Client) {
    tokio::spawn(async move {
        let _ = timeout(LIMIT, client.quit()).await;
    });
}

/// What one sentinel says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct View {
    server: Server,
    /// Whether it answers this sentinel.
    up: bool,
    /// Whether this sentinel is about to replace it.
    failing_over: bool,
    down_after: Duration,
    /// Of what it says: the newest is the truth, and the others learn of it within a second.
    epoch: u64,
}

impl Watcher {
    async fn run(mut self) -> TaskEnd {
        let mut tick = interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.server.is_closed() {
            tick.tick().await;
            if self.look().await {
                tick.reset_immediately();
            }
        }
        for peer in self.sentinels.into_iter().chain(self.pulse) {
            let _ = timeout(LIMIT, peer.client.quit()).await;
        }
        TaskEnd::Done
    }

    /// Asks once. `true`: what it learned is of use only when it asks again.
    async fn look(&mut self) -> bool {
        let asked = Instant::now();
        let time = match &mut self.pulse {
            Some(pulse) => {
                let time = server_time(&pulse.client).await;
                pulse.learn(time.is_some());
                time
            }
            None => None,
        };
        let views = self.sentinels.iter_mut().map(|sentinel| sentinel.view(&self.name));
        let views: Vec<View> =
            futures_util::future::join_all(views).await.into_iter().flatten().collect();
        self.note_refusal();
        let pulse = self.pulse.as_ref().map(|pulse| &pulse.server);
        let (named, lease) = if views.len() * 2 > self.sentinels.len() {
            self.sighted = Instant::now();
            (named(&views, self.sentinels.len()), pulse.and_then(|server| lease(&views, server)))
        } else if self.sighted.elapsed() > BLIND {
            (None, Some(LONGEST_LEASE))
        } else {
            (None, None)
        };
        if let (Some(time), Some(lease)) = (time, lease) {
            self.prolong(asked, time, lease).await;
        } else if pulse.is_some_and(|server| is_replaced(&views, server)) {
            self.end_lease().await;
        }
        let Some(server) = named else { return false };
        let moved = pulse != Some(&server);
        if moved {
            let credentials = (self.config.username.clone(), self.config.password.clone());
            let next = Peer::new(&self.config, server.clone(), credentials);
            if let Some(last) = std::mem::replace(&mut self.pulse, next) {
                quit(last.client);
            }
        }
        self.server.send_if_modified(|known| {
            let news = known.as_ref() != Some(&server);
            *known = Some(server);
            news
        });
        moved && self.pulse.is_some()
    }

    fn note_refusal(&self) {
        let refusing = self.sentinels.iter().filter(|sentinel| sentinel.refuses).count();
        let refused = refusing * 2 >= self.sentinels.len().max(1);
        if self.refused.send_replace(refused) != refused && refused {
            tracing::error!(
                error = %RedisError::SentinelCredentials,
                "sentinels refuse the connection; trying again"
            );
        }
    }

    /// Puts off the end of the lease of a server that answered, by its clock, at `time`.
    async fn prolong(&self, asked: Instant, time: i64, lease: Duration) {
        let Some(Peer { client, .. }) = &self.pulse else { return };
        let end = time + i64::try_from(lease.as_micros()).unwrap_or(i64::MAX);
        let told = ask(client, "EVAL", vec![PROLONG, "1", TERM, &end.to_string()]).await;
        if told.is_some() {
            self.lease.send_replace(asked + lease);
        }
    }

    /// Of a server that is being replaced although it answers.
    async fn end_lease(&self) {
        self.lease.send_replace(Instant::now());
        if let Some(Peer { client, .. }) = &self.pulse {
            ask(client, "SET", vec![TERM, "0"]).await;
        }
    }
}

/// The server that most of the sentinels name.
fn named(views: &[View], sentinels: usize) -> Option<Server> {
    let mut votes: HashMap<&Server, usize> = HashMap::new();
    for view in views {
        *votes.entry(&view.server).or_default() += 1;
    }
    let (server, votes) = votes.into_iter().max_by_key(|(_, votes)| *votes)?;
    (votes * 2 > sentinels).then(|| server.clone())
}

/// How long a server that answered just before these views is sure to stay the primary.
fn lease(views: &[View], server: &Server) -> Option<Duration> {
    let of_it = || views.iter().filter(|view| view.server == *server);
    if is_replaced(views, server) || of_it().filter(|view| view.up).count() * 2 <= views.len() {
        return None;
    }
    of_it().map(|view| view.down_after.min(LONGEST_LEASE)).min()
}

/// Whether one of the sentinels replaces the server, or has, and the others may not know yet.
fn is_replaced(views: &[View], server: &Server) -> bool {
    let newest = views.iter().map(|view| view.epoch).max();
    views.iter().any(|view| {
        if view.server == *server { view.failing_over } else { Some(view.epoch) == newest }
    })
}

async fn ask(client: &Client, command: &'static str, words: Vec<&str>) -> Option<Vec<String>> {
    if !client.is_connected() {
        return None;
    }
    let command = CustomCommand::new_static(command, ClusterHash::Random, false);
    let once = Options { max_attempts: Some(1), ..Options::default() };
    client.with_options(&once).custom(command, words).await.ok()
}

async fn server_time(client: &Client) -> Option<i64> {
    let told = ask(client, "TIME", Vec::new()).await?;
    let [seconds, micros] = told.as_slice() else { return None };
    Some(seconds.parse::<i64>().ok()? * 1_000_000 + micros.parse::<i64>().ok()?)
}

async fn view(sentinel: &Client, name: &str) -> Option<View> {
    let (named, told) = tokio::join!(
        ask(sentinel, "SENTINEL", vec!["get-master-addr-by-name", name]),
        ask(sentinel, "SENTINEL", vec!["master", name]),
    );
    let (named, told) = (named?, told?);
    let [host, port] = named.as_slice() else { return None };
    let field =
        |name: &str| told.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_str());
    // Between promotion and the end of a failover it names the new server, and tells of the old.
    let of_it = field("ip") == Some(host.as_str()) && field("port") == Some(port.as_str());
    let flags = field("flags")?;
    let has = |flag: &str| of_it && flags.split(',').any(|word| word == flag);
    Some(View {
        server: Server::new(host, port.parse().ok()?),
        up: !has("s_down") && !has("o_down"),
        failing_over: has("failover_in_progress"),
        epoch: field("config-epoch")?.parse().ok()?,
        down_after: Duration::from_millis(field("down-after-milliseconds")?.parse().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(port: u16) -> View {
        View {
            server: Server::new("h", port),
            up: true,
            failing_over: false,
            down_after: Duration::from_secs(1),
            epoch: 1,
        }
    }

    #[test]
    fn a_primary_is_sure_while_most_sentinels_see_it_and_none_replaces_it() {
        let (one, two) = (Server::new("h", 1), Server::new("h", 2));
        let steady = vec![view(1), view(1), view(1)];
        assert_eq!(lease(&steady, &one), Some(Duration::from_secs(1)));
        assert_eq!(lease(&steady, &two), None, "another one is named");

        let mut one_is_cut_off = steady.clone();
        one_is_cut_off[0].up = false;
        assert!(lease(&one_is_cut_off, &one).is_some());
        one_is_cut_off[1].up = false;
        assert_eq!(lease(&one_is_cut_off, &one), None);

        let mut replaced = steady.clone();
        replaced[2].failing_over = true;
        assert_eq!(lease(&replaced, &one), None, "one is enough to replace it");

        let promoted = vec![view(1), view(1), View { epoch: 2, ..view(2) }];
        assert_eq!(named(&promoted, 3), Some(one.clone()), "the others do not know yet");
        assert_eq!(lease(&promoted, &one), None, "and yet it is replaced");
        let outdated = vec![view(1), view(1), View { epoch: 0, ..view(2) }];
        assert!(lease(&outdated, &one).is_some());

        let half_way = vec![view(1), View { epoch: 2, ..view(2) }, View { epoch: 2, ..view(2) }];
        assert_eq!(named(&half_way, 3), Some(two.clone()));
        assert!(lease(&half_way, &two).is_some());
        assert_eq!(named(&half_way[..2], 3), None);
    }

    #[test]
    fn a_lease_is_no_longer_than_the_sentinels_need_to_miss_a_server() {
        let patient = View { down_after: Duration::from_secs(30), ..view(1) };
        assert_eq!(
            lease(&[patient.clone(), patient.clone()], &patient.server),
            Some(LONGEST_LEASE)
        );
        assert_eq!(
            lease(&[patient.clone(), view(1)], &patient.server),
            Some(Duration::from_secs(1))
        );
    }
}
