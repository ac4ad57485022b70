//! The endpoint's clock, and who is to be woken when.
//!
//! What it does: knows the time and the earliest deadline of any engine; wakes
//! the endpoint's thread where it would sleep past one.
//! What it does not do: run an engine.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use san_base::lock;

use super::sleepers::Waiter;
use super::timers::Timers;
use crate::cm::ConnKey;
use crate::time::Time;

pub(crate) use super::timers::NEVER;

#[derive(Debug)]
pub(crate) struct Schedule {
    /// What the clock said at the beginning, in nanoseconds.
    start: u64,
    /// How long a connection may be silent until its peer is asked for a sign of
    /// life; `None`: never.
    pub(crate) keepalive: Option<Duration>,
    pub(crate) timers: Timers,
    /// When the CM wants to be woken, in nanoseconds.
    pub(crate) cm_deadline: AtomicU64,
    /// Connections whose queue pair has found the peer dead; the CM is told when
    /// its lock may be taken.
    pub(crate) dead: Mutex<Vec<ConnKey>>,
    waiter: Arc<Waiter>,
}

impl Schedule {
    pub(crate) fn new(keepalive: Option<Duration>, waiter: Arc<Waiter>) -> Self {
        Self {
            start: clock(),
            keepalive,
            timers: Timers::new(),
            cm_deadline: AtomicU64::new(NEVER),
            dead: Mutex::default(),
            waiter,
        }
    }

    /// The time, as the engines count it.
    pub(crate) fn now(&self) -> Time {
        Time::from_nanos(clock().saturating_sub(self.start))
    }

    /// The earliest deadline of any engine, in nanoseconds.
    pub(crate) fn next_deadline(&self) -> u64 {
        self.timers
            .next()
            .min(self.cm_deadline.load(Ordering::Acquire))
    }

    pub(crate) fn until_next_timer(&self) -> Duration {
        let next = self.next_deadline();
        Duration::from_nanos(next.saturating_sub(self.now().nanos()))
    }

    /// Wakes the thread if it would sleep past `at`.
    pub(crate) fn thread_by(&self, at: u64) {
        if at < self.waiter.sleeps_until.load(Ordering::Acquire) {
            self.waiter.wake.signal();
        }
    }

    /// Has the CM end a connection soon: the peer does not answer any more.
    pub(crate) fn note_dead(&self, conn: u32) {
        if conn != 0 {
            lock(&self.dead).push(ConnKey(conn));
            self.cm_deadline.store(0, Ordering::Release);
            self.thread_by(0);
        }
    }
}

/// The system's monotonic clock in nanoseconds. It is read several times a message: `Instant` takes twice the
/// instructions for the difference of two moments.
fn clock() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither part is negative on this clock.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
