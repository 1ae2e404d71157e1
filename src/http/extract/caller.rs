//! The caller of a request, and the address that it comes from.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Once};

use axum::extract::{ConnectInfo, FromRef, FromRequestParts};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use ipnet::IpNet;

use crate::session::Owner;
use crate::sign_in::{Identity, Validity};
use crate::source::{Source, SourceKey};
use crate::telemetry::metric;

/// The caller as the owner of its sessions. The middleware has checked its token.
pub struct Caller(pub Owner);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let identity = parts.extensions.get::<Identity>();
        Ok(Self(identity.map_or(Owner::Anonymous, |identity| identity.owner.clone())))
    }
}

/// The caller, and how long it stays signed in; for an anonymous caller without an end.
impl<S: Sync> FromRequestParts<S> for Identity {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let identity = parts.extensions.get::<Self>().cloned();
        let anonymous = || Self { owner: Owner::Anonymous, validity: Validity::default() };
        Ok(identity.unwrap_or_else(anonymous))
    }
}

/// The address of a client, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress {
    /// The address.
    pub address: IpAddr,
    /// Whether a trusted proxy has forwarded the request. Its X-Forwarded-For chose the address then, also
    /// where no entry could be read.
    pub is_forwarded: bool,
}

/// The networks of the proxies in front whose X-Forwarded-For is believed.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(pub Arc<[IpNet]>);

impl TrustedProxies {
    /// Returns whether this is the address of a trusted proxy.
    pub fn has(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Returns whether a request has an X-Forwarded-For that is not believed.
    pub fn is_untrusted_forward(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        headers.contains_key("x-forwarded-for") && !self.has(peer.to_canonical())
    }

    /// Counts a request whose X-Forwarded-For is not believed, and warns of the first one: where a proxy
    /// is missing in the setting, all its clients have the limits of one.
    pub fn note_untrusted_forward(&self, peer: IpAddr, headers: &HeaderMap) {
        static WARNING: Once = Once::new();
        if !self.is_untrusted_forward(peer, headers) {
            return;
        }
        metrics::counter!(metric::UNTRUSTED_FORWARDS_TOTAL).increment(1);
        WARNING.call_once(|| {
            // A proxy is in a network of one's own; the address of a client is in no log.
            let peer = peer.to_canonical();
            let proxy = if is_private(peer) { peer.to_string() } else { "public".to_owned() };
            tracing::warn!(
                proxy,
                "X-Forwarded-For of an untrusted address ignored; \
                 if it is a proxy of yours, add its network to JARVIS_TRUSTED_PROXIES"
            );
        });
    }

    /// Returns the address of the client: the connection's, or, where that is a trusted proxy's, the
    /// nearest address in X-Forwarded-For that is no trusted proxy's. An entry that is no address
    /// ends the search.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> ClientAddress {
        let (mut address, mut is_forwarded) = (peer.to_canonical(), false);
        let values = headers.get_all("x-forwarded-for").iter().rev();
        // Each proxy appends the address that connected to it. The part to the left of the first
        // address that is not trusted is the client's own claim.
        for hop in values.flat_map(|value| value.to_str().unwrap_or("?").rsplit(',')) {
            if !self.has(address) {
                break;
            }
            match hop.trim() {
                "" => {}
                hop => {
                    is_forwarded = true;
                    let Some(before) = parse_hop(hop) else { break };
                    address = before;
                }
            }
        }
        ClientAddress { address, is_forwarded }
    }
}

/// Returns whether an address is of a private network, or of this machine.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_private() || address.is_loopback(),
        IpAddr::V6(address) => address.is_unique_local() || address.is_loopback(),
    }
}

/// Parses an entry of X-Forwarded-For: an address, which may have a port, and brackets for IPv6.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let address = bare.parse().ok();
    address
        .or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
        .map(|address: IpAddr| address.to_canonical())
}

/// The rules by which the source of a request is found. Cloning is cheap, and clones share the key.
#[derive(Clone, Debug, Default)]
pub struct ClientSources {
    /// The proxies in front.
    pub proxies: TrustedProxies,
    /// The key of the digests.
    pub key: SourceKey,
}

