//! The ends of processes that do not go by `exit`.

use std::ffi::c_int;

use crate::held::at_exit;
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
