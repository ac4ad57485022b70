//! Sockets: the public calls, what a socket is made of, and its life from open to close.
//!
//! From the bottom: `types.rs`, `settings.rs`, `state.rs` (the states, and the one place where they
//! change), `network_events.rs` and `backlog.rs` are values without I/O; `shared.rs` is the socket.
//! `life_cycle.rs` is what CM events mean to a connection, whichever way it began; `requests.rs`
//! what becomes of those that arrive at a listener; `handler.rs` is where the thread `san-cm` comes
//! in. The calls are a file each: `open.rs`, `listen.rs`, `accept.rs`, `connect.rs`, `close.rs`,
//! `options.rs`, `stats.rs`, `duplicate/`. Transfers are in `transfers.rs` and `rdma.rs`, those for
//! memory in `memory/calls.rs`.

pub(crate) mod accept;
#[doc(hidden)]
pub mod backlog;
mod close;
pub(crate) mod connect;
mod disconnect;
pub(crate) mod duplicate;
mod handler;
mod life_cycle;
mod listen;
pub(crate) mod network_events;
mod open;
pub(crate) mod options;
mod requests;
mod settings;
mod shared;
pub(crate) mod state;
mod stats;
mod types;

pub use shared::Socket;
pub use types::{AddressFamily, Protocol, SocketType};

pub(crate) use shared::SocketShared;
