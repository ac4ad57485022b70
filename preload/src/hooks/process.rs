//! The ends of processes that do not go by `exit`, and processes that become another program.

use std::ffi::{c_char, c_int};

use crate::held::{at_exit, before_exec};
use crate::next;

/// # Safety
/// As _exit(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn _exit(status: c_int) -> ! {
    at_exit();
    next::exit_at_once(status)
}

/// # Safety
/// As _exit(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn _Exit(status: c_int) -> ! {
    at_exit();
    next::exit_at_once(status)
}

/// # Safety
/// As execv(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn execv(path: *const c_char, words: *const *const c_char) -> c_int {
    before_exec();
    // SAFETY: the caller keeps what execv(3) asks.
    unsafe { next::execv(path, words) }
}

/// # Safety
/// As execvp(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn execvp(path: *const c_char, words: *const *const c_char) -> c_int {
    before_exec();
    // SAFETY: the caller keeps what execvp(3) asks.
    unsafe { next::execvp(path, words) }
}

/// # Safety
/// As execve(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn execve(
    path: *const c_char,
    words: *const *const c_char,
    environment: *const *const c_char,
) -> c_int {
    before_exec();
    // SAFETY: the caller keeps what execve(3) asks.
    unsafe { next::execve(path, words, environment) }
}

/// # Safety
/// As execvpe(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn execvpe(
    path: *const c_char,
    words: *const *const c_char,
    environment: *const *const c_char,
) -> c_int {
    before_exec();
    // SAFETY: the caller keeps what execvpe(3) asks.
    unsafe { next::execvpe(path, words, environment) }
}

/// # Safety
/// As fexecve(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn fexecve(
    fd: c_int,
    words: *const *const c_char,
    environment: *const *const c_char,
) -> c_int {
    before_exec();
    // SAFETY: the caller keeps what fexecve(3) asks.
    unsafe { next::fexecve(fd, words, environment) }
}
