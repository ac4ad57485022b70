//! What a device says of itself: limits, ports, GIDs.

use std::net::Ipv6Addr;

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

/// What a device speaks to its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// IBTA's transport, over InfiniBand or as `RoCE`.
    Infiniband,
    /// iWARP, which is RDMA over the host's TCP. It has no immediate data. Its ports are TCP's, so a
    /// connect to a plain TCP server reaches that server.
    Iwarp,
    /// Another, or a number that this crate does not know.
    Unknown(i32),
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
