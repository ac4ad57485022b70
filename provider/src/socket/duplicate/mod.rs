//! Handing a connection to another process (duties 116 to 121).
//!
//! `leave.rs` is the end that moves, in the process that has it: `Socket::duplicate`. `arrive.rs` is
//! the process that it moves to: `Provider::socket_from`. `stay.rs` is the other end, which waits for
//! it. `arrival.rs` and `awaited.rs` are what a socket keeps for that, `form.rs` what goes from the
//! one process to the other, by whatever way the two have. The data path's part is in `transfer/engine/handover.rs`, what goes over the wire in `docs/protocol.md`.

pub(crate) mod arrival;
mod arrive;
pub(crate) mod awaited;
mod form;
mod leave;
mod stay;

pub use form::{BadDuplicate, Duplicate};

pub(crate) use arrive::socket_from;
