//! Sockets: the public calls, what a socket is made of, and its life from open to close.
//!
//! `shared.rs` is the socket, `state.rs` its states and the one place where they change. The calls
//! are a file each: `listen.rs`, `accept.rs`, `connect.rs`, `close.rs`, `options.rs`, `duplicate/`.
//! Transfers are in `transfers.rs` and `rdma.rs`, memory in `memory/calls.rs`.

pub(crate) mod accept;
#[doc(hidden)]
pub mod backlog;
mod close;
pub(crate) mod connect;
pub(crate) mod duplicate;
pub(crate) mod listen;
pub(crate) mod network_events;
pub(crate) mod options;
pub(crate) mod shared;
pub(crate) mod state;

pub use shared::{AddressFamily, Protocol, Socket, SocketType};

pub(crate) use shared::SocketShared;
