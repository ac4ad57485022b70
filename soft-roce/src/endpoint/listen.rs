//! Ids that are bound and that listen.
//!
//! What it does: bind, listen, and letting go of either.
//! What it does not do: requests (`cm`).

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;

use super::device::Device;
use super::shared::cm::{Listener, Phase};
use crate::driver::rendezvous::{Entry, Registration};
use crate::driver::route::check_local;

impl Device {
    pub(super) fn bind(&self, token: u64, addr: SocketAddr) -> io::Result<()> {
        if !addr.ip().is_unspecified() {
            check_local(addr.ip())?;
        }
        let mut guard = self.lock_cm();
        let cm = &mut *guard;
        let id = cm.ids.get_mut(&token).ok_or(Errno::INVAL)?;
        if id.local.is_some() || !matches!(id.phase, Phase::Idle) {
            return Err(Errno::INVAL.into());
        }
        let port = cm
            .bindings
            .bind(token, addr, (id.v6_only, id.reuse_addr), &self.keys)?;
        id.local = Some(SocketAddr::new(addr.ip(), port));
        Ok(())
    }

    pub(super) fn listen(&self, token: u64, backlog: usize) -> io::Result<()> {
        let bound = self.lock_cm().id(token).ok_or(Errno::INVAL)?.local;
        let local = match bound {
            Some(local) => local,
            None => {
                self.bind(token, (std::net::Ipv6Addr::UNSPECIFIED, 0).into())?;
                self.lock_cm()
                    .id(token)
                    .and_then(|id| id.local)
                    .ok_or(Errno::INVAL)?
            }
        };
        let mut guard = self.lock_cm();
        let cm = &mut *guard;
        let id = cm.ids.get_mut(&token).ok_or(Errno::INVAL)?;
        if !matches!(id.phase, Phase::Idle) {
            return Err(Errno::INVAL.into());
        }
        let registrations = self.announce(local, id.v6_only)?;
        let key = cm
            .engine
            .listen(local, id.v6_only, backlog)
            .map_err(|_| io::Error::from(Errno::ADDRINUSE))?;
        id.phase = Phase::Listening(Listener { key, registrations });
        cm.by_listen.insert(key, token);
        Ok(())
    }

    /// Opens the sockets of a listener and tells the host's other endpoints.
    fn announce(
        &self,
        local: SocketAddr,
        v6_only: bool,
    ) -> io::Result<Vec<(IpAddr, Registration)>> {
        if !local.ip().is_unspecified() {
            let ip = local.ip().to_canonical();
            return Ok(vec![(ip, self.announce_at(ip, local.port())?)]);
        }
        let wanted = self.wanted(local, v6_only);
        let (done, failed) = self.announce_all(&wanted, local.port());
        match failed {
            Some(why) if done.is_empty() => Err(why),
            // Without addresses of this family it listens, and nobody can come
            // before there is one.
            None if done.is_empty() && self.addresses().is_empty() => Err(Errno::NODEV.into()),
            _ => Ok(done),
        }
    }

    /// The endpoint's addresses that a listener on a wildcard stands for.
    pub(super) fn wanted(&self, local: SocketAddr, v6_only: bool) -> Vec<IpAddr> {
        let wanted = |ip: &IpAddr| match local.ip().to_canonical() {
            IpAddr::V4(_) => ip.is_ipv4(),
            IpAddr::V6(_) => ip.is_ipv6() || !v6_only,
        };
        self.addresses().into_iter().filter(wanted).collect()
    }

    /// Announces a port on addresses, as far as possible. Also says why not on
    /// the last one that failed.
    pub(super) fn announce_all(
        &self,
        addresses: &[IpAddr],
        port: u16,
    ) -> (Vec<(IpAddr, Registration)>, Option<io::Error>) {
        let (mut done, mut failed) = (Vec::new(), None);
        for &ip in addresses {
            match self.announce_at(ip, port) {
                Ok(registration) => done.push((ip, registration)),
                Err(why) => {
                    tracing::warn!(%ip, %why, "not listening on this address");
                    failed = Some(why);
                }
            }
        }
        (done, failed)
    }

    fn announce_at(&self, ip: IpAddr, port: u16) -> io::Result<Registration> {
        let ip = ip.to_canonical();
        let socket = self.sockets.port_to_listen(ip)?;
        let entry = Entry::Service(SocketAddr::new(ip, port));
        self.sockets
            .rendezvous
            .register(entry, socket.local().port())
            .map_err(|why| {
                if why.kind() == io::ErrorKind::AddrInUse {
                    Errno::ADDRINUSE.into()
                } else {
                    why
                }
            })
    }
}
