//! Deadlines: a point in time at which a wait ends, as the system calls want it.
//!
//! It keeps no clock and no timers.

use std::time::{Duration, Instant};

use rustix::event::Timespec;

/// When a wait ends; `None` inside means never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// A wait without end.
    pub const NEVER: Self = Self(None);

    /// `timeout` from now; never, if there is no timeout or it is past what the clock can say.
    pub fn after(timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = timeout.into();
        Self(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    /// This moment; `None` is never.
    pub fn at(moment: impl Into<Option<Instant>>) -> Self {
        Self(moment.into())
    }

    /// One that is over.
    #[must_use]
    pub fn passed() -> Self {
        Self(Some(Instant::now()))
    }

    /// The moment; `None` is never.
    #[must_use]
    pub fn instant(self) -> Option<Instant> {
        self.0
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_over(self) -> bool {
        self.0.is_some_and(|moment| Instant::now() >= moment)
    }

    /// What is left; `None` is without end.
    #[must_use]
    pub fn left(self) -> Option<Duration> {
        self.0
            .map(|moment| moment.saturating_duration_since(Instant::now()))
    }

    /// What is left, for `ppoll` and its kin.
    #[must_use]
    pub fn timespec(self) -> Option<Timespec> {
        self.left().map(timespec)
    }
}

/// A time as the system calls want it; what they cannot express is the longest they can.
#[must_use]
pub fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_deadlines_are_without_end() {
        for never in [
            Deadline::after(Duration::MAX),
            Deadline::after(None),
            Deadline::at(None),
            Deadline::NEVER,
        ] {
            assert_eq!(never, Deadline::NEVER);
            assert_eq!(never.left(), None);
            assert_eq!(never.instant(), None);
            assert!(!never.is_over());
            assert!(never.timespec().is_none());
        }
    }

    #[test]
    fn a_passed_deadline_leaves_nothing() {
        let over = Deadline::passed();
        assert!(over.is_over());
        assert_eq!(over.left(), Some(Duration::ZERO));
        let later = Deadline::after(Duration::from_secs(100));
        assert!(!later.is_over());
        assert!(later.left().unwrap() > Duration::from_secs(99));
        assert_eq!(Deadline::at(later.instant()), later);
    }

    #[test]
    fn a_time_is_taken_apart_and_never_negative() {
        let time = timespec(Duration::new(3, 5));
        assert_eq!((time.tv_sec, time.tv_nsec), (3, 5));
        assert_eq!(timespec(Duration::MAX).tv_sec, i64::MAX);
    }
}
