//! CM events, and how they are read.

use super::channel::EventChannel;
use super::id::CmId;
use crate::error::Result;
use crate::types;

/// A CM event. `id` is the token of the [`CmId`] it is about; errors are positive `errno` numbers.
pub type Event = types::Event<CmId>;

/// A connect request.
pub type Request = types::Request<CmId>;

impl EventChannel {
    /// The next event, `None` when there is none now. It is acknowledged before this returns, so
    /// that no destructor ever waits for the holder of an event.
    ///
    /// # Errors
    /// When the channel is broken.
    pub fn next(&self) -> Result<Option<Event>> {
        let event = self.backend().next()?;
        Ok(event.map(|event| event.with_id(CmId::from_backend)))
    }
}
