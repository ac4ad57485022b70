//! The ready list of a loop, and whether somebody sleeps who has to be woken for it.
//!
//! # Why no wake-up is lost
//! What becomes ready reaches a loop by [`Wakes::push`], from whichever thread has polled the lane.
//! Who wants to sleep counts himself among the sleepers *before* he takes the lock and looks at the
//! list ([`Wakes::fall_asleep`]). Who pushes takes the same lock first and looks at the count *after*
//! it. The lock puts the two in an order: either the push comes first, and the sleeper finds the list
//! not empty and stays awake; or the look comes first, and then the count was raised before the push
//! took the lock, so that the pusher sees it and rings. A ring is kept by the doorbell until somebody
//! takes it, so it may come before the sleeper is really asleep.
//!
//! Of several sleepers a ring wakes one. Who wakes and leaves entries behind rings for the next
//! ([`Taken::more`]).
//!
//! `wakes_tests.rs` runs this file with loom's primitives.

use std::collections::VecDeque;

use super::primitives::{AtomicUsize, Mutex, Ordering, lock};

/// A list of what may be ready.
pub(super) struct Wakes<T> {
    list: Mutex<VecDeque<T>>,
    sleepers: AtomicUsize,
}

/// What [`Wakes::take`] leaves.
pub(super) struct Taken {
    /// There are entries left, and somebody sleeps: he is to be rung.
    pub(super) more: bool,
}

impl<T> Wakes<T> {
    pub(super) fn new() -> Self {
        Self {
            list: Mutex::new(VecDeque::new()),
            sleepers: AtomicUsize::new(0),
        }
    }

    /// Adds an entry. `true`: somebody sleeps, and the caller has to ring.
    #[must_use]
    pub(super) fn push(&self, entry: T) -> bool {
        lock(&self.list).push_back(entry);
        self.sleepers.load(Ordering::SeqCst) > 0
    }

    /// Adds entries again that are as ready as they were; those who sleep know of them or need not.
    pub(super) fn put_back(&self, entries: impl Iterator<Item = T>) {
        lock(&self.list).extend(entries);
    }

    /// Takes at most `most` entries, the oldest first.
    pub(super) fn take(&self, most: usize, into: &mut Vec<T>) -> Taken {
        let mut list = lock(&self.list);
        let count = list.len().min(most);
        into.extend(list.drain(..count));
        let left = !list.is_empty();
        drop(list);
        Taken {
            more: left && self.sleepers.load(Ordering::SeqCst) > 0,
        }
    }

    /// The caller wants to sleep. `true`: he may, and is counted until [`Wakes::awake`]. `false`:
    /// there is something on the list.
    #[must_use]
    pub(super) fn fall_asleep(&self) -> bool {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let is_empty = lock(&self.list).is_empty();
        if !is_empty {
            self.awake();
        }
        is_empty
    }

    /// Whether there is nothing on the list.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.list).is_empty()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        lock(&self.list).len()
    }

    /// The caller does not sleep any more.
    pub(super) fn awake(&self) {
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}
