//! The memory of Redis, for its gauges. A Redis that is full refuses every turn, and fills slowly:
//! an operator who looks in time can give it more.

use std::time::Duration;

use fred::prelude::{ClientLike, ClusterInterface, Options};
use fred::types::InfoKind;
use futures_util::future::join_all;

use super::connection::Redis;
use crate::telemetry::metric;

/// Time limit of the reply of one primary.
const LIMIT: Duration = Duration::from_secs(1);

/// The memory of one primary, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Memory {
    used: u64,
    /// 0 where there is no limit.
    max: u64,
}

impl Memory {
    /// Parses the section of memory of `INFO`.
    fn parse(info: &str) -> Option<Self> {
        let field =
            |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Some(Self { used: field("used_memory:")?, max: field("maxmemory:")? })
    }

    /// Returns how full it is. Without a limit it is never full.
    fn fullness(self) -> f64 {
        if self.max == 0 { 0.0 } else { self.used as f64 / self.max as f64 }
    }
}

/// Returns the limit of the smallest of these primaries: 0 where none has a limit. Not that of all of them
/// together: a client chooses the identifier of its session and so its primary, and strangers could fill
/// one of them.
fn smallest_limit(limits: &[u64]) -> u64 {
    limits.iter().copied().filter(|limit| *limit > 0).min().unwrap_or(0)
}

/// Notes the limit of the smallest primary, and sets the gauges to the memory of the
/// fullest primary. A primary that does not reply in time is left out, and so is one whose user may not run
/// `INFO`.
pub(super) async fn record(redis: &Redis) {
    let client = redis.client();
    let nodes = client.cached_cluster_state().map(|state| state.unique_primary_nodes());
    let nodes = nodes.map_or_else(|| vec![None], |nodes| nodes.into_iter().map(Some).collect());
    let memories = nodes.into_iter().map(|cluster_node| {
        let options = Options {
            timeout: Some(LIMIT),
            max_attempts: Some(1),
            cluster_node,
            ..Options::default()
        };
        let client = client.clone();
        async move {
            let info = client.with_options(&options).info::<String>(Some(InfoKind::Memory)).await;
            info.ok().and_then(|info| Memory::parse(&info))
        }
    });
    let memories: Vec<_> = join_all(memories).await;
    // A primary that did not reply changes nothing about the limit.
    let limits: Option<Vec<u64>> =
        memories.iter().map(|memory| memory.map(|memory| memory.max)).collect();
    if let Some(limits) = limits {
        redis.set_memory_limit(smallest_limit(&limits));
    }
    let fullest = memories.into_iter().flatten().max_by(|one, other| {
        one.fullness().total_cmp(&other.fullness()).then(one.used.cmp(&other.used))
    });
    if let Some(Memory { used, max }) = fullest {
        metrics::gauge!(metric::REDIS_MEMORY_USED_BYTES).set(used as f64);
        metrics::gauge!(metric::REDIS_MEMORY_MAX_BYTES).set(max as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_redis_is_read_from_its_own_words_and_no_limit_is_never_full() {
        let info = "# Memory\r\nused_memory:1000\r\nused_memory_human:1000B\r\n\
                    used_memory_rss:7\r\nmaxmemory:4000\r\nmaxmemory_human:3.91K\r\n";
        let memory = Memory::parse(info).expect("a memory");
        assert_eq!(memory, Memory { used: 1000, max: 4000 });
        assert!((memory.fullness() - 0.25).abs() < f64::EPSILON);
        assert!(Memory { used: 1000, max: 0 }.fullness() <= 0.0);
        assert_eq!(Memory::parse("# Memory\r\nused_memory:x\r\n"), None);
    }

    #[test]
    fn strangers_fill_at_most_half_of_each_primary() {
        // Half of this limit is theirs: all of it may lie on any one of the primaries.
        assert_eq!(smallest_limit(&[4000, 2000, 3000]), 2000);
        assert_eq!(smallest_limit(&[4000, 0]), 4000, "the one without a limit is never full");
        assert_eq!(smallest_limit(&[0, 0]), 0);
    }
}
