//! CM ids.
//!
//! What it does: the handle, its settings and addresses.
//! What it does not do: the work: `listen`, `connect`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::device::Device;
use super::qp::QueuePair;
use super::shared::cm::{ConnParams, Id};
use super::shared::events::EventQueue;
use crate::wire::cm::RejReason;

/// A CM id, as in `rdma_cm`. Dropping it ends what it stands for: a listener, an
/// attempt, a connection. No event of it comes afterwards.
#[derive(Debug)]
pub struct CmId {
    pub(super) device: Arc<Device>,
    token: u64,
}

impl CmId {
    pub(super) fn new(device: &Arc<Device>, queue: &Arc<EventQueue>) -> Self {
        let token = device.lock_cm().new_id(queue.clone());
        Self::existing(device, token)
    }

    pub(super) fn existing(device: &Arc<Device>, token: u64) -> Self {
        Self {
            device: device.clone(),
            token,
        }
    }

    /// The number that events name it by; never used twice.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Sets the code of the ACK timeout (4.096 us * 2^code, 1 to 31), before
    /// connecting. Times the retries plus one it is how long a silent peer is
    /// waited for. The peer is told and uses it, too.
    ///
    /// # Errors
    /// `EINVAL`.
    pub fn set_ack_timeout(&self, code: u8) -> io::Result<()> {
        if !(1..32).contains(&code) {
            return Err(Errno::INVAL.into());
        }
        self.with(|id| id.ack_timeout = code)
    }

    /// Lets the address and port be bound by several ids that do not listen.
    ///
    /// # Errors
    /// `EINVAL`: the id is gone.
    pub fn set_reuse_addr(&self, on: bool) -> io::Result<()> {
        self.with(|id| id.reuse_addr = on)
    }

    /// Keeps a listener on `::` from taking IPv4 requests.
    ///
    /// # Errors
    /// `EINVAL`: the id is gone.
    pub fn set_v6_only(&self, on: bool) -> io::Result<()> {
        self.with(|id| id.v6_only = on)
    }

    /// Its address and port, once bound.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.device.lock_cm().id(self.token).and_then(|id| id.local)
    }

    /// The peer's address and port, once known.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.device.lock_cm().id(self.token).and_then(|id| id.peer)
    }

    /// Binds to an address of this host or to a wildcard; port 0 takes a free
    /// one.
    ///
    /// # Errors
    /// `EADDRINUSE`; for a wildcard whose port is taken, and for an address that
    /// is not of this host, `EADDRNOTAVAIL`; `EINVAL` if it is bound already.
    pub fn bind(&self, addr: SocketAddr) -> io::Result<()> {
        self.device.bind(self.token, addr)
    }

    /// Listens. At most `backlog` requests wait to be read from the channel; more
    /// are refused with [`RejReason::NO_RESOURCES`].
    ///
    /// # Errors
    /// `EADDRINUSE`: another process of this host listens there, or UDP port
    /// 4791 is not to be had; `ENODEV`: a wildcard, but the endpoint has no
    /// addresses at all; `EINVAL` in the wrong state.
    pub fn listen(&self, backlog: usize) -> io::Result<()> {
        self.device.listen(self.token, backlog)
    }

    /// Finds the way to `dst`. [`AddrResolved`](super::CmEventKind::AddrResolved)
    /// follows. `timeout` is there for likeness: the answer is immediate.
    ///
    /// # Errors
    /// What the kernel's routing says: `ENETUNREACH`, `EADDRNOTAVAIL`, ...;
    /// `EINVAL` in the wrong state.
    pub fn resolve_addr(
        &self,
        src: Option<SocketAddr>,
        dst: SocketAddr,
        timeout: Duration,
    ) -> io::Result<()> {
        let _ = timeout;
        self.device.resolve_addr(self.token, src, dst)
    }

    /// As it were. [`RouteResolved`](super::CmEventKind::RouteResolved) follows.
    ///
    /// # Errors
    /// `EINVAL` in the wrong state.
    pub fn resolve_route(&self, timeout: Duration) -> io::Result<()> {
        let _ = timeout;
        self.device.resolve_route(self.token)
    }

    /// Asks the peer for a connection with `qp`.
    ///
    /// # Errors
    /// `EINVAL`: the wrong state, too much private data, a count out of range;
    /// `ENOMEM`: too many connections.
    pub fn connect(&self, qp: &QueuePair, params: &ConnParams<'_>) -> io::Result<()> {
        self.device.connect(self.token, &qp.shared, params)
    }

    /// Accepts the peer's request with `qp`.
    ///
    /// # Errors
    /// `EINVAL`: as for connect; `ENOTCONN`: the peer has withdrawn.
    pub fn accept(&self, qp: &QueuePair, params: &ConnParams<'_>) -> io::Result<()> {
        self.device.accept(self.token, &qp.shared, params)
    }

    /// Whether the peer's request still waits for an answer. A peer that withdraws
    /// it is not told of before.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        let cm = self.device.lock_cm();
        cm.id(self.token).is_some_and(Id::is_pending)
    }

    /// Refuses the peer's request as its user, with at most 148 bytes.
    ///
    /// # Errors
    /// `EINVAL`: the wrong state, too much private data.
    pub fn reject(&self, private_data: &[u8]) -> io::Result<()> {
        self.reject_for(RejReason::CONSUMER_DEFINED, private_data)
    }

    /// Refuses with a reason of the caller's choice.
    ///
    /// # Errors
    /// As [`CmId::reject`].
    pub fn reject_for(&self, reason: RejReason, private_data: &[u8]) -> io::Result<()> {
        self.device.reject(self.token, reason, private_data)
    }

    /// Ends the connection: the queue pair breaks off, posted work is flushed,
    /// the peer is told.
    ///
    /// # Errors
    /// `EINVAL`: there is no connection.
    pub fn disconnect(&self) -> io::Result<()> {
        self.device.disconnect(self.token)
    }

    fn with<R>(&self, change: impl FnOnce(&mut Id) -> R) -> io::Result<R> {
        let mut cm = self.device.lock_cm();
        cm.id_mut(self.token).map(change)
    }
}

impl Drop for CmId {
    fn drop(&mut self) {
        self.device.destroy_id(self.token);
    }
}
