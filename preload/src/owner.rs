//! Whose this memory is: a child of `vfork` runs in its parent's.

use std::ffi::c_int;
use std::sync::atomic::{AtomicI32, Ordering};

use san_switch::program::{Held, Stream, is_new_process, next_fork};

use crate::table::TABLE;

/// The process that has something in the table.
pub(crate) static OWNER: Owner = Owner(AtomicI32::new(0));

pub(crate) struct Owner(AtomicI32);

impl Owner {
    /// This process has something in the table. `at_exit` is called when it ends by `exit`.
    pub(crate) fn is_here(&self, at_exit: extern "C" fn()) {
        static ONCE: std::sync::Once = std::sync::Once::new();
        self.0.store(this_process(), Ordering::Relaxed);
        ONCE.call_once(|| {
            // SAFETY: the function is there as long as the process, as this library is never unloaded.
            unsafe { libc::atexit(at_exit) };
            // SAFETY: the same, and the child's handler does what may be done between fork and exec.
            unsafe { libc::pthread_atfork(Some(before), None, Some(in_child)) };
        });
    }

    /// Whether nothing was ever in the table.
    pub(crate) fn is_nobody(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// Whether another process runs here.
    pub(crate) fn is_other(&self) -> bool {
        let owner = self.0.load(Ordering::Relaxed);
        owner != 0 && owner != this_process()
    }
}

/// Streams that may move get ready to be used by two processes.
extern "C" fn before() {
    let fork = next_fork();
    each_stream(|stream| stream.before_fork(fork));
}

/// A child of `fork` has memory of its own.
extern "C" fn in_child() {
    OWNER.0.store(this_process(), Ordering::Relaxed);
    is_new_process();
    each_stream(Stream::in_child);
}

fn each_stream(what: impl Fn(&Stream)) {
    TABLE.each(|_, held| {
        if let Held::Stream(stream) = held {
            what(stream);
        }
    });
}
/// The kernel's own word: libc's may be its caller's, in a child of `vfork`.
fn this_process() -> c_int {
    rustix::process::getpid().as_raw_nonzero().get()
}
