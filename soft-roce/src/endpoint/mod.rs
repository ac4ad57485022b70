//! The endpoint: a device in user space that a verbs backend can sit on.
//!
//! What it does: joins the engines of [`crate::cm`] and [`crate::rc`] to sockets
//! and timers, and offers the objects of verbs and of `rdma_cm`: protection
//! domains, memory regions, completion queues and channels, shared receive
//! queues, queue pairs, CM ids and event channels.
//!
//! What it does not do: block. Every call returns at once, except
//! [`CompletionChannel::wait`], which has a deadline.
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

mod bind;
mod cm;
mod config;
mod connect;
mod cq;
mod event;
mod host;
mod id;
mod inner;
mod listen;
mod outside;
mod progress;
mod qp;
mod thread;
mod timers;
mod watch;

#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

pub use config::{Config, Counters, HostAddresses, Limits, OpenError};
pub use cq::{CompletionChannel, CompletionQueue};
pub use event::{CmEvent, CmEventKind, EventChannel, MAX_PRIVATE_DATA, PrivateData};
pub use id::{CmId, ConnParams};
pub use outside::Outside;
pub use qp::{QpError, QpInit, QueuePair};

use self::inner::Inner;
use crate::memory::Memory;
use crate::rc::{Access, DeregisterError, MemoryRegion, Pd, RegisterError, SharedReceiveQueue};

/// A RoCEv2 device in user space. Clones are the same device; it lives as long
/// as any object made from it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

impl Endpoint {
    /// Opens a device. No socket is opened yet: that happens when an id is bound
    /// to an address or resolves one.
    ///
    /// # Errors
    /// [`OpenError`]: no thread, or no file descriptors.
    pub fn new(config: Config) -> Result<Self, OpenError> {
        let inner = Inner::new(config)?;
        thread::start(&inner)?;
        Ok(Self { inner })
    }

    /// The GUID: random, never the same twice.
    #[must_use]
    pub fn guid(&self) -> u64 {
        self.inner.guid
    }

    /// What the device can do at most.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits::of(&self.inner.config)
    }

    /// The addresses that a listener on a wildcard listens on.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.inner.addresses()
    }

    /// Replaces those addresses. Listeners on a wildcard listen on those that are
    /// new as well, and no longer on those that are gone.
    pub fn set_addresses(&self, addresses: &[IpAddr]) {
        self.inner.set_addresses(addresses);
    }

    /// Has the endpoint replace them whenever `host` has others, from now on.
    pub fn follow(&self, host: Arc<dyn HostAddresses>) {
        self.inner.follow_host(host);
    }

    /// A new protection domain.
    #[must_use]
    pub fn alloc_pd(&self) -> Pd {
        self.inner.alloc_pd()
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
        self.inner.regions.register(pd, va, memory, access)
    }

    /// Ends all access through a region's key. Afterwards nobody reads or writes
    /// the memory through it any more.
    ///
    /// # Errors
    /// [`DeregisterError`].
    pub fn deregister(&self, key: u32) -> Result<(), DeregisterError> {
        self.inner.regions.deregister(key)
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
        self.inner.regions.bind(region, va, len, access, qp.qpn())
    }

    /// Withdraws a window. Returns whether it was still there.
    #[must_use]
    pub fn invalidate_window(&self, key: u32) -> bool {
        self.inner.regions.invalidate(key)
    }

    /// A channel on which completion queues report.
    ///
    /// # Errors
    /// The process or the system has no file descriptor left.
    pub fn completion_channel(&self) -> io::Result<CompletionChannel> {
        CompletionChannel::new(&self.inner)
    }

    /// A completion queue of at most `depth` entries.
    #[must_use]
    pub fn create_cq(&self, depth: usize, channel: Option<&CompletionChannel>) -> CompletionQueue {
        CompletionQueue::new(&self.inner, depth, channel)
    }

    /// A shared receive queue.
    #[must_use]
    pub fn create_srq(&self, pd: Pd, max_wr: usize, max_sge: usize) -> Arc<SharedReceiveQueue> {
        let regions = self.inner.regions.clone();
        Arc::new(SharedReceiveQueue::new(pd, regions, max_wr, max_sge))
    }

    /// A queue pair in state INIT: receives may be posted.
    ///
    /// # Errors
    /// [`QpError`].
    pub fn create_qp(&self, init: &QpInit<'_>) -> Result<QueuePair, QpError> {
        QueuePair::new(&self.inner, init)
    }

    /// A channel on which CM ids report.
    ///
    /// # Errors
    /// The process or the system has no file descriptor left.
    pub fn event_channel(&self) -> io::Result<EventChannel> {
        EventChannel::new(&self.inner)
    }

    /// A CM id that reports on `channel`.
    #[must_use]
    pub fn create_id(&self, channel: &EventChannel) -> CmId {
        CmId::new(&self.inner, channel)
    }

    /// Reads the sockets, runs the engines, sends, fires timers; returns how many
    /// datagrams came. Polling a completion queue does this, too.
    pub fn progress(&self) -> usize {
        self.inner.progress_by_user()
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.inner.counters()
    }
}
