//! Companions of a listener: which there should be, the thread that accepts on them, and the queue
//! in which their connections and TCP's wait in the order of arrival.
//!
//! Nothing here is what the application holds (`net/`), and nothing moves data (`carrier/`).

pub(crate) mod accept_thread;
pub(crate) mod condition;
pub(crate) mod keeper;
pub(crate) mod plan;
mod ready_queue;
pub(crate) mod shared;
mod socket;
mod watch;

pub(crate) use ready_queue::Turn;
pub(crate) use socket::Companion;
