//! Names and options of sockets, and shutdown.

use std::ffi::{c_int, c_void};
use std::net::Shutdown;
use std::time::Duration;

use libc::{sockaddr, socklen_t, timeval};

use san_switch::program::{SetOption, Stream, TcpInfo};

use crate::address;
use crate::held::{is_moving_kind, on_stream, to_kernel};
use crate::inside::Answer;
use crate::kernel::{ACKED, RECEIVED};
use crate::next;
use crate::table::TABLE;

/// # Safety
/// As getsockname(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn getsockname(
    fd: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
) -> c_int {
    match on_stream(fd, Stream::local_addr) {
        Answer::Done(local) => {
            // SAFETY: the caller keeps what getsockname(2) asks.
            unsafe { address::write(local, address, length) };
            0
        }
        Answer::Failed => -1,
        // SAFETY: the same.
        Answer::Pass => unsafe { next::getsockname(fd, address, length) },
    }
}

/// # Safety
/// As getpeername(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn getpeername(
    fd: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
) -> c_int {
    match on_stream(fd, Stream::peer_addr) {
        Answer::Done(peer) => {
            // SAFETY: the caller keeps what getpeername(2) asks.
            unsafe { address::write(peer, address, length) };
            0
        }
        Answer::Failed => -1,
        // SAFETY: the same.
        Answer::Pass => unsafe { next::getpeername(fd, address, length) },
    }
}

/// # Safety
/// As getsockopt(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    length: *mut socklen_t,
) -> c_int {
    if (level, name) == (libc::SOL_SOCKET, libc::SO_ERROR) {
        match on_stream(fd, Stream::take_error) {
            Answer::Done(errno) => {
                // SAFETY: the caller keeps what getsockopt(2) asks.
                return unsafe { give(&errno.to_ne_bytes(), value, length) };
            }
            Answer::Failed => return -1,
            Answer::Pass => {}
        }
    }
    let mut told = None;
    if (level, name) == (libc::IPPROTO_TCP, libc::TCP_INFO) && !length.is_null() {
        match on_stream(fd, Stream::tcp_info) {
            Answer::Done(info) if is_moving_kind(fd) => told = Some(info),
            // SAFETY: the caller keeps what getsockopt(2) asks.
            Answer::Done(info) => return unsafe { give(&written(info), value, length) },
            Answer::Failed => return -1,
            Answer::Pass => {}
        }
    }
    // SAFETY: the caller keeps what getsockopt(2) asks.
    let result = unsafe { next::getsockopt(fd, level, name, value, length) };
    // Of one that has moved the kernel's counts go on; how far its directions are the stream says.
    if let (0, Some(info)) = (result, told)
        // SAFETY: the kernel has just written it.
        && unsafe { *length } > 0
    {
        // SAFETY: the state is the first of the bytes that were written.
        unsafe { *value.cast::<u8>() = info.state };
    }
    result
}

/// Where `struct tcp_info` (linux/tcp.h) has what is told, and how long it is with that.
const SEND_MESSAGE: usize = 16;
const RECEIVE_MESSAGE: usize = 20;
const UNACKNOWLEDGED: usize = 24;
const NOT_SENT: usize = 144;
const INFO: usize = 232;

