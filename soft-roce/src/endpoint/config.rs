//! Settings, limits and numbers of an endpoint.
//!
//! What it does: plain values, and who tells of those that change.
//! What it does not do: read files or the environment, except for
//! `XDG_RUNTIME_DIR`, where the host's endpoints meet unless told otherwise.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::cm;
use crate::rc::{self, MAX_SGE};

/// Settings of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The addresses that a listener on a wildcard listens on.
    pub addresses: Vec<IpAddr>,
    /// Queue pairs at a time.
    pub max_qp: usize,
    /// Memory regions and windows at a time.
    pub max_mr: usize,
    /// Bytes of packets kept for later because one before them is missing.
    pub reorder_bytes: usize,
    /// Where this host's endpoints meet; `None` is the user's runtime directory.
    pub rendezvous: Option<PathBuf>,
    /// How long a connection may be silent until its peer is asked for a sign of
    /// life; `None`: never.
    pub keepalive: Option<Duration>,
    /// Code of the time that a peer waits when no receive is posted.
    pub min_rnr_timer: u8,
    /// Whether packets may go in bundles, many to a datagram and without ICRC, to
    /// an endpoint of this crate on this host that agrees. They never leave the
    /// host's memory; the kernel computes no checksum for them either.
    pub bundles: bool,
    /// Times and bounds of the CM. The GUID is set by the endpoint.
    pub cm: cm::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            max_qp: 65_536,
            max_mr: 1 << 20,
            reorder_bytes: 16 << 20,
            rendezvous: None,
            keepalive: Some(Duration::from_secs(15)),
            // 0.32 ms (IBTA table 46); 0 would be 655 ms.
            min_rnr_timer: 10,
            bundles: true,
            cm: cm::Config::default(),
        }
    }
}

/// Who knows the addresses that a listener on a wildcard listens on.
pub trait HostAddresses: AsFd + Send + Sync {
    /// The addresses there are now. Called when the descriptor is readable, and
    /// makes it unreadable, without waiting. None: nothing has changed.
    fn changed(&self) -> Option<Vec<IpAddr>>;
}

/// What an endpoint can do at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Queue pairs.
    pub max_qp: usize,
    /// Work requests of a queue.
    pub max_qp_wr: u32,
    /// Pieces of a work request.
    pub max_sge: usize,
    /// Inline bytes of a work request.
    pub max_inline: usize,
    /// Memory regions.
    pub max_mr: usize,
    /// Entries of a completion queue.
    pub max_cqe: usize,
    /// Receives of a shared queue.
    pub max_srq_wr: usize,
    /// RDMA READs that a queue pair serves, or has under way, at a time.
    pub max_reads: u8,
    /// Bytes of a message.
    pub max_message: u32,
}

/// Work requests of a queue, and entries of a completion queue, at most.
pub(super) const MAX_WR: u32 = 32_768;
const MAX_CQE: usize = 1 << 20;
pub(super) const MAX_INLINE: usize = 4096;
pub(super) const MAX_READS: u8 = 16;

impl Limits {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            max_qp: config.max_qp,
            max_qp_wr: MAX_WR,
            max_sge: MAX_SGE,
            max_inline: MAX_INLINE,
            max_mr: config.max_mr,
            max_cqe: MAX_CQE,
            max_srq_wr: MAX_WR as usize,
            max_reads: MAX_READS,
            max_message: rc::MAX_MESSAGE,
        }
    }
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The progress thread did not start.
    #[error("no thread for the soft-RoCE endpoint: {0}")]
    Thread(#[source] io::Error),
    /// A file descriptor is missing.
    #[error("no file descriptor for the soft-RoCE endpoint: {0}")]
    Descriptor(#[source] io::Error),
    /// The meeting place of the host's endpoints cannot be used.
    #[error("soft-RoCE rendezvous directory: {0}")]
    Rendezvous(#[source] io::Error),
}

/// What happened since the endpoint was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets sent.
    pub sent_packets: u64,
    /// System calls that sent them.
    pub sent_calls: u64,
    /// Packets that no socket took.
    pub send_dropped: u64,
    /// Packets received, whole or not.
    pub received_packets: u64,
    /// System calls that brought any.
    pub received_calls: u64,
    /// Packets with a wrong ICRC.
    pub bad_icrc: u64,
    /// Packets that could not be read.
    pub malformed: u64,
    /// Packets for queue pairs that do not exist.
    pub unknown_qp: u64,
    /// Packets for a queue pair from another than its peer.
    pub foreign_source: u64,
    /// Queue pairs there are.
    pub queue_pairs: usize,
    /// Memory regions there are.
    pub regions: usize,
    /// Bytes of packets kept for later.
    pub reorder_bytes: usize,
    /// Connections and attempts there are.
    pub connections: usize,
    /// What the CM counted.
    pub cm: cm::Counters,
    /// What all queue pairs together counted, those that are gone among them.
    pub transport: rc::Counters,
}
