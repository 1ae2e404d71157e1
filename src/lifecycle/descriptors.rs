//! The limit of open file descriptors: each connection needs one.

/// Descriptors that WebSockets and event streams leave to others: other requests, Redis, the model
/// hosts, and health probes.
const RESERVED: u64 = 512;
/// Connections of clients in addition to those, at most.
const OTHER_CONNECTIONS: u64 = 256;
/// Connections of health probes when all others are in use, at most.
const PROBES: u64 = 128;
/// The limit that is assumed where the kernel does not report it.
const USUAL_LIMIT: u64 = 1024;

/// Raises the limit of this process as far as it may, and returns it.
pub fn raise_limit() -> u64 {
    rlimit::increase_nofile_limit(u64::MAX).unwrap_or_else(|error| {
        tracing::warn!(%error, "limit of file descriptors not raised");
        USUAL_LIMIT
    })
}

/// Returns how many sockets a limit of descriptors has room for.
fn room_for_sockets(limit: u64) -> u64 {
    limit.saturating_sub(RESERVED).max(limit / 2)
}

/// Returns how many connections of clients fit into a limit of descriptors.
pub fn connections_that_fit(limit: u64) -> usize {
    (room_for_sockets(limit) + OTHER_CONNECTIONS.min(limit / 4)) as usize
}

/// Returns how many connections of health probes fit in addition to those.
pub fn probes_that_fit(limit: u64) -> usize {
    PROBES.min(limit / 16).max(1) as usize
}

/// Returns how many of the wanted sockets fit into a limit of descriptors. Logs a warning where not
/// all do.
pub fn sockets_that_fit(wanted: u32, limit: u64) -> usize {
    let room = room_for_sockets(limit);
    let wanted = u64::from(wanted);
    if wanted > room {
        tracing::warn!(
            max_sockets = wanted,
            descriptors = limit,
            admitted = room,
            "fewer sockets admitted than set; raise the limit of file descriptors (ulimit -n, or \
             nofile of the container), or lower --max-sockets"
        );
    }
    wanted.min(room) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_leave_descriptors_to_others_whatever_the_limit() {
        assert_eq!(sockets_that_fit(19_000, 20_000), 19_000);
        assert_eq!(sockets_that_fit(19_000, 65_536), 19_000);
        assert_eq!(sockets_that_fit(19_000, 1024), 512);
        assert_eq!(sockets_that_fit(19_000, 4096), 3584);
        assert_eq!(sockets_that_fit(19_000, 256), 128);
        assert_eq!(sockets_that_fit(60, 1024), 60);
        for limit in [256, 1024, 4096, 20_000, 65_536] {
            let used = connections_that_fit(limit) + probes_that_fit(limit);
            assert!(used as u64 + (limit / 8).min(128) <= limit, "{limit}: {used}");
        }
    }
}
