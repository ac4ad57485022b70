//! What the ready list is built of. Its tests put loom's in this place.

pub(super) use parking_lot::Mutex;
pub(super) use std::sync::atomic::{AtomicUsize, Ordering};

pub(super) fn lock<T>(mutex: &Mutex<T>) -> parking_lot::MutexGuard<'_, T> {
    mutex.lock()
}
