//! Those that sleep until something comes.
//!
//! What it does: names what they sleep on; lets one of them, the leader, work the
//! sockets for all, and has another follow when it leaves; counts what users do,
//! so that the endpoint's thread sees whether it is needed.
//! What it does not do: sleep.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::epoll;
use san_base::lock;

use super::cq::ChannelShared;
use crate::driver::wake::Wake;

/// What a thread sleeps on. It outlives the endpoint, so that sleeping does not
/// keep the endpoint alive.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// All sockets.
    pub(crate) sockets: OwnedFd,
    /// For the endpoint's thread.
    pub(crate) wake: Wake,
    /// Until when the thread sleeps, in nanoseconds.
    pub(crate) sleeps_until: AtomicU64,
    /// Whether somebody sleeps on the sockets in the thread's place.
    pub(crate) led: AtomicBool,
    /// How many sockets that one watches.
    pub(crate) watched: AtomicUsize,
    /// Whether the thread leaves the sockets to others.
    pub(crate) stands_back: AtomicBool,
    pub(crate) stop: AtomicBool,
}

impl Waiter {
    /// # Errors
    /// The process or the system has no file descriptor left.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            sockets: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            wake: Wake::new()?,
            sleeps_until: AtomicU64::new(0),
            led: AtomicBool::new(false),
            watched: AtomicUsize::new(0),
            stands_back: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        })
    }
}

impl AsFd for Waiter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sockets.as_fd()
    }
}

/// Whoever holds it sleeps on the sockets; the thread does not.
#[derive(Debug)]
pub(crate) struct Leader<'a>(&'a Waiter);

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        self.0.led.store(false, Ordering::Release);
    }
}

/// All that sleep.
#[derive(Debug)]
pub(crate) struct Sleepers {
    pub(crate) waiter: Arc<Waiter>,
    pub(crate) activity: Activity,
    /// Those that wait behind the leader.
    followers: Mutex<Vec<Arc<ChannelShared>>>,
}

impl Sleepers {
    pub(crate) fn new(waiter: Arc<Waiter>) -> Self {
        Self {
            waiter,
            activity: Activity::default(),
            followers: Mutex::default(),
        }
    }

    /// Becomes the one who sleeps on the sockets, if nobody is.
    pub(crate) fn lead(&self) -> Option<Leader<'_>> {
        let led = &self.waiter.led;
        let is_first = led
            .compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        is_first.then(|| {
            self.activity.note_led();
            Leader(&self.waiter)
        })
    }

    /// Waits behind the leader.
    pub(crate) fn follow(&self, channel: &Arc<ChannelShared>) {
        lock(&self.followers).push(channel.clone());
    }

    /// Waits no longer. False: was roused to lead.
    pub(crate) fn unfollow(&self, channel: &Arc<ChannelShared>) -> bool {
        let mut followers = lock(&self.followers);
        let at = followers
            .iter()
            .position(|other| Arc::ptr_eq(other, channel));
        at.map(|at| followers.swap_remove(at)).is_some()
    }

    /// Has one that waits work the sockets, unless somebody does.
    pub(crate) fn rouse_follower(&self) {
        if !self.waiter.led.load(Ordering::Acquire)
            && let Some(channel) = lock(&self.followers).pop()
        {
            channel.rouse();
        }
    }

    /// Whether somebody else works the sockets: one who spins, or sleeps on them.
    /// The thread then looks once a millisecond at what was put off.
    pub(crate) fn thread_stands_back(&self) -> bool {
        self.waiter.stands_back.load(Ordering::Relaxed)
    }

    /// A user will sleep on a descriptor: has the thread work the sockets.
    pub(crate) fn arm(&self) {
        self.activity.note_armed();
        if self.waiter.stands_back.load(Ordering::Acquire) {
            self.waiter.wake.signal();
        }
    }
}

/// What users do, for the thread to see whether it is needed.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Polls that found nothing.
    empty: AtomicU64,
    /// Notifications asked for by users who sleep on descriptors.
    armed: AtomicU64,
    /// Sleeps on the sockets in the thread's place.
    led: AtomicU64,
}

/// A look at it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    empty: u64,
    armed: u64,
    led: u64,
}

/// What users have done since the last look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    /// Somebody spins, and nobody went to sleep on a descriptor.
    pub(crate) spins: bool,
    /// Somebody has slept on the sockets, and nobody went to sleep on a descriptor.
    pub(crate) led: bool,
}

/// Who polls in vain more often than this does not sleep.
const SPINS: u64 = 8;

impl Activity {
    pub(crate) fn note_empty(&self) {
        self.empty.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn note_armed(&self) {
        self.armed.fetch_add(1, Ordering::Relaxed);
    }

    fn note_led(&self) {
        self.led.fetch_add(1, Ordering::Relaxed);
    }

    /// What was done since the last look.
    pub(crate) fn since(&self, last: &mut Seen) -> Done {
        let now = Seen {
            empty: self.empty.load(Ordering::Relaxed),
            armed: self.armed.load(Ordering::Relaxed),
            led: self.led.load(Ordering::Relaxed),
        };
        let before = std::mem::replace(last, now);
        let nobody_armed = now.armed == before.armed;
        Done {
            spins: nobody_armed && now.empty > before.empty + SPINS,
            led: nobody_armed && now.led != before.led,
        }
    }
}
