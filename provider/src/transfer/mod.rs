//! Overlapped transfers by messages and RDMA (duties 93 to 97, 113).
//!
//! `credits.rs` counts, `operation.rs` keeps records, `lane.rs`, `ledger.rs` and `pool.rs` hold what
//! connections share, `dispatch.rs` polls, `connection.rs`, `messages.rs`, `rdma.rs` and `calls.rs`
//! are one connection, `message.rs` is what came.
//! The public calls are on [`crate::Socket`], in `socket.rs`.

mod calls;
mod connection;
mod credits;
mod dispatch;
mod lane;
mod ledger;
mod message;
mod messages;
mod moving;
mod operation;
mod pool;
mod rdma;

pub use message::Message;
pub use operation::{Completion, Operation, OverlappedResult, Transferred};
pub use rdma::{Fence, MAX_SEGMENTS};

pub(crate) use calls::Payload;
pub(crate) use connection::{Connection, Parts};
pub(crate) use lane::Lane;
pub(crate) use moving::Carried;
pub(crate) use operation::{Direction, Ending, Outcome};
pub(crate) use rdma::RdmaDirection;
