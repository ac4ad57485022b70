//! Deadlines: a point in time at which a wait ends, as the system calls want it.
//!
//! It keeps no clock and no timers.

use std::time::{Duration, Instant};

use rustix::event::Timespec;

/// When a wait ends; `None` inside means never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// `timeout` from now; never, if that is past what the clock can say.
    pub(crate) fn after(timeout: Duration) -> Self {
        Self(Instant::now().checked_add(timeout))
    }

    pub(crate) fn at(when: Option<Instant>) -> Self {
        Self(when)
    }

    /// One that is over.
    pub(crate) fn passed() -> Self {
        Self(Some(Instant::now()))
    }

    pub(crate) fn is_over(self) -> bool {
        self.0.is_some_and(|t| Instant::now() >= t)
    }

    /// What is left; `None` is without end.
    pub(crate) fn left(self) -> Option<Duration> {
        self.0.map(|t| t.saturating_duration_since(Instant::now()))
    }

    /// What is left, for `ppoll`.
    pub(crate) fn timespec(self) -> Option<Timespec> {
        self.left().and_then(|d| Timespec::try_from(d).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_deadlines_are_without_end() {
        assert_eq!(Deadline::after(Duration::MAX).left(), None);
        assert!(!Deadline::after(Duration::MAX).is_over());
        assert!(Deadline::at(None).timespec().is_none());
    }

    #[test]
    fn a_passed_deadline_leaves_nothing() {
        let d = Deadline::passed();
        assert!(d.is_over());
        assert_eq!(d.left(), Some(Duration::ZERO));
        let later = Deadline::after(Duration::from_secs(100));
        assert!(!later.is_over());
        assert!(later.left().unwrap() > Duration::from_secs(99));
    }
}
