//! `libsan.so`: loaded into an unmodified program (LD_PRELOAD), it takes the program's socket calls.
//!
//! Each hook looks whether the SAN carries the descriptor. Most descriptors it does not. Then the hook
//! calls the next library's function of that name. That is libc's, with all that it does: errno,
//! cancellation, its checks. The switch decides everything about SAN descriptors. Here are only the
//! exported functions, and the table of descriptors.
//!
//! Rules that hold for all hooks:
//! - Nothing is exported that is not a hook (`tests/exports.rs`).
//! - The switch's own calls come here, too, since they are libc's functions by name. They are passed
//!   on: [`inside`] marks the thread.
//! - A panic does not leave a hook.
//! - While the table is empty, a hook that a program calls often only asks the next library: one load, a
//!   comparison, and a jump.
//! - A hook works before the library's constructor has run: what the hook needs is there without one.
//!
//! # Quick start
//!
//! `san run -- PROGRAM` sets `LD_PRELOAD` and the route. By hand:
//!
//! ```console
//! $ LD_PRELOAD=$PWD/target/release/libsan.so SAN_ROUTE=upgrade redis-server
//! ```
//!
//! # Threads
//!
//! The library starts none when it is loaded. The switch and its providers start theirs with the first connection that
//! the SAN could carry (`docs/architecture.md`). `san-connect` waits for a connect that the program does not wait for,
//! and `san-exit` sees off what is left when the program ends.
//!
//! # Clean-up
//!
//! A process that ends closes what is left, and waits two seconds at most. A child that was forked goes on over TCP
//! (`docs/run.md`).
//!
//! # Errors
//!
//! A hook says what libc's function would say: its result and errno. A failure of the SAN leaves the program on
//! TCP. Settings that cannot be used are said once on standard error.

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
