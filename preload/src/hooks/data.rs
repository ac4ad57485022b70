//! What the calls that read and write bytes share.

use std::ffi::{c_int, c_void};
use std::io::{self, IoSlice, IoSliceMut};

use libc::{iovec, size_t, ssize_t};
use san_switch::program::{Receiving, Sending};

use crate::held::{Called, Passing};
use crate::next::{self, set_errno};

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
pub(super) unsafe fn was_written(
    passing: &Passing,
    start: *const c_void,
    result: ssize_t,
) -> ssize_t {
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
pub(super) fn checked(list: *const iovec, count: c_int) -> io::Result<usize> {
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
pub(super) unsafe fn buffer<'a>(start: *mut c_void, length: size_t) -> &'a mut [u8] {
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
pub(super) unsafe fn bytes<'a>(start: *const c_void, length: size_t) -> &'a [u8] {
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
