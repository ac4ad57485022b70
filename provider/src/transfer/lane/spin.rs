//! How long a thread that waits polls before it sleeps: learnt from what became of the last waits.
//!
//! Spinning pays where the answer comes soon and another processor works on it. It costs where both
//! ends share a processor, or nothing comes for long. So a wait that ends while it spins speaks for
//! spinning, one that goes on past the limit against it. While it does not pay, one wait in
//! [`PROBE_EVERY`] spins all the same, to find out whether that has changed.

use std::time::{Duration, Instant};

/// The highest score; spinning goes on while the score is above 0.
const MOST: u8 = 8;
/// What a wait that ended while it spun is worth.
const GAIN: u8 = 2;
/// One wait in so many spins while spinning does not pay.
const PROBE_EVERY: u8 = 16;

impl Spin {
    /// Whether it spins, or is about to.
    #[inline]
    pub(super) fn is_some(&self) -> bool {
        !matches!(self, Self::No)
    }
}

/// What one polling role has learnt.
#[derive(Debug)]
pub(super) struct Learner {
    limit: Duration,
    /// The limit is not zero.
    spins: bool,
    score: u8,
    /// Waits that did not spin since the last that did.
    skipped: u8,
    /// The last wait ended by sleeping.
    slept: bool,
}

/// The spinning of one wait.
#[derive(Debug)]
pub(super) enum Spin {
    /// It sleeps at once.
    No,
    /// It has not begun.
    Ready,
    /// It goes on until then.
    Until(Instant),
}

impl Learner {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            spins: !limit.is_zero(),
            score: MOST / 2,
            skipped: 0,
            slept: false,
        }
    }

    /// A thread begins to wait.
    pub(super) fn begin(&mut self) -> Spin {
        if !self.spins {
            return Spin::No;
        }
        if self.score > 0 {
            return Spin::Ready;
        }
        self.skipped += 1;
        if self.skipped < PROBE_EVERY {
            return Spin::No;
        }
        self.skipped = 0;
        Spin::Ready
    }

    /// In place of [`Learner::begin`]: whether a wait is to sleep without a look before that. `false`: begin.
    #[inline]
    pub(super) fn sleeps_at_once(&mut self) -> bool {
        if !self.slept {
            return false;
        }
        if !self.spins {
            return true;
        }
        let skips = self.score == 0 && self.skipped + 1 < PROBE_EVERY;
        self.skipped += u8::from(skips);
        skips
    }

    /// Whether to poll once more rather than sleep.
    #[inline(never)]
    pub(super) fn goes_on(&mut self, spin: &mut Spin) -> bool {
        match *spin {
            Spin::No => false,
            Spin::Ready => {
                *spin = Spin::Until(Instant::now() + self.limit);
                true
            }
            Spin::Until(when) => {
                std::hint::spin_loop();
                let goes_on = Instant::now() < when;
                if !goes_on {
                    *spin = Spin::No;
                    self.score = self.score.saturating_sub(1);
                }
                goes_on
            }
        }
    }

    /// Whether a wait that does not spin will have to sleep, as far as the last one tells.
    pub(super) fn sleeps_likely(&self, spin: &Spin) -> bool {
        self.slept && !spin.is_some()
    }

    /// What was waited for has come, and the last thing that was done was to sleep.
    #[inline]
    pub(super) fn found_asleep(&mut self) {
        self.slept = true;
    }

    /// What was waited for has come, and the last thing that was done was to look.
    pub(super) fn found_awake(&mut self, spin: &Spin) {
        self.slept = false;
        if matches!(spin, Spin::Until(_)) {
            self.score = (self.score + GAIN).min(MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(5);

    fn wait_in_vain(learner: &mut Learner) -> bool {
        let mut spin = learner.begin();
        let spun = matches!(spin, Spin::Ready);
        while learner.goes_on(&mut spin) {}
        spun
    }

    #[test]
    fn it_stops_where_nothing_comes_and_probes() {
        let mut learner = Learner::new(Duration::from_micros(1));
        let spun = (0..100).filter(|_| wait_in_vain(&mut learner)).count();
        assert!(spun < 4 + 100 / usize::from(PROBE_EVERY) + 2, "{spun}");
        assert!(spun > 4, "it goes on probing");
    }

    #[test]
    fn one_success_begins_it_again() {
        let mut learner = Learner::new(LIMIT);
        learner.score = 0;
        let mut spin = loop {
            match learner.begin() {
                Spin::No => {}
                spin => break spin,
            }
        };
        assert!(learner.goes_on(&mut spin));
        learner.found_awake(&spin);
        assert!(matches!(learner.begin(), Spin::Ready));
    }

    #[test]
    fn what_is_there_already_teaches_nothing() {
        let mut learner = Learner::new(LIMIT);
        let score = learner.score;
        let spin = learner.begin();
        learner.found_awake(&spin);
        assert_eq!(learner.score, score);
    }

    #[test]
    fn who_sleeps_at_once_probes_as_often() {
        let mut learner = Learner::new(LIMIT);
        assert!(!learner.sleeps_at_once(), "nothing has slept yet");
        (learner.score, learner.slept) = (0, true);
        let probes = (0..160)
            .filter(|_| !learner.sleeps_at_once() && matches!(learner.begin(), Spin::Ready));
        assert_eq!(probes.count(), 160 / usize::from(PROBE_EVERY));
        learner.score = 1;
        assert!(!learner.sleeps_at_once(), "spinning pays");
    }

    #[test]
    fn no_limit_no_spinning() {
        let mut learner = Learner::new(Duration::ZERO);
        assert!((0..100).all(|_| matches!(learner.begin(), Spin::No)));
    }
}