impl ClientSources {
    /// Returns the source of a request on a connection of this address. Only a client whose own
    /// connection comes from loopback has no limits: one that a proxy forwards cannot choose that, also
    /// where the proxy is on the same machine and is not listed, so that all its clients are one address.
    pub fn of(&self, peer: IpAddr, headers: &HeaderMap) -> Source {
        let ClientAddress { address, is_forwarded } = self.proxies.client(peer, headers);
        if is_forwarded || self.proxies.is_untrusted_forward(peer, headers) {
            self.key.forwarded(address)
        } else {
            self.key.source(address)
        }
    }
}

impl<S> FromRequestParts<S> for Source
where
    S: Send + Sync,
    TrustedProxies: FromRef<S>,
    SourceKey: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
        let (proxies, key) = (TrustedProxies::from_ref(state), SourceKey::from_ref(state));
        let sources = ClientSources { proxies, key };
        Ok(peer.map(|peer| sources.of(peer, &parts.headers)).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(trusted: &[&str], peer: &str, forwarded: &[&[u8]]) -> String {
        let networks = trusted.iter().map(|network| network.parse().expect("a network"));
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", value.to_vec().try_into().expect("a value"));
        }
        let proxies = TrustedProxies(networks.collect());
        proxies.client(peer.parse().expect("an address"), &headers).address.to_string()
    }

    #[test]
    fn a_forwarded_loopback_address_has_limits() {
        let sources = |trusted: &[&str], peer: &str, forwarded: &[&'static str]| {
            let networks = trusted.iter().map(|network| network.parse().expect("a network"));
            let proxies = TrustedProxies(networks.collect());
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append("x-forwarded-for", (*value).try_into().expect("a value"));
            }
            let sources = ClientSources { proxies, key: SourceKey::default() };
            sources.of(peer.parse().expect("an address"), &headers)
        };
        let trusted = &["127.0.0.0/8", "::1/128", "10.0.0.0/8"][..];
        for (peer, forwarded) in [
            ("10.0.0.1", &["127.0.0.1"][..]),
            ("10.0.0.1", &["::1"]),
            ("10.0.0.1", &["[::ffff:127.0.0.1]:80"]),
            ("10.0.0.1", &["127.0.0.1, 10.0.0.2"]),
            // A proxy on the same machine, whose client is there, too, or claims to be.
            ("127.0.0.1", &["127.0.0.1"]),
            ("::1", &["127.0.0.1", "::1"]),
            // The client chose that nothing can be read.
            ("127.0.0.1", &["unknown"]),
            ("127.0.0.1", &["127.0.0.1, _x"]),
        ] {
            assert!(sources(trusted, peer, forwarded).is_limited(), "{peer} {forwarded:?}");
        }
        // A proxy on the same machine that is not listed: all its clients are one address.
        for (peer, forwarded) in [("127.0.0.1", "127.0.0.1"), ("::ffff:127.0.0.1", "192.0.2.7")] {
            let source = sources(&[], peer, &[forwarded]);
            assert!(source.is_limited(), "{peer} {forwarded}");
        }
        for (trusted, peer, forwarded) in [
            (trusted, "127.0.0.1", &[][..]),
            (trusted, "::1", &["", " , "]),
            (&[], "127.0.0.1", &[]),
            (&[], "::ffff:127.0.0.1", &[]),
        ] {
            assert!(!sources(trusted, peer, forwarded).is_limited(), "{peer} {forwarded:?}");
        }
    }

    #[test]
    fn a_forwarded_request_of_an_untrusted_address_is_noticed() {
        let networks = ["10.0.0.0/8"].iter().map(|network| network.parse().expect("a network"));
        let proxies = TrustedProxies(networks.collect());
        let mut forwarded = HeaderMap::new();
        forwarded.insert("x-forwarded-for", "192.0.2.1".parse().expect("a value"));
        let noticed = |peer: &str, headers: &HeaderMap| {
            proxies.is_untrusted_forward(peer.parse().expect("an address"), headers)
        };
        assert!(noticed("192.168.1.1", &forwarded) && noticed("172.16.0.1", &forwarded));
        assert!(!noticed("10.1.2.3", &forwarded) && !noticed("::ffff:10.1.2.3", &forwarded));
        assert!(!noticed("192.168.1.1", &HeaderMap::new()));
        for (address, expected) in [("172.16.0.1", true), ("fd00::1", true), ("192.0.2.1", false)] {
            assert_eq!(is_private(address.parse().expect("an address")), expected, "{address}");
        }
    }

    #[test]
    fn each_private_network_is_trusted_by_the_components_whose_edge_overwrites_the_header() {
        for component in ["ingress", "nginx"] {
            let file = format!("k8s/components/{component}/kustomization.yaml");
            let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(root.join(file)).expect("a file");
            let setting =
                text.lines().find_map(|it| it.trim().strip_prefix("- JARVIS_TRUSTED_PROXIES="));
            let trusted: Vec<_> = setting.expect("a setting").split(',').collect();
            for pod in ["10.244.0.7", "172.20.3.4", "192.168.9.9", "100.64.1.1", "fd00::7"] {
                assert_eq!(client(&trusted, pod, &[b"203.0.113.9"]), "203.0.113.9", "{component}");
                // The edge writes one entry, which may itself be of a private network.
                assert_eq!(client(&trusted, pod, &[b"192.168.1.5"]), "192.168.1.5", "{component}");
            }
        }
    }

    #[test]
    fn a_connection_that_is_no_proxy_is_the_client_whatever_it_claims() {
        assert_eq!(client(&[], "192.0.2.1", &[b"203.0.113.9"]), "192.0.2.1");
        assert_eq!(client(&["10.0.0.0/8"], "192.0.2.1", &[b"203.0.113.9"]), "192.0.2.1");
        assert_eq!(client(&["10.0.0.0/8"], "10.0.0.1", &[]), "10.0.0.1");
    }

    #[test]
    fn the_nearest_address_that_is_not_trusted_is_the_client() {
        let trusted = ["10.0.0.0/8", "fd00::/8"];
        for (peer, forwarded, expected) in [
            ("10.0.0.1", &[&b"203.0.113.9"[..]][..], "203.0.113.9"),
            ("::ffff:10.0.0.1", &[b"::ffff:203.0.113.9"], "203.0.113.9"),
            // The client's own claim stands to the left.
            ("10.0.0.1", &[b"198.51.100.7, 203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &[b"198.51.100.7", b"203.0.113.9,10.0.0.2", b"10.0.0.3"], "203.0.113.9"),
            ("fd00::1", &[b"198.51.100.7, 203.0.113.9, 10.2.2.2"], "203.0.113.9"),
            // All are trusted: the farthest one.
            ("10.0.0.1", &[b"10.0.0.9, 10.0.0.2"], "10.0.0.9"),
            ("10.0.0.1", &[b" , 203.0.113.9 ,"], "203.0.113.9"),
        ] {
            assert_eq!(client(&trusted, peer, forwarded), expected, "{peer} {forwarded:?}");
        }
    }

    #[test]
    fn an_entry_may_have_a_port_and_brackets() {
        for (hop, expected) in [
            ("1.2.3.4:5678", "1.2.3.4"),
            ("[::1]:80", "::1"),
            ("[::1]", "::1"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]:443", "2001:db8::7"),
            ("[::ffff:1.2.3.4]:5", "1.2.3.4"),
        ] {
            assert_eq!(client(&["10.0.0.1/32"], "10.0.0.1", &[hop.as_bytes()]), expected, "{hop}");
        }
    }

    #[test]
    fn an_entry_that_is_no_address_ends_the_search_at_the_proxy() {
        for hop in ["unknown", "1.2.3", "1.2.3.4:", "1.2.3.4:99999", "[::1", "::1]:80", "_x"] {
            let forwarded = format!("203.0.113.9, {hop}");
            let found = client(&["10.0.0.0/8"], "10.0.0.1", &[forwarded.as_bytes()]);
            assert_eq!(found, "10.0.0.1", "{hop}");
        }
        assert_eq!(client(&["10.0.0.0/8"], "10.0.0.1", &[b"203.0.113.9, \xff"]), "10.0.0.1");
    }
}
