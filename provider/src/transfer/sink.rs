//! Who hears of a connection's readiness without a descriptor for it.

use super::engine::Operation;
use crate::error::TransferError;

/// What can be done on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Readiness {
    /// A message waits, or the connection is over.
    Readable,
    /// A message would go out at once, or the connection is over.
    Writable,
}

/// Hears of the readiness of connections, from whichever thread polls.
///
/// It is called without a lock of the connection's held. It must not wait for this or another
/// connection of the same lane, since nobody polls the lane meanwhile; calls that do not wait
/// (`try_receive`, `try_send`) are allowed.
pub trait ReadySink: Send + Sync {
    /// The connection of this token has become readable or writable: told once, until it is not. That it
    /// is readable is told again when a message comes of another kind than 0, or, after
    /// [`crate::DataPath::tell_each`], any. That it is not writable is noticed by a send that would have
    /// had to wait. That it is writable is told twice where messages of kind 16 and above can go out
    /// before others can.
    fn ready(&self, token: u64, readiness: Readiness);

    /// The connection is over: the peer ended it, it broke, or [`crate::Socket::disconnect`] did. Told
    /// once. What had come can still be received.
    fn over(&self, token: u64) {
        let _ = token;
    }

    /// A message of kind 16 or above came. It does not wait behind messages that nobody has read.
    fn control(&self, token: u64, kind: u8, bytes: &[u8]);

    /// An operation with [`Notification::Sink`] has ended: its bytes, or why it failed. A sink that starts
    /// none need not listen.
    ///
    /// [`Notification::Sink`]: crate::Notification::Sink
    fn ended(&self, token: u64, operation: Operation, result: Result<usize, TransferError>) {
        let _ = (token, operation, result);
    }
}
