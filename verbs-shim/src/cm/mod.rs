//! The RDMA connection manager: event channels, ids, and what happens on them.
//!
//! A [`CmId`] is created on an [`EventChannel`]; its calls start something, and what comes of it
//! is an [`Event`] of that channel, which names the id by its token. Nothing here waits.
//!
//! It keeps no backlog and no deadlines, and reads nothing out of private data.

mod channel;
mod event;
mod id;

pub use self::channel::EventChannel;
pub use self::event::{Event, Request};
pub use self::id::{ACCEPT_PRIVATE_DATA, CONNECT_PRIVATE_DATA, CmId, REJECT_PRIVATE_DATA};
