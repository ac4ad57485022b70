//! How long the calls of a stream wait.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use san_base::Deadline;

/// How long calls wait. It can be changed at any time.
#[derive(Debug)]
pub(crate) struct Timeout {
    /// Nanoseconds; 0 = no end, [`AT_ONCE`] = not at all.
    in_force: AtomicU64,
    /// The same without regard to nonblocking mode.
    wanted: AtomicU64,
}

/// Of a timeout in nonblocking mode.
const AT_ONCE: u64 = u64::MAX;

impl Timeout {
    pub(crate) fn new(timeout: Option<Duration>) -> Self {
        let nanoseconds = Self::nanoseconds(timeout);
        Timeout {
            in_force: AtomicU64::new(nanoseconds),
            wanted: AtomicU64::new(nanoseconds),
        }
    }

    fn nanoseconds(timeout: Option<Duration>) -> u64 {
        timeout.map_or(0, |time| {
            let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            nanoseconds.clamp(1, AT_ONCE - 1)
        })
    }

    pub(crate) fn set(&self, timeout: Option<Duration>) {
        let nanoseconds = Self::nanoseconds(timeout);
        self.wanted.store(nanoseconds, Ordering::Relaxed);
        if self.in_force.load(Ordering::Relaxed) != AT_ONCE {
            self.in_force.store(nanoseconds, Ordering::Relaxed);
        }
    }

    pub(crate) fn wanted(&self) -> Option<Duration> {
        match self.wanted.load(Ordering::Relaxed) {
            0 => None,
            nanoseconds => Some(Duration::from_nanos(nanoseconds)),
        }
    }

    pub(crate) fn set_nonblocking(&self, on: bool) {
        let wanted = self.wanted.load(Ordering::Relaxed);
        let in_force = if on { AT_ONCE } else { wanted };
        self.in_force.store(in_force, Ordering::Relaxed);
    }

    /// How long a call waits that needs no clock for it; `None`: it needs one.
    #[inline]
    pub(super) fn simple(&self) -> Option<Duration> {
        match self.in_force.load(Ordering::Relaxed) {
            0 => Some(Duration::MAX),
            AT_ONCE => Some(Duration::ZERO),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn deadline(&self) -> Deadline {
        match self.in_force.load(Ordering::Relaxed) {
            0 => Deadline::NEVER,
            AT_ONCE => Deadline::passed(),
            nanoseconds => Deadline::after(Duration::from_nanos(nanoseconds)),
        }
    }
}

/// What is left, as the provider wants it.
#[inline]
pub(crate) fn left(deadline: Deadline) -> Duration {
    deadline.left().unwrap_or(Duration::MAX)
}
