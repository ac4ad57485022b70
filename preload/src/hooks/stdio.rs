//! Streams of stdio on sockets. libc reads and writes them by calls of its own, of which no hook hears.
//!
//! A connection that may move stays on TCP from then on. One of the direct route has no way in the kernel:
//! its stream calls the hooks ([`opened`]).

use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use libc::{FILE, size_t, ssize_t};

use super::descriptors::close;
use super::reads::read;
use super::writes::write;
use crate::held::{on_stream, to_kernel};
use crate::inside::Answer;
use crate::next::{self, Next};
use crate::table::TABLE;

/// The streams that call hooks, and the numbers that they have.
static OPENED: Mutex<Vec<(usize, c_int)>> = Mutex::new(Vec::new());
/// How many they are.
static COUNT: AtomicUsize = AtomicUsize::new(0);

#[repr(C)]
struct Functions {
    read: unsafe extern "C-unwind" fn(*mut c_void, *mut c_char, size_t) -> ssize_t,
    write: unsafe extern "C-unwind" fn(*mut c_void, *const c_char, size_t) -> ssize_t,
    seek: Option<unsafe extern "C" fn(*mut c_void, *mut i64, c_int) -> c_int>,
    close: unsafe extern "C-unwind" fn(*mut c_void) -> c_int,
}

unsafe extern "C" {
    fn fopencookie(cookie: *mut c_void, mode: *const c_char, functions: Functions) -> *mut FILE;
    fn vasprintf(to: *mut *mut c_char, format: *const c_char, arguments: *mut c_void) -> c_int;
}

/// The number is what the stream has for a cookie.
fn number(cookie: *mut c_void) -> c_int {
    c_int::try_from(cookie.addr()).unwrap_or(-1)
}

unsafe extern "C-unwind" fn read_some(
    cookie: *mut c_void,
    to: *mut c_char,
    size: size_t,
) -> ssize_t {
    // SAFETY: libc gives a buffer of its own, of this size.
    unsafe { read(number(cookie), to.cast(), size) }
}

unsafe extern "C-unwind" fn write_all(
    cookie: *mut c_void,
    from: *const c_char,
    size: size_t,
) -> ssize_t {
    // SAFETY: libc gives bytes of its own, so many.
    let written = unsafe { write_out(number(cookie), from, size) };
    // For libc 0 is what failed.
    written.max(0)
}

/// Writes all; how many went, or -1 if none did.
///
/// # Safety
/// So many bytes are there.
unsafe fn write_out(fd: c_int, from: *const c_char, size: size_t) -> ssize_t {
    let mut written = 0;
    while written < size {
        // SAFETY: it is within the bytes.
        let rest = unsafe { from.add(written) };
        // SAFETY: so many are left.
        let took = unsafe { write(fd, rest.cast(), size - written) };
        match usize::try_from(took) {
            Ok(took) => written += took,
            Err(_) if written == 0 => return -1,
            Err(_) => break,
        }
    }
    ssize_t::try_from(written).unwrap_or(ssize_t::MAX)
}

unsafe extern "C-unwind" fn close_it(cookie: *mut c_void) -> c_int {
    let fd = number(cookie);
    let mut all = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|(_, one)| *one != fd);
    COUNT.store(all.len(), Ordering::Release);
    drop(all);
    // SAFETY: the stream has this descriptor.
    unsafe { close(fd) }
}

/// A stream that calls the hooks.
///
/// # Safety
/// As fdopen(3).
unsafe fn opened(fd: c_int, mode: *const c_char) -> *mut FILE {
    let functions = Functions {
        read: read_some,
        write: write_all,
        seek: None,
        close: close_it,
    };
    let cookie = std::ptr::without_provenance_mut(fd.unsigned_abs() as usize);
    // SAFETY: the mode is a C string, as fdopen(3) asks, and the functions take this cookie.
    let stream = unsafe { fopencookie(cookie, mode, functions) };
    if !stream.is_null() {
        let mut all = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((stream.addr(), fd));
        COUNT.store(all.len(), Ordering::Release);
    }
    stream
}

/// Whether the SAN alone carries what is under this number, on the direct route. One that may move stays on
/// TCP from now on.
fn is_sans(fd: c_int) -> bool {
    if TABLE.is_empty() {
        return false;
    }
    to_kernel(fd);
    !matches!(on_stream(fd, |_| Ok(Some(()))), Answer::Pass) && !crate::held::is_moving_kind(fd)
}

