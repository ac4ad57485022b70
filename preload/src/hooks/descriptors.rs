//! Sockets' and descriptors' lives: listen, accept, connect, close, dup, fcntl, ioctl.

use std::ffi::{c_int, c_uint, c_ulong};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;

use libc::{sockaddr, socklen_t};
use rustix::net::SocketFlags;
use san_switch::program::{Accepted, Held, Opened, Program, Role, Stream};

use crate::address;
use crate::held::{
    closed, copied_in_borrowed_memory, held, is_borrowed_memory, on_stream, program, put,
    to_kernel, track, upgrading,
};
use crate::inside::{Answer, inside};
use crate::kernel::borrowed;
use crate::next::{self, set_errno};
use crate::table::TABLE;

/// # Safety
/// As listen(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn listen(fd: c_int, backlog: c_int) -> c_int {
    // SAFETY: listen(2) asks nothing of memory.
    let result = unsafe { next::listen(fd, backlog) };
    if result == 0
        && let Some(program) = program()
        && !program.is_upgrading()
        && is_tcp(fd)
    {
        let _ = inside(|| {
            if TABLE.find(fd).is_none_or(|held| held.is_inherited()) {
                put(fd, Arc::new(Held::Listening(program.listen(backlog))));
            }
            Ok(Some(()))
        });
    }
    result
}

/// Whether it is a stream socket over IP, which multipath TCP's are not.
fn is_tcp(fd: c_int) -> bool {
    use rustix::net::sockopt::{socket_domain, socket_protocol, socket_type};
    use rustix::net::{AddressFamily, SocketType, ipproto};
    let Some(fd) = borrowed(fd) else {
        return false;
    };
    let is_ip = matches!(
        socket_domain(fd),
        Ok(AddressFamily::INET | AddressFamily::INET6)
    );
    is_ip
        && socket_type(fd) == Ok(SocketType::STREAM)
        && socket_protocol(fd) == Ok(Some(ipproto::TCP))
}

/// # Safety
/// As accept(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn accept(
    fd: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
) -> c_int {
    // SAFETY: the caller keeps what accept(2) asks.
    if let Some(result) = unsafe { take(fd, address, length, 0) } {
        return result;
    }
    // SAFETY: as above.
    accepted(unsafe { next::accept(fd, address, length) })
}

/// A TCP connection that was accepted may move later.
fn accepted(number: c_int) -> c_int {
    if number >= 0
        && let Some(program) = program()
        && program.is_upgrading()
        && has_protocol_tcp(number)
    {
        track(number, Role::Acceptor);
    }
    number
}

fn has_protocol_tcp(fd: c_int) -> bool {
    use rustix::net::{ipproto, sockopt::socket_protocol};
    borrowed(fd).is_some_and(|fd| socket_protocol(fd) == Ok(Some(ipproto::TCP)))
}

/// # Safety
/// As accept4(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn accept4(
    fd: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller keeps what accept4(2) asks.
    if let Some(result) = unsafe { take(fd, address, length, flags) } {
        return result;
    }
    // SAFETY: as above.
    accepted(unsafe { next::accept4(fd, address, length, flags) })
}

/// # Safety
/// As for accept4(2).
unsafe fn take(
    fd: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
    flags: c_int,
) -> Option<c_int> {
    let held = held(fd)?;
    let Held::Listening(listening) = &*held else {
        return None;
    };
    let flags = SocketFlags::from_bits(flags.cast_unsigned())?;
    let accepted = inside(|| match borrowed(fd) {
        Some(fd) => listening.accept(fd, flags),
        None => Ok(None),
    });
    let (number, peer) = match accepted {
        Answer::Pass => return None,
        Answer::Failed => return Some(-1),
        Answer::Done(Accepted::Kernel(socket, peer)) => (socket.into_raw_fd(), Some(peer)),
        Answer::Done(Accepted::San(number, stream)) => {
            let peer = stream.peer_addr().ok().flatten();
            (keep(number, stream), peer)
        }
    };
    if let Some(peer) = peer {
        // SAFETY: the caller keeps what accept4(2) asks.
        unsafe { address::write(peer, address, length) };
    }
    Some(number)
}

