//! What happened at a socket, in numbers.
//!
//! What it does: counts.
//! What it does not do: add up; the endpoint does.

use std::sync::atomic::{AtomicU64, Ordering};

/// What happened at a socket since it was opened.
#[derive(Debug, Default)]
pub(crate) struct PortCounters {
    pub(crate) sent_packets: AtomicU64,
    pub(crate) sent_calls: AtomicU64,
    pub(crate) send_dropped: AtomicU64,
    pub(crate) received_packets: AtomicU64,
    pub(crate) received_calls: AtomicU64,
    pub(crate) bad_icrc: AtomicU64,
    pub(crate) malformed: AtomicU64,
    pub(crate) unknown_qp: AtomicU64,
    pub(crate) foreign_source: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
