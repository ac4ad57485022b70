//! A received message, in the registered buffer that it arrived in, or in a copy.
//!
//! As long as a message is held in its buffer, that is not available to its connection: a slow
//! holder slows its own peer, and no other connection. Whoever holds more than half of the window
//! gets the rest as copies, so that a peer never waits for messages to be let go which the holder
//! keeps until more has come. Messages outlive their connection; they are then no longer anybody
//! else's loss (`ledger.rs`).

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

use super::connection::Connection;
use super::operation::{Arrived, Body};

/// A received message. It reads as a slice of bytes.
pub struct Message {
    /// `None` only while it is dropped.
    body: Option<Body>,
    kind: u8,
    connection: Arc<Connection>,
}

impl Message {
    pub(super) fn new(arrived: Arrived, connection: &Arc<Connection>) -> Self {
        Self {
            body: Some(arrived.body),
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
    /// dropped. Who holds more than half of a connection's buffers is given copies by the next
    /// receives, so any number can be collected.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Message {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.body.as_deref().unwrap_or_default()
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
        if let Some(Body::Received(buffer)) = self.body.take() {
            drop(buffer);
            self.connection.let_go();
        }
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
