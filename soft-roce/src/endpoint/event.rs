//! CM events and the channels they come on.
//!
//! What it does: hands events out, with an id for each request.
//! What it does not do: make events (`cm`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::device::Device;
use super::id::CmId;
use super::shared::events::{EventKind, EventQueue};

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