/// A descriptor of the program's is the number of a stream.
fn keep(number: OwnedFd, stream: Stream) -> c_int {
    let number = number.into_raw_fd();
    put(number, Arc::new(Held::Stream(stream)));
    number
}

/// # Safety
/// As connect(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn connect(
    fd: c_int,
    address: *const sockaddr,
    length: socklen_t,
) -> c_int {
    match on_stream(fd, Stream::connect_again) {
        Answer::Done(()) => return 0,
        Answer::Failed => return -1,
        Answer::Pass => {}
    }
    if program().is_some_and(Program::is_upgrading) {
        // SAFETY: as above.
        return unsafe { connect_over_tcp(fd, address, length) };
    }
    if let Some(program) = program()
        // SAFETY: the caller keeps what connect(2) asks.
        && let Some(destination) = unsafe { address::read(address, length) }
        && is_tcp(fd)
    {
        let opened = inside(|| match borrowed(fd) {
            Some(fd) => program.connect(fd, destination).map(Some),
            None => Ok(None),
        });
        match opened {
            Answer::Failed => return -1,
            Answer::Done(Opened::Done(stream)) => {
                put(fd, Arc::new(Held::Stream(stream)));
                return 0;
            }
            Answer::Done(Opened::InProgress(stream)) => {
                put(fd, Arc::new(Held::Stream(stream)));
                set_errno(libc::EINPROGRESS);
                return -1;
            }
            Answer::Done(Opened::Kernel) | Answer::Pass => {}
        }
    }
    // SAFETY: the caller keeps what connect(2) asks.
    unsafe { next::connect(fd, address, length) }
}

/// The kernel's connect; the connection may move later.
///
/// # Safety
/// As connect(2).
unsafe fn connect_over_tcp(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
    // SAFETY: the caller keeps what connect(2) asks.
    let destination = unsafe { address::read(address, length) };
    // SAFETY: as above.
    let result = unsafe { next::connect(fd, address, length) };
    let errno = next::errno();
    let begins = result == 0 || errno == libc::EINPROGRESS;
    if begins && destination.is_some() && upgrading(fd).is_none() && has_protocol_tcp(fd) {
        track(fd, Role::Connector);
        set_errno(errno);
    }
    result
}

/// # Safety
/// As close(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn close(fd: c_int) -> c_int {
    forget(fd);
    // SAFETY: the caller has this descriptor.
    unsafe { next::close(fd) }
}

/// What is under this number goes with it, before the kernel may give the number to another thread.
pub(super) fn forget(fd: c_int) {
    if !TABLE.is_empty() && !crate::inside::is_inside() && !is_borrowed_memory() {
        closed(fd);
    }
}

pub(super) fn forget_range(first: c_uint, last: c_uint) {
    if !TABLE.is_empty() && !crate::inside::is_inside() && !is_borrowed_memory() {
        for fd in TABLE.numbers(first, last) {
            closed(fd);
        }
    }
}

/// # Safety
/// As close_range(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    if flags.cast_unsigned() & libc::CLOSE_RANGE_CLOEXEC == 0 {
        forget_range(first, last);
    }
    // SAFETY: the caller has these descriptors.
    unsafe { next::close_range(first, last, flags) }
}

/// # Safety
/// As closefrom(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn closefrom(first: c_int) {
    forget_range(first.max(0).cast_unsigned(), u32::MAX);
    next::close_from(first);
}

/// A copy of a descriptor is the same thing.
pub(super) fn copied(fd: c_int, to: c_int) -> c_int {
    if to < 0 || fd == to || TABLE.is_empty() {
        return to;
    }
    if is_borrowed_memory() {
        copied_in_borrowed_memory(fd, to);
    } else if let Some(held) = TABLE.find(fd)
        && !crate::inside::is_inside()
    {
        put(to, held);
    }
    to
}

