//! Handing a connection or a listener to another process (duties 53 to 59).
//!
//! `duplicate` makes an offer: bytes that the other process is given, by whatever way the two have
//! (`ticket.rs`). Nothing else happens until the other process uses them. It asks at a Unix socket of ours
//! (`offers.rs`, the thread `san-duplicate`), which serves one request after the other; then what is offered
//! leaves (`leave.rs`), and all that belongs to it, the descriptor among it, goes over that socket
//! (`package.rs`). `arrive.rs` takes it up.

pub(crate) mod arrive;
mod leave;
pub(crate) mod offers;
pub(super) mod package;
mod ticket;

pub use ticket::Duplicate;
