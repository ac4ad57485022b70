//! Reading and writing bytes.

use std::ffi::{c_int, c_uint, c_void};
use std::io::{self, IoSlice, IoSliceMut};

use libc::{iovec, loff_t, off_t, off64_t, size_t, sockaddr, socklen_t, ssize_t};
use san_switch::program::{Receiving, Sending, Stream};

use crate::held::{Called, Passing, call, to_kernel};
use crate::kernel::borrowed;
use crate::next::{self, set_errno};
use crate::table::TABLE;

/// The most parts that one call may have (IOV_MAX).
pub(super) const MOST_PARTS: usize = 1024;

/// What libc's function gives for this answer. `Err`: ask libc's, while this is there.
pub(super) fn length(called: Called<usize>) -> Result<ssize_t, Passing> {
    match called {
        Called::Done(length) => Ok(ssize_t::try_from(length).unwrap_or(ssize_t::MAX)),
        Called::Failed => Ok(-1),
        Called::Pass(passing) => Err(passing),
    }
}

/// As [`length`], of what was to be written: who writes after the end gets SIGPIPE, too.
pub(super) fn written(called: Called<usize>, flags: c_int) -> Result<ssize_t, Passing> {
    let failed = matches!(called, Called::Failed);
    if failed && next::errno() == libc::EPIPE && flags & libc::MSG_NOSIGNAL == 0 {
        // SAFETY: it raises a signal in this thread, as the kernel does.
        unsafe { libc::raise(libc::SIGPIPE) };
        set_errno(libc::EPIPE);
    }
    length(called)
}

/// What was read by the kernel is counted, unless it stays there.
///
/// # Safety
/// So many bytes were read to this place.
pub(super) unsafe fn was_read(
    passing: &Passing,
    start: *const c_void,
    result: ssize_t,
    flags: c_int,
) -> ssize_t {
    if flags & libc::MSG_PEEK == 0 {
        let size = usize::try_from(result).unwrap_or(0);
        // SAFETY: the caller says so.
        let piece = std::iter::once_with(|| unsafe { bytes(start, size) });
        passing.note(true, result, piece);
    }
    result
}

/// What was written by the kernel is counted.
///
/// # Safety
/// So many bytes were written from this place.
unsafe fn was_written(passing: &Passing, start: *const c_void, result: ssize_t) -> ssize_t {
    let size = usize::try_from(result).unwrap_or(0);
    // SAFETY: the caller says so.
    passing.note(
        false,
        result,
        std::iter::once_with(|| unsafe { bytes(start, size) }),
    );
    result
}

/// As [`was_read`] and [`was_written`], in parts.
///
/// # Safety
/// The parts are there, as readv(2) and writev(2) ask.
pub(super) unsafe fn were_moved(
    passing: &Passing,
    is_read: bool,
    list: *const iovec,
    count: usize,
    result: ssize_t,
) {
    // SAFETY: the caller says so.
    let parts = unsafe { parts(list, count) };
    passing.note(is_read, result, parts.iter().map(|part| &**part));
}

pub(super) fn receiving(flags: c_int) -> Receiving {
    Receiving {
        at_once: flags & libc::MSG_DONTWAIT != 0,
        peek: flags & libc::MSG_PEEK != 0,
        all: flags & libc::MSG_WAITALL != 0,
        urgent: flags & libc::MSG_OOB != 0,
    }
}

pub(super) fn sending(flags: c_int) -> Sending {
    Sending {
        at_once: flags & libc::MSG_DONTWAIT != 0,
        urgent: flags & libc::MSG_OOB != 0,
    }
}

/// Nothing is where the caller says that something is.
pub(super) fn fault() -> io::Error {
    io::Error::from_raw_os_error(libc::EFAULT)
}

/// A list of so many parts, as readv(2) and writev(2) check it.
///
/// # Errors
/// EINVAL, EFAULT.
fn checked(list: *const iovec, count: c_int) -> io::Result<usize> {
    match usize::try_from(count) {
        Ok(count) if count <= MOST_PARTS => match list.is_null() && count > 0 {
            true => Err(fault()),
            false => Ok(count),
        },
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// A caller's buffer.
///
/// # Safety
/// `length` bytes there may be written until the slice is gone, as for read(2).
unsafe fn buffer<'a>(start: *mut c_void, length: size_t) -> &'a mut [u8] {
    if start.is_null() {
        return &mut [];
    }
    // SAFETY: the caller says so.
    unsafe { std::slice::from_raw_parts_mut(start.cast(), length.min(isize::MAX as usize)) }
}

/// A caller's bytes.
///
/// # Safety
/// `length` bytes there may be read until the slice is gone, as for write(2).
unsafe fn bytes<'a>(start: *const c_void, length: size_t) -> &'a [u8] {
    if start.is_null() {
        return &[];
    }
    // SAFETY: the caller says so.
    unsafe { std::slice::from_raw_parts(start.cast(), length.min(isize::MAX as usize)) }
}

/// A caller's buffers.
///
/// # Safety
/// As for readv(2).
pub(super) unsafe fn buffers<'a>(parts: *mut iovec, count: usize) -> &'a mut [IoSliceMut<'a>] {
    if parts.is_null() {
        return &mut [];
    }
    // SAFETY: an `IoSliceMut` is an iovec, which std promises, and the caller says that they are there.
    unsafe { std::slice::from_raw_parts_mut(parts.cast(), count.min(MOST_PARTS)) }
}

/// A caller's parts.
///
/// # Safety
/// As for writev(2).
pub(super) unsafe fn parts<'a>(parts: *const iovec, count: usize) -> &'a [IoSlice<'a>] {
    if parts.is_null() {
        return &[];
    }
    // SAFETY: an `IoSlice` is an iovec, which std promises, and the caller says that they are there.
    unsafe { std::slice::from_raw_parts(parts.cast(), count.min(MOST_PARTS)) }
}

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
