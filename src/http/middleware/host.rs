//! Checks the Host header against the names that the service may have.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::AllowLists;
use crate::config::origins::AllowedHosts;
use crate::http::problem::Problem;

/// Refuses a request whose Host is not one of the service's.
pub(super) async fn check(
    State(lists): State<Arc<AllowLists>>,
    request: Request,
    next: Next,
) -> Response {
    match check_host(&lists.hosts, request.headers(), request.uri()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Checks the names of the Host header and of the address line; browsers send one, and the same.
fn check_host(allowed: &AllowedHosts, headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    let path = uri.path();
    let mut sent = headers.get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or("?"));
    let hosts = [sent.next(), uri.authority().map(Authority::as_str)];
    let mut hosts = hosts.into_iter().flatten().peekable();
    let is_allowed = sent.next().is_none()
        && match allowed {
            AllowedHosts::Any => true,
            // A browser always names the host.
            AllowedHosts::Loopback => hosts.all(is_local),
            // Probes and Prometheus use an address or a name of their network.
            AllowedHosts::Listed(_) if path.starts_with("/health") || path == "/metrics" => true,
            AllowedHosts::Listed(list) => {
                hosts.peek().is_some() && hosts.all(|host| is_listed(list, host))
            }
        };
    if is_allowed {
        return Ok(());
    }
    let detail = "This service is not known by this Host; its operator can list it in \
        JARVIS_ALLOWED_HOSTS (--allowed-hosts).";
    Err(Problem::new(StatusCode::FORBIDDEN, "host_not_allowed", detail))
}

fn is_listed(list: &[String], host: &str) -> bool {
    let name = without_port(host);
    let matches =
        |listed: &String| listed.eq_ignore_ascii_case(name) || listed.eq_ignore_ascii_case(host);
    list.iter().any(matches)
}

/// Returns whether a host is `localhost` or an address, with or without a port.
fn is_local(host: &str) -> bool {
    let name = without_port(host);
    let in_brackets = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<Ipv4Addr>().is_ok()
        || in_brackets.is_some_and(|name| name.parse::<Ipv6Addr>().is_ok())
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Returns the host that a request names.
pub(super) fn host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    match headers.get(header::HOST) {
        Some(host) => host.to_str().ok(),
        None => uri.authority().map(Authority::as_str),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn passes(allowed: &AllowedHosts, hosts: &[&'static str], uri: &'static str) -> bool {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_static(host));
        }
        check_host(allowed, &headers, &Uri::from_static(uri)).is_ok()
    }

    #[test]
    fn a_host_is_checked_where_a_list_is_set() {
        let listed = AllowedHosts::Listed(vec!["a.example".to_owned()]);
        assert!(passes(&listed, &["a.example"], "/ws"));
        assert!(passes(&listed, &["A.example:10200"], "/ws"));
        assert!(!passes(&listed, &["b.example"], "/ws"));
        assert!(!passes(&listed, &[], "/ws"));
        assert!(passes(&listed, &["10.0.0.7:10200"], "/health/ready"));
        assert!(passes(&AllowedHosts::Any, &["b.example"], "/ws"));
    }

    #[test]
    fn on_loopback_only_localhost_and_addresses_are_hosts() {
        let loopback = AllowedHosts::Loopback;
        for host in ["localhost", "LocalHost:10200", "127.0.0.1:10200", "10.0.0.7", "[::1]:10200"] {
            assert!(passes(&loopback, &[host], "/ws"), "{host}");
        }
        for host in [
            "rebound.example:10200",
            "rebound.example",
            "localhost.rebound.example",
            "127.0.0.1.rebound.example",
            "rebound.example:127.0.0.1",
            "localhost.",
            "::1",
            "[::1",
            "0x7f.1",
            "",
        ] {
            for path in ["/ws", "/metrics", "/health", "/docs"] {
                assert!(!passes(&loopback, &[host], path), "{host} {path}");
            }
        }
        // No browser leaves it out.
        assert!(passes(&loopback, &[], "/health"));
    }

    #[test]
    fn a_second_host_and_one_in_the_address_line_are_checked_too() {
        for allowed in [AllowedHosts::Loopback, AllowedHosts::Listed(vec!["localhost".to_owned()])]
        {
            assert!(passes(&allowed, &["localhost"], "http://localhost/ws"));
            assert!(!passes(&allowed, &["localhost"], "http://rebound.example/ws"));
            assert!(!passes(&allowed, &["rebound.example"], "http://localhost/ws"));
            assert!(!passes(&allowed, &["localhost", "rebound.example"], "/ws"));
        }
        assert!(!passes(&AllowedHosts::Any, &["a.example", "b.example"], "/ws"));
    }
}
