//! Names and options of sockets, and shutdown.

use std::ffi::{c_int, c_void};
use std::net::Shutdown;
use std::time::Duration;

use libc::{sockaddr, socklen_t, timeval};

use san_switch::program::Stream;

use crate::address;
use crate::held::on_stream;
use crate::inside::Answer;
use crate::next;

/// tcpi_state of TCP_INFO.
const ESTABLISHED: u8 = 1;

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
                return unsafe { give_number(errno, value, length) };
            }
            Answer::Failed => return -1,
            Answer::Pass => {}
        }
    }
    // SAFETY: the caller keeps what getsockopt(2) asks.
    let result = unsafe { next::getsockopt(fd, level, name, value, length) };
    if result == 0 && (level, name) == (libc::IPPROTO_TCP, libc::TCP_INFO) {
        let is_connected = on_stream(fd, |stream| Ok(Some(stream.is_connected())));
        if let Answer::Done(true) = is_connected
            // SAFETY: the kernel has just written it.
            && unsafe { *length } > 0
        {
            // SAFETY: the state is the first of the bytes.
            unsafe { *value.cast::<u8>() = ESTABLISHED };
        }
    }
    result
}

/// # Safety
/// As for getsockopt(2).
unsafe fn give_number(number: c_int, value: *mut c_void, length: *mut socklen_t) -> c_int {
    if value.is_null() || length.is_null() {
        next::set_errno(libc::EFAULT);
        return -1;
    }
    let bytes = number.to_ne_bytes();
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
    if result == 0 && level == libc::SOL_SOCKET && length as usize >= size_of::<timeval>() {
        let receives = name == libc::SO_RCVTIMEO;
        if receives || name == libc::SO_SNDTIMEO {
            // SAFETY: the kernel has just read it.
            let time = unsafe { value.cast::<timeval>().read_unaligned() };
            let timeout = duration(time);
            let _ = on_stream(fd, |stream| {
                match receives {
                    true => stream.set_receive_timeout(timeout)?,
                    false => stream.set_send_timeout(timeout)?,
                }
                Ok(Some(()))
            });
        }
    }
    result
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
