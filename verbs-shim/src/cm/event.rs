//! Channels of CM events.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::CmId;
use crate::backend;
use crate::error::Result;
use crate::types;

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

    /// The next event, `None` when there is none now. It is acknowledged before this returns, so
    /// that no destructor ever waits for the holder of an event.
    ///
    /// # Errors
    /// When the channel is broken.
    pub fn next(&self) -> Result<Option<Event>> {
        let event = Arc::clone(&self.backend).next()?;
        Ok(event.map(|event| event.with_id(CmId::from_backend)))
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

/// A CM event. `id` is the token of the [`CmId`] it is about; errors are positive `errno` numbers.
pub type Event = types::Event<CmId>;

/// A connect request.
pub type Request = types::Request<CmId>;
