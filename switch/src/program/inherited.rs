//! Options that a connection has from the socket that it was made with.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::net::sockopt;

use crate::net::connection::Connection;

/// A new connection of the SAN's gets what was set on this socket.
pub(super) fn carry_over(connection: &Connection, fd: BorrowedFd<'_>) {
    if let Ok(Some(linger)) = sockopt::socket_linger(fd) {
        let _ = connection.set_linger(Some(linger));
    }
    if let Ok(true) = sockopt::socket_oobinline(fd) {
        let _ = connection.set_urgent_inline(true);
    }
}

/// A socket that stands for an accepted connection gets what its listener has, as the kernel's do.
pub(super) fn inherit(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    if let Some(linger) = sockopt::socket_linger(from)? {
        sockopt::set_socket_linger(to, Some(linger))?;
    }
    if sockopt::socket_oobinline(from)? {
        sockopt::set_socket_oobinline(to, true)?;
    }
    if sockopt::socket_keepalive(from)? {
        sockopt::set_socket_keepalive(to, true)?;
        sockopt::set_tcp_keepidle(to, sockopt::tcp_keepidle(from)?)?;
        sockopt::set_tcp_keepintvl(to, sockopt::tcp_keepintvl(from)?)?;
        sockopt::set_tcp_keepcnt(to, sockopt::tcp_keepcnt(from)?)?;
    }
    if sockopt::tcp_nodelay(from)? {
        sockopt::set_tcp_nodelay(to, true)?;
    }
    for which in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
        if let Some(timeout) = sockopt::socket_timeout(from, which)? {
            sockopt::set_socket_timeout(to, which, Some(timeout))?;
        }
    }
    Ok(())
}
