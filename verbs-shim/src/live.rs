//! Counts of the objects that exist at this moment, for leak tests and for an operator's eye.
//!
//! It counts what the backends hold open, so a region that was let go but is still posted counts.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many verbs objects of this process exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LiveObjects {
    /// RDMA CM ids.
    pub ids: usize,
    /// Queue pairs.
    pub qps: usize,
    /// Completion queues.
    pub cqs: usize,
    /// Memory regions.
    pub mrs: usize,
    /// Memory windows.
    pub mws: usize,
    /// Protection domains.
    pub pds: usize,
    /// Shared receive queues.
    pub srqs: usize,
    /// Event channels and completion channels.
    pub channels: usize,
}

/// The objects of the whole process that exist now. The figures are read one after another: while
/// other threads work they need not be of one instant.
#[must_use]
pub fn live_objects() -> LiveObjects {
    let count = |kind: Kind| COUNTS[kind as usize].load(Ordering::Acquire);
    LiveObjects {
        ids: count(Kind::Id),
        qps: count(Kind::QueuePair),
        cqs: count(Kind::CompletionQueue),
        mrs: count(Kind::MemoryRegion),
        mws: count(Kind::MemoryWindow),
        pds: count(Kind::ProtectionDomain),
        srqs: count(Kind::SharedReceiveQueue),
        channels: count(Kind::Channel),
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Id,
    QueuePair,
    CompletionQueue,
    MemoryRegion,
    MemoryWindow,
    ProtectionDomain,
    SharedReceiveQueue,
    Channel,
}

static COUNTS: [AtomicUsize; 8] = [const { AtomicUsize::new(0) }; 8];

/// Counts one object for as long as it lives. A backend makes it the last field of its object.
#[derive(Debug)]
pub(crate) struct Alive(Kind);

impl Alive {
    pub(crate) fn new(kind: Kind) -> Self {
        COUNTS[kind as usize].fetch_add(1, Ordering::AcqRel);
        Self(kind)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        COUNTS[self.0 as usize].fetch_sub(1, Ordering::AcqRel);
    }
}
