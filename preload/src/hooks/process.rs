//! The ends of processes that do not go by `exit`, processes that become another program, and threads.

use std::ffi::{CStr, c_char, c_int, c_void};

use libc::{FILE, pid_t};

use crate::held::{at_exit, before_exec, before_spawn, to_kernel};
use crate::inside::is_inside;
use crate::next::{self, Next};
use crate::signals::HeldBack;
use crate::table::TABLE;

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

/// The switch's threads leave the signals of the process to the program's: a thread begins with the mask of the one
/// that makes it. A program that waits for a signal has it blocked in each of its own, and would die of it in another.
///
/// # Safety
/// As pthread_create(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn pthread_create(
    thread: *mut libc::pthread_t,
    attributes: *const c_void,
    start: *const c_void,
    argument: *mut c_void,
) -> c_int {
    let _held_back = is_inside().then(HeldBack::new);
    // SAFETY: the caller keeps what pthread_create(3) asks.
    unsafe { next::pthread_create(thread, attributes, start, argument) }
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

/// # Safety
/// As posix_spawn(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn posix_spawn(
    child: *mut pid_t,
    path: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    words: *const *const c_char,
    environment: *const *const c_char,
) -> c_int {
    before_spawn();
    // SAFETY: the caller keeps what posix_spawn(3) asks.
    unsafe { next::posix_spawn(child, path, actions, attributes, words, environment) }
}

/// # Safety
/// As posix_spawnp(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn posix_spawnp(
    child: *mut pid_t,
    file: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    words: *const *const c_char,
    environment: *const *const c_char,
) -> c_int {
    before_spawn();
    // SAFETY: the caller keeps what posix_spawnp(3) asks.
    unsafe { next::posix_spawnp(child, file, actions, attributes, words, environment) }
}

/// # Safety
/// As posix_spawn_file_actions_adddup2(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn posix_spawn_file_actions_adddup2(
    actions: *mut c_void,
    fd: c_int,
    to: c_int,
) -> c_int {
    // A program that is to begin will use it.
    to_kernel(fd);
    // SAFETY: the caller keeps what the function asks.
    unsafe { next::posix_spawn_file_actions_adddup2(actions, fd, to) }
}

/// A shell is given this command: it has our standard streams, and the numbers that stand behind an `&`.
///
/// # Safety
/// It is a C string, or null.
unsafe fn before_shell(command: *const c_char) {
    before_spawn();
    if TABLE.is_empty() || command.is_null() {
        return;
    }
    // SAFETY: the caller says so.
    let command = unsafe { CStr::from_ptr(command) }.to_bytes();
    command
        .split(|byte| *byte == b'&')
        .skip(1)
        .for_each(|rest| {
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
            let number = digits.fold(0_i32, |number, digit| {
                number
                    .saturating_mul(10)
                    .saturating_add((digit - b'0').into())
            });
            // The first three were looked at.
            if number > 2 {
                to_kernel(number);
            }
        });
}

/// # Safety
/// As system(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn system(command: *const c_char) -> c_int {
    // SAFETY: the caller keeps what system(3) asks.
    unsafe { before_shell(command) };
    // SAFETY: as above.
    unsafe { next::system(command) }
}

/// # Safety
/// As popen(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn popen(command: *const c_char, mode: *const c_char) -> *mut FILE {
    static POPEN: Next = Next::new(c"popen");
    // SAFETY: the caller keeps what popen(3) asks.
    unsafe { before_shell(command) };
    type Function = unsafe extern "C-unwind" fn(*const c_char, *const c_char) -> *mut FILE;
    // SAFETY: every libc has the function, as its header says.
    let function = unsafe { std::mem::transmute::<*mut c_void, Function>(POPEN.address()) };
    // SAFETY: as above.
    unsafe { function(command, mode) }
}

/// What execl and its kin do before libc's are entered, whose addresses it gives.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod variadic {
    use super::{Next, before_exec, c_char, c_void};
    use crate::hooks::variadic::pass_on;

    extern "C" fn before_execl(_path: *const c_char) -> *mut c_void {
        static EXECL: Next = Next::new(c"execl");
        before_exec();
        EXECL.address()
    }

    extern "C" fn before_execle(_path: *const c_char) -> *mut c_void {
        static EXECLE: Next = Next::new(c"execle");
        before_exec();
        EXECLE.address()
    }

    extern "C" fn before_execlp(_file: *const c_char) -> *mut c_void {
        static EXECLP: Next = Next::new(c"execlp");
        before_exec();
        EXECLP.address()
    }

    pass_on!(execl, before_execl, "As execl(3).");
    pass_on!(execle, before_execle, "As execle(3).");
    pass_on!(execlp, before_execlp, "As execlp(3).");
}
