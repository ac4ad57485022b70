//! Socket addresses as libc has them.

use std::net::SocketAddr;

use libc::{sockaddr, socklen_t};
use socket2::{SockAddr, SockAddrStorage};

/// The IP address of a caller; `None`: it is none.
///
/// # Safety
/// `length` bytes are there, as connect(2) asks.
pub(crate) unsafe fn read(address: *const sockaddr, length: socklen_t) -> Option<SocketAddr> {
    if address.is_null() || length as usize > size_of::<SockAddrStorage>() {
        return None;
    }
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: both have `length` bytes, and the storage is a local variable.
    unsafe {
        std::ptr::copy_nonoverlapping(
            address.cast::<u8>(),
            (&raw mut storage).cast::<u8>(),
            length as usize,
        );
    }
    // SAFETY: any bytes are a storage; what it holds is looked at by its family.
    unsafe { SockAddr::new(storage, length) }.as_socket()
}

/// Gives an address to a caller, as far as there is room, and says how long it is.
///
/// # Safety
/// As getsockname(2) asks.
pub(crate) unsafe fn write(address: SocketAddr, to: *mut sockaddr, length: *mut socklen_t) {
    if to.is_null() || length.is_null() {
        return;
    }
    let from = SockAddr::from(address);
    // SAFETY: the caller's own.
    let room = unsafe { *length };
    let bytes = room.min(from.len()) as usize;
    // SAFETY: the caller has `room` bytes there, and the address has its length.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr().cast::<u8>(), to.cast::<u8>(), bytes) };
    // SAFETY: the caller's own.
    unsafe { *length = from.len() };
}
