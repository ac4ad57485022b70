//! Which id has which address and port.
//!
//! What it does: the rules of `rdma_cm`: a wildcard collides with every address
//! of its family, two addresses only when equal; ids that all allow it share.
//! What it does not do: other processes; the rendezvous has those that listen.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;

use crate::rc::keys::KeySource;

/// Ports that the system would give out itself.
const EPHEMERAL: std::ops::Range<u16> = 32_768..60_999;

#[derive(Debug, Default)]
pub(crate) struct Bindings(HashMap<u16, Vec<Binding>>);

#[derive(Debug)]
struct Binding {
    ip: IpAddr,
    v6_only: bool,
    reuse: bool,
    id: u64,
}

impl Bindings {
    /// Binds; port 0 takes a free one. Returns the port.
    pub(crate) fn bind(
        &mut self,
        id: u64,
        addr: SocketAddr,
        (v6_only, reuse): (bool, bool),
        keys: &KeySource,
    ) -> Result<u16, Errno> {
        let new = Binding {
            ip: addr.ip().to_canonical(),
            v6_only,
            reuse,
            id,
        };
        let port = if addr.port() == 0 {
            self.free_port(&new, keys).ok_or(Errno::ADDRNOTAVAIL)?
        } else {
            addr.port()
        };
        if self.collides(port, &new) {
            let any = new.ip.is_unspecified();
            return Err(if any {
                Errno::ADDRNOTAVAIL
            } else {
                Errno::ADDRINUSE
            });
        }
        self.0.entry(port).or_default().push(new);
        Ok(port)
    }

    pub(crate) fn release(&mut self, id: u64, port: u16) {
        if let Some(bound) = self.0.get_mut(&port) {
            bound.retain(|binding| binding.id != id);
            if bound.is_empty() {
                self.0.remove(&port);
            }
        }
    }

    /// A port from which nobody shares; random, so that processes that do not
    /// know of each other hardly ever choose the same.
    fn free_port(&self, new: &Binding, keys: &KeySource) -> Option<u16> {
        let count = EPHEMERAL.end - EPHEMERAL.start;
        let start = keys.next_u32() % u32::from(count);
        (0..u32::from(count))
            .map(|step| EPHEMERAL.start + ((start + step) % u32::from(count)) as u16)
            .find(|port| !self.0.contains_key(port) || !self.collides(*port, new))
    }

    fn collides(&self, port: u16, new: &Binding) -> bool {
        let bound = self.0.get(&port).map_or(&[][..], Vec::as_slice);
        bound
            .iter()
            .any(|old| !(old.reuse && new.reuse) && overlap(old, new))
    }
}

fn overlap(a: &Binding, b: &Binding) -> bool {
    let covers = |wide: &Binding, other: &Binding| {
        wide.ip.is_unspecified()
            && (wide.ip.is_ipv4() == other.ip.is_ipv4() || wide.ip.is_ipv6() && !wide.v6_only)
    };
    a.ip == b.ip || covers(a, b) || covers(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_of_rdma_cm() {
        let keys = KeySource::seeded(1);
        let mut b = Bindings::default();
        let mut id = 0;
        let mut bind = |b: &mut Bindings, addr: &str, reuse| {
            id += 1;
            b.bind(id, addr.parse().unwrap(), (false, reuse), &keys)
        };
        assert_eq!(bind(&mut b, "10.0.0.1:7", false), Ok(7));
        assert_eq!(bind(&mut b, "10.0.0.1:7", false), Err(Errno::ADDRINUSE));
        assert_eq!(bind(&mut b, "10.0.0.2:7", false), Ok(7));
        assert_eq!(bind(&mut b, "0.0.0.0:7", false), Err(Errno::ADDRNOTAVAIL));
        assert_eq!(bind(&mut b, "[::]:7", false), Err(Errno::ADDRNOTAVAIL));
        assert_eq!(bind(&mut b, "[::1]:7", false), Ok(7));
        assert_eq!(bind(&mut b, "10.0.0.1:8", true), Ok(8));
        assert_eq!(bind(&mut b, "10.0.0.1:8", true), Ok(8));
        assert_eq!(bind(&mut b, "10.0.0.1:8", false), Err(Errno::ADDRINUSE));
        let free = bind(&mut b, "0.0.0.0:0", false).unwrap();
        assert!(EPHEMERAL.contains(&free));
        b.release(1, 7);
        b.release(3, 7);
        b.release(6, 7);
        assert_eq!(bind(&mut b, "0.0.0.0:7", false), Ok(7));
    }
}
