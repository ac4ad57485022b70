//! recvmsg, sendmsg and their lists.

use std::ffi::{c_int, c_uint};

use libc::{mmsghdr, msghdr, ssize_t, timespec};

use super::data::{buffers, length, parts, receiving, sending, written};
use crate::held::on_stream;
use crate::inside::Answer;
use crate::next;
use crate::table::TABLE;

/// # Safety
/// As for recvmsg(2).
unsafe fn receive(fd: c_int, message: *mut msghdr, flags: c_int) -> Answer<usize> {
    on_stream(fd, |stream| {
        // SAFETY: the caller's own, as recvmsg(2) asks.
        let message = unsafe { &mut *message };
        // SAFETY: the same.
        let buffers = unsafe { buffers(message.msg_iov, message.msg_iovlen) };
        let received = stream.receive(buffers, receiving(flags))?;
        if received.is_some() {
            (
                message.msg_namelen,
                message.msg_controllen,
                message.msg_flags,
            ) = (0, 0, 0);
        }
        Ok(received)
    })
}

/// # Safety
/// As for sendmsg(2).
unsafe fn transmit(fd: c_int, message: *const msghdr, flags: c_int) -> Answer<usize> {
    on_stream(fd, |stream| {
        // SAFETY: the caller's own, as sendmsg(2) asks.
        let message = unsafe { &*message };
        // SAFETY: the same.
        let parts = unsafe { parts(message.msg_iov, message.msg_iovlen) };
        stream.send(parts, sending(flags))
    })
}

/// # Safety
/// As recvmsg(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller keeps what recvmsg(2) asks.
    if let Some(result) = length(unsafe { receive(fd, message, flags) }) {
        return result;
    }
    // SAFETY: as above.
    unsafe { next::recvmsg(fd, message, flags) }
}

/// # Safety
/// As sendmsg(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn sendmsg(
    fd: c_int,
    message: *const msghdr,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the caller keeps what sendmsg(2) asks.
    if let Some(result) = written(unsafe { transmit(fd, message, flags) }, flags) {
        return result;
    }
    // SAFETY: as above.
    unsafe { next::sendmsg(fd, message, flags) }
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
        let receive = |header| {
            // SAFETY: the caller keeps what recvmmsg(2) asks.
            let result = length(unsafe { receive(fd, header, how) });
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
        // SAFETY: the caller keeps what sendmmsg(2) asks.
        let transmit = |header: *mut msghdr| written(unsafe { transmit(fd, header, flags) }, flags);
        // SAFETY: as above.
        if let Some(result) = unsafe { through(messages, count, transmit) } {
            return result;
        }
    }
    // SAFETY: as above.
    unsafe { next::sendmmsg(fd, messages, count, flags) }
}
