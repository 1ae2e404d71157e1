//! The fleet at one moment, as Redis knows it, for somebody who looks at it.

use std::time::Duration;

use fred::prelude::Value;

use crate::membership::ReplicaFigures;
use crate::redis::{Call, Observer, RedisError, keys};

/// The fleet at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overview {
    /// The replicas that have a heartbeat, by name, and their number where that is larger.
    pub replicas: Capped<ReplicaOverview>,
    /// The replicas that went lately, the last one first.
    pub gone: Vec<GoneOverview>,
    /// The model hosts, by name.
    pub hosts: Capped<HostOverview>,
    /// The models that turns wait for, by name.
    pub models: Capped<ModelOverview>,
}

/// Some of a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Capped<T> {
    /// The first ones.
    pub first: Vec<T>,
    /// The number of all.
    pub total: usize,
}

/// A replica.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReplicaOverview {
    /// Its name.
    pub name: String,
    /// The counter of its heartbeat; none once it has signed off.
    pub counter: Option<i64>,
    /// The figures that it published last; none where it publishes nothing.
    pub figures: Option<ReplicaFigures>,
    /// How old that is, by the clock of Redis.
    pub age: Option<Duration>,
}

/// A replica that is gone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GoneOverview {
    /// Its name.
    pub name: String,
    /// How long ago it was found gone.
    pub ago: Duration,
    /// How it was noticed: the text of a [`crate::membership::GoneReason`].
    pub reason: String,
    /// Its turns that were taken over.
    pub turns: u64,
    /// The figures that it published last.
    pub figures: Option<ReplicaFigures>,
}

/// A model host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostOverview {
    /// Its name.
    pub name: String,
    /// Generations that it may have at a time.
    pub slots: u64,
    /// Generations that it has.
    pub used: u64,
    /// The mean duration of a turn; none before any was measured.
    pub turn: Option<Duration>,
    /// Replicas whose breaker of this host is closed.
    pub open: u64,
    /// Replicas whose breaker of this host is half open.
    pub trial: u64,
    /// Replicas whose breaker of this host is open.
    pub shut: u64,
    /// Its models, those in memory first, and whether each is.
    pub models: Vec<(String, bool)>,
}

/// A model that turns wait for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelOverview {
    /// Its name.
    pub name: String,
    /// Waiting turns.
    pub waiting: u64,
    /// For how long the first of them has waited.
    pub longest: Duration,
}

impl Overview {
    /// Reads the fleet, in one call that writes nothing.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn read(observer: &mut Observer) -> Result<Self, RedisError> {
        let call = Call::new("jarvis_queue_overview_1")
            .key("queue", keys::QUEUE.to_owned())
            .key("heartbeats", keys::heartbeats())
            .key("figures", keys::figures())
            .key("gone", keys::gone());
        let reply: Value = observer.call(call).await?;
        overview(reply).ok_or_else(|| RedisError::Unexpected("the overview".to_owned()))
    }
}

fn overview(reply: Value) -> Option<Overview> {
    let [now, replicas, gone, hosts, models]: [Value; 5] = reply.into_array().try_into().ok()?;
    let now = number(&now)?;
    let replicas = listed(replicas, 3, |fields| replica(fields, now))?;
    // A replica that was found gone and lives on has a heartbeat again.
    let lives = |name: &str| replicas.first.iter().any(|replica| replica.name == name);
    let gone = gone.into_array();
    let mut gone: Vec<GoneOverview> = gone
        .chunks_exact(2)
        .filter_map(|fields| gone_replica(fields, now))
        .filter(|gone| !lives(&gone.name))
        .collect();
    gone.sort_by_key(|gone| gone.ago);
    Some(Overview {
        replicas,
        gone,
        hosts: listed(hosts, 1, |fields| host(fields[0].clone()))?,
        models: listed(models, 3, |fields| model(fields, now))?,
    })
}

/// Parses a list that begins with the number of all, and then has so many fields of each.
fn listed<T>(
    reply: Value,
    fields: usize,
    parse: impl Fn(&[Value]) -> Option<T>,
) -> Option<Capped<T>> {
    let reply = reply.into_array();
    let (total, rest) = reply.split_first()?;
    let first = rest.chunks_exact(fields).map(parse).collect::<Option<_>>()?;
    Some(Capped { first, total: usize::try_from(number(total)?).ok()? })
}

