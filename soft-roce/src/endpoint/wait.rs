//! Waiting without a thread in between.
//!
//! What it does: sleeps until a channel has events, on the sockets themselves where nobody else does, and
//! works them meanwhile.
//! What it does not do: know what the events are.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use san_base::timespec;

use super::device::Device;
use super::shared::cq::ChannelShared;
use super::shared::sleepers::Leader;

/// Waits for events of a channel, at most so long, working the sockets meanwhile; or until `other` is
/// readable. Takes the events and says how many; 0 after the time, or when `other` is readable, or when a
/// signal came.
///
/// # Errors
/// What `poll(2)` says.
pub(super) fn wait(
    device: &Device,
    channel: &Arc<ChannelShared>,
    other: Option<BorrowedFd<'_>>,
    timeout: Duration,
) -> io::Result<u64> {
    channel.waits.store(true, Ordering::Relaxed);
    let mut end = None;
    let mut role = Role::new(device, channel);
    loop {
        let events = channel.take();
        if events > 0 {
            return Ok(events);
        }
        let now = Instant::now();
        let left = end
            .get_or_insert_with(|| now + timeout)
            .saturating_duration_since(now);
        if left.is_zero() {
            return Ok(0);
        }
        device.send_put_off();
        role.take();
        if role.sleep(other, left)? {
            return Ok(channel.take());
        }
        device.progress_by_user();
    }
}

/// What one that waits sleeps on at most, one by one: its channel, what its user
/// wants, the sockets. If there are more sockets, on all of them as one.
const FDS: usize = 8;

/// The role of one that waits: at the sockets, or behind the one who is there.
struct Role<'a> {
    device: &'a Device,
    channel: &'a Arc<ChannelShared>,
    leader: Option<Leader<'a>>,
    follows: bool,
}

impl<'a> Role<'a> {
    fn new(device: &'a Device, channel: &'a Arc<ChannelShared>) -> Self {
        Self {
            device,
            channel,
            leader: None,
            follows: false,
        }
    }

    /// Leads if nobody does, follows otherwise.
    fn take(&mut self) {
        if self.leader.is_some() {
            return;
        }
        self.leader = self.device.sleepers.lead();
        if self.leader.is_none() && !self.follows {
            self.device.sleepers.follow(self.channel);
            self.follows = true;
            // The leader may have left before it could see us.
            self.leader = self.device.sleepers.lead();
        }
    }

    /// Sleeps until there is something to do. True: `other` is readable, or a
    /// signal came.
    fn sleep(&self, other: Option<BorrowedFd<'_>>, left: Duration) -> io::Result<bool> {
        let Some(_asleep) = self.channel.fall_asleep() else {
            return Ok(false);
        };
        let readable = PollFlags::IN;
        let wake = || PollFd::new(&self.channel.wake, readable);
        let mut fds: [PollFd<'_>; FDS] = std::array::from_fn(|_| wake());
        let mut used = 1;
        if let Some(other) = other {
            fds[used] = PollFd::from_borrowed_fd(other, readable);
            used += 1;
        }
        let mut left = left;
        let ports = self.device.sockets.ports();
        if self.leader.is_some() {
            // The one who works the sockets fires the timers, too.
            left = left.min(self.device.schedule.until_next_timer());
            let watched = &self.device.sleepers.waiter.watched;
            watched.store(ports.len(), Ordering::Release);
            if ports.len() <= FDS - used {
                for port in ports.iter() {
                    fds[used] = PollFd::new(&**port, readable);
                    used += 1;
                }
            } else {
                fds[used] = PollFd::new(&*self.device.sleepers.waiter, readable);
                used += 1;
            }
        }
        match poll(&mut fds[..used], Some(&timespec(left))) {
            Err(rustix::io::Errno::INTR) => return Ok(true),
            Err(why) => return Err(why.into()),
            Ok(_) => {}
        }
        if !fds[0].revents().is_empty() {
            self.channel.wake.drain();
        }
        Ok(other.is_some() && !fds[1].revents().is_empty())
    }
}

impl Drop for Role<'_> {
    fn drop(&mut self) {
        let was_leader = self.leader.take().is_some();
        // Who was roused and does not lead after all lets another do it.
        let was_roused = self.follows && !self.device.sleepers.unfollow(self.channel);
        if was_leader || was_roused {
            self.device.sleepers.rouse_follower();
        }
    }
}
