//! What the poller is built of. Its tests put loom's in this place.

pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

pub(super) use crossbeam::sync::{Parker, Unparker};
// Without poison: to look for it costs as much as the lock.
pub(super) use parking_lot::{Mutex, MutexGuard};

thread_local! {
    /// What a thread sleeps on while another one polls for it.
    static PARKER: Parker = Parker::new();
}

pub(super) fn with_parker<R>(f: impl FnOnce(&Parker) -> R) -> R {
    PARKER.with(f)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

pub(super) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    mutex.try_lock()
}
