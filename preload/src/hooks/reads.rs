//! Reading bytes.

use std::ffi::{c_int, c_void};
use std::io::IoSliceMut;

use libc::{iovec, size_t, sockaddr, socklen_t, ssize_t};

use super::data::{buffer, buffers, checked, fault, length, receiving, was_read, were_moved};
use crate::held::{Passing, call, to_kernel};
use crate::next;
use crate::table::TABLE;

/// Receives from the stream under this number into one buffer.
///
/// # Safety
/// As for recv(2).
#[inline]
unsafe fn receive(
    fd: c_int,
    start: *mut c_void,
    size: size_t,
    flags: c_int,
) -> Result<ssize_t, Passing> {
    if flags & libc::MSG_OOB != 0 {
        to_kernel(fd);
    }
    length(call(fd, |stream| {
        if start.is_null() && size > 0 {
            return Err(fault());
        }
        // SAFETY: the caller says so.
        let bytes = unsafe { buffer(start, size) };
        stream.receive(&mut [IoSliceMut::new(bytes)], receiving(flags))
    }))
}

/// # Safety
/// As read(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn read(fd: c_int, start: *mut c_void, size: size_t) -> ssize_t {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what read(2) asks.
        return unsafe { next::read(fd, start, size) };
    }
    // SAFETY: the same.
    unsafe { read_looking(fd, start, size) }
}

/// # Safety
/// As read(2).
#[inline(never)]
unsafe fn read_looking(fd: c_int, start: *mut c_void, size: size_t) -> ssize_t {
    // SAFETY: the caller keeps what read(2) asks.
    let passing = match unsafe { receive(fd, start, size, 0) } {
        Ok(result) => return result,
        Err(passing) => passing,
    };
    // SAFETY: as above.
    let result = unsafe { next::read(fd, start, size) };
    // SAFETY: the kernel has just written them.
    unsafe { was_read(&passing, start, result, 0) }
}

/// # Safety
/// As read(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn __read_chk(
    fd: c_int,
    start: *mut c_void,
    size: size_t,
    room: size_t,
) -> ssize_t {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what read(2) asks.
        return unsafe { next::__read_chk(fd, start, size, room) };
    }
    match size <= room {
        // SAFETY: the caller keeps what read(2) asks.
        true => unsafe { read(fd, start, size) },
        // SAFETY: the same. What does not fit is libc's to complain of.
        false => unsafe { next::__read_chk(fd, start, size, room) },
    }
}

/// # Safety
/// As recv(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn recv(
    fd: c_int,
    start: *mut c_void,
    size: size_t,
    flags: c_int,
) -> ssize_t {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what recv(2) asks.
        return unsafe { next::recv(fd, start, size, flags) };
    }
    // SAFETY: the same.
    unsafe { recv_looking(fd, start, size, flags) }
}

/// # Safety
/// As recv(2).
#[inline(never)]
unsafe fn recv_looking(fd: c_int, start: *mut c_void, size: size_t, flags: c_int) -> ssize_t {
    // SAFETY: the caller keeps what recv(2) asks.
    let passing = match unsafe { receive(fd, start, size, flags) } {
        Ok(result) => return result,
        Err(passing) => passing,
    };
    // SAFETY: as above.
    let result = unsafe { next::recv(fd, start, size, flags) };
    // SAFETY: the kernel has just written them.
    unsafe { was_read(&passing, start, result, flags) }
}

/// # Safety
/// As recv(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn __recv_chk(
    fd: c_int,
    start: *mut c_void,
    size: size_t,
    room: size_t,
    flags: c_int,
) -> ssize_t {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what recv(2) asks.
        return unsafe { next::__recv_chk(fd, start, size, room, flags) };
    }
    match size <= room {
        // SAFETY: the caller keeps what recv(2) asks.
        true => unsafe { recv(fd, start, size, flags) },
        // SAFETY: the same.
        false => unsafe { next::__recv_chk(fd, start, size, room, flags) },
    }
}

/// # Safety
/// As recvfrom(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn recvfrom(
    fd: c_int,
    start: *mut c_void,
    size: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_length: *mut socklen_t,
) -> ssize_t {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what recvfrom(2) asks.
        return unsafe { next::recvfrom(fd, start, size, flags, address, address_length) };
    }
    // SAFETY: the same.
    unsafe { recvfrom_looking(fd, start, size, flags, address, address_length) }
}

/// # Safety
/// As recvfrom(2).
#[inline(never)]
unsafe fn recvfrom_looking(
    fd: c_int,
    start: *mut c_void,
    size: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_length: *mut socklen_t,
) -> ssize_t {
    // SAFETY: the caller keeps what recvfrom(2) asks.
    let passing = match unsafe { receive(fd, start, size, flags) } {
        Ok(result) => {
            // SAFETY: as above.
            unsafe { no_address(address, address_length) };
            return result;
        }
        Err(passing) => passing,
    };
    // SAFETY: as above.
    let result = unsafe { next::recvfrom(fd, start, size, flags, address, address_length) };
    // SAFETY: the kernel has just written them.
    unsafe { was_read(&passing, start, result, flags) }
}

/// # Safety
/// As recvfrom(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn __recvfrom_chk(
    fd: c_int,
    start: *mut c_void,
    size: size_t,
    room: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_length: *mut socklen_t,
) -> ssize_t {
    if size <= room {
        // SAFETY: the caller keeps what recvfrom(2) asks.
        return unsafe { recvfrom(fd, start, size, flags, address, address_length) };
    }
    // SAFETY: as above.
    unsafe { next::__recvfrom_chk(fd, start, size, room, flags, address, address_length) }
}

/// A stream tells no address with its bytes, as TCP.
///
/// # Safety
/// As for recvfrom(2).
unsafe fn no_address(address: *mut sockaddr, length: *mut socklen_t) {
    if !address.is_null() && !length.is_null() {
        // SAFETY: the caller's own length, which recvfrom(2) writes.
        unsafe { *length = 0 };
    }
}

/// # Safety
/// As readv(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn readv(fd: c_int, start: *const iovec, count: c_int) -> ssize_t {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what readv(2) asks.
        return unsafe { next::readv(fd, start, count) };
    }
    // SAFETY: the same.
    unsafe { readv_looking(fd, start, count) }
}

/// # Safety
/// As readv(2).
#[inline(never)]
unsafe fn readv_looking(fd: c_int, start: *const iovec, count: c_int) -> ssize_t {
    let answer = call(fd, |stream| {
        let count = checked(start, count)?;
        // SAFETY: the caller keeps what readv(2) asks. The list itself is not written, nor is it shared.
        let buffers = unsafe { buffers(start.cast_mut(), count) };
        stream.receive(buffers, receiving(0))
    });
    let passing = match length(answer) {
        Ok(result) => return result,
        Err(passing) => passing,
    };
    // SAFETY: the caller keeps what readv(2) asks.
    let result = unsafe { next::readv(fd, start, count) };
    // SAFETY: the same.
    unsafe {
        were_moved(
            &passing,
            true,
            start,
            usize::try_from(count).unwrap_or(0),
            result,
        );
    };
    result
}
