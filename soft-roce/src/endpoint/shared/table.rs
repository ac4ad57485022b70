//! The queue pairs of an endpoint.
//!
//! What it does: finds them by number, counts for those that are gone, and lists
//! those that have something to send that may wait.
//! What it does not do: run them.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use san_base::{ByNumber, lock};

use super::qp::QpShared;
use crate::rc;

/// So many locks for finding queue pairs that readers hardly ever meet.
const SHARDS: usize = 16;

/// The endpoint chooses the numbers.
type Shard = RwLock<ByNumber<Arc<QpShared>>>;

/// Queue pairs by number.
#[derive(Debug, Default)]
pub(crate) struct QpTable {
    shards: [Shard; SHARDS],
    /// What queue pairs that are gone have counted. Taken before the locks of queue pairs.
    gone: Mutex<rc::Counters>,
}

impl QpTable {
    /// Puts a queue pair under a number of its own.
    pub(crate) fn insert(&self, qpn: u32, qp: Arc<QpShared>) -> bool {
        let mut shard = self
            .shard(qpn)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match shard.entry(qpn) {
            Entry::Vacant(place) => {
                place.insert(qp);
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// Takes a queue pair out, and never another one that has its number by now. What it has counted stays.
    pub(crate) fn remove(&self, qpn: u32, qp: &Arc<QpShared>) {
        let mut gone = lock(&self.gone);
        let mut shard = self
            .shard(qpn)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if shard.get(&qpn).is_some_and(|known| Arc::ptr_eq(known, qp)) {
            shard.remove(&qpn);
            drop(shard);
            gone.add(&qp.counters());
        }
    }

    pub(crate) fn get(&self, qpn: u32) -> Option<Arc<QpShared>> {
        let shard = self
            .shard(qpn)
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        shard.get(&qpn).cloned()
    }

    pub(crate) fn count(&self) -> usize {
        let len = |shard: &Shard| shard.read().unwrap_or_else(PoisonError::into_inner).len();
        self.shards.iter().map(len).sum()
    }

    /// What all queue pairs have counted.
    pub(crate) fn counters(&self) -> rc::Counters {
        let gone = lock(&self.gone);
        let mut all = *gone;
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            let there: Vec<_> = shard.values().cloned().collect();
            drop(shard);
            for qp in there {
                all.add(&qp.counters());
            }
        }
        all
    }

    fn shard(&self, qpn: u32) -> &Shard {
        &self.shards[qpn as usize % SHARDS]
    }
}

/// Queue pairs that have something to send that may wait for the next look at
/// the sockets, each with the number under which it was put off: what was sent
/// otherwise meanwhile has lost it.
#[derive(Debug, Default)]
pub(crate) struct PutOff {
    queue: Mutex<VecDeque<(Arc<QpShared>, u32)>>,
    len: AtomicUsize,
}

impl PutOff {
    pub(crate) fn push(&self, qp: Arc<QpShared>, number: u32) {
        let mut queue = lock(&self.queue);
        queue.push_back((qp, number));
        self.len.store(queue.len(), Ordering::Release);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// The one that waits longest.
    pub(crate) fn pop(&self) -> Option<(Arc<QpShared>, u32)> {
        if self.len() == 0 {
            return None;
        }
        let mut queue = lock(&self.queue);
        let qp = queue.pop_front();
        self.len.store(queue.len(), Ordering::Release);
        qp
    }
}
