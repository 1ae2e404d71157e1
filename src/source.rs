//! The source of a request: the network of its client, without disclosing it.

use std::net::{IpAddr, Ipv6Addr};

use crate::digest::sha256_hex;

/// The prefix lengths of the IPv6 networks of an address, the widest first. The last one is what
/// one subscriber gets.
const IPV6_PREFIXES: [u32; 3] = [48, 56, 64];
/// Hexadecimal characters of a network's digest.
const DIGEST_CHARACTERS: usize = 16;
/// What separates the digests of an address's networks.
const SEPARATOR: char = '.';

/// The source of a client: the digest of its IPv4 address, or the digests of its IPv6 networks /48,
/// /56 and /64, joined by points. Empty for a loopback address, for which no limit by address holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Source(pub String);

impl Source {
    /// Returns the source of a client at this address.
    pub fn of(address: IpAddr) -> Self {
        let digest = |network: IpAddr| {
            let mut digest = sha256_hex(network.to_string().as_bytes());
            digest.truncate(DIGEST_CHARACTERS);
            digest
        };
        match address.to_canonical() {
            IpAddr::V4(address) if address.is_loopback() => Self::default(),
            IpAddr::V6(address) if address.is_loopback() => Self::default(),
            IpAddr::V4(address) => Self(digest(address.into())),
            IpAddr::V6(address) => {
                let digests = IPV6_PREFIXES.map(|bits| {
                    let kept = u128::MAX << (u128::BITS - bits);
                    let network = Ipv6Addr::from_bits(address.to_bits() & kept);
                    // Networks of different lengths may begin with the same address.
                    digest(network.into()) + &bits.to_string()
                });
                Self(digests.join(&SEPARATOR.to_string()))
            }
        }
    }

    /// Returns whether limits by address hold.
    pub fn is_limited(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Returns the wider networks around a source, the widest first: /48 and /56 of an IPv6 source, and
/// none of an IPv4 address. Each is a prefix of the source.
pub fn wider_networks(source: &str) -> Vec<&str> {
    source.match_indices(SEPARATOR).map(|(at, _)| &source[..at]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str) -> String {
        Source::of(address.parse().expect("an address")).0
    }

    #[test]
    fn a_source_is_one_ipv4_address_or_one_ipv6_64() {
        assert_eq!(source("192.0.2.1"), source("::ffff:192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!(source("2001:db8:0:1::1"), source("2001:db8:0:1:ffff::9"));
        assert_ne!(source("2001:db8:0:1::1"), source("2001:db8:0:2::1"));
    }

    #[test]
    fn networks_of_one_56_and_of_one_48_have_the_wider_networks_in_common() {
        let [one, same_56, same_48, other] =
            ["2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8:0:100::1", "2001:db8:1::1"]
                .map(source);
        let wider = |source: &str| {
            wider_networks(source).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(wider(&one), wider(&same_56));
        assert_eq!(wider(&one)[0], wider(&same_48)[0]);
        assert_ne!(wider(&one)[1], wider(&same_48)[1]);
        assert_ne!(wider(&one)[0], wider(&other)[0]);
        // The first of many networks is not the network around them.
        let first = wider(&source("2001:db8::1"));
        assert_ne!(first[0], first[1]);
        assert!(wider(&source("192.0.2.1")).is_empty());
    }

    #[test]
    fn a_loopback_address_has_no_limits() {
        for address in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(!Source::of(address.parse().expect("an address")).is_limited(), "{address}");
        }
        assert!(Source::of("10.0.0.1".parse().expect("an address")).is_limited());
    }
}
