//! Completion queues and channels as the endpoint sees them.
//!
//! What it does: counts events on a channel's file descriptor, which spares the
//! system call where nobody sleeps on it.
//! What it does not do: keep completions; `rc` does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::driver::wake::Wake;
use crate::rc;

/// A completion queue as the endpoint sees it.
#[derive(Debug)]
pub(crate) struct CqShared {
    pub(crate) ring: Arc<rc::CompletionQueue>,
    pub(crate) channel: Option<Arc<ChannelShared>>,
    /// Whether it was armed and not polled since.
    pub(crate) just_armed: AtomicBool,
}

/// A channel as the endpoint sees it.
#[derive(Debug)]
pub(crate) struct ChannelShared {
    /// Readable while events are there; now and then without.
    pub(crate) wake: Wake,
    /// It was made readable since [`ChannelShared::unsignal`], or is about to be known as such.
    is_signalled: AtomicBool,
    pub(crate) events: AtomicU64,
    /// Whether its user sleeps in `wait`, or as `Outside`, and so works the sockets itself.
    pub(crate) waits: AtomicBool,
    /// Whether its user has the descriptor, too.
    pub(crate) has_descriptor: AtomicBool,
    /// How many sleep in `wait`, or as `Outside`.
    pub(crate) sleepers: AtomicUsize,
}

impl ChannelShared {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            wake: Wake::new()?,
            is_signalled: AtomicBool::new(false),
            events: AtomicU64::new(0),
            waits: AtomicBool::new(false),
            has_descriptor: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
        })
    }

    /// Counts an event, and has whoever sleeps look. Whether the descriptor was made readable for it.
    pub(crate) fn notify(&self) -> bool {
        // Counted first; whoever goes to sleep looks at the count last. One of
        // the two sees the other.
        self.events.fetch_add(1, Ordering::SeqCst);
        let nobody_sleeps = self.sleepers.load(Ordering::SeqCst) == 0
            && self.waits.load(Ordering::Relaxed)
            && !self.has_descriptor.load(Ordering::Relaxed);
        if !nobody_sleeps {
            self.signal();
        }
        !nobody_sleeps
    }

    /// Has whoever sleeps here look around.
    pub(crate) fn rouse(&self) {
        self.signal();
    }

    fn signal(&self) {
        self.wake.signal();
        // Afterwards: whoever sees this finds the signal, and whoever comes in between leaves both to the next.
        self.is_signalled.store(true, Ordering::Release);
    }

    /// Has the descriptor not readable any more. Without a signal this is no call of the system.
    pub(crate) fn unsignal(&self) {
        if self.is_signalled.load(Ordering::Relaxed)
            && self.is_signalled.swap(false, Ordering::AcqRel)
        {
            self.wake.drain();
        }
    }

    pub(crate) fn take(&self) -> u64 {
        if self.events.load(Ordering::Acquire) == 0 {
            return 0;
        }
        self.events.swap(0, Ordering::AcqRel)
    }

    /// Counts the caller as asleep, unless there is something to wake up for.
    pub(crate) fn fall_asleep(&self) -> Option<Asleep<'_>> {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let asleep = Asleep(self);
        (self.events.load(Ordering::SeqCst) == 0).then_some(asleep)
    }
}

/// One that sleeps.
pub(crate) struct Asleep<'a>(&'a ChannelShared);

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        self.0.sleepers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl CqShared {
    pub(crate) fn take_just_armed(&self) -> bool {
        self.just_armed.load(Ordering::Relaxed) && self.just_armed.swap(false, Ordering::Relaxed)
    }

    /// Tells the channel if there is something to tell.
    pub(crate) fn notify(&self) {
        if self.ring.take_event()
            && let Some(channel) = &self.channel
        {
            channel.notify();
        }
    }
}
