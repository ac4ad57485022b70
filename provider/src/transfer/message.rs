//! A received message, in the registered buffer that it arrived in.
//!
//! As long as a message is held, its buffer is not available to its connection: a slow holder
//! slows its own peer, and no other connection.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use verbs_shim::RegisteredBuffer;

use super::connection::Connection;
use super::operation::Arrived;

/// A received message. It reads as a slice of bytes.
pub struct Message {
    /// `None` only while it is dropped.
    buffer: Option<RegisteredBuffer>,
    kind: u8,
    connection: Arc<Connection>,
}

impl Message {
    pub(super) fn new(arrived: Arrived, connection: &Arc<Connection>) -> Self {
        Self {
            buffer: Some(arrived.buffer),
            kind: arrived.kind,
            connection: Arc::clone(connection),
        }
    }

    /// The number that the sender gave it; 0 is plain.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.kind
    }

    /// Turns it into `Bytes` without copying. The buffer goes back when the last of them is
    /// dropped.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Message {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.buffer.as_deref().unwrap_or_default()
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // The buffer first: what is reported as free has to be there.
        self.buffer = None;
        self.connection.let_go();
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("len", &self.len())
            .field("kind", &self.kind)
            .finish()
    }
}
