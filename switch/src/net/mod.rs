//! What an application holds: listeners, connects under way, connections.

mod attempt;
pub(crate) mod closing;
pub(crate) mod connect;
pub(crate) mod connection;
pub(crate) mod listener;
pub(crate) mod registry;
pub(crate) mod rooms;
