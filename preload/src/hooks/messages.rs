//! recvmsg, sendmsg and their lists.

use std::ffi::{c_int, c_uint};

use libc::{mmsghdr, msghdr, ssize_t, timespec};

use super::data::{buffers, fault, length, parts, receiving, sending, were_moved, written};
use crate::held::{Called, Passing, call, to_kernel, upgrading};
use crate::next;
use crate::table::TABLE;

/// # Safety
/// As for recvmsg(2).
unsafe fn receive(fd: c_int, message: *mut msghdr, flags: c_int) -> Called<usize> {
    if flags & libc::MSG_OOB != 0 {
        to_kernel(fd);
    }
    call(fd, |stream| {
        // SAFETY: the caller's own, as recvmsg(2) asks, or null.
        let message = unsafe { message.as_mut() }.ok_or_else(fault)?;
        // SAFETY: the same.
        let buffers = unsafe { buffers(message.msg_iov, message.msg_iovlen) };
        let received = stream.receive(buffers, receiving(flags))?;
        if received.is_some() {
            (message.msg_namelen, message.msg_controllen) = (0, 0);
            message.msg_flags = flags & libc::MSG_OOB;
        }
        Ok(received)
    })
}

/// # Safety
/// As for sendmsg(2).
unsafe fn transmit(fd: c_int, message: *const msghdr, flags: c_int) -> Called<usize> {
    if flags & libc::MSG_OOB != 0 {
        to_kernel(fd);
    }
    call(fd, |stream| {
        // SAFETY: the caller's own, as sendmsg(2) asks, or null.
        let message = unsafe { message.as_ref() }.ok_or_else(fault)?;
        // SAFETY: the same.
        let parts = unsafe { parts(message.msg_iov, message.msg_iovlen) };
        stream.send(parts, sending(flags))
    })
}

/// # Safety
/// As recvmsg(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what recvmsg(2) asks.
        return unsafe { next::recvmsg(fd, message, flags) };
    }
    // SAFETY: the same.
    unsafe { recvmsg_looking(fd, message, flags) }
}

/// # Safety
/// As recvmsg(2).
#[inline(never)]
unsafe fn recvmsg_looking(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller keeps what recvmsg(2) asks.
    let passing = match length(unsafe { receive(fd, message, flags) }) {
        Ok(result) => return result,
        Err(passing) => passing,
    };
    // SAFETY: as above.
    let result = unsafe { next::recvmsg(fd, message, flags) };
    if flags & (libc::MSG_PEEK | libc::MSG_ERRQUEUE) == 0 && result > 0 {
        // SAFETY: the kernel has just read the header.
        unsafe { counted(&passing, true, message, result) };
    }
    result
}

/// What the kernel has moved is counted.
///
/// # Safety
/// The header and its parts are there, as recvmsg(2) and sendmsg(2) ask.
unsafe fn counted(passing: &Passing, is_read: bool, message: *const msghdr, result: ssize_t) {
    // SAFETY: the caller says so.
    let message = unsafe { &*message };
    // SAFETY: the same.
    unsafe {
        were_moved(
            passing,
            is_read,
            message.msg_iov,
            message.msg_iovlen,
            result,
        );
    }
}

/// Connections that are given to another process are the kernel's from now on.
///
/// # Safety
/// As sendmsg(2).
unsafe fn before_rights(message: *const msghdr) {
    if TABLE.is_empty() || message.is_null() {
        return;
    }
    // SAFETY: the caller says so; the header has no control messages if its length is 0.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: the macro gives a header of the caller's, or null.
    while let Some(one) = unsafe { control.as_ref() } {
        if (one.cmsg_level, one.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: the header is the caller's.
            let data = unsafe { libc::CMSG_DATA(control) }.cast::<c_int>();
            // SAFETY: it has no memory to read.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = one.cmsg_len.saturating_sub(head) / size_of::<c_int>();
            for index in 0..count {
                // SAFETY: the message has so many numbers.
                let place = unsafe { data.add(index) };
                // SAFETY: the same.
                to_kernel(unsafe { place.read_unaligned() });
            }
        }
        // SAFETY: both are the caller's.
        control = unsafe { libc::CMSG_NXTHDR(message, control) };
    }
}

