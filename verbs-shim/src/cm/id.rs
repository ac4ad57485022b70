//! CM ids: addresses, connections, and the queue pair of each.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::channel::EventChannel;
use crate::backend::{self, CmOption, QpAttr};
use crate::completion::CompletionQueue;
use crate::device::Device;
use crate::error::{Result, VerbsError};
use crate::memory::ProtectionDomain;
use crate::qp::{Parts, PreparedQp, check_caps};
use crate::srq::SharedReceiveQueue;
use crate::types::{ConnParams, QpCaps};

/// The most private data that a connect request carries on an IP port space (RDMA CM takes 36 of
/// the 92 bytes of the REQ for addresses).
pub const CONNECT_PRIVATE_DATA: usize = 56;
/// The most private data that an accept (REP) carries.
pub const ACCEPT_PRIVATE_DATA: usize = 196;
/// The most private data that a reject (REJ) carries.
pub const REJECT_PRIVATE_DATA: usize = 148;

/// An RDMA CM id: a listener, or one end of a connection. Dropping it destroys it, unless a queue
/// pair on it still lives: then that is what keeps it.
///
/// All methods may be called by several threads; calls on one id wait for each other.
pub struct CmId {
    backend: Arc<dyn backend::CmId>,
}

impl CmId {
    /// A new id on `channel`, where its events will come.
    ///
    /// # Errors
    /// `ENOMEM`, `ENODEV`.
    pub fn new(channel: &EventChannel) -> Result<Self> {
        Ok(Self {
            backend: channel.backend().create_id()?,
        })
    }

    pub(crate) fn from_backend(backend: Arc<dyn backend::CmId>) -> Self {
        Self { backend }
    }

