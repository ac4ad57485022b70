//! The tasks that wait for one connection.

use std::task::Context;

use atomic_waker::AtomicWaker;
use san_switch::Events;

/// Who waits for a connection: one task that reads, and one that writes.
#[derive(Default)]
pub(crate) struct Waiters {
    read: AtomicWaker,
    write: AtomicWaker,
}

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
}

impl Waiters {
    pub(crate) fn wake(&self, events: Events) {
        let over = Events::HANG_UP | Events::ERROR;
        if events.intersects(Events::READABLE | Events::READ_CLOSED | over) {
            self.read.wake();
        }
        if events.intersects(Events::WRITABLE | over) {
            self.write.wake();
        }
    }

    pub(crate) fn register(&self, way: Way, context: &Context<'_>) {
        match way {
            Way::Read => self.read.register(context.waker()),
            Way::Write => self.write.register(context.waker()),
        }
    }
}
