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
use std::time::Duration;

use super::device::Device;
use super::shared::cq::{ChannelShared, CqShared};
use super::wait::wait;
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
            self.device.progress_by_poller();
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
        wait(&self.device, &self.shared, other, timeout)
    }
}

impl AsFd for CompletionChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.has_descriptor.store(true, Ordering::Relaxed);
        self.shared.wake.as_fd()
    }
}
