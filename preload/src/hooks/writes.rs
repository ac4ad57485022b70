//! Writing bytes, and files.

use std::ffi::{c_int, c_uint, c_void};
use std::io::{self, IoSlice};

use libc::{iovec, loff_t, off_t, off64_t, size_t, sockaddr, socklen_t, ssize_t};
use san_switch::program::Stream;

use super::data::{
    bytes, checked, fault, length, parts, sending, was_written, were_moved, written,
};
use crate::held::{Passing, call, to_kernel};
use crate::kernel::borrowed;
use crate::next;
use crate::table::TABLE;

/// Sends one buffer on the stream under this number.
///
/// # Safety
/// As for send(2).
#[inline]
unsafe fn transmit(
    fd: c_int,
    start: *const c_void,
    size: size_t,
    flags: c_int,
) -> Result<ssize_t, Passing> {
    if flags & libc::MSG_OOB != 0 {
        to_kernel(fd);
    }
    let answer = call(fd, |stream| {
        if start.is_null() && size > 0 {
            return Err(fault());
        }
        // SAFETY: the caller says so.
        let bytes = unsafe { bytes(start, size) };
        stream.send(&[IoSlice::new(bytes)], sending(flags))
    });
    written(answer, flags)
}

/// # Safety
/// As write(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn write(fd: c_int, start: *const c_void, size: size_t) -> ssize_t {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what write(2) asks.
        return unsafe { next::write(fd, start, size) };
    }
    // SAFETY: the same.
    unsafe { write_looking(fd, start, size) }
}

/// # Safety
/// As write(2).
#[inline(never)]
unsafe fn write_looking(fd: c_int, start: *const c_void, size: size_t) -> ssize_t {
    // SAFETY: the caller keeps what write(2) asks.
    let passing = match unsafe { transmit(fd, start, size, 0) } {
        Ok(result) => return result,
        Err(passing) => passing,
    };
    // SAFETY: as above.
    let result = unsafe { next::write(fd, start, size) };
    // SAFETY: the kernel has just read them.
    unsafe { was_written(&passing, start, result) }
}

/// # Safety
/// As send(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn send(
    fd: c_int,
    start: *const c_void,
    size: size_t,
    flags: c_int,
) -> ssize_t {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what send(2) asks.
        return unsafe { next::send(fd, start, size, flags) };
    }
    // SAFETY: the same.
    unsafe { send_looking(fd, start, size, flags) }
}

/// # Safety
/// As send(2).
#[inline(never)]
unsafe fn send_looking(fd: c_int, start: *const c_void, size: size_t, flags: c_int) -> ssize_t {
    // SAFETY: the caller keeps what send(2) asks.
    let passing = match unsafe { transmit(fd, start, size, flags) } {
        Ok(result) => return result,
        Err(passing) => passing,
    };
    // SAFETY: as above.
    let result = unsafe { next::send(fd, start, size, flags) };
    // SAFETY: the kernel has just read them.
    unsafe { was_written(&passing, start, result) }
}

/// # Safety
/// As sendto(2). A connected stream takes no notice of the address, as TCP.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn sendto(
    fd: c_int,
    start: *const c_void,
    size: size_t,
    flags: c_int,
    address: *const sockaddr,
    address_length: socklen_t,
) -> ssize_t {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what sendto(2) asks.
        return unsafe { next::sendto(fd, start, size, flags, address, address_length) };
    }
    // SAFETY: the same.
    unsafe { sendto_looking(fd, start, size, flags, address, address_length) }
}

/// # Safety
/// As sendto(2).
#[inline(never)]
unsafe fn sendto_looking(
    fd: c_int,
    start: *const c_void,
    size: size_t,
    flags: c_int,
    address: *const sockaddr,
    address_length: socklen_t,
) -> ssize_t {
    // SAFETY: the caller keeps what sendto(2) asks.
    let passing = match unsafe { transmit(fd, start, size, flags) } {
        Ok(result) => return result,
        Err(passing) => passing,
    };
    // SAFETY: as above.
    let result = unsafe { next::sendto(fd, start, size, flags, address, address_length) };
    // SAFETY: the kernel has just read them.
    unsafe { was_written(&passing, start, result) }
}

