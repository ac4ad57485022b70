//! What a loop is to tell of one descriptor, and when: level, edge, one shot.
//!
//! No I/O: it is told what is the case, and says what the program hears.

use rustix::event::epoll::EventFlags;

/// What epoll tells whether it was asked for or not.
const ALWAYS: EventFlags = EventFlags::ERR.union(EventFlags::HUP);

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
}
