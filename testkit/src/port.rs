//! Ports of this machine, each reserved for one owner.

use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::ops::Range;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use anyhow::bail;

/// The ports lie below those that the kernel gives to outgoing connections, so that a server that
/// is started again finds its own still free.
const PORTS: Range<u16> = 12_000..22_000;
/// The bus of a cluster's node is at its port and this.
const BUS: u16 = 10_000;

/// A port of 127.0.0.1 that no other user of this crate gets while this value lives.
///
/// Between the moment when a port is found free and the moment when its server listens, another test
/// could take it. So the owner holds an abstract Unix socket of the port's name: the kernel gives it
/// to one process only, in the network that the port belongs to, and takes it back at that process's
/// death.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _reservation: UnixListener,
}

impl Port {
    /// Reserves a free port.
    ///
    /// # Errors
    /// Fails where no port of the range is free.
    pub fn reserve() -> anyhow::Result<Self> {
        let count = PORTS.end - PORTS.start;
        let start = (RandomState::new().hash_one(std::process::id()) % u64::from(count)) as u16;
        for step in 0..count {
            let number = PORTS.start + (start + step) % count;
            let name = SocketAddr::from_abstract_name(format!("jarvis-testkit-port-{number}"))?;
            let Ok(reservation) = UnixListener::bind_addr(&name) else { continue };
            if is_free("127.0.0.1", number) && is_free("127.0.0.1", number + BUS) {
                return Ok(Self { number, _reservation: reservation });
            }
        }
        bail!("no port of {PORTS:?} is free; end what listens on them")
    }

    /// Returns the number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

/// Returns whether a server could listen on this port of this address.
pub fn is_free(host: &str, port: u16) -> bool {
    TcpListener::bind((host, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_owners_get_the_same_port_at_the_same_time() {
        let reserve = || (0..50).map(|_| Port::reserve().expect("a port")).collect::<Vec<_>>();
        let owners: Vec<Vec<Port>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(reserve)).collect();
            threads.into_iter().map(|thread| thread.join().expect("ports")).collect()
        });
        let numbers: HashSet<u16> = owners.iter().flatten().map(Port::number).collect();
        assert_eq!(numbers.len(), 400);
    }

    #[test]
    fn a_port_in_use_is_seen() {
        let port = Port::reserve().expect("a port");
        assert!(is_free("127.0.0.1", port.number()));
        let _listener = TcpListener::bind(("127.0.0.1", port.number())).expect("a listener");
        assert!(!is_free("127.0.0.1", port.number()));
    }
}
