//! Completion queues and channels, with what makes them move.
//!
//! What it does: polling that works the sockets when there is nothing yet;
//! events on a file descriptor; waiting without a thread in between.
//! What it does not do: keep completions; `rc` does.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use san_base::timespec;

use super::inner::{Inner, Leader};
use crate::driver::wake::Wake;
use crate::rc::{self, Completion, Notify, Overrun};

/// A completion queue as the endpoint sees it.
#[derive(Debug)]
pub(super) struct CqShared {
    pub(super) ring: Arc<rc::CompletionQueue>,
    channel: Option<Arc<ChannelShared>>,
    /// Whether it was armed and not polled since.
    just_armed: AtomicBool,
}

/// A channel as the endpoint sees it.
#[derive(Debug)]
pub(super) struct ChannelShared {
    /// Readable while events are there; now and then without.
    pub(super) wake: Wake,
    pub(super) events: AtomicU64,
    /// Whether its user sleeps in `wait`, or as `Outside`, and so works the sockets itself.
    pub(super) waits: AtomicBool,
    /// Whether its user has the descriptor, too.
    has_descriptor: AtomicBool,
    /// How many sleep in `wait`, or as `Outside`.
    pub(super) sleepers: AtomicUsize,
}

impl ChannelShared {
    fn notify(&self) {
        // Counted first; whoever goes to sleep looks at the count last. One of
        // the two sees the other.
        self.events.fetch_add(1, Ordering::SeqCst);
        let nobody_sleeps = self.sleepers.load(Ordering::SeqCst) == 0
            && self.waits.load(Ordering::Relaxed)
            && !self.has_descriptor.load(Ordering::Relaxed);
        if !nobody_sleeps {
            self.wake.signal();
        }
    }

    /// Has whoever sleeps here look around.
    pub(super) fn rouse(&self) {
        self.wake.signal();
    }

    fn take(&self) -> u64 {
        if self.events.load(Ordering::Acquire) == 0 {
            return 0;
        }
        self.events.swap(0, Ordering::AcqRel)
    }

    /// Counts the caller as asleep, unless there is something to wake up for.
    fn fall_asleep(&self) -> Option<Asleep<'_>> {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let asleep = Asleep(self);
        (self.events.load(Ordering::SeqCst) == 0).then_some(asleep)
    }
}

/// One that sleeps.
struct Asleep<'a>(&'a ChannelShared);

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        self.0.sleepers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl CqShared {
    fn take_just_armed(&self) -> bool {
        self.just_armed.load(Ordering::Relaxed) && self.just_armed.swap(false, Ordering::Relaxed)
    }

    /// Tells the channel if there is something to tell.
    pub(super) fn notify(&self) {
        if self.ring.take_event()
            && let Some(channel) = &self.channel
        {
            channel.notify();
        }
    }
}

/// A completion queue.
#[derive(Clone)]
pub struct CompletionQueue {
    pub(super) shared: Arc<CqShared>,
    pub(super) inner: Arc<Inner>,
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.ring.fmt(f)
    }
}

impl CompletionQueue {
    pub(super) fn new(
        inner: &Arc<Inner>,
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
            inner: inner.clone(),
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
            self.inner.progress_by_user();
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
            self.inner.arm();
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
    pub(super) inner: Arc<Inner>,
}

impl CompletionChannel {
    pub(super) fn new(inner: &Arc<Inner>) -> io::Result<Self> {
        let shared = ChannelShared {
            wake: Wake::new()?,
            events: AtomicU64::new(0),
            waits: AtomicBool::new(false),
            has_descriptor: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
        };
        Ok(Self {
            shared: Arc::new(shared),
            inner: inner.clone(),
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
        let mut place = Place::new(&self.inner, &self.shared);
        self.inner.send_put_off();
        loop {
            let events = self.shared.take();
            let left = end.saturating_duration_since(Instant::now());
            if events > 0 || left.is_zero() {
                return Ok(events);
            }
            place.take();
            if self.sleep(&place, other, left)? {
                return Ok(self.shared.take());
            }
            self.inner.progress_by_user();
        }
    }

    /// Sleeps until there is something to do. True: `other` is readable, or a
    /// signal came.
    fn sleep(
        &self,
        place: &Place<'_>,
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
        let ports = self.inner.ports();
        if place.leader.is_some() {
            // The one who works the sockets fires the timers, too.
            left = left.min(self.inner.until_next_timer());
            let watched = &self.inner.waiter.watched;
            watched.store(ports.len(), Ordering::Release);
            if ports.len() <= FDS - used {
                for port in ports.iter() {
                    fds[used] = PollFd::new(&**port, readable);
                    used += 1;
                }
            } else {
                fds[used] = PollFd::new(&*self.inner.waiter, readable);
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

/// The place of one that waits: at the sockets, or behind the one who is there.
struct Place<'a> {
    inner: &'a Inner,
    channel: &'a Arc<ChannelShared>,
    leader: Option<Leader<'a>>,
    follows: bool,
}

impl<'a> Place<'a> {
    fn new(inner: &'a Inner, channel: &'a Arc<ChannelShared>) -> Self {
        Self {
            inner,
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
        self.leader = self.inner.lead();
        if self.leader.is_none() && !self.follows {
            self.inner.follow(self.channel);
            self.follows = true;
            // The leader may have left before it could see us.
            self.leader = self.inner.lead();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let was_leader = self.leader.take().is_some();
        // Who was roused and does not lead after all lets another do it.
        let was_roused = self.follows && !self.inner.unfollow(self.channel);
        if was_leader || was_roused {
            self.inner.rouse_follower();
        }
    }
}

impl AsFd for CompletionChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.has_descriptor.store(true, Ordering::Relaxed);
        self.shared.wake.as_fd()
    }
}

/// What users do, for the thread to see whether it is needed.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// Polls that found nothing.
    empty: AtomicU64,
    /// Notifications asked for by users who sleep on descriptors.
    armed: AtomicU64,
}

/// A look at it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    empty: u64,
    armed: u64,
}

/// Who polls in vain more often than this does not sleep.
const SPINS: u64 = 8;

impl Activity {
    pub(super) fn note_empty(&self) {
        self.empty.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_armed(&self) {
        self.armed.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether somebody spins, and nobody went to sleep, since the last look.
    pub(super) fn spins(&self, last: &mut Seen) -> bool {
        let now = Seen {
            empty: self.empty.load(Ordering::Relaxed),
            armed: self.armed.load(Ordering::Relaxed),
        };
        let before = std::mem::replace(last, now);
        now.armed == before.armed && now.empty > before.empty + SPINS
    }
}
