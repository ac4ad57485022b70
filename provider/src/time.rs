//! How long somebody waits: a deadline, or a patience that starts with its first question.
//!
//! It keeps no clock and no timers.

use std::time::Duration;

pub(crate) use san_base::Deadline;

/// A wait of a given length, whose clock runs from the first time that somebody asks: what is there
/// already costs no look at the clock.
#[derive(Debug)]
pub(crate) struct Patience {
    length: Duration,
    deadline: Option<Deadline>,
}

impl Patience {
    /// So many seconds are without end.
    const LONGEST: u64 = u32::MAX as u64;

    #[inline]
    pub(crate) fn new(length: Duration) -> Self {
        Self {
            length,
            deadline: None,
        }
    }

    /// Whether a wait of this length has no end.
    #[inline]
    pub(crate) fn is_endless(length: Duration) -> bool {
        length.as_secs() >= Self::LONGEST
    }

    /// What is left; `None` is without end.
    #[inline]
    pub(crate) fn left(&mut self) -> Option<Duration> {
        match Self::is_endless(self.length) {
            true => None,
            false => Some(self.left_of_some()),
        }
    }

    #[inline(never)]
    fn left_of_some(&mut self) -> Duration {
        match self.deadline {
            Some(deadline) => deadline.left().unwrap_or(Duration::MAX),
            None if self.length.is_zero() => Duration::ZERO,
            None => {
                self.deadline = Some(Deadline::after(self.length));
                self.length
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
}
