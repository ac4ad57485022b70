//! The endpoint: a device in user space that a verbs backend can sit on.
//!
//! What it does: joins the engines of [`crate::cm`] and [`crate::rc`] to sockets
//! and timers, and offers the objects of verbs and of `rdma_cm`: protection
//! domains, memory regions, completion queues and channels, shared receive
//! queues, queue pairs, CM ids and event channels.
//!
//! What it does not do: block. Every call returns at once, except
//! [`CompletionChannel::wait`] and [`EventChannel::wait`], which have a deadline.
//!
//! # Who does the work
//!
//! Whoever polls an empty completion queue reads the sockets, runs the engines
//! and sends what they want sent; so does who posts. One thread, `soft-roce`,
//! does it for those who do not poll: it sleeps on the sockets and the next
//! timer, and stands back while somebody else polls. It is the only thread here
//! and ends with the last handle of the endpoint.
//!
//! # Locks
//!
//! One for each queue pair, one for the CM of the endpoint, one for reading each
//! socket. Two connections share none of them when they post and poll, but for
//! the reading of one socket, which is tried and never waited for (but for
//! [`CmId::accept`], which looks for what the peer has sent meanwhile). The CM's lock
//! is taken before a queue pair's, never after.

mod cm;
mod config;
mod connect;
mod cq;
mod device;
mod event;
mod host;
mod id;
mod listen;
mod outside;
mod progress;
mod qp;
mod ready;
mod shared;
mod thread;
mod wait;
mod watch;

#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

pub use config::{Config, Counters, HostAddresses, Limits, OpenError};
pub use cq::{CompletionChannel, CompletionQueue};
pub use event::{CmEvent, CmEventKind, EventChannel};
pub use id::CmId;
pub use outside::Outside;
pub use qp::{QpError, QpInit, QueuePair};
pub use shared::cm::ConnParams;
pub use shared::events::{EventKind, MAX_PRIVATE_DATA, PrivateData};

use self::device::Device;
use crate::memory::Memory;
use crate::rc::{Access, DeregisterError, MemoryRegion, Pd, RegisterError, SharedReceiveQueue};

/// A RoCEv2 device in user space. Clones are the same device; it lives as long
/// as any object made from it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    device: Arc<Device>,
}

impl Endpoint {
    /// Opens a device. No socket is opened yet: that happens when an id is bound
    /// to an address or resolves one.
    ///
    /// # Errors
    /// [`OpenError`]: no thread, or no file descriptors.
    pub fn new(config: Config) -> Result<Self, OpenError> {
        let device = Device::new(config)?;
        thread::start(&device)?;
        Ok(Self { device })
    }

    /// The GUID: random, never the same twice.
    #[must_use]
    pub fn guid(&self) -> u64 {
        self.device.guid
    }

    /// What the device can do at most.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits::of(&self.device.config)
    }

    /// The addresses that a listener on a wildcard listens on.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.device.addresses()
    }

    /// Replaces those addresses. Listeners on a wildcard listen on those that are
    /// new as well, and no longer on those that are gone.
    pub fn set_addresses(&self, addresses: &[IpAddr]) {
        self.device.set_addresses(addresses);
    }

    /// Has the endpoint replace them whenever `host` has others, from now on.
    pub fn follow(&self, host: Arc<dyn HostAddresses>) {
        self.device.follow_host(host);
    }

    /// A new protection domain.
    #[must_use]
    pub fn alloc_pd(&self) -> Pd {
        self.device.alloc_pd()
    }

    /// Registers all of `memory`, whose first byte requests call `va`.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn register(
        &self,
        pd: Pd,
        va: u64,
        memory: Arc<dyn Memory>,
        access: Access,
    ) -> Result<Arc<MemoryRegion>, RegisterError> {
        self.device.regions.register(pd, va, memory, access)
    }

    /// Ends all access through a region's key. Afterwards nobody reads or writes
    /// the memory through it any more.
    ///
    /// # Errors
    /// [`DeregisterError`].
    pub fn deregister(&self, key: u32) -> Result<(), DeregisterError> {
        self.device.regions.deregister(key)
    }

    /// Opens a part of a region to the peer of one queue pair, under a key of its
    /// own.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn bind_window(
        &self,
        region: &Arc<MemoryRegion>,
        va: u64,
        len: u64,
        access: Access,
        qp: &QueuePair,
    ) -> Result<Arc<MemoryRegion>, RegisterError> {
        self.device.regions.bind(region, va, len, access, qp.qpn())
    }

    /// Withdraws a window. Returns whether it was still there.
    #[must_use]
    pub fn invalidate_window(&self, key: u32) -> bool {
        self.device.regions.invalidate(key)
    }

    /// A channel on which completion queues report.
    ///
    /// # Errors
    /// The process or the system has no file descriptor left.
    pub fn completion_channel(&self) -> io::Result<CompletionChannel> {
        CompletionChannel::new(&self.device)
    }

    /// A completion queue of at most `depth` entries.
    #[must_use]
    pub fn create_cq(&self, depth: usize, channel: Option<&CompletionChannel>) -> CompletionQueue {
        CompletionQueue::new(&self.device, depth, channel)
    }

    /// A shared receive queue.
    #[must_use]
    pub fn create_srq(&self, pd: Pd, max_wr: usize, max_sge: usize) -> Arc<SharedReceiveQueue> {
        let regions = self.device.regions.clone();
        Arc::new(SharedReceiveQueue::new(pd, regions, max_wr, max_sge))
    }

    /// A queue pair in state INIT: receives may be posted.
    ///
    /// # Errors
    /// [`QpError`].
    pub fn create_qp(&self, init: &QpInit<'_>) -> Result<QueuePair, QpError> {
        QueuePair::new(&self.device, init)
    }

    /// A channel on which CM ids report.
    ///
    /// # Errors
    /// The process or the system has no file descriptor left.
    pub fn event_channel(&self) -> io::Result<EventChannel> {
        EventChannel::new(&self.device)
    }

    /// A CM id that reports on `channel`.
    #[must_use]
    pub fn create_id(&self, channel: &EventChannel) -> CmId {
        CmId::new(&self.device, &channel.queue)
    }

    /// Reads the sockets, runs the engines, sends, fires timers; returns how many
    /// datagrams came. Polling a completion queue does this, too.
    pub fn progress(&self) -> usize {
        self.device.progress_by_user()
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.device.counters()
    }
}