/// # Safety
/// As fdopen(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
    static FDOPEN: Next = Next::new(c"fdopen");
    if is_sans(fd) {
        // SAFETY: the caller keeps what fdopen(3) asks.
        return unsafe { opened(fd, mode) };
    }
    type Function = unsafe extern "C-unwind" fn(c_int, *const c_char) -> *mut FILE;
    // SAFETY: every libc has the function, as its header says.
    let function = unsafe { std::mem::transmute::<*mut c_void, Function>(FDOPEN.address()) };
    // SAFETY: the caller keeps what fdopen(3) asks.
    unsafe { function(fd, mode) }
}

fn number_of(stream: *mut FILE) -> Option<c_int> {
    if COUNT.load(Ordering::Acquire) == 0 {
        return None;
    }
    let all = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let found = all.iter().find(|(one, _)| *one == stream.addr());
    found.map(|(_, fd)| *fd)
}

/// # Safety
/// As fileno(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn fileno(stream: *mut FILE) -> c_int {
    match number_of(stream) {
        Some(fd) => fd,
        // SAFETY: the caller keeps what fileno(3) asks.
        None => unsafe { next::fileno(stream) },
    }
}

/// # Safety
/// As fileno(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn fileno_unlocked(stream: *mut FILE) -> c_int {
    match number_of(stream) {
        Some(fd) => fd,
        // SAFETY: the caller keeps what fileno(3) asks.
        None => unsafe { next::fileno_unlocked(stream) },
    }
}

/// Formats and writes to a stream over the SAN.
///
/// # Safety
/// As vdprintf(3).
unsafe fn print(fd: c_int, format: *const c_char, arguments: *mut c_void) -> c_int {
    let mut text = std::ptr::null_mut();
    // SAFETY: the caller keeps what vdprintf(3) asks; the place is local.
    let length = unsafe { vasprintf(&raw mut text, format, arguments) };
    let Ok(size) = usize::try_from(length) else {
        return -1;
    };
    // SAFETY: so many characters are there.
    let written = unsafe { write_out(fd, text, size) };
    let errno = next::errno();
    // SAFETY: vasprintf(3) has allocated it, and nobody else has it.
    unsafe { libc::free(text.cast()) };
    next::set_errno(errno);
    c_int::try_from(written).unwrap_or(-1)
}

/// # Safety
/// As vdprintf(3). A `va_list` is passed by its address on x86-64 and aarch64.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn vdprintf(
    fd: c_int,
    format: *const c_char,
    arguments: *mut c_void,
) -> c_int {
    if is_sans(fd) {
        // SAFETY: the caller keeps what vdprintf(3) asks.
        return unsafe { print(fd, format, arguments) };
    }
    // SAFETY: as above.
    unsafe { next::vdprintf(fd, format, arguments) }
}

/// # Safety
/// As vdprintf(3).
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn __vdprintf_chk(
    fd: c_int,
    flag: c_int,
    format: *const c_char,
    arguments: *mut c_void,
) -> c_int {
    if is_sans(fd) {
        // SAFETY: the caller keeps what vdprintf(3) asks.
        return unsafe { print(fd, format, arguments) };
    }
    // SAFETY: as above.
    unsafe { next::__vdprintf_chk(fd, flag, format, arguments) }
}

/// What dprintf does before libc's is entered, whose address it gives.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod variadic {
    use super::{Next, c_int, c_void, to_kernel};
    use crate::hooks::variadic::pass_on;

    extern "C" fn before_dprintf(fd: c_int) -> *mut c_void {
        static DPRINTF: Next = Next::new(c"dprintf");
        to_kernel(fd);
        DPRINTF.address()
    }

    extern "C" fn before_dprintf_chk(fd: c_int) -> *mut c_void {
        static DPRINTF_CHK: Next = Next::new(c"__dprintf_chk");
        to_kernel(fd);
        DPRINTF_CHK.address()
    }

    pass_on!(dprintf, before_dprintf, "As dprintf(3).");
    pass_on!(__dprintf_chk, before_dprintf_chk, "As dprintf(3).");
}
