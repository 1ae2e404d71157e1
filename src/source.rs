//! The source of a request: the network of its client, without disclosing it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use ring::hmac;

use crate::digest::{hex, sha256_hex};

/// The prefix lengths of the IPv6 networks of an address, the widest first. The last one is what
/// one subscriber gets.
const IPV6_PREFIXES: [u32; 3] = [48, 56, 64];
/// Bytes of a network's digest.
const DIGEST_BYTES: usize = 8;
/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// The separator of the digests of an address's networks.
const SEPARATOR: char = '.';

/// The source of a client: the digest of its IPv4 address, or the digests of its IPv6 networks /48,
/// /56 and /64, joined by points. Empty for a client on the same machine, for which no limit by address
/// holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Source(pub String);

/// The holder of a share of something that a replica counts in memory: a network or a user, by a digest as a
/// number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShareKey(u64);

impl ShareKey {
    /// Returns the key of a user.
    pub fn of_user(key: &str) -> Self {
        let digest = sha256_hex(key.as_bytes());
        Self(u64::from_str_radix(&digest[..2 * DIGEST_BYTES], 16).unwrap_or_default())
    }

    /// Returns the key of the widest network of a source: of its IPv4 address, or of its IPv6 /48. None
    /// of a loopback address.
    pub fn of_network(source: &str) -> Option<Self> {
        let digits = source.get(..2 * DIGEST_BYTES)?;
        u64::from_str_radix(digits, 16).ok().map(Self)
    }
}

/// The key of the digests. Without a key the digest of an IPv4 address is found by trying all of them.
/// Cloning is cheap, and clones share the key.
#[derive(Clone)]
pub struct SourceKey(Arc<SharedKey>);

struct SharedKey {
    key: RwLock<hmac::Key>,
    /// Whether all replicas have this key.
    is_agreed: AtomicBool,
}

impl SourceKey {
    /// Creates a key of these bytes, which all replicas have.
    pub fn new(bytes: &[u8]) -> Self {
        Self::with(bytes, true)
    }

    /// Creates a random key, which no other replica has yet.
    pub fn not_agreed() -> Self {
        Self::with(&rand::random::<[u8; KEY_BYTES]>(), false)
    }

    fn with(bytes: &[u8], is_agreed: bool) -> Self {
        let key = RwLock::new(hmac::Key::new(hmac::HMAC_SHA256, bytes));
        Self(Arc::new(SharedKey { key, is_agreed: is_agreed.into() }))
    }

    /// Replaces the key by the one that all replicas have.
    pub fn agree(&self, bytes: &[u8]) {
        let mut key = self.0.key.write().unwrap_or_else(PoisonError::into_inner);
        *key = hmac::Key::new(hmac::HMAC_SHA256, bytes);
        self.0.is_agreed.store(true, Ordering::Release);
    }

    /// Returns whether all replicas have this key. An amount that is counted by another one is counted
    /// for nobody.
    pub fn is_agreed(&self) -> bool {
        self.0.is_agreed.load(Ordering::Acquire)
    }

    /// Returns the key, for digests that all replicas have to agree on; none while they may not.
    pub fn agreed(&self) -> Option<hmac::Key> {
        let key = || self.0.key.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.is_agreed().then(key)
    }

    /// Returns the source of a client whose connection has this address. On loopback it has no limits.
    pub fn source(&self, address: IpAddr) -> Source {
        let address = address.to_canonical();
        if address.is_loopback() { Source::default() } else { self.forwarded(address) }
    }

    /// Returns the source of a client at this address, which a proxy has named. A loopback address has
    /// limits as any other then: what is forwarded may be the client's own choice.
    pub fn forwarded(&self, address: IpAddr) -> Source {
        let key = self.0.key.read().unwrap_or_else(PoisonError::into_inner);
        let digest = |network: IpAddr| {
            let tag = hmac::sign(&key, network.to_string().as_bytes());
            hex(&tag.as_ref()[..DIGEST_BYTES])
        };
        match address.to_canonical() {
            IpAddr::V4(address) => Source(digest(address.into())),
            IpAddr::V6(address) => {
                let digests = IPV6_PREFIXES.map(|bits| {
                    let kept = u128::MAX << (u128::BITS - bits);
                    let network = Ipv6Addr::from_bits(address.to_bits() & kept);
                    // Networks of different lengths may begin with the same address.
                    digest(network.into()) + &bits.to_string()
                });
                Source(digests.join(&SEPARATOR.to_string()))
            }
        }
    }
}

impl fmt::Debug for SourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceKey").field("is_agreed", &self.is_agreed()).finish_non_exhaustive()
    }
}

impl Default for SourceKey {
    /// Creates a random key.
    fn default() -> Self {
        Self::new(&rand::random::<[u8; KEY_BYTES]>())
    }
}

impl Source {
    /// Returns whether limits by address hold.
    pub fn is_limited(&self) -> bool {
        !self.0.is_empty()
    }

    /// Returns the key of the widest network, as [`ShareKey::of_network`] does.
    pub fn widest_network(&self) -> Option<ShareKey> {
        ShareKey::of_network(&self.0)
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
        SourceKey::new(b"a key").source(address.parse().expect("an address")).0
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
    fn the_widest_network_is_an_ipv4_address_or_an_ipv6_48() {
        let widest = |address: &str| Source(source(address)).widest_network();
        assert_eq!(widest("2001:db8:0:1::1"), widest("2001:db8:0:ffff::9"));
        assert_ne!(widest("2001:db8:0:1::1"), widest("2001:db8:1:1::1"));
        assert_ne!(widest("192.0.2.1"), widest("192.0.2.2"));
        assert!(widest("192.0.2.1").is_some() && widest("127.0.0.1").is_none());
    }

    #[test]
    fn a_loopback_address_has_no_limits() {
        for address in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(source(address).is_empty(), "{address}");
        }
        assert!(!source("10.0.0.1").is_empty());
        for address in ["127.0.0.1", "::1"] {
            let source = SourceKey::new(b"a key").forwarded(address.parse().expect("an address"));
            assert!(source.is_limited(), "{address}, as a proxy has named it");
        }
    }

    #[test]
    fn a_source_reveals_nothing_of_its_address_without_the_key() {
        let address = "192.0.2.1".parse().expect("an address");
        let key = SourceKey::default();
        let before = key.source(address);
        assert_eq!(key.clone().source(address), before);
        assert_eq!(before.0.len(), 2 * DIGEST_BYTES);
        let plain = crate::digest::sha256_hex(b"192.0.2.1");
        assert_ne!(before.0, plain[..2 * DIGEST_BYTES]);
        assert_ne!(before, SourceKey::default().source(address), "another random key");
        key.clone().agree(b"another key");
        assert_eq!(key.source(address), SourceKey::new(b"another key").source(address));
    }
}