/// # Safety
/// As dup(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn dup(fd: c_int) -> c_int {
    // SAFETY: the caller has this descriptor.
    copied(fd, unsafe { next::dup(fd) })
}

/// # Safety
/// As dup2(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn dup2(fd: c_int, to: c_int) -> c_int {
    replaced(fd, to);
    // SAFETY: the caller has these descriptors.
    copied(fd, unsafe { next::dup2(fd, to) })
}

/// # Safety
/// As dup3(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn dup3(fd: c_int, to: c_int, flags: c_int) -> c_int {
    if flags & !libc::O_CLOEXEC == 0 {
        replaced(fd, to);
    }
    // SAFETY: the caller has these descriptors.
    copied(fd, unsafe { next::dup3(fd, to, flags) })
}

/// A call puts a copy of `fd` under the number `to`: what is there goes while the number is still its own, if the call
/// can be made.
pub(super) fn replaced(fd: c_int, to: c_int) {
    if fd != to && TABLE.find(to).is_some() && is_open(fd) {
        forget(to);
    }
}

fn is_open(fd: c_int) -> bool {
    borrowed(fd).is_some_and(|fd| rustix::io::fcntl_getfd(fd).is_ok())
}

fn mode_changed(fd: c_int, is_nonblocking: bool) {
    let _ = on_stream(fd, |stream| {
        stream.set_nonblocking(is_nonblocking)?;
        Ok(Some(()))
    });
}

pub(super) fn controlled(fd: c_int, command: c_int, argument: usize, result: c_int) -> c_int {
    if result >= 0 && !TABLE.is_empty() {
        match command {
            libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => return copied(fd, result),
            // The flags are an int.
            libc::F_SETFL => mode_changed(fd, argument as c_int & libc::O_NONBLOCK != 0),
            _ => {}
        }
    }
    result
}

/// # Safety
/// As fcntl(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the caller keeps what fcntl(2) asks.
    let result = unsafe { next::fcntl(fd, command, argument) };
    controlled(fd, command, argument, result)
}

/// # Safety
/// As fcntl(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the caller keeps what fcntl(2) asks.
    let result = unsafe { next::fcntl64(fd, command, argument) };
    controlled(fd, command, argument, result)
}

/// linux/sockios.h.
const SIOCATMARK: c_ulong = 0x8905;

/// Whether the urgent byte is next. Who asks a connection that may move knows TCP's urgent data.
fn mark(fd: c_int) -> Answer<bool> {
    to_kernel(fd);
    on_stream(fd, Stream::is_at_mark)
}

/// # Safety
/// As sockatmark(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn sockatmark(fd: c_int) -> c_int {
    match mark(fd) {
        Answer::Done(is_at) => c_int::from(is_at),
        Answer::Failed => -1,
        // SAFETY: it asks nothing of memory.
        Answer::Pass => unsafe { next::sockatmark(fd) },
    }
}

/// # Safety
/// As ioctl(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int {
    if request == libc::FIONREAD {
        match on_stream(fd, Stream::waiting_bytes) {
            Answer::Done(bytes) => {
                let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
                // SAFETY: the caller gives the address of an int.
                unsafe { *(argument as *mut c_int) = bytes };
                return 0;
            }
            Answer::Failed => return -1,
            Answer::Pass => {}
        }
    }
    if request == SIOCATMARK {
        match mark(fd) {
            Answer::Done(is_at) => {
                // SAFETY: the caller gives the address of an int.
                unsafe { *(argument as *mut c_int) = c_int::from(is_at) };
                return 0;
            }
            Answer::Failed => return -1,
            Answer::Pass => {}
        }
    }
    // SAFETY: the caller keeps what ioctl(2) asks.
    let result = unsafe { next::ioctl(fd, request, argument) };
    if result == 0 && request == libc::FIONBIO && held(fd).is_some() {
        // SAFETY: the kernel has just read the int.
        mode_changed(fd, unsafe { *(argument as *const c_int) } != 0);
    }
    result
}
