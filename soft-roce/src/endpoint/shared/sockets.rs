//! The sockets of an endpoint.
//!
//! What it does: opens them, for those who connect and for those who listen, and
//! closes them.
//! What it does not do: anything with packets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Instant;

use rustix::event::epoll;

use super::sleepers::Waiter;
use crate::driver::port::Port;
use crate::driver::rendezvous::{Entry, PATIENCE, Registration, Rendezvous, STEP};
use crate::wire::ROCE_PORT;

#[derive(Debug)]
pub(crate) struct Sockets {
    /// Never held while packets are handled: that takes other locks, under which ports are added.
    ports: RwLock<Arc<Vec<Arc<Port>>>>,
    pub(crate) rendezvous: Rendezvous,
    waiter: Arc<Waiter>,
}

impl Sockets {
    pub(crate) fn new(rendezvous: Rendezvous, waiter: Arc<Waiter>) -> Self {
        Self {
            ports: RwLock::default(),
            rendezvous,
            waiter,
        }
    }

    /// The sockets as they are now.
    pub(crate) fn ports(&self) -> Arc<Vec<Arc<Port>>> {
        Arc::clone(&self.ports.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn port_at(&self, local: SocketAddr) -> Option<Arc<Port>> {
        self.ports()
            .iter()
            .find(|port| port.local() == local)
            .cloned()
    }

    /// A socket on `ip` for connecting. `far`: the peer is on another host, and
    /// may answer to port 4791 only.
    pub(crate) fn port_to_connect(&self, ip: IpAddr, far: bool) -> io::Result<Arc<Port>> {
        let on_ip: Vec<_> = self
            .ports()
            .iter()
            .filter(|port| port.local().ip() == ip)
            .cloned()
            .collect();
        if let Some(port) = on_ip.iter().find(|port| port.is_public()) {
            return Ok(port.clone());
        }
        if far {
            match self.open_public(ip) {
                Ok(port) => return Ok(port),
                Err(why) => tracing::info!(
                    %ip, %why,
                    "no UDP port 4791 here: only peers of this crate will be reached"
                ),
            }
        }
        match on_ip.into_iter().next() {
            Some(port) => Ok(port),
            None => self.open_port(ip, None, None),
        }
    }

    /// A socket on `ip` for listening: port 4791, or a private one if another
    /// endpoint of this user on this host has that.
    ///
    /// # Errors
    /// `AddrInUse`: somebody else has port 4791 of this address: the kernel's
    /// `rdma_rxe`, or another user.
    pub(crate) fn port_to_listen(&self, ip: IpAddr) -> io::Result<Arc<Port>> {
        let public = self
            .ports()
            .iter()
            .find(|port| port.local().ip() == ip && port.is_public())
            .cloned();
        if let Some(port) = public {
            return Ok(port);
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let why = match self.open_public(ip) {
                Ok(port) => return Ok(port),
                Err(why) if why.kind() == io::ErrorKind::AddrInUse => why,
                Err(why) => return Err(why),
            };
            if self.rendezvous.find(Entry::Public(ip)).is_some() {
                break;
            }
            // Whoever has the port may be about to say so, or about to end.
            if Instant::now() >= until {
                let text = format!(
                    "UDP port {ROCE_PORT} of {ip} is taken by another user or by the kernel's rdma_rxe: {why}"
                );
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
            thread::sleep(STEP);
        }
        let private = self
            .ports()
            .iter()
            .find(|port| port.local().ip() == ip)
            .cloned();
        match private {
            Some(port) => Ok(port),
            None => self.open_port(ip, None, None),
        }
    }

    fn open_public(&self, ip: IpAddr) -> io::Result<Arc<Port>> {
        let port = Port::open(ip, Some(ROCE_PORT))?;
        // Whoever has the port has the entry; a leftover is overwritten.
        let entry = self.rendezvous.register(Entry::Public(ip), ROCE_PORT).ok();
        self.add_port(port, entry)
    }

    fn open_port(
        &self,
        ip: IpAddr,
        port: Option<u16>,
        entry: Option<Registration>,
    ) -> io::Result<Arc<Port>> {
        self.add_port(Port::open(ip, port)?, entry)
    }

    fn add_port(&self, mut port: Port, entry: Option<Registration>) -> io::Result<Arc<Port>> {
        port.registration = entry;
        let port = Arc::new(port);
        let data = epoll::EventData::new_u64(0);
        epoll::add(&self.waiter.sockets, &port, data, epoll::EventFlags::IN)?;
        tracing::debug!(local = %port.local(), window = port.window(), "socket");
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut ports).push(port.clone());
        Ok(port)
    }

    /// Closes the sockets on an address that no queue pair or id holds. Whoever
    /// sleeps on them lets go of them when it wakes.
    pub(crate) fn close_ports(&self, ip: IpAddr) {
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        let idle = |port: &Arc<Port>| port.local().ip() == ip && Arc::strong_count(port) == 1;
        let kept: Vec<_> = ports.iter().filter(|port| !idle(port)).cloned().collect();
        if kept.len() < ports.len() {
            *ports = Arc::new(kept);
            // The thread looks after what is opened next until the sleeper has
            // counted anew.
            self.waiter.watched.store(0, Ordering::Release);
        }
    }
}
