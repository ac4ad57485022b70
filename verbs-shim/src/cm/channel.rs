//! Channels of CM events. What comes out of them is in [`super::event`].

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::backend;

/// Where the events of CM ids come. Cheap to clone; ids keep their channel alive.
#[derive(Clone)]
pub struct EventChannel {
    backend: Arc<dyn backend::EventChannel>,
}

impl EventChannel {
    pub(crate) fn from_backend(backend: Arc<dyn backend::EventChannel>) -> Self {
        Self { backend }
    }

    pub(crate) fn backend(&self) -> Arc<dyn backend::EventChannel> {
        Arc::clone(&self.backend)
    }
}

impl AsFd for EventChannel {
    /// Readable when there is an event. Nonblocking.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.backend.as_fd()
    }
}

impl fmt::Debug for EventChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EventChannel").field(&self.as_fd()).finish()
    }
}
