//! Event objects: what Win32 calls a manual-reset event, as an eventfd.
//!
//! An event object stays set until somebody resets it, however often it was set, and it can stand
//! in any `poll` or epoll set beside other descriptors. It does not know what it stands for; the
//! record of network events is in `network_events.rs`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use san_base::Signal;

use crate::time::Deadline;

/// A manual-reset event. Clones stand for the same event.
#[derive(Debug, Clone)]
pub struct EventObject {
    signal: Arc<Signal>,
}

impl EventObject {
    /// A new event, not set.
    ///
    /// # Errors
    /// `EMFILE` and its kin: no descriptor is left.
    #[doc(alias = "WSACreateEvent")]
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            signal: Arc::new(Signal::new()?),
        })
    }

    /// Sets the event; setting it again changes nothing.
    #[doc(alias = "SetEvent")]
    pub fn set(&self) {
        self.signal.set();
    }

    /// Resets the event.
    #[doc(alias = "ResetEvent")]
    pub fn reset(&self) {
        self.signal.reset();
    }

    /// Whether the event is set now.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.signal.is_set()
    }

    /// Waits until the event is set, at most `timeout`; whether it is.
    #[doc(alias = "WSAWaitForMultipleEvents")]
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        self.signal.wait(Deadline::after(timeout))
    }

    /// Whether both stand for the same event.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.signal, &other.signal)
    }

    /// A descriptor of its own for the same event.
    pub(crate) fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        self.signal.try_clone_fd()
    }
}

impl AsFd for EventObject {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }
}

impl AsRawFd for EventObject {
    fn as_raw_fd(&self) -> RawFd {
        self.signal.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn stays_set_until_reset() {
        let event = EventObject::new().unwrap();
        assert!(!event.is_set());
        event.set();
        event.set();
        assert!(event.is_set());
        assert!(event.is_set(), "looking at it does not reset it");
        event.reset();
        assert!(!event.is_set(), "one reset undoes any number of sets");
        event.reset();
        assert!(!event.is_set());
    }

    #[test]
    fn clones_are_one_event() {
        let event = EventObject::new().unwrap();
        let other = event.clone();
        other.set();
        assert!(event.is_set());
        assert!(event.same_as(&other));
        assert!(!event.same_as(&EventObject::new().unwrap()));
    }

    #[test]
    fn wait_ends_at_its_deadline_or_with_the_event() {
        let event = EventObject::new().unwrap();
        let start = Instant::now();
        assert!(!event.wait(Duration::from_millis(20)));
        assert!(start.elapsed() >= Duration::from_millis(20));
        let setter = event.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            setter.set();
        });
        assert!(event.wait(Duration::from_secs(10)));
        thread.join().unwrap();
    }

    #[test]
    fn survives_a_full_counter() {
        let event = EventObject::new().unwrap();
        rustix::io::write(event.as_fd(), &(u64::MAX - 1).to_ne_bytes()).unwrap();
        event.set();
        assert!(event.is_set());
        event.reset();
        assert!(!event.is_set());
    }
}