    /// Its name in events: unique in the process, never used again, never 0.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.backend.token()
    }

    /// Binds to a local address. A wildcard address takes every device, those to come as well.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL`: not an address of an RDMA device, or (wildcard) the port is taken.
    /// `EADDRINUSE`: the port is taken. `EINVAL`: bound already. `ENODEV`.
    pub fn bind(&self, addr: SocketAddr) -> Result<()> {
        self.backend.bind(addr)
    }

    /// Listens. The kernel drops what comes past `backlog` requests that are not read yet, without
    /// a word to the peer, and takes at most `net.rdma_ucm.max_backlog` (1024).
    ///
    /// # Errors
    /// `EINVAL`: not bound, or listening already.
    pub fn listen(&self, backlog: u32) -> Result<()> {
        self.backend
            .listen(i32::try_from(backlog).unwrap_or(i32::MAX))
    }

    /// Starts to find the device and the peer's address: [`Event::AddrResolved`](crate::Event) or
    /// [`Event::AddrError`](crate::Event).
    ///
    /// # Errors
    /// `ENETUNREACH`, `EHOSTUNREACH`: no route. `EADDRNOTAVAIL`, `ENODEV`: no RDMA device that
    /// way. `EINVAL`: the id is past this.
    pub fn resolve_addr(
        &self,
        src: Option<SocketAddr>,
        dst: SocketAddr,
        timeout: Duration,
    ) -> Result<()> {
        self.backend.resolve_addr(src, dst, timeout)
    }

    /// Starts to find the way: [`Event::RouteResolved`](crate::Event) or [`Event::RouteError`](crate::Event).
    ///
    /// # Errors
    /// `EINVAL`: the address is not resolved yet.
    pub fn resolve_route(&self, timeout: Duration) -> Result<()> {
        self.backend.resolve_route(timeout)
    }

    /// Sends the connect request; the id has its queue pair by now.
    ///
    /// # Errors
    /// `EINVAL`: more than [`CONNECT_PRIVATE_DATA`] bytes, `retry_count` over 6, more RDMA READs
    /// than the device can, or the route is not resolved.
    pub fn connect(&self, params: &ConnParams<'_>) -> Result<()> {
        const CALL: &str = "rdma_connect";
        check_private_data(CALL, params.private_data, CONNECT_PRIVATE_DATA)?;
        if params.retry_count > 6 {
            let given = params.retry_count;
            return Err(VerbsError::invalid(
                CALL,
                format!("retry_count {given}, at most 6"),
            ));
        }
        check_rnr(CALL, params.rnr_retry)?;
        self.backend.connect(params)
    }

    /// Accepts the request that made this id; the id has its queue pair by now. Then
    /// [`Event::Established`](crate::Event), or one of the failures.
    ///
    /// # Errors
    /// `EINVAL`: more than [`ACCEPT_PRIVATE_DATA`] bytes, or more RDMA READs than the device can;
    /// also when the peer has given up meanwhile (or `ECONNRESET`, `ENOTCONN`).
    pub fn accept(&self, params: &ConnParams<'_>) -> Result<()> {
        const CALL: &str = "rdma_accept";
        check_private_data(CALL, params.private_data, ACCEPT_PRIVATE_DATA)?;
        check_rnr(CALL, params.rnr_retry)?;
        self.backend.accept(params)
    }

    /// Refuses the request that made this id: the peer sees [`Event::Rejected`](crate::Event) with
    /// [`crate::RejectReason::ConsumerDefined`] and these bytes.
    ///
    /// # Errors
    /// `EINVAL`: more than [`REJECT_PRIVATE_DATA`] bytes, or the peer has given up meanwhile.
    pub fn reject(&self, private_data: &[u8]) -> Result<()> {
        check_private_data("rdma_reject", private_data, REJECT_PRIVATE_DATA)?;
        self.backend.reject(private_data)
    }

    /// Of a request that is not answered yet: whether its peer may still wait for the answer. The
    /// kernel tells nobody that a peer gave up before its request was accepted (ucma drops the
    /// events of such ids), so whoever keeps requests waiting has to ask.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.backend.is_pending()
    }

    /// Ends the connection: flushes the queue pair and tells the peer, whose
    /// [`Event::Disconnected`](crate::Event) comes at once. Ours comes when the peer has answered, with
    /// a dead peer after most of a minute: not a thing to wait for.
    ///
    /// # Errors
    /// `EINVAL`: not connected.
    pub fn disconnect(&self) -> Result<()> {
        self.backend.disconnect()
    }

    /// Moves the id, with its events that were not read yet, to another channel.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn migrate(&self, channel: &EventChannel) -> Result<()> {
        self.backend.migrate(channel.backend())
    }

    /// Sets the time after which the transport repeats: 4.096 us * 2^`code` (the device may take
    /// longer, by up to four times). To be set before connecting; the default is 19, 2.1 s.
    ///
    /// # Errors
    /// `EINVAL`: more than 31. `ENOSYS`: the kernel is older than 5.1.
    pub fn set_ack_timeout(&self, code: u8) -> Result<()> {
        if code > 31 {
            return Err(VerbsError::invalid(
                "rdma_set_option",
                format!("ACK timeout {code}, at most 31"),
            ));
        }
        self.backend.set_option(CmOption::AckTimeout(code))
    }

    /// Sets the type of service of the connection's packets.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_tos(&self, tos: u8) -> Result<()> {
        self.backend.set_option(CmOption::Tos(tos))
    }

    /// As `SO_REUSEADDR`; before binding.
    ///
    /// # Errors
    /// `EINVAL`: bound already.
    pub fn set_reuse_addr(&self, on: bool) -> Result<()> {
        self.backend.set_option(CmOption::ReuseAddr(on))
    }

    /// As `IPV6_V6ONLY`; before binding.
    ///
    /// # Errors
    /// `EINVAL`: bound already.
    pub fn set_v6_only(&self, on: bool) -> Result<()> {
        self.backend.set_option(CmOption::V6Only(on))
    }

    /// The local address, once it is bound.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.backend.local_addr()
    }

    /// The peer's address, once it is known.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.backend.peer_addr()
    }

    /// The device it is bound to. `None` for a wildcard listener, and before an address is
    /// resolved; the id of a connect request always has one.
    #[must_use]
    pub fn device(&self) -> Option<Device> {
        self.backend.device().map(Device::from_backend)
    }

    /// The port of that device, from 1; 0 without a device.
    #[must_use]
    pub fn port(&self) -> u8 {
        self.backend.port()
    }

    /// Bytes of payload that a packet on its path has at most: of a connect request what the peer asks
    /// for, which may be more than the port here can take ([`crate::PortAttr::active_mtu`]). `None`
    /// before the route is resolved, and where the fabric does not say.
    #[must_use]
    pub fn path_mtu(&self) -> Option<u32> {
        self.backend.path_mtu()
    }

    /// Makes the id's queue pair. `inline` is a wish: what the device cannot do is not asked for,
    /// [`PreparedQp::caps`] says what was granted.
    ///
    /// # Errors
    /// `EINVAL`: sizes past the device's limits, objects of another device, or the id has a queue
    /// pair, or no device yet; also, on the id of a request, when the peer has given up
    /// meanwhile. `ENOMEM`.
    pub fn create_qp(
        &self,
        pd: &ProtectionDomain,
        caps: QpCaps,
        send_cq: &CompletionQueue,
        recv_cq: &CompletionQueue,
        srq: Option<&SharedReceiveQueue>,
    ) -> Result<PreparedQp> {
        check_caps(caps, srq.is_some())?;
        let backend = Arc::clone(&self.backend).create_qp(QpAttr {
            caps,
            pd: pd.backend(),
            send_cq: send_cq.backend(),
            recv_cq: recv_cq.backend(),
            srq: srq.map(SharedReceiveQueue::backend),
        })?;
        let parts = Parts {
            pd,
            send_cq,
            recv_cq,
            srq,
        };
        Ok(PreparedQp::new(backend, &parts))
    }
}

impl fmt::Debug for CmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CmId")
            .field("token", &self.token())
            .field("local", &self.local_addr())
            .field("peer", &self.peer_addr())
            .finish()
    }
}

fn check_private_data(call: &'static str, data: &[u8], limit: usize) -> Result<()> {
    if data.len() <= limit {
        return Ok(());
    }
    let len = data.len();
    Err(VerbsError::invalid(
        call,
        format!("{len} bytes of private data, at most {limit}"),
    ))
}

fn check_rnr(call: &'static str, rnr_retry: u8) -> Result<()> {
    if rnr_retry <= 7 {
        return Ok(());
    }
    Err(VerbsError::invalid(
        call,
        format!("rnr_retry {rnr_retry}, at most 7"),
    ))
}
