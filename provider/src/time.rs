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

/// A wait of a given length, whose clock runs from the first time that somebody asks: what is there
/// already costs no look at the clock.
#[derive(Debug)]
pub(crate) struct Patience {
    length: Duration,
    deadline: Option<Deadline>,
}

impl Patience {
    /// Longer is without end.
    const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);

    pub(crate) fn new(length: Duration) -> Self {
        let endless = (length > Self::LONGEST).then_some(Deadline(None));
        Self {
            length,
            deadline: endless,
        }
    }

    /// What is left; `None` is without end.
    pub(crate) fn left(&mut self) -> Option<Duration> {
        match self.deadline {
            Some(deadline) => deadline.left(),
            None if self.length.is_zero() => Some(Duration::ZERO),
            None => {
                self.deadline = Some(Deadline::after(self.length));
                Some(self.length)
            }
        }
    }

    /// Whether nothing is left.
    pub(crate) fn is_over(&mut self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_begins_when_it_is_asked_for() {
        let mut patience = Patience::new(Duration::from_millis(50));
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(patience.left(), Some(Duration::from_millis(50)));
        std::thread::sleep(Duration::from_millis(60));
        assert!(patience.is_over());
        assert!(Patience::new(Duration::ZERO).is_over());
        assert_eq!(Patience::new(Duration::MAX).left(), None);
    }

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
