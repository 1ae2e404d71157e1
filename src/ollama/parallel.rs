//! How many requests a host seems to run at a time, as this replica sees it.
//!
//! A host that was started with fewer parallel requests than it has slots here queues the rest itself,
//! unseen by the queue of turns. It shows by first tokens: a request that is sent while others stream gets
//! its first token only when one of them ends, again and again, and never beside them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::host::HostId;
use super::lock;
use crate::telemetry::metric;

/// A first token that comes so soon after the end of another stream may have waited for it.
const SOON: Duration = Duration::from_secs(1);
/// First tokens in a row that took the place of another stream, after which the host is reported. A single
/// one may be chance.
const IN_A_ROW: u32 = 5;

/// The streams of one host.
#[derive(Debug)]
pub(super) struct Parallelism {
    host: HostId,
    slots: usize,
    streams: Mutex<Streams>,
}

#[derive(Debug, Default)]
struct Streams {
    next: u64,
    /// The requests that have no token yet: of each the most streams beside it since it was sent.
    waiting: BTreeMap<u64, usize>,
    /// Streams that have a token and have not ended.
    streaming: usize,
    last_end: Option<Instant>,
    /// First tokens in a row that only took the place of a stream, and the most streams beside them.
    replaced: u32,
    level: usize,
    is_reported: bool,
}

/// The conclusion from a first token about its host.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    None,
    /// The host runs at most so many requests at a time.
    AtMost(usize),
    /// The host was reported, and runs more.
    Refuted,
}

impl Streams {
    fn begin(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, self.streaming);
        number
    }

    fn first_token(&mut self, number: u64, slots: usize, now: Instant) -> Finding {
        let Some(beside) = self.waiting.remove(&number) else { return Finding::None };
        self.streaming += 1;
        let streaming = self.streaming;
        for most in self.waiting.values_mut() {
            *most = (*most).max(streaming);
        }
        if streaming > beside {
            // It runs beside all that ran while it waited.
            if self.replaced == 0 || streaming <= self.level {
                return Finding::None;
            }
            self.replaced = 0;
            return if std::mem::take(&mut self.is_reported) {
                Finding::Refuted
            } else {
                Finding::None
            };
        }
        let is_soon = self.last_end.is_some_and(|end| now.duration_since(end) <= SOON);
        if !is_soon || beside >= slots {
            return Finding::None;
        }
        self.level = if self.replaced == 0 { beside } else { self.level.max(beside) };
        self.replaced = self.replaced.saturating_add(1);
        if self.replaced < IN_A_ROW || self.is_reported {
            return Finding::None;
        }
        self.is_reported = true;
        Finding::AtMost(self.level)
    }

    fn end(&mut self, number: u64, now: Instant) {
        if self.waiting.remove(&number).is_none() {
            self.streaming = self.streaming.saturating_sub(1);
            self.last_end = Some(now);
        }
    }
}

impl Parallelism {
    pub(super) fn new(host: HostId, slots: usize) -> Self {
        metrics::gauge!(metric::HOST_SLOTS_UNUSED, "host" => host.as_str().to_owned()).set(0.0);
        Self { host, slots, streams: Mutex::default() }
    }

    /// Notes that a request is sent.
    pub(super) fn begin(self: &Arc<Self>) -> ObservedStream {
        let number = lock(&self.streams).begin();
        ObservedStream { parallelism: Arc::clone(self), number, has_token: false }
    }

    fn note(&self, finding: &Finding) {
        let unused = match finding {
            Finding::None => return,
            Finding::AtMost(level) => {
                tracing::warn!(
                    host = self.host.as_str(),
                    slots = self.slots,
                    runs = level,
                    "model host runs fewer requests than its slots; set OLLAMA_NUM_PARALLEL"
                );
                self.slots - level
            }
            Finding::Refuted => 0,
        };
        metrics::gauge!(metric::HOST_SLOTS_UNUSED, "host" => self.host.as_str().to_owned())
            .set(unused as f64);
    }
}

impl Drop for Parallelism {
    fn drop(&mut self) {
        metrics::gauge!(metric::HOST_SLOTS_UNUSED, "host" => self.host.as_str().to_owned())
            .set(0.0);
    }
}

/// One request to a host, from when it is sent until this is dropped.
#[derive(Debug)]
pub(super) struct ObservedStream {
    parallelism: Arc<Parallelism>,
    number: u64,
    has_token: bool,
}

impl ObservedStream {
    /// Notes a token, of which only the first one counts.
    pub(super) fn token(&mut self) {
        if std::mem::replace(&mut self.has_token, true) {
            return;
        }
        let (slots, now) = (self.parallelism.slots, Instant::now());
        let finding = lock(&self.parallelism.streams).first_token(self.number, slots, now);
        self.parallelism.note(&finding);
    }
}

impl Drop for ObservedStream {
    fn drop(&mut self) {
        lock(&self.parallelism.streams).end(self.number, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs so many requests on a host that runs `parallel` of them at a time and has four slots, and
    /// returns what is found.
    fn findings(streams: &mut Streams, parallel: usize, requests: usize) -> Vec<Finding> {
        const SLOTS: usize = 4;
        let now = Instant::now();
        let (mut sent, mut running, mut found) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..requests + SLOTS {
            if sent.len() + running.len() == SLOTS {
                streams.end(running.remove(0), now);
            }
            if number < requests {
                sent.push(streams.begin());
            }
            while running.len() < parallel && !sent.is_empty() {
                let next = sent.remove(0);
                found.push(streams.first_token(next, SLOTS, now));
                running.push(next);
            }
        }
        for number in running.into_iter().chain(sent) {
            streams.end(number, now);
        }
        found.retain(|finding| *finding != Finding::None);
        found
    }

    #[test]
    fn a_host_that_runs_fewer_requests_than_its_slots_is_found_once_and_one_that_runs_all_never() {
        for parallel in 1..4 {
            let found = findings(&mut Streams::default(), parallel, 20);
            assert_eq!(found, [Finding::AtMost(parallel)], "{parallel}");
        }
        assert_eq!(findings(&mut Streams::default(), 4, 100), []);
        assert_eq!(findings(&mut Streams::default(), 1, 5), [], "too few to say");
    }

    #[test]
    fn a_host_that_was_restarted_with_more_slots_is_no_longer_reported() {
        let mut streams = Streams::default();
        assert_eq!(findings(&mut streams, 2, 20), [Finding::AtMost(2)]);
        assert_eq!(findings(&mut streams, 4, 20), [Finding::Refuted]);
    }

    #[test]
    fn what_waits_without_the_end_of_another_stream_says_nothing() {
        let (mut streams, now) = (Streams::default(), Instant::now());
        for _ in 0..20 {
            let other = streams.begin();
            streams.first_token(other, 4, now);
            // A slow prompt, long after the end of the other stream.
            let next = streams.begin();
            streams.end(other, now);
            assert_eq!(streams.first_token(next, 4, now + 2 * SOON), Finding::None);
            streams.end(next, now);
        }
    }
}
