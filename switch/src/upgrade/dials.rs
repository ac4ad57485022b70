//! How often a process dials: never more than a few at a time, and never faster than a rate.
//!
//! A connect over the SAN costs both hosts several times a TCP connect, so a server with thousands of
//! connections must not move them all at once. The clock is the caller's.

use std::time::{Duration, Instant};

/// Dials under way at a time.
pub(crate) const AT_A_TIME: usize = 4;
/// Dials a second, and how many of them may come together after a pause.
pub(crate) const A_SECOND: u32 = 64;

/// The time from one of them to the next.
const EVERY: Duration = Duration::from_nanos(1_000_000_000 / A_SECOND as u64);

/// The dials of one process.
#[derive(Debug)]
pub(crate) struct Dials {
    under_way: usize,
    /// Dials that may start now; one more every 1/64 s.
    left: u32,
    counted: Instant,
}

impl Dials {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            under_way: 0,
            left: A_SECOND,
            counted: now,
        }
    }

    /// How long it takes until a dial may start. `None`: as long as one of those takes that are under way.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        if self.under_way == AT_A_TIME {
            return None;
        }
        let next = if self.left > 0 {
            now
        } else {
            self.counted + EVERY
        };
        Some(next.saturating_duration_since(now))
    }

    /// Whether a dial may start now; it counts as started.
    pub(crate) fn start(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.counted);
        let more = u32::try_from(passed.as_nanos() / EVERY.as_nanos()).unwrap_or(A_SECOND);
        if more >= A_SECOND - self.left {
            self.left = A_SECOND;
            self.counted = now;
        } else {
            self.left += more;
            self.counted += EVERY * more;
        }
        if self.under_way == AT_A_TIME || self.left == 0 {
            return false;
        }
        self.under_way += 1;
        self.left -= 1;
        true
    }

    /// A dial has ended, whatever came of it.
    pub(crate) fn ended(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_under_way_at_a_time() {
        let now = Instant::now();
        let mut dials = Dials::new(now);
        for _ in 0..AT_A_TIME {
            assert!(dials.start(now));
        }
        assert!(!dials.start(now) && dials.wait(now).is_none());
        dials.ended();
        assert_eq!(dials.wait(now), Some(Duration::ZERO));
        assert!(dials.start(now) && !dials.start(now));
    }

    #[test]
    fn a_second_has_so_many_and_no_more() {
        let mut now = Instant::now();
        let mut dials = Dials::new(now);
        let mut started = 0;
        // Ten seconds, a try each millisecond.
        for _ in 0..10_000 {
            if dials.start(now) {
                started += 1;
                dials.ended();
            }
            now += Duration::from_millis(1);
        }
        let most = A_SECOND * 11;
        assert!((A_SECOND * 10..=most).contains(&started), "{started}");
    }

    #[test]
    fn a_pause_brings_one_second_of_them_and_not_more() {
        let start = Instant::now();
        let mut dials = Dials::new(start);
        let later = start + Duration::from_secs(3600);
        let mut started = 0;
        while dials.start(later) {
            dials.ended();
            started += 1;
        }
        assert_eq!(started, A_SECOND);
        assert_eq!(dials.wait(later), Some(EVERY));
        let soon = later + EVERY;
        assert_eq!(dials.wait(soon), Some(Duration::ZERO));
        assert!(dials.start(soon) && !dials.start(soon));
    }
}
