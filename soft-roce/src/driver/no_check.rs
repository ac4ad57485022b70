//! The one socket option that no safe interface offers: UDP over IPv6 without
//! checksum, which is how the kernel's `rdma_rxe` sends. The ICRC covers more
//! than the checksum would.
//!
//! What it does: lets a socket receive such datagrams.
//! What it does not do: send them.
#![allow(
    unsafe_code,
    reason = "setsockopt(2) with an option that socket2 and rustix lack"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Has `socket` accept datagrams whose checksum is zero.
///
/// # Errors
/// What `setsockopt(2)` says.
pub(super) fn accept_no_checksum(socket: &impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `on` is a live `c_int` for the whole call and the length is its
    // size; the descriptor is open, as it is borrowed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_NO_CHECK6_RX,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
