//! What an application holds: listeners, connects under way, connections.

pub(crate) mod connect;
pub(crate) mod connection;
pub(crate) mod listener;
