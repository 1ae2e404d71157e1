//! The caller of a request, and the network that it comes from.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::extract::{ConnectInfo, FromRef, FromRequestParts};
use axum::http::HeaderMap;
use axum::http::request::Parts;

use crate::digest::sha256_hex;
use crate::session::Owner;
use crate::sign_in::{Identity, Validity};

/// The caller as the owner of its sessions. The middleware has checked its token.
pub struct Caller(pub Owner);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let identity = parts.extensions.get::<Identity>();
        Ok(Self(identity.map_or(Owner::Anonymous, |identity| identity.owner.clone())))
    }
}

/// How long the caller stays signed in; for an anonymous caller without an end.
pub struct SignedIn(pub Validity);

impl<S: Sync> FromRequestParts<S> for SignedIn {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let identity = parts.extensions.get::<Identity>();
        Ok(Self(identity.map(|identity| identity.validity.clone()).unwrap_or_default()))
    }
}

/// The number of proxies in front that add to X-Forwarded-For.
#[derive(Clone, Copy, Debug)]
pub struct TrustedProxies(pub usize);

/// The digest of the caller's network, which is the same for one network and does not disclose it.
pub struct Source(pub String);

impl<S> FromRequestParts<S> for Source
where
    S: Send + Sync,
    TrustedProxies: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
        let address = forwarded(&parts.headers, TrustedProxies::from_ref(state).0).or(peer);
        Ok(Self(address.map_or_else(String::new, |address| {
            let mut digest = sha256_hex(network(address).to_string().as_bytes());
            digest.truncate(16);
            digest
        })))
    }
}

/// Returns the address that connected to the outermost trusted proxy.
fn forwarded(headers: &HeaderMap, proxies: usize) -> Option<IpAddr> {
    let hops = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let hops: Vec<&str> = hops.flat_map(|value| value.split(',')).map(str::trim).collect();
    hops.len().checked_sub(proxies).filter(|_| proxies > 0).and_then(|at| hops[at].parse().ok())
}

/// Returns the network of one subscriber: an IPv4 address, or the first half of an IPv6 address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}
