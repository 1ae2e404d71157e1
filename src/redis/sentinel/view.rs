//! The views of the sentinels, and what follows from them. Nothing here waits or does I/O.

use std::collections::HashMap;
use std::time::Duration;

use fred::prelude::Server;

/// The longest primary lease, from the server's last reply.
pub(super) const LONGEST_LEASE: Duration = Duration::from_millis(1500);

/// One sentinel's view of the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SentinelView {
    /// The server that the sentinel names.
    pub(super) server: Server,
    /// Whether the server replies to the sentinel.
    pub(super) up: bool,
    /// Whether the sentinel is replacing the server.
    pub(super) failing_over: bool,
    /// How long the server must not reply before the sentinel counts it as down.
    pub(super) down_after: Duration,
    /// The epoch of the sentinel's configuration. The newest one is right, and the other sentinels
    /// learn of it within a second.
    pub(super) epoch: u64,
}

/// Returns the server that a majority of the sentinels names.
pub(super) fn named(views: &[SentinelView], sentinels: usize) -> Option<Server> {
    let mut votes: HashMap<&Server, usize> = HashMap::new();
    for view in views {
        *votes.entry(&view.server).or_default() += 1;
    }
    let (server, votes) = votes.into_iter().max_by_key(|(_, votes)| *votes)?;
    (votes * 2 > sentinels).then(|| server.clone())
}

/// Returns how long a server that replied just before these views is certain to be the primary.
pub(super) fn primary_lease(views: &[SentinelView], server: &Server) -> Option<Duration> {
    let of_server = || views.iter().filter(|view| view.server == *server);
    let up = of_server().filter(|view| view.up).count();
    if is_replaced(views, server) || up * 2 <= views.len() {
        return None;
    }
    of_server().map(|view| view.down_after.min(LONGEST_LEASE)).min()
}

/// Returns whether a sentinel is replacing the server, or has replaced it, even if the other
/// sentinels do not know of it yet.
pub(super) fn is_replaced(views: &[SentinelView], server: &Server) -> bool {
    let newest = views.iter().map(|view| view.epoch).max();
    views.iter().any(|view| {
        if view.server == *server { view.failing_over } else { Some(view.epoch) == newest }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(port: u16) -> SentinelView {
        SentinelView {
            server: Server::new("h", port),
            up: true,
            failing_over: false,
            down_after: Duration::from_secs(1),
            epoch: 1,
        }
    }

    #[test]
    fn a_primary_is_certain_while_most_sentinels_see_it_and_no_sentinel_replaces_it() {
        let (one, two) = (Server::new("h", 1), Server::new("h", 2));
        let steady = vec![view(1), view(1), view(1)];
        assert_eq!(primary_lease(&steady, &one), Some(Duration::from_secs(1)));
        assert_eq!(primary_lease(&steady, &two), None, "another server is named");

        let mut one_is_cut_off = steady.clone();
        one_is_cut_off[0].up = false;
        assert!(primary_lease(&one_is_cut_off, &one).is_some());
        one_is_cut_off[1].up = false;
        assert_eq!(primary_lease(&one_is_cut_off, &one), None);

        let mut replaced = steady.clone();
        replaced[2].failing_over = true;
        assert_eq!(primary_lease(&replaced, &one), None, "one sentinel is enough to replace it");

        let promoted = vec![view(1), view(1), SentinelView { epoch: 2, ..view(2) }];
        assert_eq!(named(&promoted, 3), Some(one.clone()), "the others do not know yet");
        assert_eq!(primary_lease(&promoted, &one), None, "and yet it is being replaced");
        let outdated = vec![view(1), view(1), SentinelView { epoch: 0, ..view(2) }];
        assert!(primary_lease(&outdated, &one).is_some());

        let half_way = vec![
            view(1),
            SentinelView { epoch: 2, ..view(2) },
            SentinelView { epoch: 2, ..view(2) },
        ];
        assert_eq!(named(&half_way, 3), Some(two.clone()));
        assert!(primary_lease(&half_way, &two).is_some());
        assert_eq!(named(&half_way[..2], 3), None);
    }

    #[test]
    fn a_primary_lease_is_no_longer_than_the_sentinels_need_to_miss_a_server() {
        let patient = SentinelView { down_after: Duration::from_secs(30), ..view(1) };
        assert_eq!(
            primary_lease(&[patient.clone(), patient.clone()], &patient.server),
            Some(LONGEST_LEASE)
        );
        assert_eq!(
            primary_lease(&[patient.clone(), view(1)], &patient.server),
            Some(Duration::from_secs(1))
        );
    }
}
