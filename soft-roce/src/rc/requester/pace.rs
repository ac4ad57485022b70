//! When to give up waiting, and how much to have under way.
//!
//! What it does: the round trip's estimate and what follows from it (RFC 6298
//! with bounds of our own), and a bound on packets under way that backs off when
//! packets get lost and grows back.
//! What it does not do: know the clock, or which packets were lost.

use crate::time::Time;

const MICRO: u64 = 1_000;
const MILLI: u64 = 1_000_000;

/// Never wait less: the peer's process may have to be scheduled first.
const LEAST_WAIT: u64 = 4 * MILLI;
/// Nor less for a process of this host, between which and us nothing is lost: it
/// is silent because others have the processor.
const LEAST_WAIT_ON_HOST: u64 = 32 * MILLI;

/// Estimate of the round trip, in nanoseconds.
#[derive(Debug)]
pub(super) struct RoundTrip {
    smoothed: Option<u64>,
    variation: u64,
    /// Never wait less.
    least: u64,
    /// Never wait more between two attempts, unless the least is more.
    most: u64,
    /// Attempts since anything was heard.
    backoff: u32,
}

impl RoundTrip {
    /// `timeout` is the ACK timeout that the connection agreed on.
    pub(super) fn new(timeout: u64, on_host: bool) -> Self {
        Self {
            least: if on_host {
                LEAST_WAIT_ON_HOST
            } else {
                LEAST_WAIT
            },
            smoothed: None,
            variation: 0,
            most: timeout,
            backoff: 0,
        }
    }

    pub(super) fn sample(&mut self, nanos: u64) {
        match self.smoothed {
            None => {
                self.smoothed = Some(nanos);
                self.variation = nanos / 2;
            }
            Some(s) => {
                self.variation = self.variation / 4 * 3 + s.abs_diff(nanos) / 4;
                self.smoothed = Some(s / 8 * 7 + nanos / 8);
            }
        }
    }

    /// Something was heard.
    pub(super) fn heard(&mut self) {
        self.backoff = 0;
    }

    /// Nothing was heard: wait twice as long next time.
    pub(super) fn back_off(&mut self) {
        self.backoff = (self.backoff + 1).min(16);
    }

    /// How long to wait for an answer.
    pub(super) fn retransmit_after(&self) -> u64 {
        let base = match self.smoothed {
            Some(s) => s + 4 * self.variation,
            None => 10 * LEAST_WAIT,
        };
        let most = self.most.max(self.least);
        let wait = base.clamp(self.least, most);
        (wait << self.backoff).min(most)
    }

    /// How long a packet may be late because others overtook it.
    pub(super) fn reorder_after(&self) -> u64 {
        (self.smoothed.unwrap_or(MILLI) / 4).clamp(20 * MICRO, 2 * MILLI)
    }

    /// A round trip, as far as is known.
    pub(super) fn estimate(&self) -> u64 {
        self.smoothed.unwrap_or(LEAST_WAIT)
    }
}

/// The bound on packets under way.
#[derive(Debug)]
pub(super) struct Congestion {
    packets: u32,
    most: u32,
    /// Below it the bound doubles each round trip.
    threshold: u32,
    /// Packets acknowledged that have not made the bound grow yet.
    credit: u32,
}

/// The bound shrinks no further for single losses.
const LEAST: u32 = 16;
/// Nor for a timeout.
const LEAST_AFTER_TIMEOUT: u32 = 8;
/// The bound grows by one for so many packets answered.
const GROWTH: u32 = 32;
/// Where a connection starts.
const FIRST: u32 = 64;

impl Congestion {
    pub(super) fn new(most: u32) -> Self {
        Self {
            packets: most.min(FIRST),
            most,
            threshold: most,
            credit: 0,
        }
    }

    pub(super) fn packets(&self) -> u32 {
        self.packets
    }

    /// `n` packets more have been answered.
    pub(super) fn acknowledged(&mut self, n: u32) {
        if self.packets >= self.most {
            return;
        }
        if self.packets < self.threshold {
            self.packets += n;
        } else {
            // The same part of the bound each round trip, at any size.
            self.credit += n;
            self.packets += self.credit / GROWTH;
            self.credit %= GROWTH;
        }
        self.packets = self.packets.min(self.most);
    }

    /// `n` packets were lost, and will be repeated alone. One less for each:
    /// where less than one in [`GROWTH`] is lost, the bound grows nevertheless,
    /// and a buffer that overflows is left within a few round trips.
    pub(super) fn lost(&mut self, n: u32) {
        self.shrink(self.packets.saturating_sub(n));
    }

    /// Packets were lost for the first time in this round trip, and all that
    /// follow must be repeated: the more are under way, the more it costs.
    pub(super) fn went_back(&mut self) {
        self.shrink(self.packets / 8 * 7);
    }

    /// Nothing was heard at all.
    pub(super) fn timed_out(&mut self) {
        self.threshold = (self.packets / 2).max(LEAST).min(self.most);
        self.packets = LEAST_AFTER_TIMEOUT.min(self.most);
    }

    fn shrink(&mut self, to: u32) {
        self.packets = to.max(LEAST).min(self.most);
        self.threshold = self.packets;
    }
}

/// The moments at which a requester wants to be woken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timers {
    /// Nothing was heard.
    pub(super) retransmit: Option<Time>,
    /// What is suspected to be lost is lost.
    pub(super) reorder: Option<Time>,
    /// The peer may have posted a receive.
    pub(super) rnr: Option<Time>,
}

impl Timers {
    pub(super) fn next(&self) -> Option<Time> {
        [self.retransmit, self.reorder, self.rnr]
            .into_iter()
            .flatten()
            .min()
    }
}

/// Whether `timer` has expired by `now`; if so it is disarmed.
pub(super) fn expired(timer: &mut Option<Time>, now: Time) -> bool {
    match *timer {
        Some(at) if at <= now => {
            *timer = None;
            true
        }
        _ => false,
    }
}
