//! The ends of processes, and whose the memory is.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use san_switch::program::Program;

use crate::held::{TABLE, closed};
use crate::inside::{Answer, inside, is_inside};
use crate::next;

/// The process that this memory belongs to: a child of `vfork` runs in its parent's.
pub(crate) static OWNER: Owner = Owner(AtomicI32::new(0));

pub(crate) struct Owner(AtomicI32);

impl Owner {
    /// This process has something in the table.
    pub(crate) fn is_here(&self) {
        self.0.store(this_process(), Ordering::Relaxed);
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            // SAFETY: the function is there as long as the process, as this library is never unloaded.
            unsafe { libc::atexit(at_exit) };
            // SAFETY: the same, and the handler does what may be done between fork and exec.
            unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        });
    }

    /// Whether nothing was ever in the table.
    fn is_nobody(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// Whether another process runs here.
    pub(crate) fn is_other(&self) -> bool {
        let owner = self.0.load(Ordering::Relaxed);
        owner != 0 && owner != this_process()
    }
}

/// A child of `fork` has memory of its own.
extern "C" fn in_child() {
    OWNER.0.store(this_process(), Ordering::Relaxed);
}

/// How long the end of the process waits for the thread that sees to it.
const AT_EXIT: Duration = Duration::from_secs(3);

/// The kernel's own word: libc's may be its caller's, in a child of `vfork`.
fn this_process() -> c_int {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Closes what the program has left open, and waits for what is under way, two seconds at most.
extern "C" fn at_exit() {
    if OWNER.is_nobody() || OWNER.is_other() || is_inside() {
        return;
    }
    // What is local to this thread may have been destroyed already. Another thread has its own.
    static IS_DONE: AtomicBool = AtomicBool::new(false);
    let ending = std::thread::Builder::new().name("san-exit".to_owned());
    let started = ending.spawn(|| {
        for fd in TABLE.numbers(0, u32::MAX) {
            closed(fd);
        }
        let _: Answer<()> = inside(|| {
            Program::end();
            Ok(None)
        });
        IS_DONE.store(true, Ordering::Release);
    });
    if started.is_ok() {
        let until = Instant::now() + AT_EXIT;
        while !IS_DONE.load(Ordering::Acquire) && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

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
