//! Those that the thread with the polling role sees to when it lets the role go: threads that wait for somebody
//! else to poll, the progress thread, and the thread that sleeps outside.

use std::collections::VecDeque;

use super::primitives::{AtomicUsize, Mutex, Ordering, Unparker, lock};

/// The threads that wait for somebody else to poll.
pub(super) struct Followers {
    /// Four times as many as there are; and [`Followers::PROGRESS`]: the progress thread wants to know when nobody
    /// polls any more; and [`Followers::UNARMED`]: a thread sleeps outside, and nobody has asked for notification
    /// since. So the thread that lets the role go looks at one number.
    count: AtomicUsize,
    queue: Mutex<VecDeque<(u64, Unparker)>>,
    next: AtomicUsize,
}

impl Followers {
    const PROGRESS: usize = 1;
    const UNARMED: usize = 2;
    const ONE: usize = 4;

    pub(super) fn new() -> Self {
        Self {
            count: AtomicUsize::new(0),
            queue: Mutex::new(VecDeque::new()),
            next: AtomicUsize::new(0),
        }
    }

    pub(super) fn join(&self, unparker: Unparker) -> u64 {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed) as u64;
        let mut queue = lock(&self.queue);
        queue.push_back((ticket, unparker));
        self.count.fetch_add(Self::ONE, Ordering::SeqCst);
        ticket
    }

    pub(super) fn leave(&self, ticket: u64) {
        let mut queue = lock(&self.queue);
        let before = queue.len();
        queue.retain(|(other, _)| *other != ticket);
        let gone = before - queue.len();
        self.count.fetch_sub(gone * Self::ONE, Ordering::SeqCst);
    }

    /// Whether there is one, or one of the others is to be seen to.
    #[inline]
    pub(super) fn any_or_others(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }

    pub(super) fn progress_waits(&self) -> bool {
        self.count.load(Ordering::SeqCst) & Self::PROGRESS != 0
    }

    pub(super) fn set_progress_waits(&self) {
        self.count.fetch_or(Self::PROGRESS, Ordering::SeqCst);
    }

    /// Whether it did.
    pub(super) fn take_progress_waits(&self) -> bool {
        self.count.fetch_and(!Self::PROGRESS, Ordering::SeqCst) & Self::PROGRESS != 0
    }

    pub(super) fn set_unarmed(&self) {
        self.count.fetch_or(Self::UNARMED, Ordering::SeqCst);
    }

    /// Whether a thread sleeps outside for which nobody has asked; the caller sees to it.
    pub(super) fn take_unarmed(&self) -> bool {
        self.count.fetch_and(!Self::UNARMED, Ordering::SeqCst) & Self::UNARMED != 0
    }

    /// Wakes the one that waits longest; whether there was one.
    pub(super) fn wake_one(&self) -> bool {
        let woken = {
            let mut queue = lock(&self.queue);
            let woken = queue.pop_front();
            if woken.is_some() {
                self.count.fetch_sub(Self::ONE, Ordering::SeqCst);
            }
            woken
        };
        match woken {
            Some((_, unparker)) => {
                unparker.unpark();
                true
            }
            None => false,
        }
    }
}
