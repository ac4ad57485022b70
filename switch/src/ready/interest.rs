//! What a loop is to tell of one descriptor, and when: level, edge, one shot.
//!
//! No I/O: it is told what is the case, and says what the program hears.

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

/// What epoll tells whether it was asked for or not.
const ALWAYS: EventFlags = EventFlags::ERR.union(EventFlags::HUP);

/// What EPOLLEXCLUSIVE may stand beside.
const BESIDE_EXCLUSIVE: EventFlags = EventFlags::IN
    .union(EventFlags::OUT)
    .union(ALWAYS)
    .union(EventFlags::ET)
    .union(EventFlags::WAKEUP)
    .union(EventFlags::EXCLUSIVE);

/// What epoll_ctl(2) sets for one descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interest {
    /// The events that are asked for, and EPOLLET, EPOLLONESHOT, ...
    flags: EventFlags,
    /// The program's own.
    data: u64,
    /// One shot has been fired: nothing more until the next epoll_ctl.
    spent: bool,
}

/// What is to be done with a descriptor that may be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing that was asked for is the case.
    Silent,
    /// Tell these events, and wait for the next edge.
    Tell(EventFlags),
    /// Tell these events, and look again the next time.
    TellAndKeep(EventFlags),
}

impl Interest {
    pub(crate) fn new(flags: EventFlags, data: u64) -> Self {
        Self {
            flags,
            data,
            spent: false,
        }
    }

    /// One shot that has been fired.
    pub(crate) fn spent(flags: EventFlags, data: u64) -> Self {
        Self {
            spent: true,
            ..Self::new(flags, data)
        }
    }

    /// The program's own data.
    pub(crate) fn data(&self) -> u64 {
        self.data
    }

    /// What the program asked for.
    pub(crate) fn flags(&self) -> EventFlags {
        self.flags
    }

    /// Whether it has told its one event.
    pub(crate) fn is_spent(&self) -> bool {
        self.spent
    }

    /// Whether it may be added.
    ///
    /// # Errors
    /// EINVAL: EPOLLEXCLUSIVE stands beside what it excludes, as one shot.
    pub(crate) fn check_added(&self) -> Result<(), Errno> {
        match self.flags.contains(EventFlags::EXCLUSIVE) && !BESIDE_EXCLUSIVE.contains(self.flags) {
            true => Err(Errno::INVAL),
            false => Ok(()),
        }
    }

    /// Whether it may become `new`.
    ///
    /// # Errors
    /// EINVAL: EPOLLEXCLUSIVE is said once, when a descriptor is added, and nothing is changed after it.
    pub(crate) fn check_changed(&self, new: &Self) -> Result<(), Errno> {
        match (self.flags | new.flags).contains(EventFlags::EXCLUSIVE) {
            true => Err(Errno::INVAL),
            false => Ok(()),
        }
    }

    /// What it hears if this is the case now.
    pub(crate) fn judge(&mut self, now: EventFlags) -> Verdict {
        let told = now & (self.flags | ALWAYS);
        if self.spent || told.is_empty() {
            return Verdict::Silent;
        }
        if self.flags.contains(EventFlags::ONESHOT) {
            self.spent = true;
            return Verdict::Tell(told);
        }
        match self.flags.contains(EventFlags::ET) {
            true => Verdict::Tell(told),
            false => Verdict::TellAndKeep(told),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN: EventFlags = EventFlags::IN;
    const OUT: EventFlags = EventFlags::OUT;

    #[test]
    fn level_is_told_as_long_as_it_is_the_case() {
        let mut interest = Interest::new(IN, 7);
        assert_eq!(interest.judge(IN | OUT), Verdict::TellAndKeep(IN));
        assert_eq!(interest.judge(IN), Verdict::TellAndKeep(IN));
        assert_eq!(interest.judge(OUT), Verdict::Silent);
        assert_eq!(interest.data(), 7);
    }

    #[test]
    fn an_edge_is_told_once() {
        let mut interest = Interest::new(IN | OUT | EventFlags::ET, 0);
        assert_eq!(interest.judge(IN | OUT), Verdict::Tell(IN | OUT));
    }

    #[test]
    fn one_shot_is_spent() {
        let mut interest = Interest::new(IN | EventFlags::ONESHOT, 0);
        assert_eq!(interest.judge(OUT), Verdict::Silent);
        assert_eq!(interest.judge(IN), Verdict::Tell(IN));
        assert_eq!(interest.judge(IN), Verdict::Silent);
        assert_eq!(interest.judge(EventFlags::HUP), Verdict::Silent);
    }

    #[test]
    fn errors_and_hang_up_are_told_unasked_and_the_peers_end_is_not() {
        let mut interest = Interest::new(EventFlags::empty(), 0);
        assert_eq!(interest.judge(IN | EventFlags::RDHUP), Verdict::Silent);
        let now = EventFlags::HUP | EventFlags::ERR | IN;
        assert_eq!(
            interest.judge(now),
            Verdict::TellAndKeep(EventFlags::HUP | EventFlags::ERR)
        );
        let mut interest = Interest::new(EventFlags::RDHUP, 0);
        assert_eq!(
            interest.judge(IN | EventFlags::RDHUP),
            Verdict::TellAndKeep(EventFlags::RDHUP)
        );
    }
    #[test]
    fn exclusive_stands_beside_little_and_is_not_changed() {
        let exclusive = Interest::new(IN | EventFlags::ET | EventFlags::EXCLUSIVE, 0);
        assert_eq!(exclusive.check_added(), Ok(()));
        for other in [EventFlags::ONESHOT, EventFlags::RDHUP, EventFlags::PRI] {
            let both = Interest::new(exclusive.flags() | other, 0);
            assert_eq!(both.check_added(), Err(Errno::INVAL), "{other:?}");
            assert_eq!(Interest::new(IN | other, 0).check_added(), Ok(()));
        }
        let plain = Interest::new(IN, 0);
        assert_eq!(plain.check_changed(&plain), Ok(()));
        assert_eq!(plain.check_changed(&exclusive), Err(Errno::INVAL));
        assert_eq!(exclusive.check_changed(&plain), Err(Errno::INVAL));
    }
}
