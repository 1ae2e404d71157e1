//! The address at which the other subcommands reach a running server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use clap::Args;
use reqwest::Url;

use super::url::http_url;
use super::values::listen_address;

/// The address of a running server.
#[derive(Clone, Debug, Args)]
pub struct ServerAddress {
    /// The server's URL; where absent, the address that the server listens on
    #[arg(long, env = "JARVIS_HEALTH_URL", hide_env_values = true, value_parser = http_url)]
    pub url: Option<Url>,

    /// Address and port that the server listens on
    #[arg(long, env = "JARVIS_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:10200")]
    #[arg(value_parser = listen_address)]
    pub listen: SocketAddr,
}

impl ServerAddress {
    /// Returns a URL at which this machine reaches the server: the loopback address where the server
    /// listens on all addresses.
    ///
    /// # Errors
    /// Where the server chooses its port when it starts.
    pub fn reachable(&self) -> anyhow::Result<Url> {
        if let Some(url) = &self.url {
            return Ok(url.clone());
        }
        let mut address = self.listen;
        anyhow::ensure!(address.port() != 0, "port 0 is no address; name the server with --url");
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        Ok(format!("http://{address}").parse()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_reached_where_it_listens_or_at_the_url_that_is_set() {
        let reachable = |listen: &str, url: Option<&str>| {
            let url = url.map(|url| url.parse().expect("a URL"));
            let address = ServerAddress { url, listen: listen.parse().expect("an address") };
            address.reachable().map(|url| url.to_string()).ok()
        };
        for (listen, url) in [
            ("127.0.0.1:1234", Some("http://127.0.0.1:1234/")),
            ("0.0.0.0:10200", Some("http://127.0.0.1:10200/")),
            ("[::]:10200", Some("http://[::1]:10200/")),
            ("[::1]:80", Some("http://[::1]/")),
            ("10.1.2.3:9", Some("http://10.1.2.3:9/")),
            ("127.0.0.1:0", None),
        ] {
            assert_eq!(reachable(listen, None).as_deref(), url, "{listen}");
        }
        let named = reachable("127.0.0.1:1", Some("http://a.example:2"));
        assert_eq!(named.as_deref(), Some("http://a.example:2/"));
    }
}
