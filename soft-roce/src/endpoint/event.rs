//! CM events and the channels they come on.
//!
//! What it does: hands events out, with an id for each request.
//! What it does not do: make events (`cm`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use super::device::Device;
use super::id::CmId;
use super::shared::events::{EventKind, EventQueue};
use super::wait::wait;

/// What happened to an id.
pub type CmEventKind = EventKind<CmId>;

/// An event.
#[derive(Debug)]
pub struct CmEvent {
    /// The id it is about ([`CmId::token`]); for a request the listener.
    pub id: u64,
    /// What happened.
    pub kind: CmEventKind,
}

/// Where CM ids report. The descriptor is readable while events are there.
///
/// Who sleeps on the descriptor needs the endpoint's thread, which works the sockets for it and wakes it.
/// [`EventChannel::wait`] saves that hand-over: the caller works them itself. A channel is for one of the two
/// ways, and for one thread that waits at a time.
#[derive(Debug)]
pub struct EventChannel {
    pub(super) queue: Arc<EventQueue>,
    device: Arc<Device>,
}

impl EventChannel {
    pub(super) fn new(device: &Arc<Device>) -> io::Result<Self> {
        Ok(Self {
            queue: Arc::new(EventQueue::new()?),
            device: device.clone(),
        })
    }

    /// The oldest event.
    #[must_use]
    pub fn next(&self) -> Option<CmEvent> {
        let queued = self.queue.pop()?;
        let kind = queued.kind.with_id(|unclaimed| {
            self.device.taken(unclaimed.conn);
            CmId::existing(&self.device, unclaimed.token)
        });
        Some(CmEvent {
            id: queued.id,
            kind,
        })
    }
}

impl EventChannel {
    /// Waits until [`EventChannel::next`] has an event, at most so long, working the sockets meanwhile; or
    /// until `other` is readable, or a signal comes.
    ///
    /// # Errors
    /// What `poll(2)` says.
    pub fn wait(&self, other: Option<BorrowedFd<'_>>, timeout: Duration) -> io::Result<()> {
        if self.queue.is_empty() {
            wait(&self.device, &self.queue.channel, other, timeout)?;
        }
        Ok(())
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // Requests that nobody will see are refused.
        while let Some(event) = self.next() {
            drop(event);
        }
    }
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl CmId {
    /// Reports on another channel from now on. Events not read yet move along.
    pub fn migrate(&self, channel: &EventChannel) {
        self.device.lock_cm().migrate(self.token(), &channel.queue);
    }
}
