//! When which queue pair wants to be woken.
//!
//! What it does: a heap of moments. A queue pair's deadline moves with every
//! packet, nearly always to later; the heap is touched only when it moves to
//! earlier, or when the registered moment has come. So a busy connection costs
//! one entry a time-out, not one a packet.
//! What it does not do: run anything.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::time::Time;

/// No moment.
pub(crate) const NEVER: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Timers {
    heap: Mutex<BinaryHeap<Reverse<(u64, u32)>>>,
    /// The earliest entry, for a look without the lock.
    next: AtomicU64,
}

impl Timers {
    pub(crate) fn new() -> Self {
        Self {
            heap: Mutex::default(),
            next: AtomicU64::new(NEVER),
        }
    }

    /// The earliest moment, in nanoseconds.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// Makes an entry. True: it is the earliest.
    pub(crate) fn add(&self, at: u64, qpn: u32) -> bool {
        let mut heap = self.heap.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = heap.peek().is_none_or(|Reverse((first, _))| at < *first);
        heap.push(Reverse((at, qpn)));
        if earliest {
            self.next.store(at, Ordering::Release);
        }
        earliest
    }

    /// Takes an entry that is due.
    pub(crate) fn pop_due(&self, now: Time) -> Option<(u64, u32)> {
        if self.next() > now.nanos() {
            return None;
        }
        let mut heap = self.heap.lock().unwrap_or_else(PoisonError::into_inner);
        let due = heap
            .peek()
            .is_some_and(|Reverse((at, _))| *at <= now.nanos());
        let entry = if due {
            heap.pop().map(|Reverse(entry)| entry)
        } else {
            None
        };
        let next = heap.peek().map_or(NEVER, |Reverse((at, _))| *at);
        self.next.store(next, Ordering::Release);
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earliest_first() {
        let timers = Timers::new();
        assert!(timers.add(20, 2));
        assert!(timers.add(10, 1));
        assert!(!timers.add(30, 3));
        assert_eq!(timers.next(), 10);
        let due = |at| timers.pop_due(Time::from_nanos(at));
        assert_eq!(due(9), None);
        assert_eq!(due(25), Some((10, 1)));
        assert_eq!(due(25), Some((20, 2)));
        assert_eq!(due(25), None);
        assert_eq!(timers.next(), 30);
        assert_eq!(due(NEVER), Some((30, 3)));
        assert_eq!(timers.next(), NEVER);
    }
}
