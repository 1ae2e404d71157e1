//! A line of `CLUSTER NODES`.

/// A node as another one knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub id: String,
    pub port: u16,
    /// Whether it is a primary that is not known to be down.
    pub primary: bool,
    /// The identifier of its primary.
    pub replica_of: Option<String>,
    pub epoch: u64,
    slots: Vec<(u16, u16)>,
}

impl Known {
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let id = words.next()?.to_owned();
        let address = words.next()?;
        let port = address.split('@').next()?.rsplit(':').next()?.parse().ok()?;
        let flags = words.next()?;
        let replica_of = words.next().filter(|id| *id != "-").map(str::to_owned);
        let epoch = words.nth(2)?.parse().ok()?;
        let slots = words
            .skip(1)
            // A hash slot that is being moved is in brackets.
            .filter(|word| !word.starts_with('['))
            .filter_map(|word| {
                let (first, last) = word.split_once('-').unwrap_or((word, word));
                Some((first.parse().ok()?, last.parse().ok()?))
            })
            .collect();
        let alive = !flags.split(',').any(|flag| matches!(flag, "fail" | "noaddr" | "handshake"));
        let primary = alive && flags.split(',').any(|flag| flag == "master");
        Some(Self { id, port, primary, replica_of, epoch, slots })
    }

    pub fn takes_writes(&self) -> bool {
        self.primary && !self.slots.is_empty()
    }

    pub fn owns(&self, slot: u16) -> bool {
        self.slots.iter().any(|(first, last)| (first..=last).contains(&&slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_cluster_nodes_is_read() {
        let line =
            "07c3 127.0.0.1:7001@17001,host master - 0 1426238317239 4 connected 0-9 11 [12->-07]";
        let node = Known::parse(line).expect("a node");
        assert_eq!((node.port, node.primary, node.epoch), (7001, true, 4));
        assert!(node.takes_writes());
        assert!(node.owns(9) && node.owns(11) && !node.owns(10) && !node.owns(12));
        let replica = "1d2e 127.0.0.1:7002@17002 slave,fail 07c3 0 1426238317239 4 connected";
        let node = Known::parse(replica).expect("a node");
        assert_eq!((node.primary, node.replica_of.as_deref()), (false, Some("07c3")));
        assert!(!node.takes_writes());
    }
}
