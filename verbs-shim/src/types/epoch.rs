//! The order in which queues are made and completions polled, over the whole process.
//!
//! The numbers that a device gives to queues come back, and those in a work request's id do, too. A
//! completion that somebody kept must not stand for the work of a queue that was made later.

use std::sync::atomic::{AtomicU64, Ordering};

/// Starts at 1, so that 0 is before everything.
static NOW: AtomicU64 = AtomicU64::new(1);

/// A moment: of a queue, when it was made; of a completion, when it was polled. 64 bits do not come
/// back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Epoch(u64);

impl Epoch {
    /// Before every queue.
    pub(crate) const BEFORE_ALL: Self = Self(0);

    /// Begins a new one, for a queue that is being made.
    pub(crate) fn begin() -> Self {
        Self(NOW.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// That of the youngest queue.
    #[inline]
    pub(crate) fn now() -> Self {
        Self(NOW.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_polled_before_is_older() {
        let polled = Epoch::now();
        let made = Epoch::begin();
        assert!(Epoch::BEFORE_ALL < polled && polled < made);
        assert!(Epoch::now() >= made);
    }
}
