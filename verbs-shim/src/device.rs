//! Devices, their limits, ports and GIDs.
//!
//! Opening is the backend's business: a [`Device`] is open for as long as it is held. Addresses
//! are in [`crate::address`].

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::Ipv6Addr;
use std::sync::Arc;

use crate::address::InterfaceAddress;
use crate::backend;
use crate::completion::{CompletionChannel, CompletionQueue};
use crate::error::Result;
use crate::memory::ProtectionDomain;

/// An open RDMA device. Cheap to clone; two handles of one device are equal.
#[derive(Clone)]
pub struct Device {
    backend: Arc<dyn backend::Device>,
}

/// What a device can do. Counts are the device's own, for all processes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Queue pairs.
    pub max_qp: u32,
    /// Work requests on one work queue.
    pub max_qp_wr: u32,
    /// Scatter-gather elements of one work request.
    pub max_sge: u32,
    /// Bytes that a work request can carry inline; found by making a queue pair.
    pub max_inline: u32,
    /// Completion queues.
    pub max_cq: u32,
    /// Entries of one completion queue.
    pub max_cqe: u32,
    /// Memory regions.
    pub max_mr: u32,
    /// Bytes of one memory region.
    pub max_mr_size: u64,
    /// Memory windows of type 2; 0 if the device has none.
    pub max_windows: u32,
    /// Protection domains.
    pub max_pd: u32,
    /// Shared receive queues.
    pub max_srq: u32,
    /// Work requests on one shared receive queue.
    pub max_srq_wr: u32,
    /// RDMA READs of the peer that one queue pair can serve at a time.
    pub max_qp_rd_atom: u32,
    /// RDMA READs that one queue pair can have under way.
    pub max_qp_init_rd_atom: u32,
    /// Ports, numbered from 1.
    pub ports: u8,
}

/// The state of a port, IBTA's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PortState {
    /// Down.
    Down,
    /// The link is up, the port not configured yet.
    Init,
    /// Configured, not active yet.
    Armed,
    /// Ready for use.
    Active,
    /// Active, the link lost for the moment.
    ActiveDefer,
    /// A number that this crate does not know.
    Unknown(u32),
}

/// What lies under a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkLayer {
    /// InfiniBand.
    Infiniband,
    /// Ethernet: `RoCE` or iWARP.
    Ethernet,
    /// Not said, or a number that this crate does not know.
    Unknown(u8),
}

/// The attributes of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortAttr {
    /// Its state.
    pub state: PortState,
    /// What lies under it.
    pub link_layer: LinkLayer,
    /// The largest MTU, in bytes; 0 if the device says nothing known.
    pub max_mtu: u32,
    /// The MTU in use, in bytes; 0 if the device says nothing known.
    pub active_mtu: u32,
    /// The largest message, in bytes.
    pub max_message_size: u32,
    /// The size of the GID table.
    pub gid_table_len: u32,
}

/// An entry of a port's GID table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gid {
    /// Its index.
    pub index: u32,
    /// The GID; for `RoCE` an IP address, IPv4 as `::ffff:a.b.c.d`.
    pub gid: Ipv6Addr,
    /// `IB/RoCE v1`, `RoCE v2`, as the kernel names it; empty if it says nothing.
    pub kind: String,
    /// The network interface it belongs to, if any.
    pub netdev: Option<String>,
}

impl Device {
    pub(crate) fn from_backend(backend: Arc<dyn backend::Device>) -> Self {
        Self { backend }
    }

    /// The kernel's name of the device, such as `mlx5_0` or `rxe0`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.backend.name()
    }

    /// What it has counted, lost and repeated packets among it, by names of its own: of a device of the kernel the
    /// `hw_counters` of port 1, which are of all processes together; of the soft fabric this process's. Empty where it
    /// tells nothing.
    #[must_use]
    pub fn counters(&self) -> Vec<(String, u64)> {
        self.backend.counters()
    }

    /// The node GUID.
    #[must_use]
    pub fn guid(&self) -> u64 {
        self.backend.guid()
    }

    /// What it can do. The first call makes a queue pair and destroys it again; later ones answer
    /// from memory.
    ///
    /// # Errors
    /// When the device does not answer.
    pub fn limits(&self) -> Result<DeviceLimits> {
        self.backend.limits()
    }

    /// The attributes of port `port` (from 1).
    ///
    /// # Errors
    /// `EINVAL`: no such port.
    pub fn port(&self, port: u8) -> Result<PortAttr> {
        self.backend.port(port)
    }

    /// The GIDs in use on port `port`.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn gids(&self, port: u8) -> Result<Vec<Gid>> {
        self.backend.gids(port)
    }

    /// The IP addresses by which this device can be reached: those of the network interfaces that
    /// its GIDs belong to; of the soft fabric's device, those it was opened with.
    ///
    /// # Errors
    /// When the kernel's tables cannot be read.
    pub fn addresses(&self) -> Result<Vec<InterfaceAddress>> {
        self.backend.addresses()
    }

    /// A new protection domain.
    ///
    /// # Errors
    /// `ENOMEM`: the device has no more.
    pub fn alloc_pd(&self) -> Result<ProtectionDomain> {
        let pd = Arc::clone(&self.backend).alloc_pd()?;
        Ok(ProtectionDomain::from_backend(pd, self.clone()))
    }

    /// A new completion channel, for completion queues of this device.
    ///
    /// # Errors
    /// `EMFILE` and its kin.
    pub fn completion_channel(&self) -> Result<CompletionChannel> {
        let channel = Arc::clone(&self.backend).completion_channel()?;
        Ok(CompletionChannel::from_backend(channel))
    }

    /// A new completion queue of at least `depth` entries; with a channel it can announce
    /// completions there.
    ///
    /// # Errors
    /// `EINVAL`: more than `max_cqe`, 0, or a channel of another device. `ENOMEM`.
    pub fn create_cq(
        &self,
        depth: u32,
        channel: Option<&CompletionChannel>,
    ) -> Result<CompletionQueue> {
        let channel = channel.map(CompletionChannel::backend);
        let cq = Arc::clone(&self.backend).create_cq(depth, channel)?;
        CompletionQueue::from_backend(cq)
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        self.backend.key() == other.backend.key()
    }
}

impl Eq for Device {}

impl Hash for Device {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.backend.key().hash(state);
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.name()).finish()
    }
}