/// The structure of TCP_INFO. What nobody measures is 0.
fn written(info: TcpInfo) -> [u8; INFO] {
    let mut bytes = [0; INFO];
    bytes[0] = info.state;
    let words = [
        (SEND_MESSAGE, info.message),
        (RECEIVE_MESSAGE, info.message),
        (UNACKNOWLEDGED, info.unacknowledged),
        (NOT_SENT, info.unsent),
    ];
    for (at, word) in words {
        bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    for (at, long) in [(ACKED, info.sent), (RECEIVED, info.received)] {
        bytes[at..at + 8].copy_from_slice(&long.to_ne_bytes());
    }
    bytes
}

/// # Safety
/// As for getsockopt(2).
unsafe fn give(bytes: &[u8], value: *mut c_void, length: *mut socklen_t) -> c_int {
    if value.is_null() || length.is_null() {
        next::set_errno(libc::EFAULT);
        return -1;
    }
    // SAFETY: the caller's own.
    let room = unsafe { *length } as usize;
    let count = room.min(bytes.len());
    // SAFETY: the caller has `room` bytes there.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.cast::<u8>(), count) };
    // SAFETY: the caller's own.
    unsafe { *length = count as socklen_t };
    0
}

/// # Safety
/// As setsockopt(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    length: socklen_t,
) -> c_int {
    if (level, name) == (libc::SOL_SOCKET, libc::SO_ZEROCOPY)
        && !matches!(on_stream(fd, |_| Ok(Some(()))), Answer::Pass)
    {
        // Nobody would say when the bytes may be changed again.
        next::set_errno(libc::EOPNOTSUPP);
        return -1;
    }
    // SAFETY: the caller keeps what setsockopt(2) asks.
    let result = unsafe { next::setsockopt(fd, level, name, value, length) };
    if result == 0 && level == libc::SOL_SOCKET && !TABLE.is_empty() {
        // SAFETY: the kernel has just read so much.
        unsafe { was_set(fd, name, value, length as usize) };
    }
    result
}

/// The kernel has set an option of a socket, and the stream is told.
///
/// # Safety
/// So many bytes are there.
unsafe fn was_set(fd: c_int, name: c_int, value: *const c_void, length: usize) {
    let receives = name == libc::SO_RCVTIMEO;
    if (receives || name == libc::SO_SNDTIMEO) && length >= size_of::<timeval>() {
        // SAFETY: the caller says so.
        let timeout = duration(unsafe { value.cast::<timeval>().read_unaligned() });
        let _ = on_stream(fd, |stream| {
            match receives {
                true => stream.set_receive_timeout(timeout)?,
                false => stream.set_send_timeout(timeout)?,
            }
            Ok(Some(()))
        });
        return;
    }
    let option = match name {
        libc::SO_LINGER if length >= size_of::<libc::linger>() => {
            // SAFETY: the caller says so.
            let linger = unsafe { value.cast::<libc::linger>().read_unaligned() };
            let seconds = u64::try_from(linger.l_linger).unwrap_or(0);
            SetOption::Linger((linger.l_onoff != 0).then(|| Duration::from_secs(seconds)))
        }
        libc::SO_OOBINLINE | libc::SO_SNDBUF | libc::SO_RCVBUF if length >= size_of::<c_int>() => {
            // SAFETY: the caller says so.
            let number = unsafe { value.cast::<c_int>().read_unaligned() };
            let bytes = usize::try_from(number).unwrap_or(0);
            match name {
                libc::SO_OOBINLINE => {
                    // TCP has urgent data of its own: one that may move stays there.
                    to_kernel(fd);
                    SetOption::UrgentInline(number != 0)
                }
                libc::SO_SNDBUF => SetOption::SendBuffer(bytes),
                _ => SetOption::ReceiveBuffer(bytes),
            }
        }
        _ => return,
    };
    let _ = on_stream(fd, |stream| stream.set_option(option));
}

fn duration(time: timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

/// # Safety
/// As shutdown(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn shutdown(fd: c_int, how: c_int) -> c_int {
    let half = match how {
        libc::SHUT_RD => Some(Shutdown::Read),
        libc::SHUT_WR => Some(Shutdown::Write),
        libc::SHUT_RDWR => Some(Shutdown::Both),
        _ => None,
    };
    if let Some(half) = half {
        match on_stream(fd, |stream| stream.shutdown(half)) {
            Answer::Done(()) => return 0,
            Answer::Failed => return -1,
            Answer::Pass => {}
        }
    }
    // SAFETY: shutdown(2) asks nothing of memory.
    unsafe { next::shutdown(fd, how) }
}
