//! `libsan.so`: loaded into an unmodified program (LD_PRELOAD), it takes the program's socket calls.
//!
//! Each hook looks whether the descriptor is one that the SAN carries. Most are not, and then the
//! next library's function of that name is called, which is libc's, with all that it does: errno,
//! cancellation, its checks. What is decided about SAN descriptors is decided in the switch; here are
//! the exported functions, and the table of descriptors.
//!
//! Rules that hold for all hooks:
//! - Nothing is exported that is not a hook (`tests/exports.rs`).
//! - The switch's own calls come here, too, since they are libc's functions by name. They are passed
//!   on: [`inside`] marks the thread.
//! - A panic does not leave a hook.
//! - While the table is empty, a hook that a program calls often does nothing but ask the next library: one
//!   load, a comparison, and a jump.
//! - A hook works before the library's constructor has run: what it needs is there without one.

#![allow(unsafe_code)]
#![allow(unreachable_pub, reason = "what is exported is exported to C")]
#![allow(non_snake_case, reason = "hooks have the names that libc gave them")]
#![cfg_attr(
    test,
    allow(dead_code, reason = "no hook is exported from a unit test")
)]

mod address;
mod held;
mod hooks;
mod inside;
mod kernel;
mod next;
mod owner;
mod signals;
mod table;
mod time;

/// When the library is loaded, before the program has begun. Hooks that are called earlier do without.
extern "C" fn at_load() {
    next::look_all_up();
    // A program may clear its environment before its first connection.
    let _: inside::Answer<()> = inside::inside(|| {
        san_switch::program::Program::of_this_process(&kernel::LIBRARY);
        Ok(None)
    });
}

#[used]
#[cfg_attr(not(test), unsafe(link_section = ".init_array"))]
static AT_LOAD: extern "C" fn() = at_load;
