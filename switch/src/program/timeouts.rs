//! How long the calls of a program's stream wait, and for what.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, socket_timeout};

/// How long calls wait; none: until something happens.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Timeouts {
    pub(super) receive: Option<Duration>,
    pub(super) send: Option<Duration>,
}

impl Timeouts {
    /// Those of a socket; a socket that is accepted has its listener's.
    pub(super) fn of(fd: BorrowedFd<'_>) -> Self {
        Self {
            receive: socket_timeout(fd, Timeout::Recv).unwrap_or(None),
            send: socket_timeout(fd, Timeout::Send).unwrap_or(None),
        }
    }
}

/// How long the connection waits by itself.
pub(super) const FIRST: Duration = Duration::from_millis(1);

/// What the connection's own timeout is, where the socket has this one.
pub(super) fn of_connection(timeout: Option<Duration>) -> Option<Duration> {
    Some(timeout.map_or(FIRST, |timeout| timeout.min(FIRST)))
}

/// What a call waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Something to read.
    Bytes,
    /// Room for what is written.
    Room,
}
