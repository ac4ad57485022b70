//! What the handles of an endpoint share.
//!
//! What it does: holds the state of queue pairs, completion queues, CM ids,
//! sockets and sleepers, each in a file of its own, and the methods that need
//! nothing but this state.
//! What it does not do: know the handles, or the device that all of it belongs
//! to ([`device`](super::device)).

pub(crate) mod bind;
pub(crate) mod cm;
pub(crate) mod cq;
pub(crate) mod events;
pub(crate) mod qp;
pub(crate) mod schedule;
pub(crate) mod sleepers;
pub(crate) mod sockets;
pub(crate) mod table;
mod timers;
