//! The addresses that a server listens on.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::Context;

/// A host and a port, as `127.0.0.1:10200` or `[::1]:10200`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The host, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// The default address of `make run`.
const DEFAULT: &str = "127.0.0.1:10200";

impl Address {
    /// Returns the address of JARVIS_LISTEN, else the default one.
    ///
    /// # Errors
    /// Fails where JARVIS_LISTEN is no address.
    pub fn from_environment() -> anyhow::Result<Self> {
        let listen = std::env::var("JARVIS_LISTEN").unwrap_or_default();
        if listen.is_empty() { DEFAULT.parse() } else { listen.parse() }
    }

    /// Returns the base address under which a program on this machine reaches the server.
    pub fn url(&self) -> String {
        let host = match self.host.as_str() {
            "0.0.0.0" => "127.0.0.1",
            "::" => "::1",
            host => host,
        };
        format!("http://{}", Self { host: host.to_owned(), port: self.port })
    }

    /// Returns whether only programs on this machine reach the server.
    pub fn is_loopback(&self) -> bool {
        let is_address = |host: &str| host.parse::<IpAddr>().is_ok_and(|host| host.is_loopback());
        self.host == "localhost" || is_address(&self.host)
    }

    /// Returns another port of the host.
    pub fn with_port(&self, port: u16) -> Self {
        Self { host: self.host.clone(), port }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let parse = || {
            let (host, port) = text.rsplit_once(':')?;
            Some(Self { host: host.trim_matches(['[', ']']).to_owned(), port: port.parse().ok()? })
        };
        parse().with_context(|| {
            format!("JARVIS_LISTEN is {text:?}; set an address and a port, like {DEFAULT}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_are_read_and_written() {
        for (text, host, port) in [("127.0.0.1:10200", "127.0.0.1", 10200), ("[::1]:80", "::1", 80)]
        {
            let address: Address = text.parse().expect("an address");
            assert_eq!((address.host.as_str(), address.port), (host, port));
            assert_eq!(address.to_string(), text);
        }
        for wrong in ["10200", "localhost", "127.0.0.1:x", "127.0.0.1:70000"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_server_that_listens_everywhere_is_found_on_this_machine() {
        let url = |text: &str| text.parse::<Address>().expect("an address").url();
        assert_eq!(url("0.0.0.0:1"), "http://127.0.0.1:1");
        assert_eq!(url("[::]:1"), "http://[::1]:1");
    }
}
