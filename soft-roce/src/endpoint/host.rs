//! The addresses of the host, which come and go.
//!
//! What it does: keeps listeners on a wildcard where the endpoint's addresses
//! are: a socket and a registration for one that appears, none for one that is
//! gone. Listens to whoever tells of changes ([`HostAddresses`]).
//! What it does not do: list the host's addresses, or watch them; that is the
//! user's, who knows which of them are meant.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};

use san_base::lock;

use super::config::HostAddresses;
use super::device::Device;
use super::shared::cm::{CmState, Phase};
use crate::driver::rendezvous::Registration;

impl Device {
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.addresses
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Replaces the addresses, and has the listeners on wildcards follow.
    pub(super) fn set_addresses(&self, addresses: &[IpAddr]) {
        *self
            .addresses
            .write()
            .unwrap_or_else(PoisonError::into_inner) = addresses.to_vec();
        self.routes.forget();
        let mut cm = self.lock_cm();
        let mut left = Vec::new();
        for id in cm.ids.values_mut() {
            if let (Phase::Listening(listener), Some(local)) = (&mut id.phase, id.local)
                && local.ip().is_unspecified()
            {
                let there = &mut listener.registrations;
                left.extend(there.extract_if(.., |(ip, _)| !addresses.contains(ip)));
                let come = self.wanted(local, id.v6_only);
                let known = |ip: &IpAddr| there.iter().any(|(old, _)| old == ip);
                let come: Vec<_> = come.into_iter().filter(|ip| !known(ip)).collect();
                there.extend(self.announce_all(&come, local.port()).0);
            }
        }
        self.close_left(&cm, left);
    }

    /// Has the thread ask `host` whenever its descriptor is readable.
    pub(super) fn follow_host(&self, host: Arc<dyn HostAddresses>) {
        if let Some(now) = host.changed() {
            self.set_addresses(&now);
        }
        *lock(&self.host) = Some(host);
        self.sleepers.waiter.wake.signal();
    }

    pub(super) fn host(&self) -> Option<Arc<dyn HostAddresses>> {
        lock(&self.host).clone()
    }

    /// Asks for changes, and obeys.
    pub(super) fn follow_changes(&self) {
        if let Some(now) = self.host().and_then(|host| host.changed()) {
            self.set_addresses(&now);
        }
    }

    /// Closes the sockets of addresses that are gone. They stay where something
    /// else needs them: a connection lives on if the address comes back in time.
    fn close_left(&self, cm: &CmState, left: Vec<(IpAddr, Registration)>) {
        for (ip, registration) in left {
            drop(registration);
            let needed = |ip: IpAddr| cm.ids.values().any(|id| has(id.local, ip));
            let listened = cm.ids.values().any(|id| {
                matches!(&id.phase, Phase::Listening(l) if l.registrations.iter().any(|r| r.0 == ip))
            });
            if !listened && !needed(ip) {
                tracing::info!(%ip, "the address is gone");
                self.sockets.close_ports(ip);
            }
        }
    }
}

fn has(local: Option<std::net::SocketAddr>, ip: IpAddr) -> bool {
    local.is_some_and(|local| local.ip() == ip)
}