fn replica(fields: &[Value], now: u64) -> Option<ReplicaOverview> {
    let [name, counter, published] = fields else { return None };
    let published = published.as_string()?;
    let (at, figures) = published.split_once(' ').unwrap_or_default();
    Some(ReplicaOverview {
        name: name.as_string()?,
        counter: counter.as_i64().filter(|counter| *counter >= 0),
        figures: ReplicaFigures::decode(figures),
        age: at.parse().ok().map(|at| since(at, now)),
    })
}

fn gone_replica(fields: &[Value], now: u64) -> Option<GoneOverview> {
    let [name, noted] = fields else { return None };
    let noted = noted.as_string()?;
    let mut noted = noted.splitn(4, ' ');
    Some(GoneOverview {
        name: name.as_string()?,
        ago: since(noted.next()?.parse().ok()?, now),
        reason: noted.next()?.to_owned(),
        turns: noted.next()?.parse().ok()?,
        figures: noted.next().and_then(ReplicaFigures::decode),
    })
}

fn host(reply: Value) -> Option<HostOverview> {
    let [name, slots, used, turn, open, trial, shut, models]: [Value; 8] =
        reply.into_array().try_into().ok()?;
    let turn = turn.as_string()?.parse::<f64>().ok();
    let models = models.into_array().into_iter().filter_map(|model| {
        let model = model.as_string()?;
        let (state, name) = model.split_once(' ')?;
        Some((name.to_owned(), state == "loaded"))
    });
    Some(HostOverview {
        name: name.as_string()?,
        slots: number(&slots)?,
        used: number(&used)?,
        turn: turn.and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok()),
        open: number(&open)?,
        trial: number(&trial)?,
        shut: number(&shut)?,
        models: models.collect(),
    })
}

fn model(fields: &[Value], now: u64) -> Option<ModelOverview> {
    let [name, waiting, since_when] = fields else { return None };
    Some(ModelOverview {
        name: name.as_string()?,
        waiting: number(waiting)?,
        longest: number(since_when).map_or(Duration::ZERO, |at| since(at, now)),
    })
}

fn number(value: &Value) -> Option<u64> {
    value.as_i64().and_then(|number| u64::try_from(number).ok())
}

/// Returns the time between two times of Redis, in milliseconds.
fn since(at: u64, now: u64) -> Duration {
    Duration::from_millis(now.saturating_sub(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(values: Vec<Value>) -> Value {
        Value::Array(values)
    }

    #[test]
    fn the_reply_of_redis_is_read_whole_and_one_of_another_form_not_at_all() {
        let figures = r#"{"turns":2,"address":"a:1"}"#;
        let text = |text: &str| Value::from(text.to_owned());
        let models = list(vec![text("loaded m:latest"), text("stored a b:latest")]);
        let host = vec![text("http://h:1"), text("4"), text("3"), text("1500.5")];
        let seen = vec![Value::Integer(2), Value::Integer(0), Value::Integer(1), models];
        let reply = list(vec![
            Value::Integer(10_000),
            list(vec![
                Value::Integer(40),
                text("r1"),
                text("7"),
                text(&format!("9000 {figures}")),
                text("r2"),
                text("-1"),
                text(""),
            ]),
            list(vec![
                text("r0"),
                text(&format!("4000 connection_lost 3 {figures}")),
                text("r1"),
                text("4000 lease_over 1 "),
            ]),
            list(vec![Value::Integer(1), list([host, seen].concat())]),
            list(vec![Value::Integer(1), text("m:latest"), Value::Integer(5), text("8000")]),
        ]);
        let read = overview(reply.clone()).expect("an overview");
        assert_eq!((read.replicas.total, read.replicas.first.len()), (40, 2));
        let first = &read.replicas.first[0];
        assert_eq!((first.counter, first.age), (Some(7), Some(Duration::from_secs(1))));
        assert_eq!(first.figures.as_ref().map(|figures| figures.turns), Some(2));
        assert_eq!(read.replicas.first[1].counter, None, "it has signed off");
        assert_eq!(read.gone.len(), 1, "r1 has a heartbeat");
        assert_eq!((read.gone[0].turns, read.gone[0].ago), (3, Duration::from_secs(6)));
        let host = &read.hosts.first[0];
        assert_eq!((host.slots, host.used, host.open, host.shut), (4, 3, 2, 1));
        assert_eq!(host.models[1], ("a b:latest".to_owned(), false));
        let model = &read.models.first[0];
        assert_eq!((model.waiting, model.longest), (5, Duration::from_secs(2)));
        let Value::Array(mut parts) = reply else { panic!("a list") };
        parts.pop();
        assert_eq!(overview(list(parts)), None);
    }
}
