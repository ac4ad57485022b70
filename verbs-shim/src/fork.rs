//! What a child made by `fork` has to leave alone.
//!
//! A forked child has a copy of every handle, but none of the threads, and the devices' state is
//! its parent's: a destructor that ran there would end the parent's connections, or wait for a lock
//! whose holder does not exist. So whoever owns such state notes in which process it was made
//! ([`Generation`]), or keeps it in a [`ForkGuard`], which only drops it there.
//!
//! The child is noticed by `pthread_atfork`. A child made in another way, by `clone` itself, says so
//! by [`abandon`].

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// One more in each child, and with each `abandon`.
static NOW: AtomicU32 = AtomicU32::new(0);

static WATCHED: Once = Once::new();

/// The process, as it was when something was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation(u32);

impl Generation {
    /// That of this process now.
    #[must_use]
    pub fn now() -> Self {
        WATCHED.call_once(watch);
        Self(NOW.load(Ordering::Relaxed))
    }

    /// Whether this process was forked, or has abandoned what it had, since.
    #[must_use]
    pub fn is_past(self) -> bool {
        NOW.load(Ordering::Relaxed) != self.0
    }
}

/// From now on this process treats all that it has as a forked child does: nothing of it is
/// destroyed or freed. For a child that was made without `fork`. It cannot be undone; what is made
/// afterwards is this process's own.
pub fn abandon() {
    WATCHED.call_once(watch);
    NOW.fetch_add(1, Ordering::Relaxed);
}

#[allow(unsafe_code)]
fn watch() {
    // SAFETY: the handler does one atomic addition, which may be done between fork and exec, and it
    // is there as long as the process, as this code is never unloaded.
    let failed = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    if failed != 0 {
        tracing::warn!(errno = failed, "a fork of this process will not be noticed");
    }
}

extern "C" fn in_child() {
    NOW.fetch_add(1, Ordering::Relaxed);
}

/// Something that only the process which made it drops. In a forked child it is leaked.
pub struct ForkGuard<T> {
    made: Generation,
    value: ManuallyDrop<T>,
}

impl<T> ForkGuard<T> {
    /// Guards `value`, which this process makes.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self {
            made: Generation::now(),
            value: ManuallyDrop::new(value),
        }
    }

    /// A guard of `other`, which belongs to what is guarded: as old as this one.
    #[must_use]
    pub fn beside<U>(this: &Self, other: U) -> ForkGuard<U> {
        ForkGuard {
            made: this.made,
            value: ManuallyDrop::new(other),
        }
    }

    /// Whether another process made it: then it must not be used. Takes no lock.
    #[must_use]
    pub fn is_inherited(this: &Self) -> bool {
        this.made.is_past()
    }
}

impl<T> Deref for ForkGuard<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Clone> Clone for ForkGuard<T> {
    fn clone(&self) -> Self {
        Self {
            // A copy of what was inherited is inherited, too.
            made: self.made,
            value: self.value.clone(),
        }
    }
}

impl<T> Drop for ForkGuard<T> {
    fn drop(&mut self) {
        if self.made.is_past() {
            return;
        }
        drop_value(self);
    }
}

#[allow(unsafe_code)]
fn drop_value<T>(guard: &mut ForkGuard<T>) {
    // SAFETY: called once, at the end of drop; the value is not used after.
    unsafe { ManuallyDrop::drop(&mut guard.value) };
}

impl<T: fmt::Debug> fmt::Debug for ForkGuard<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.made.is_past() {
            // It may wait for a lock that nobody opens.
            true => f.write_str("another process's"),
            false => self.value.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Runs `child` in a forked child; its exit status.
    #[allow(unsafe_code)]
    fn forked(child: impl FnOnce() -> bool) -> i32 {
        // SAFETY: the child takes no lock, and ends by `_exit`.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            let status = i32::from(!child());
            // SAFETY: it ends the child at once.
            unsafe { libc::_exit(status) };
        }
        let mut status = 0;
        // SAFETY: the child is ours, and the status is a local variable.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert_eq!(waited, pid);
        status
    }

    #[test]
    fn a_child_leaks_what_it_inherits_and_drops_what_it_makes() {
        let shared = Arc::new(());
        let guard = ForkGuard::new(Arc::clone(&shared));
        let copy = guard.clone();
        let status = forked(|| {
            let is_inherited = ForkGuard::is_inherited(&guard) && ForkGuard::is_inherited(&copy);
            drop(copy);
            let is_leaked = Arc::strong_count(&shared) == 3;
            let own = ForkGuard::new(Arc::clone(&shared));
            let is_own = !ForkGuard::is_inherited(&own);
            drop(own);
            is_inherited && is_leaked && is_own && Arc::strong_count(&shared) == 3
        });
        assert_eq!(status, 0);
        assert!(!ForkGuard::is_inherited(&guard));
        drop(guard);
        assert_eq!(Arc::strong_count(&shared), 1);
    }

    #[test]
    fn memory_of_the_fabric_is_not_copied_to_a_child() {
        let memory = crate::SharedMemory::new(70_000).unwrap();
        memory.write_at(65_000, b"the parent's").unwrap();
        let found = |expected: &[u8; 12]| {
            let mut bytes = [1; 12];
            memory.read_at(65_000, &mut bytes).unwrap();
            bytes == *expected
        };
        assert_eq!(forked(|| found(&[0; 12])), 0);
        assert!(found(b"the parent's"));
    }
}
