//! How the accept thread is told things from outside, upcalls included.

use std::io;
use std::sync::atomic::AtomicBool;

use san_base::Signal;

/// Flags, and what wakes the thread that looks at them.
#[derive(Debug)]
pub(crate) struct Signals {
    pub(crate) wake: Signal,
    pub(crate) addresses_changed: AtomicBool,
    pub(crate) stop: AtomicBool,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            wake: Signal::new()?,
            addresses_changed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        })
    }
}
