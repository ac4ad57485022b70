//! A second carrier for a TCP connection: who may dial whom, how often, and with what proof.
//!
//! The accepting end dials the connecting end's TCP address over the SAN. The rules of that are in `request.rs`
//! (what both say), `dials.rs` and `peers.rs` (how often), the stream itself in `mover.rs` and
//! `stream.rs`, and the thread in `thread.rs`. `docs/protocol.md` has the protocol.

mod dials;
pub(crate) mod key;
pub(crate) mod mover;
mod peers;
mod queue_pair;
pub(crate) mod request;
pub(crate) mod service;
pub(crate) mod stream;
mod tcp_side;
pub(crate) mod thread;
