//! What a socket is asked to be: family, type, protocol.

use std::net::SocketAddr;

/// The address family of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AddressFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Another one, by its number: not offered.
    Other(u16),
}

/// The type of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SocketType {
    /// A stream.
    Stream,
    /// Another one, by its number: not offered.
    Other(i32),
}

/// The protocol of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// TCP's, which 0 stands for too.
    Tcp,
    /// Another one, by its number: not offered.
    Other(i32),
}

impl AddressFamily {
    /// The family of an address.
    #[must_use]
    pub fn of(addr: &SocketAddr) -> Self {
        match addr {
            SocketAddr::V4(_) => Self::V4,
            SocketAddr::V6(_) => Self::V6,
        }
    }
}