/// # Safety
/// As sendmsg(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn sendmsg(
    fd: c_int,
    message: *const msghdr,
    flags: c_int,
) -> ssize_t {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what sendmsg(2) asks.
        return unsafe { next::sendmsg(fd, message, flags) };
    }
    // SAFETY: the same.
    unsafe { sendmsg_looking(fd, message, flags) }
}

/// # Safety
/// As sendmsg(2).
#[inline(never)]
unsafe fn sendmsg_looking(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller keeps what sendmsg(2) asks.
    unsafe { before_rights(message) };
    // SAFETY: as above.
    let passing = match written(unsafe { transmit(fd, message, flags) }, flags) {
        Ok(result) => return result,
        Err(passing) => passing,
    };
    // SAFETY: as above.
    let result = unsafe { next::sendmsg(fd, message, flags) };
    if result > 0 {
        // SAFETY: the kernel has just read the header.
        unsafe { counted(&passing, false, message, result) };
    }
    result
}

/// Goes through a list until one message has come to nothing, which counts only if it is the first.
///
/// # Safety
/// As for recvmmsg(2): `count` headers are there.
unsafe fn through(
    messages: *mut mmsghdr,
    count: c_uint,
    mut each: impl FnMut(*mut msghdr) -> Option<ssize_t>,
) -> Option<c_int> {
    let mut done = 0;
    for index in 0..count as usize {
        // SAFETY: it is one of the `count`.
        let message = unsafe { messages.add(index) };
        // SAFETY: the field is there; nothing is read.
        let header = unsafe { &raw mut (*message).msg_hdr };
        let Some(result) = each(header) else {
            // The list's rest is the kernel's: it is asked with the next call.
            return (done > 0).then_some(done);
        };
        let Ok(length) = c_uint::try_from(result) else {
            return Some(if done > 0 { done } else { -1 });
        };
        // SAFETY: the caller's own, and nobody else has it.
        unsafe { (*message).msg_len = length };
        done += 1;
        if length == 0 {
            break;
        }
    }
    Some(done)
}

/// # Safety
/// As recvmmsg(2). Only the first message is waited for.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    if !TABLE.is_empty() {
        let mut how = flags & !libc::MSG_WAITFORONE;
        let upgrades = upgrading(fd).is_some();
        let receive = |header| {
            let result = match upgrades {
                // SAFETY: the same.
                true => Some(unsafe { recvmsg(fd, header, how) }),
                // SAFETY: the same.
                false => length(unsafe { receive(fd, header, how) }).ok(),
            };
            how |= libc::MSG_DONTWAIT;
            result
        };
        // SAFETY: as above.
        if let Some(result) = unsafe { through(messages, count, receive) } {
            return result;
        }
    }
    // SAFETY: the caller keeps what recvmmsg(2) asks.
    unsafe { next::recvmmsg(fd, messages, count, flags, timeout) }
}

/// # Safety
/// As sendmmsg(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn sendmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
) -> c_int {
    if !TABLE.is_empty() {
        let upgrades = upgrading(fd).is_some();
        let transmit = |header: *mut msghdr| match upgrades {
            // SAFETY: the caller keeps what sendmmsg(2) asks.
            true => Some(unsafe { sendmsg(fd, header, flags) }),
            // SAFETY: the same.
            false => written(unsafe { transmit(fd, header, flags) }, flags).ok(),
        };
        // SAFETY: as above.
        if let Some(result) = unsafe { through(messages, count, transmit) } {
            return result;
        }
    }
    // SAFETY: as above.
    unsafe { next::sendmmsg(fd, messages, count, flags) }
}
