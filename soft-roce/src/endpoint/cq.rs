//! Completion queues and channels, with what makes them move.
//!
//! What it does: polling that works the sockets when there is nothing yet;
//! waiting without a thread in between.
//! What it does not do: keep completions; `rc` does.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use san_base::timespec;

use super::device::Device;
use super::shared::cq::{ChannelShared, CqShared};
use super::shared::sleepers::Leader;
use crate::rc::{self, Completion, Notify, Overrun};

/// A completion queue.
#[derive(Clone)]
pub struct CompletionQueue {
    pub(super) shared: Arc<CqShared>,
    pub(super) device: Arc<Device>,
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.ring.fmt(f)
    }
}

impl CompletionQueue {
    pub(super) fn new(
        device: &Arc<Device>,
        depth: usize,
        channel: Option<&CompletionChannel>,
    ) -> Self {
        let shared = CqShared {
            ring: Arc::new(rc::CompletionQueue::new(depth)),
            channel: channel.map(|channel| channel.shared.clone()),
            just_armed: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
            device: device.clone(),
        }
    }

    /// Entries it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.ring.capacity()
    }

    /// Moves the oldest completions to `out` and says how many. If there are
    /// none, works the sockets and looks again.
    ///
    /// # Errors
    /// [`Overrun`] once the queue is empty and had overflowed.
    pub fn poll(&self, out: &mut [Completion]) -> Result<usize, Overrun> {
        let ring = &self.shared.ring;
        // The look between arming and sleeping is for what is there already:
        // who sleeps then is woken by the sockets, or has the thread read them.
        if ring.is_empty() && !self.shared.take_just_armed() {
            self.device.progress_by_user();
        }
        ring.poll(out)
    }

    /// Arms one event on the channel.
    pub fn request_notify(&self, when: Notify) {
        self.shared.ring.request_notify(when);
        let Some(channel) = &self.shared.channel else {
            return;
        };
        self.shared.just_armed.store(true, Ordering::Relaxed);
        if !channel.waits.load(Ordering::Relaxed) {
            // Its user will sleep on the descriptor: the thread is needed.
            self.device.sleepers.arm();
        }
    }
}

/// Where completion queues report that they have something.
///
/// The descriptor is readable while events are there that
/// [`CompletionChannel::consume`] has not taken, now and then also without.
/// Someone has to work the sockets until then: the endpoint's thread does if
/// nobody else polls. Waiting with [`CompletionChannel::wait`] saves that
/// hand-over: the caller works them itself. Of several that wait one does it for
/// all, and hands it on when it has what it waited for.
#[derive(Clone, Debug)]
pub struct CompletionChannel {
    pub(super) shared: Arc<ChannelShared>,
    pub(super) device: Arc<Device>,
}

impl CompletionChannel {
    pub(super) fn new(device: &Arc<Device>) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(ChannelShared::new()?),
            device: device.clone(),
        })
    }

    /// Takes all events there are and says how many. For who sleeps on the
    /// descriptor.
    #[must_use]
    pub fn consume(&self) -> u64 {
        self.shared.wake.drain();
        self.shared.events.swap(0, Ordering::AcqRel)
    }

    /// Waits for an event, at most so long, working the sockets meanwhile; or
    /// until `other` is readable. Takes the events and says how many; 0 after
    /// the time, or when `other` is readable, or when a signal came.
    ///
    /// # Errors
    /// What `poll(2)` says.
    pub fn wait(&self, other: Option<BorrowedFd<'_>>, timeout: Duration) -> io::Result<u64> {
        self.shared.waits.store(true, Ordering::Relaxed);
        let end = Instant::now() + timeout;
        let mut role = Role::new(&self.device, &self.shared);
        loop {
            let events = self.shared.take();
            let left = end.saturating_duration_since(Instant::now());
            if events > 0 || left.is_zero() {
                return Ok(events);
            }
            self.device.send_put_off();
            role.take();
            if self.sleep(&role, other, left)? {
                return Ok(self.shared.take());
            }
            self.device.progress_by_user();
        }
    }

    /// Sleeps until there is something to do. True: `other` is readable, or a
    /// signal came.
    fn sleep(
        &self,
        role: &Role<'_>,
        other: Option<BorrowedFd<'_>>,
        left: Duration,
    ) -> io::Result<bool> {
        let Some(_asleep) = self.shared.fall_asleep() else {
            return Ok(false);
        };
        let readable = PollFlags::IN;
        let wake = || PollFd::new(&self.shared.wake, readable);
        let mut fds: [PollFd<'_>; FDS] = std::array::from_fn(|_| wake());
        let mut used = 1;
        if let Some(other) = other {
            fds[used] = PollFd::from_borrowed_fd(other, readable);
            used += 1;
        }
        let mut left = left;
        let ports = self.device.sockets.ports();
        if role.leader.is_some() {
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
            self.shared.wake.drain();
        }
        Ok(other.is_some() && !fds[1].revents().is_empty())
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

impl AsFd for CompletionChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.has_descriptor.store(true, Ordering::Relaxed);
        self.shared.wake.as_fd()
    }
}
