//! Waiting for a channel's events in somebody else's epoll set.
//!
//! What it does: names the descriptors; takes part in who works the sockets, as
//! [`CompletionChannel::wait`] does, while the user sleeps on them.
//! What it does not do: sleep.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use san_base::lock;

use super::cq::CompletionChannel;

/// One that sleeps on a channel in an epoll set of its own.
///
/// Between [`Outside::before`] and [`Outside::after`] it may be the one who works
/// the sockets for all: so the second follows as soon as its sleep is over,
/// whatever ended that.
#[derive(Debug)]
pub struct Outside {
    channel: CompletionChannel,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
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
            state: Mutex::default(),
        }
    }

    /// What becomes readable: the channel's own, and all sockets of the
    /// endpoint, those to come among them, as one.
    #[must_use]
    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [
            self.channel.shared.wake.as_fd(),
            self.channel.device.sleepers.waiter.as_fd(),
        ]
    }

    /// Goes to sleep. False: there are events already, so there is nothing to
    /// sleep for.
    #[must_use]
    pub fn before(&self) -> bool {
        let (shared, device) = (&self.channel.shared, &self.channel.device);
        shared.waits.store(true, Ordering::Relaxed);
        device.send_put_off();
        let mut state = lock(&self.state);
        if !state.asleep {
            shared.sleepers.fetch_add(1, Ordering::SeqCst);
            state.asleep = true;
        }
        state.leads = state.leads || self.lead();
        if !state.leads && !state.follows {
            device.sleepers.follow(shared);
            state.follows = true;
            // The leader may have left before it could see us.
            state.leads = self.lead();
        }
        shared.events.load(Ordering::SeqCst) == 0
    }

    fn lead(&self) -> bool {
        let Some(leader) = self.channel.device.sleepers.lead() else {
            return false;
        };
        // The state is given back by hand: it outlives this call.
        std::mem::forget(leader);
        // Sockets that are opened now are in the set, too.
        let watched = &self.channel.device.sleepers.waiter.watched;
        watched.store(usize::MAX, Ordering::Release);
        true
    }

    /// Wakes up: works the sockets, unless another one does, takes the events and says how many.
    pub fn after(&self) -> u64 {
        if self.leave() {
            self.channel.device.progress_by_user();
        }
        self.channel.shared.unsignal();
        self.channel.shared.take()
    }

    /// Gives the state back, to another one who waits if there is one. Whether the sockets were this one's to
    /// work.
    fn leave(&self) -> bool {
        let (shared, device) = (&self.channel.shared, &self.channel.device);
        let state = std::mem::take(&mut *lock(&self.state));
        if state.asleep {
            shared.sleepers.fetch_sub(1, Ordering::Relaxed);
        }
        if state.leads {
            device.sleepers.waiter.led.store(false, Ordering::Release);
        }
        let was_roused = state.follows && !device.sleepers.unfollow(shared);
        let was_to_work = state.leads || was_roused;
        if was_to_work {
            device.sleepers.rouse_follower();
        }
        was_to_work
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.leave();
    }
}
