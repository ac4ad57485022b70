//! System calls that a program makes by their numbers. libuv closes its descriptors in this way.

use std::ffi::{c_int, c_long, c_uint};

use super::descriptors::{controlled, copied, forget, forget_range, replaced};
use crate::next;

/// The register that a call takes a descriptor, a command or flags from.
fn number_in(register: usize) -> c_int {
    unsigned_in(register).cast_signed()
}

fn unsigned_in(register: usize) -> c_uint {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the kernel takes the lower half, too"
    )]
    let half = register as c_uint;
    half
}

/// What ends or copies a descriptor does what the function of its name does: else what is under the number would be
/// there for the file that gets it next. All other calls are the kernel's.
///
/// It takes six arguments of the call whether there are so many or not: where they are kept there is always memory.
///
/// # Safety
/// As syscall(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn syscall(
    number: c_long,
    first: usize,
    second: usize,
    third: usize,
    fourth: usize,
    fifth: usize,
    sixth: usize,
) -> c_long {
    match number {
        libc::SYS_close => forget(number_in(first)),
        libc::SYS_close_range if unsigned_in(third) & libc::CLOSE_RANGE_CLOEXEC == 0 => {
            forget_range(unsigned_in(first), unsigned_in(second));
        }
        #[cfg(target_arch = "x86_64")]
        libc::SYS_dup2 => replaced(number_in(first), number_in(second)),
        libc::SYS_dup3 if number_in(third) & !libc::O_CLOEXEC == 0 => {
            replaced(number_in(first), number_in(second));
        }
        _ => {}
    }
    // SAFETY: the caller keeps what the call asks.
    let result = unsafe { next::syscall(number, first, second, third, fourth, fifth, sixth) };
    if let Ok(to) = c_int::try_from(result)
        && to >= 0
    {
        let fd = number_in(first);
        match number {
            libc::SYS_dup => drop(copied(fd, to)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_dup2 => drop(copied(fd, to)),
            libc::SYS_dup3 => drop(copied(fd, to)),
            libc::SYS_fcntl => drop(controlled(fd, number_in(second), third, to)),
            _ => {}
        }
    }
    result
}
