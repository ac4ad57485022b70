//! The thread that works for those who do not poll.
//!
//! What it does: sleeps on the sockets, the next timer and changes of the host's
//! addresses. While somebody polls
//! it leaves the sockets to them and only looks after the timers, once a
//! millisecond, and after the sockets if the polling has stopped.
//! What it does not do: keep the endpoint alive.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use san_base::{lock, timespec};

use super::config::{HostAddresses, OpenError};
use super::device::Device;
use super::shared::sleepers::{Seen, TICK, Waiter};

/// Longest sleep. Nothing depends on it.
const LONGEST: Duration = Duration::from_secs(60);

/// Starts the thread of an endpoint.
pub(super) fn start(device: &Arc<Device>) -> Result<(), OpenError> {
    let waiter = device.sleepers.waiter.clone();
    let weak = Arc::downgrade(device);
    let thread = std::thread::Builder::new()
        .name("soft-roce".into())
        .spawn(move || run(&weak, &waiter))
        .map_err(OpenError::Thread)?;
    *lock(&device.thread) = Some(thread);
    Ok(())
}

fn run(weak: &Weak<Device>, waiter: &Waiter) {
    let mut seen = Seen::default();
    let mut host_has_news = false;
    while !waiter.stop.load(Ordering::Acquire) {
        let Some(device) = weak.upgrade() else {
            return;
        };
        let led = waiter.led.load(Ordering::Acquire);
        // Who slept on the sockets a moment ago does so again soon, mostly: to wake up with it at each packet
        // would be for nothing.
        let now = device.schedule.now();
        let done = device.sleepers.activity.since(&mut seen, now);
        let others_poll = done.spins || done.led || led;
        waiter.stands_back.store(others_poll, Ordering::Release);
        // A socket may be newer than the sleep of the one who works them.
        let unwatched =
            led && device.sockets.ports().len() > waiter.watched.load(Ordering::Acquire);
        if !others_poll || unwatched || !done.spins && !led {
            device.work_off();
        } else {
            // Who put it off may do something else for long.
            device.send_put_off();
        }
        device.fire_timers();
        if std::mem::take(&mut host_has_news) {
            device.follow_changes();
        }
        let host = device.host();
        let now = device.schedule.now();
        let longest = if others_poll { TICK } else { LONGEST };
        let deadline = device.schedule.next_deadline().min((now + longest).nanos());
        waiter.sleeps_until.store(deadline, Ordering::Release);
        // A timer set before that was seen did not wake us.
        let deadline = deadline.min(device.schedule.next_deadline());
        let sleep = Duration::from_nanos(deadline.saturating_sub(now.nanos()));
        drop(device);
        host_has_news = sleep_on(waiter, host.as_deref(), others_poll, sleep);
        waiter.sleeps_until.store(0, Ordering::Release);
    }
}

/// Sleeps until something wants the thread, the sockets only unless others have
/// them. Interrupted or not: the loop looks at everything again. Says whether the
/// host's addresses may have changed.
fn sleep_on(
    waiter: &Waiter,
    host: Option<&dyn HostAddresses>,
    others_poll: bool,
    longest: Duration,
) -> bool {
    let wake = PollFd::new(&waiter.wake, PollFlags::IN);
    // Nothing is asked of a place that is not needed: it tells of no event.
    let place = |fd| PollFd::new(fd, PollFlags::empty());
    let mut fds = [wake, place(&waiter.wake), place(&waiter.wake)];
    if !others_poll {
        fds[1] = PollFd::new(waiter, PollFlags::IN);
    }
    if let Some(host) = host {
        fds[2] = PollFd::from_borrowed_fd(host.as_fd(), PollFlags::IN);
    }
    if poll(&mut fds, Some(&timespec(longest))).is_err() {
        return false;
    }
    let [woken, _, news] = fds.map(|fd| !fd.revents().is_empty());
    if woken {
        waiter.wake.drain();
    }
    news
}
