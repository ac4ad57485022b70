//! Socket options that no safe interface offers, one call.
//!
//! What it does: lets a socket receive UDP over IPv6 without checksum, which is
//! how the kernel's `rdma_rxe` sends (the ICRC covers more than the checksum
//! would), and takes back what the UDP library asked for and nobody here reads:
//! each costs time on every datagram. Has the kernel join datagrams, or not.
//! What it does not do: anything else.
#![allow(
    unsafe_code,
    reason = "setsockopt(2) with options that socket2 and rustix lack"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Has `socket` accept datagrams whose checksum is zero.
///
/// # Errors
/// What `setsockopt(2)` says.
pub(super) fn accept_no_checksum(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_NO_CHECK6_RX, 1)
}

/// Turns off what would come along with every datagram: its destination, its
/// class, its time.
pub(super) fn receive_bare(socket: &impl AsFd, v6: bool) {
    let by_family = if v6 {
        [
            (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
            (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
        ]
    } else {
        [
            (libc::IPPROTO_IP, libc::IP_PKTINFO),
            (libc::IPPROTO_IP, libc::IP_RECVTOS),
        ]
    };
    for (level, option) in [(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS)]
        .into_iter()
        .chain(by_family)
    {
        // Slower, not wrong, if it stays on.
        let _ = set(socket, level, option, 0);
    }
}

/// Whether the kernel may hand over datagrams of one length as one.
///
/// # Errors
/// What `setsockopt(2)` says.
pub(super) fn join_datagrams(socket: &impl AsFd, joins: bool) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, joins.into())
}

fn set(
    socket: &impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: `value` is a live `c_int` for the whole call and the length is its
    // size; the descriptor is open, as it is borrowed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
