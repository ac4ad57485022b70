//! Deadlines, and when a connection has earned a queue pair.

use std::time::{Duration, Instant};

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The dial is answered.
    Dial,
    /// A queue pair that is there is in use, or given up.
    Change,
    /// The peer says on TCP where it stands.
    Resume,
    /// The connection is old enough to be worth it.
    Age,
}

const TIMERS: usize = 4;

/// One deadline of each kind.
#[derive(Debug, Default)]
pub(crate) struct Timers([Option<Instant>; TIMERS]);

impl Timers {
    pub(crate) fn set(&mut self, timer: Timer, at: Instant) {
        if let Some(slot) = self.0.get_mut(timer as usize) {
            *slot = Some(at);
        }
    }

    /// Not later than this.
    pub(crate) fn sooner(&mut self, timer: Timer, at: Instant) {
        if let Some(slot) = self.0.get_mut(timer as usize) {
            *slot = slot.map(|set| set.min(at));
        }
    }

    pub(crate) fn stop(&mut self, timer: Timer) {
        if let Some(slot) = self.0.get_mut(timer as usize) {
            *slot = None;
        }
    }

    pub(crate) fn is_set(&self, timer: Timer) -> bool {
        self.0.get(timer as usize).is_some_and(Option::is_some)
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }

    /// A deadline that is over; it is stopped.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<Timer> {
        use Timer::{Age, Change, Dial, Resume};
        for (timer, slot) in [Dial, Change, Resume, Age].into_iter().zip(&mut self.0) {
            if slot.is_some_and(|at| at <= now) {
                *slot = None;
                return Some(timer);
            }
        }
        None
    }
}

/// How much a connection must carry over TCP before it is moved.
#[derive(Debug, Clone, Copy)]
pub struct Thresholds {
    /// Bytes of both directions.
    pub bytes: u64,
    /// Writes after reads: what counts for request and answer.
    pub turns: u32,
    /// A connection this old needs only `old_turns`.
    pub age: Duration,
    /// See `age`.
    pub old_turns: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            bytes: 32 * 1024,
            turns: 16,
            age: Duration::from_secs(1),
            old_turns: 4,
        }
    }
}

impl Thresholds {
    /// So many times as much, but not later.
    pub(crate) fn times(self, factor: u32) -> Self {
        Self {
            bytes: self.bytes.saturating_mul(u64::from(factor)),
            turns: self.turns.saturating_mul(factor),
            ..self
        }
    }
}

/// What a connection has carried over TCP since it last was there.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    bytes: u64,
    turns: u32,
    was_read: bool,
    /// The stream has come back to TCP, and nothing has gone over it since.
    is_quiet: bool,
}

impl Traffic {
    /// The stream has come back to TCP. What it carried there meanwhile counts, but is no reason to go again
    /// before it carries more: a stream that nobody uses would, and its listener would stand for nothing.
    pub(crate) fn came_back(&mut self) {
        self.is_quiet = true;
    }

    pub(crate) fn read(&mut self, bytes: usize) {
        self.is_quiet = false;
        self.bytes += bytes as u64;
        self.was_read = true;
    }

    pub(crate) fn written(&mut self, bytes: usize) {
        self.is_quiet = false;
        self.bytes += bytes as u64;
        self.turns += u32::from(std::mem::take(&mut self.was_read));
    }

    pub(crate) fn passed(&mut self, bytes: u64, turns: u32) {
        self.is_quiet &= bytes == 0;
        self.bytes += bytes;
        self.turns += turns;
    }

    pub(crate) fn is_enough(&self, wanted: &Thresholds, is_old: bool) -> bool {
        let turns = if is_old {
            wanted.old_turns.min(wanted.turns)
        } else {
            wanted.turns
        };
        !self.is_quiet && (self.bytes >= wanted.bytes || self.turns >= turns)
    }
}

/// What went over TCP past an engine: bytes that its application has read and written by other ways.
#[derive(Debug, Clone, Copy, Default)]
pub struct Passed {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Writes after reads.
    pub turns: u32,
    /// The connection is older than [`Thresholds::age`].
    pub is_old: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_writes_after_reads() {
        let wanted = Thresholds::default();
        let mut traffic = Traffic::default();
        for _ in 0..4 {
            traffic.written(1);
            traffic.written(1);
            traffic.read(1);
        }
        assert!(
            !traffic.is_enough(&wanted, true),
            "the first write answers nothing"
        );
        traffic.written(1);
        assert!(traffic.is_enough(&wanted, true));
        assert!(!traffic.is_enough(&wanted, false));
        traffic.read(32 * 1024);
        assert!(traffic.is_enough(&wanted, false));
    }

    #[test]
    fn what_has_come_back_needs_more_before_it_goes_again() {
        let wanted = Thresholds::default();
        let mut traffic = Traffic::default();
        traffic.written(64 * 1024);
        traffic.came_back();
        assert!(!traffic.is_enough(&wanted, true));
        traffic.passed(0, 0);
        assert!(!traffic.is_enough(&wanted, true));
        traffic.read(1);
        assert!(traffic.is_enough(&wanted, true));
    }

    #[test]
    fn a_deadline_is_over_once() {
        let now = Instant::now();
        let mut timers = Timers::default();
        timers.set(Timer::Change, now);
        timers.set(Timer::Age, now + Duration::from_secs(1));
        assert_eq!(timers.next(), Some(now));
        assert_eq!(timers.expired(now), Some(Timer::Change));
        assert_eq!(timers.expired(now), None);
        let later = now + Duration::from_secs(2);
        timers.sooner(Timer::Age, later);
        assert_eq!(timers.next(), Some(now + Duration::from_secs(1)));
        timers.sooner(Timer::Age, now);
        timers.sooner(Timer::Dial, now);
        assert_eq!(timers.expired(now), Some(Timer::Age));
        assert_eq!(timers.next(), None, "one that is not set stays so");
    }
}
