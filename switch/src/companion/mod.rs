//! Companions of a listener: which there should be, the thread that accepts on them, and the queue
//! in which their connections and TCP's wait in the order of arrival.
//!
//! Nothing here is what the application holds (`net/`), and nothing moves data (`carrier/`).

pub(crate) mod accept_thread;
pub(crate) mod plan;
pub(crate) mod ready_queue;
