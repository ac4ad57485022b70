//! RDMA CM, as all sockets have to do with it: the thread that reads its events (`thread.rs`), what
//! both ends say and ask of the transport (`negotiation.rs`), and how a request is refused and a
//! refusal understood (`refusal.rs`).
//!
//! It knows no sockets: what an event means to one is decided in `socket/`.

pub(crate) mod negotiation;
pub(crate) mod refusal;
pub(crate) mod thread;
