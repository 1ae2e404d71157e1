//! A name with several addresses is several hosts, followed as it changes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use reqwest::Url;
use tokio::time::timeout;

/// How often a name is asked for.
pub(super) const EVERY: Duration = Duration::from_secs(5);
/// How long the answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Addresses of one name, at most.
const ADDRESSES: usize = 256;

/// The address in a URL; none where it has a name.
pub(super) fn literal(url: &Url) -> Option<SocketAddr> {
    let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']');
    let ip: IpAddr = host.parse().ok()?;
    Some(SocketAddr::new(ip, url.port_or_known_default()?))
}

/// The addresses of a URL's name, in order; none where there is no answer. Of one family: a host
/// with both would be two.
pub(super) async fn addresses(url: &Url) -> Option<Vec<SocketAddr>> {
    let (host, port) = (url.host_str()?, url.port_or_known_default()?);
    let found = timeout(LIMIT, tokio::net::lookup_host((host, port))).await.ok()?.ok()?;
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
        let told: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["127.0.0.1:1", "127.0.0.2:1"]);
    }

    #[test]
    fn an_address_needs_no_answer() {
        let of = |url: &str| literal(&url.parse().expect("a URL")).map(|a| a.to_string());
        assert_eq!(of("http://127.0.0.1:5/x").as_deref(), Some("127.0.0.1:5"));
        assert_eq!(of("https://[::1]").as_deref(), Some("[::1]:443"));
        assert_eq!(of("http://localhost:5"), None);
    }
}
