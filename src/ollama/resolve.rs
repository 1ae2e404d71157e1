//! Looks up the addresses of hosts that are set by name. Each address is a host.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use reqwest::Url;
use tokio::time::timeout;

/// The pause between two lookups of a name.
pub(super) const LOOKUP_INTERVAL: Duration = Duration::from_secs(5);
/// Time limit of one lookup.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);
/// Addresses of one name, at most.
const ADDRESSES: usize = 256;

/// Returns the address in a URL; `None` where the URL has a name.
pub(super) fn literal(url: &Url) -> Option<SocketAddr> {
    let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']');
    let ip: IpAddr = host.parse().ok()?;
    Some(SocketAddr::new(ip, url.port_or_known_default()?))
}

/// Looks up the addresses of a URL's name, in order; `None` where the lookup failed. All addresses
/// are of one family, because a host with both would count twice.
pub(super) async fn addresses(url: &Url) -> Option<Vec<SocketAddr>> {
    let (host, port) = (url.host_str()?, url.port_or_known_default()?);
    let found = timeout(LOOKUP_LIMIT, tokio::net::lookup_host((host, port))).await.ok()?.ok()?;
    Some(of_one_family(found.collect()))
}

fn of_one_family(mut found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    if found.iter().any(SocketAddr::is_ipv4) {
        found.retain(SocketAddr::is_ipv4);
    }
    found.sort_unstable();
    found.dedup();
    found.truncate(ADDRESSES);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_with_addresses_of_both_families_is_one() {
        let found = ["[::1]:1", "127.0.0.2:1", "127.0.0.1:1", "127.0.0.1:1"];
        let found = of_one_family(found.iter().map(|a| a.parse().expect("an address")).collect());
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.1:1", "127.0.0.2:1"]);
    }

    #[test]
    fn an_address_needs_no_lookup() {
        let of = |url: &str| literal(&url.parse().expect("a URL")).map(|a| a.to_string());
        assert_eq!(of("http://127.0.0.1:5/x").as_deref(), Some("127.0.0.1:5"));
        assert_eq!(of("https://[::1]").as_deref(), Some("[::1]:443"));
        assert_eq!(of("http://localhost:5"), None);
    }
}
