//! How a hook calls the switch: marked, so that the switch's own calls pass; errno kept; panics held.

use std::cell::Cell;
use std::ffi::c_int;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::next::{errno, set_errno};

thread_local! {
    /// This thread is in the switch.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in the switch: then every hook passes its call on.
#[inline]
pub(crate) fn is_inside() -> bool {
    INSIDE.with(Cell::get)
}

/// Holds what was the case before.
struct Inside(bool);

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.with(|inside| inside.set(self.0));
    }
}

/// What a hook does with a call.
pub(crate) enum Answer<T> {
    /// It is answered.
    Done(T),
    /// It failed; errno is set.
    Failed,
    /// It is the kernel's.
    Pass,
}

/// Runs the switch's part of a call. `Ok(None)` is: the call is the kernel's.
pub(crate) fn inside<T>(call: impl FnOnce() -> io::Result<Option<T>>) -> Answer<T> {
    let before = errno();
    let inside = Inside(INSIDE.with(|inside| inside.replace(true)));
    let outcome = catch_unwind(AssertUnwindSafe(call));
    drop(inside);
    let failure = match outcome {
        Ok(Ok(outcome)) => {
            set_errno(before);
            return outcome.map_or(Answer::Pass, Answer::Done);
        }
        Ok(Err(error)) => errno_of(&error),
        Err(_) => libc::EIO,
    };
    set_errno(failure);
    Answer::Failed
}

/// The error's number. An error without one is EIO.
fn errno_of(error: &io::Error) -> c_int {
    if let Some(errno) = error.raw_os_error() {
        return errno;
    }
    match error.kind() {
        io::ErrorKind::WouldBlock => libc::EAGAIN,
        io::ErrorKind::BrokenPipe => libc::EPIPE,
        io::ErrorKind::ConnectionReset => libc::ECONNRESET,
        io::ErrorKind::ConnectionRefused => libc::ECONNREFUSED,
        io::ErrorKind::TimedOut => libc::ETIMEDOUT,
        io::ErrorKind::NotConnected => libc::ENOTCONN,
        io::ErrorKind::AddrInUse => libc::EADDRINUSE,
        io::ErrorKind::HostUnreachable => libc::EHOSTUNREACH,
        io::ErrorKind::InvalidInput => libc::EINVAL,
        _ => libc::EIO,
    }
}
