//! A user-space RoCEv2 endpoint with RDMA CM that needs no privileges.
//!
//! What it does: speaks the RoCEv2 wire protocol (reliable connections and the
//! CM) over ordinary UDP sockets, towards the kernel's `rdma_rxe`, RoCE
//! adapters and itself.
//!
//! What it does not do: datagram queue pairs for applications, atomics, memory
//! windows bound through the send queue (bound by call there are), path
//! migration, congestion control by CNP.
//!
//! Layers, each of which knows only those before it:
//!
//! - [`wire`]: headers and messages, parse and emit;
//! - [`memory`] and [`sink`]: the two traits at the engines' edges, [`time`]: the
//!   moments handed to them;
//! - `rc`, `cm`: protocol engines without I/O and without a clock;
//! - `endpoint`, `driver`: the engines joined to sockets, timers and a user.
//!
//! The words that are the project's own are in `docs/glossary.md`.

// Denied and not forbidden for a few socket options: `driver::sockopt`.
#![deny(unsafe_code)]

pub mod cm;
mod driver;
pub mod endpoint;
pub mod memory;
pub mod rc;
pub mod sink;
pub mod time;
pub mod wire;
