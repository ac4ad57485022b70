//! Small answers of a fabric.

use crate::error::VerbsError;

/// Which backend a [`crate::Fabric`] runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FabricKind {
    /// The kernel's RDMA subsystem, through librdmacm and libibverbs.
    Rdma,
    /// `RoCEv2` in user space.
    Soft,
}

/// What ended [`crate::Sleeper::sleep`]. A failure is among them, in a box: the answer travels in two registers.
#[derive(Debug)]
pub enum Woken {
    /// The time is over, or a signal came, or another reader took the event.
    Nothing,
    /// Queues announced something, and the events were taken.
    Announced,
    /// The other descriptor may be readable.
    Other,
    /// The channel is broken.
    Failed(Box<VerbsError>),
}