/// # Safety
/// As writev(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn writev(fd: c_int, start: *const iovec, count: c_int) -> ssize_t {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what writev(2) asks.
        return unsafe { next::writev(fd, start, count) };
    }
    // SAFETY: the same.
    unsafe { writev_looking(fd, start, count) }
}

/// # Safety
/// As writev(2).
#[inline(never)]
unsafe fn writev_looking(fd: c_int, start: *const iovec, count: c_int) -> ssize_t {
    let answer = call(fd, |stream| {
        let count = checked(start, count)?;
        // SAFETY: the caller keeps what writev(2) asks.
        let parts = unsafe { parts(start, count) };
        stream.send(parts, sending(0))
    });
    let passing = match written(answer, 0) {
        Ok(result) => return result,
        Err(passing) => passing,
    };
    // SAFETY: the caller keeps what writev(2) asks.
    let result = unsafe { next::writev(fd, start, count) };
    // SAFETY: the same.
    unsafe {
        were_moved(
            &passing,
            false,
            start,
            usize::try_from(count).unwrap_or(0),
            result,
        );
    };
    result
}

/// # Safety
/// As sendfile(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn sendfile(
    to: c_int,
    from: c_int,
    offset: *mut off_t,
    count: size_t,
) -> ssize_t {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what sendfile(2) asks.
        return unsafe { next::sendfile(to, from, offset, count) };
    }
    // SAFETY: the same.
    unsafe { sendfile_looking(to, from, offset, count) }
}

/// # Safety
/// As sendfile(2).
#[inline(never)]
unsafe fn sendfile_looking(to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
    // SAFETY: the caller keeps what sendfile(2) asks.
    let passing = match unsafe { copy_file(to, from, offset, count) } {
        Ok(result) => return result,
        Err(passing) => passing,
    };
    // SAFETY: as above.
    let result = unsafe { next::sendfile(to, from, offset, count) };
    passing.note(false, result, std::iter::empty());
    result
}

/// # Safety
/// As sendfile(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn sendfile64(
    to: c_int,
    from: c_int,
    offset: *mut off64_t,
    count: size_t,
) -> ssize_t {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what sendfile(2) asks.
        return unsafe { next::sendfile64(to, from, offset, count) };
    }
    // SAFETY: the same.
    unsafe { sendfile64_looking(to, from, offset, count) }
}

/// # Safety
/// As sendfile(2).
#[inline(never)]
unsafe fn sendfile64_looking(
    to: c_int,
    from: c_int,
    offset: *mut off64_t,
    count: size_t,
) -> ssize_t {
    // SAFETY: the caller keeps what sendfile(2) asks.
    let passing = match unsafe { copy_file(to, from, offset, count) } {
        Ok(result) => return result,
        Err(passing) => passing,
    };
    // SAFETY: as above.
    let result = unsafe { next::sendfile64(to, from, offset, count) };
    passing.note(false, result, std::iter::empty());
    result
}

/// # Safety
/// As for sendfile(2).
unsafe fn copy_file(
    to: c_int,
    from: c_int,
    offset: *mut off64_t,
    count: size_t,
) -> Result<ssize_t, Passing> {
    let answer = call(to, |stream| {
        // SAFETY: the caller's own, or null.
        let offset = unsafe { offset.as_mut() };
        match borrowed(from) {
            Some(from) => stream.send_file(from, offset, count),
            None => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    });
    written(answer, 0)
}

/// # Safety
/// As splice(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn splice(
    from: c_int,
    from_offset: *mut loff_t,
    to: c_int,
    to_offset: *mut loff_t,
    size: size_t,
    flags: c_uint,
) -> ssize_t {
    // The kernel moves nothing between a pipe and memory of ours. EINVAL is what splice(2) says where
    // it cannot, and programs copy then.
    let mut passing = None;
    if !TABLE.is_empty() {
        for (fd, is_read) in [(from, true), (to, false)] {
            // One that may move comes back to TCP, where the kernel can.
            to_kernel(fd);
            match length(call(fd, Stream::splice)) {
                Ok(result) => return result,
                Err(one) => passing = one.is_counted().then_some((one, is_read)).or(passing),
            }
        }
    }
    // SAFETY: the caller keeps what splice(2) asks.
    let result = unsafe { next::splice(from, from_offset, to, to_offset, size, flags) };
    if let Some((passing, is_read)) = passing {
        passing.note(is_read, result, std::iter::empty());
    }
    result
}
