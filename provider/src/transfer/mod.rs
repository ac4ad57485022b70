//! The data path of connections: overlapped transfers by messages and RDMA (duties 93 to 97, 113).
//!
//! `engine/` is one connection as a value without I/O; `connection/` is its shell, with the lock and
//! the queue pair; `lane/` is what connections share, and the polling of it. `message.rs` is what an
//! application gets, `sink.rs` who hears of readiness. Arrows run from `connection/` to `lane/`,
//! `message.rs` and `engine/`. The public calls are in `transfers.rs`, `data_path.rs` and `rdma.rs` of
//! the crate.

mod connection;
mod engine;
mod lane;
pub(crate) mod message;
mod sink;

pub use connection::{Fence, MAX_SEGMENTS, PeerFeatures};
pub use engine::{Inbox, Notification, Operation, Receipt, Received};
pub use message::{Message, OverlappedResult, Transferred};
pub use sink::{Readiness, ReadySink};

pub(crate) use connection::{Connection, Ingredients, Payload, RdmaDirection};
#[cfg(feature = "fuzzing")]
pub(crate) use engine::sim::calls::run as engine_calls;
pub(crate) use engine::{Carried, Direction, Ending};

/// A lane of connections.
pub(crate) type Lane = lane::Lane<Connection>;
