//! What a replica publishes of itself, once a second, with its heartbeat. Nothing depends on it: it is for
//! somebody who looks at the fleet.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::lifecycle::Phase;
use crate::telemetry::LIVE;

/// Time between two publications.
const INTERVAL: Duration = Duration::from_secs(1);
/// The number of publications over which a rate is the mean.
const RATE_OVER: usize = 5;
/// The longest address that is published, in bytes.
const LONGEST_ADDRESS: usize = 64;

/// The figures of one replica. A field that another release lacks is its default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicaFigures {
    /// The release.
    pub version: String,
    /// Where the replica listens, with the name of its machine instead of an address for all.
    pub address: String,
    /// The phase of its life.
    pub phase: String,
    /// Seconds since it started.
    pub up: u64,
    /// Turns that run or wait there.
    pub turns: u64,
    /// Open WebSockets.
    pub websockets: u64,
    /// Open event streams.
    pub event_streams: u64,
    /// Tokens that it gets from model hosts in a second.
    pub tokens: f64,
    /// Turns that it has taken over since it started.
    pub taken_over: u64,
}

impl ReplicaFigures {
    /// Returns the form in which Redis has them.
    pub(super) fn encode(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Parses that form; none where it is another one.
    pub fn decode(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

/// Makes the figures of this process when they are due.
pub(super) struct FiguresSource {
    address: String,
    started: Instant,
    published: Option<Instant>,
    /// When how many pieces had come, the oldest first.
    pieces: VecDeque<(Instant, u64)>,
}

impl FiguresSource {
    /// Creates the source of a replica that listens at this address.
    pub(super) fn new(mut address: String) -> Self {
        let end = (0..=LONGEST_ADDRESS).rev().find(|end| address.is_char_boundary(*end));
        address.truncate(end.unwrap_or_default());
        Self { address, started: Instant::now(), published: None, pieces: VecDeque::new() }
    }

    /// Returns the figures, once a second.
    pub(super) fn due(&mut self, phase: Phase) -> Option<ReplicaFigures> {
        let now = Instant::now();
        if self.published.is_some_and(|published| now - published < INTERVAL) {
            return None;
        }
        self.published = Some(now);
        Some(ReplicaFigures {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: self.address.clone(),
            phase: phase_name(phase).to_owned(),
            up: (now - self.started).as_secs(),
            turns: LIVE.turns.get(),
            websockets: LIVE.websockets.get(),
            event_streams: LIVE.event_streams.get(),
            tokens: self.rate(now, LIVE.pieces.get()),
            taken_over: LIVE.taken_over.get(),
        })
    }

    /// Has the next figures be due at once, because Redis did not get the last ones.
    pub(super) fn repeat(&mut self) {
        self.published = None;
    }

    /// Returns the pieces a second over the last publications, with one decimal.
    fn rate(&mut self, now: Instant, pieces: u64) -> f64 {
        self.pieces.push_back((now, pieces));
        if self.pieces.len() > RATE_OVER + 1 {
            self.pieces.pop_front();
        }
        let first = self.pieces.front().copied().unwrap_or((now, pieces));
        let seconds = (now - first.0).as_secs_f64();
        if seconds <= 0.0 {
            return 0.0;
        }
        (pieces.saturating_sub(first.1) as f64 / seconds * 10.0).round() / 10.0
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Serving => "serving",
        Phase::Draining => "draining",
        Phase::Stopped => "stopped",
    }
}

/// Returns the address of a listener as others know it: with the name of this machine where it listens on
/// all addresses.
pub fn published_address(listener: SocketAddr) -> String {
    if !listener.ip().is_unspecified() {
        return listener.to_string();
    }
    let named = std::env::var("HOSTNAME").ok().or_else(|| {
        // The kernel of Linux has it; elsewhere the variable is set as a rule.
        std::fs::read_to_string("/proc/sys/kernel/hostname").ok()
    });
    let named = named.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    named.map_or_else(|| listener.to_string(), |name| format!("{name}:{}", listener.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_due_once_a_second_and_at_once_after_a_call_that_failed() {
        let mut source = FiguresSource::new("127.0.0.1:10200".to_owned());
        assert!(source.due(Phase::Serving).is_some());
        assert_eq!(source.due(Phase::Serving), None);
        source.repeat();
        assert!(source.due(Phase::Serving).is_some());
    }

    #[test]
    fn the_rate_of_tokens_is_the_mean_of_the_last_five_seconds() {
        let mut source = FiguresSource::new(String::new());
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let close = |rate: f64, to: f64| assert!((rate - to).abs() < 1e-9, "{rate} is not {to}");
        close(source.rate(at(0), 1_000), 0.0);
        close(source.rate(at(1), 1_100), 100.0);
        close(source.rate(at(2), 1_100), 50.0);
        for second in 3..=6 {
            source.rate(at(second), 1_100);
        }
        close(source.rate(at(7), 1_105), 1.0);
    }

    #[test]
    fn figures_of_another_release_are_read_as_far_as_they_are_known_and_have_a_bound() {
        let read =
            ReplicaFigures::decode(r#"{"version":"9","turns":3,"more":[1]}"#).expect("figures");
        assert_eq!((read.turns, read.websockets, read.version.as_str()), (3, 0, "9"));
        assert_eq!(ReplicaFigures::decode("3 4"), None);
        let mut source = FiguresSource::new("é".repeat(400));
        let text = source.due(Phase::Draining).expect("figures").encode();
        assert!(text.len() < 300, "{} bytes: {text}", text.len());
        let read = ReplicaFigures::decode(&text).expect("figures");
        assert_eq!((read.phase.as_str(), read.address.len()), ("draining", 64));
    }

    #[test]
    fn a_listener_on_all_addresses_is_published_by_the_name_of_its_machine() {
        let one = "127.0.0.1:7".parse().expect("an address");
        assert_eq!(published_address(one), "127.0.0.1:7");
        let all = published_address("0.0.0.0:7".parse().expect("an address"));
        assert!(all.ends_with(":7") && !all.starts_with("0.0.0.0"), "{all}");
    }
}
