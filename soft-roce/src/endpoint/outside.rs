//! Waiting for a channel's events in somebody else's epoll set.
//!
//! What it does: names the descriptors; takes part in who works the sockets, as
//! [`CompletionChannel::wait`] does, while the user sleeps on them.
//! What it does not do: sleep.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use super::cq::CompletionChannel;
use super::inner::lock;

/// One that sleeps on a channel in an epoll set of its own.
///
/// Between [`Outside::before`] and [`Outside::after`] it may be the one who works
/// the sockets for all: so the second follows as soon as its sleep is over,
/// whatever ended that.
#[derive(Debug)]
pub struct Outside {
    channel: CompletionChannel,
    place: Mutex<Place>,
}

#[derive(Debug, Default)]
struct Place {
    asleep: bool,
    leads: bool,
    follows: bool,
}

impl Outside {
    /// One that sleeps on `channel`.
    #[must_use]
    pub fn new(channel: &CompletionChannel) -> Self {
        Self {
            channel: channel.clone(),
            place: Mutex::default(),
        }
    }

    /// What becomes readable: the channel's own, and all sockets of the
    /// endpoint, those to come among them, as one.
    #[must_use]
    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [
            self.channel.shared.wake.as_fd(),
            self.channel.inner.waiter.as_fd(),
        ]
    }

    /// Goes to sleep. False: there are events already, so there is nothing to
    /// sleep for.
    #[must_use]
    pub fn before(&self) -> bool {
        let (shared, inner) = (&self.channel.shared, &self.channel.inner);
        shared.waits.store(true, Ordering::Relaxed);
        inner.send_put_off();
        let mut place = lock(&self.place);
        if !place.asleep {
            shared.sleepers.fetch_add(1, Ordering::SeqCst);
            place.asleep = true;
        }
        place.leads = place.leads || self.lead();
        if !place.leads && !place.follows {
            inner.follow(shared);
            place.follows = true;
            // The leader may have left before it could see us.
            place.leads = self.lead();
        }
        shared.events.load(Ordering::SeqCst) == 0
    }

    fn lead(&self) -> bool {
        let Some(leader) = self.channel.inner.lead() else {
            return false;
        };
        // The place is given back by hand: it outlives this call.
        std::mem::forget(leader);
        // Sockets that are opened now are in the set, too.
        let watched = &self.channel.inner.waiter.watched;
        watched.store(usize::MAX, Ordering::Release);
        true
    }

    /// Wakes up: works the sockets, takes the events and says how many.
    pub fn after(&self) -> u64 {
        self.leave();
        self.channel.inner.progress_by_user();
        self.channel.consume()
    }

    /// Gives the place back, to another one who waits if there is one.
    fn leave(&self) {
        let (shared, inner) = (&self.channel.shared, &self.channel.inner);
        let place = std::mem::take(&mut *lock(&self.place));
        if place.asleep {
            shared.sleepers.fetch_sub(1, Ordering::Relaxed);
        }
        if place.leads {
            inner.waiter.led.store(false, Ordering::Release);
        }
        let was_roused = place.follows && !inner.unfollow(shared);
        if place.leads || was_roused {
            inner.rouse_follower();
        }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.leave();
    }
}
