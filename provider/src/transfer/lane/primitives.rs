//! What the poller is built of. Its tests put loom's in this place.

pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
pub(super) use std::sync::{Mutex, MutexGuard};

pub(super) use crossbeam::sync::{Parker, Unparker};

pub(super) use crate::sync::{lock, try_lock};

thread_local! {
    /// What a thread sleeps on while another one polls for it.
    static PARKER: Parker = Parker::new();
}

pub(super) fn with_parker<R>(f: impl FnOnce(&Parker) -> R) -> R {
    PARKER.with(f)
}
