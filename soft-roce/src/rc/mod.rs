//! The reliable connection: queue pairs, and what they work on.
//!
//! What it does: the transport of IBTA volume 1, chapter 9, for the service "RC":
//! SEND (with immediate data, with invalidation), RDMA WRITE (with immediate
//! data), RDMA READ; completion queues, receive queues, memory regions and
//! windows. No I/O, no clock: see [`QueuePair`] for how it is driven.
//!
//! ```text
//!   post_send --> requester --+                       +--> transmit(sink)
//!                             +-- queue pair (state) --+
//!  handle_packet --> responder+                       +--> completion queues
//! ```
//!
//! What it does not do: connection management (`cm`), addresses, sockets,
//! atomics, other transports, congestion notification.

mod attr;
mod context;
mod cq;
pub mod keys;
mod mr;
mod psn;
mod qp;
mod requester;
mod responder;
mod sack;
mod srq;
mod state;
#[cfg(test)]
mod testkit;
mod wr;

pub use self::context::Counters;
pub use attr::{
    Modify, ModifyError, PathMtu, QpConfig, QpLinks, ReorderBudget, RtrAttr, RtsAttr, SendWindow,
};
pub use cq::{Completion, CompletionQueue, Notify, Overrun, Status, WorkKind};
pub use keys::KeySource;
pub use mr::{Access, DeregisterError, MemoryRegion, MrTable, Pd, RegisterError};
pub use qp::{FailureCause, QpEvent, QueuePair, Transmitted};
pub use srq::SharedReceiveQueue;
pub use state::QpState;
pub use wr::{
    MAX_MESSAGE, MAX_SGE, Payload, PostError, RecvRequest, Remote, SendOp, SendRequest, Sge,
};
