//! Locks that do not care about poison.
//!
//! The workspace's rule makes that right: nothing is called out to while a lock is held, so a panic
//! under one leaves nothing half done. No lock of its own kind is made here.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// Takes the lock, waiting for it.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the lock, unless somebody has it.
pub fn try_lock<T: ?Sized>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_panic_under_a_lock_keeps_nobody_out() {
        let shared = Arc::new(Mutex::new(1));
        let other = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let _held = lock(&other);
            panic!("this panic is part of the test");
        });
        thread.join().unwrap_err();
        assert!(shared.is_poisoned());
        *lock(&shared) += 1;
        assert_eq!(try_lock(&shared).as_deref(), Some(&2));
    }

    #[test]
    fn a_lock_that_is_taken_is_not_waited_for() {
        let shared = Mutex::new(());
        let held = lock(&shared);
        assert!(try_lock(&shared).is_none());
        drop(held);
        assert!(try_lock(&shared).is_some());
    }
}
