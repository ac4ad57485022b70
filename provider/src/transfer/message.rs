//! What an application gets: a received message, and how an overlapped operation ended.
//!
//! As long as a message is held in the buffer that it arrived in, that buffer is not available to its
//! connection: a slow holder slows its own peer, and no other connection. Whoever holds more than half
//! of the window gets the rest as copies, so that a peer never waits for messages to be let go which
//! the holder keeps until more has come. Messages outlive their connection; they are then no longer
//! anybody else's loss (`lane/ledger.rs`).

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use verbs_shim::RegisteredBuffer;
use verbs_shim::fork::ForkGuard;

use super::engine::{Arrived, Body, Operation, Outcome};
use crate::error::TransferError;

/// Whose buffer a message lies in.
pub(crate) trait Holder: Send + Sync {
    /// The buffer is free again.
    fn let_go(&self);
}

/// A received message. It reads as a slice of bytes.
pub struct Message {
    /// `None` only while it is dropped.
    arrived: Option<Arrived<RegisteredBuffer>>,
    holder: ForkGuard<Arc<dyn Holder>>,
}

/// How an operation ended.
#[derive(Debug)]
pub struct OverlappedResult {
    /// Which.
    pub operation: Operation,
    /// What came of it.
    pub outcome: Result<Transferred, TransferError>,
}

/// What an operation that succeeded transferred.
#[derive(Debug)]
pub struct Transferred {
    /// The bytes of the message.
    pub bytes: usize,
    /// The message, if it was a receive.
    pub message: Option<Message>,
}

impl OverlappedResult {
    /// What the caller of an operation is told.
    pub(super) fn new<H: Holder + 'static>(
        operation: Operation,
        outcome: Outcome<RegisteredBuffer>,
        holder: &Arc<H>,
    ) -> Self {
        let transferred = |bytes, message| Ok(Transferred { bytes, message });
        let outcome = match outcome {
            Outcome::Sent(bytes) => transferred(bytes, None),
            Outcome::Received(arrived) => {
                transferred(arrived.len(), Some(Message::new(arrived, holder)))
            }
            Outcome::Emptied => transferred(0, None),
            Outcome::Failed(ending) => Err(ending.into()),
        };
        Self { operation, outcome }
    }
}

impl Message {
    pub(super) fn new<H: Holder + 'static>(
        arrived: Arrived<RegisteredBuffer>,
        holder: &Arc<H>,
    ) -> Self {
        Self {
            arrived: Some(arrived),
            holder: ForkGuard::new(Arc::clone(holder) as Arc<dyn Holder>),
        }
    }

    /// The number that the sender gave it; 0 is plain.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.arrived.as_ref().map_or(0, |arrived| arrived.kind)
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
        self.arrived.as_deref().unwrap_or_default()
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        if ForkGuard::is_inherited(&self.holder) {
            std::mem::forget(self.arrived.take());
            return;
        }
        // The buffer first: what is reported as free has to be there.
        if let Some(Body::Received(buffer)) = self.arrived.take().map(|arrived| arrived.body) {
            drop(buffer);
            self.holder.let_go();
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("len", &self.len())
            .field("kind", &self.kind())
            .finish()
    }
}
