//! The application's condition function: what it is shown and what it answers.

use std::net::SocketAddr;
use std::sync::Arc;

/// The application's condition function. For the SAN it runs in the accept thread, before the
/// peer is told anything, and all listeners wait for it: it should decide, not work. For TCP it
/// runs in accept, when TCP has answered the peer already; a rejected connection is reset.
pub type Condition = Arc<dyn Fn(&IncomingRequest) -> Decision + Send + Sync>;

/// What a condition function is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IncomingRequest {
    /// Who asks.
    pub peer: SocketAddr,
    /// The address of ours that was asked for.
    pub local: SocketAddr,
    /// Which way the request came.
    pub side: Side,
}

/// Which way a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Over the SAN.
    San,
    /// Over TCP.
    Tcp,
}

/// What a condition function answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Take the connection.
    Accept,
    /// Refuse it: a SAN peer's connect fails with ECONNREFUSED, a TCP peer is reset.
    Reject,
}
