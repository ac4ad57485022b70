//! When the peers of which lane are asked whether they are still there.
//!
//! A lane has some hundred connections, and the question is one packet for each that is idle. Asked all at
//! once, ten thousand idle peers would lose most of them: their sockets' buffers hold a few hundred. So the
//! lanes take turns, spread over the time in which each is to be asked once. Who is late asks later, and
//! never more at once.

use std::time::{Duration, Instant};

/// Whose turn it is.
#[derive(Debug)]
pub(crate) struct Probes {
    /// How long after the last time a lane is asked again.
    every: Duration,
    due: Instant,
    next: usize,
}

impl Probes {
    /// The first lane's turn is `every` divided by their number after `now`.
    pub(crate) fn new(every: Duration, now: Instant) -> Self {
        Self {
            every,
            due: now,
            next: usize::MAX,
        }
    }

    /// The time between two turns of so many lanes.
    pub(crate) fn pause(&self, lanes: usize) -> Duration {
        let lanes = u32::try_from(lanes.max(1)).unwrap_or(u32::MAX);
        self.every / lanes
    }

    /// The number of the lane whose turn it is, if one's has come. Of so many lanes each has one turn before
    /// one has its next, as long as their number stays the same.
    pub(crate) fn turn(&mut self, now: Instant, lanes: usize) -> Option<usize> {
        let pause = self.pause(lanes);
        if lanes == 0 || self.next == usize::MAX {
            self.next = if lanes == 0 { usize::MAX } else { 0 };
            self.due = now + pause;
            return None;
        }
        if now < self.due {
            return None;
        }
        let number = self.next % lanes;
        self.next = (number + 1) % lanes;
        // Being late is made up for by half, so that two turns never come together.
        self.due = (self.due + pause).max(now + pause / 2);
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(8);

    /// The turns within this time, looked for so often; each with its time.
    fn turns(lanes: usize, length: Duration, step: Duration) -> Vec<(Duration, usize)> {
        let start = Instant::now();
        let mut probes = Probes::new(EVERY, start);
        let mut now = Duration::ZERO;
        let mut turns = Vec::new();
        while now < length {
            turns.extend(probes.turn(start + now, lanes).map(|lane| (now, lane)));
            now += step;
        }
        turns
    }

    #[test]
    fn lanes_take_turns_all_the_time() {
        let millis = Duration::from_millis;
        let turns = turns(40, 2 * EVERY + millis(1), millis(1));
        assert_eq!(turns.len(), 80);
        for (place, (time, lane)) in turns.iter().enumerate() {
            assert_eq!(*lane, place % 40);
            assert_eq!(*time, millis(200) * (place as u32 + 1));
        }
    }

    #[test]
    fn who_is_late_asks_one_at_a_time() {
        let late = turns(40, EVERY * 10, Duration::from_millis(700));
        let order: Vec<usize> = late.iter().map(|(_, lane)| *lane).collect();
        let expected: Vec<usize> = (0..late.len()).map(|place| place % 40).collect();
        assert_eq!(order, expected);
        assert!(
            late.windows(2)
                .all(|two| two[1].0 - two[0].0 >= Duration::from_millis(700))
        );
    }

    #[test]
    fn a_late_turn_is_made_up_for_and_none_comes_together_with_another() {
        let start = Instant::now();
        let mut probes = Probes::new(EVERY, start);
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(probes.turn(at(0), 8), None);
        assert_eq!(probes.turn(at(5000), 8), Some(0));
        assert_eq!(probes.turn(at(5499), 8), None);
        assert_eq!(probes.turn(at(5500), 8), Some(1));
        assert_eq!(probes.turn(at(5999), 8), None);
    }

    #[test]
    fn lanes_come_and_go() {
        let start = Instant::now();
        let mut probes = Probes::new(EVERY, start);
        let mut now = start;
        let mut after = |pause, lanes| {
            now += pause;
            probes.turn(now, lanes)
        };
        assert_eq!(after(EVERY, 0), None);
        assert_eq!(after(EVERY, 3), None, "the first has opened");
        assert_eq!(after(EVERY / 3, 3), Some(0));
        assert_eq!(after(EVERY / 3, 3), Some(1));
        assert_eq!(after(EVERY / 3, 1), Some(0), "two have gone");
        assert_eq!(after(EVERY, 0), None);
        assert_eq!(after(EVERY, 1), None);
        assert_eq!(after(EVERY, 1), Some(0));
    }
}
