//! The thread that works for those who do not poll.
//!
//! What it does: sleeps on the sockets and the next timer. While somebody polls
//! it leaves the sockets to them and only looks after the timers, once a
//! millisecond, and after the sockets if the polling has stopped.
//! What it does not do: keep the endpoint alive.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use san_base::timespec;

use super::config::OpenError;
use super::cq::Seen;
use super::inner::{Inner, Waiter, lock};

/// How often it looks while others poll.
const TICK: Duration = Duration::from_millis(1);
/// Longest sleep. Nothing depends on it.
const LONGEST: Duration = Duration::from_secs(60);

/// Starts the thread of an endpoint.
pub(super) fn start(inner: &Arc<Inner>) -> Result<(), OpenError> {
    let waiter = inner.waiter.clone();
    let weak = Arc::downgrade(inner);
    let thread = std::thread::Builder::new()
        .name("soft-roce".into())
        .spawn(move || run(&weak, &waiter))
        .map_err(OpenError::Thread)?;
    *lock(&inner.thread) = Some(thread);
    Ok(())
}

fn run(weak: &Weak<Inner>, waiter: &Waiter) {
    let mut seen = Seen::default();
    while !waiter.stop.load(Ordering::Acquire) {
        let Some(inner) = weak.upgrade() else {
            return;
        };
        let led = waiter.led.load(Ordering::Acquire);
        let others_poll = inner.activity.spins(&mut seen) || led;
        waiter.stands_back.store(others_poll, Ordering::Release);
        // A socket may be newer than the sleep of the one who works them.
        let unwatched = led && inner.ports().len() > waiter.watched.load(Ordering::Acquire);
        if !others_poll || unwatched {
            while inner.progress() > 0 {}
        }
        inner.fire_timers();
        let now = inner.now();
        let longest = if others_poll { TICK } else { LONGEST };
        let deadline = inner.next_deadline().min((now + longest).nanos());
        waiter.sleeps_until.store(deadline, Ordering::Release);
        // A timer set before that was seen did not wake us.
        let deadline = deadline.min(inner.next_deadline());
        let sleep = Duration::from_nanos(deadline.saturating_sub(now.nanos()));
        drop(inner);
        let mut fds = [
            PollFd::new(&waiter.wake, PollFlags::IN),
            PollFd::new(waiter, PollFlags::IN),
        ];
        let count = if others_poll { 1 } else { 2 };
        // Interrupted or not: the loop looks at everything again.
        let _ = poll(&mut fds[..count], Some(&timespec(sleep)));
        waiter.sleeps_until.store(0, Ordering::Release);
        waiter.wake.drain();
    }
}
