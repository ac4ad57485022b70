//! What goes over the wire: the private data of the three RDMA CM messages, and the immediate data
//! of a message. `docs/protocol.md` holds the text that this code follows.
//!
//! Every file has the same shape: where the fields are, a plain representation, `parse` that says
//! why it failed, `emit`. Nothing here keeps state, and no input makes it panic.

mod descriptor;
mod head;
mod hello;
mod immediate;
mod moving;
mod refusal;
mod session;

pub use descriptor::Descriptor;
pub use head::{Malformed, VERSION};
pub use hello::{Features, Hello, HelloKind};
pub use immediate::{Immediate, MessageType, Violation};
pub use moving::Resumption;
pub use refusal::{Refusal, RefusalReason};
pub use session::Session;

#[cfg(test)]
mod tests;
