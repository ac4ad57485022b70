//! An eventfd as a flag that any `poll` or epoll set sees.
//!
//! Set stays set, however often, until somebody resets it. It carries nothing and does not know
//! what it stands for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use crate::aside::aside_if_kept;
use crate::time::Deadline;

/// A flag with a descriptor that is readable while the flag is set.
#[derive(Debug)]
pub struct Signal(OwnedFd);

impl Signal {
    /// A new flag, not set.
    ///
    /// # Errors
    /// EMFILE, ENFILE or ENOMEM of eventfd(2).
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(aside_if_kept(eventfd(0, flags)?)))
    }

    /// Sets the flag; setting it again changes nothing but what [`Signal::reset`] counts.
    pub fn set(&self) {
        // The only failure is a counter at its limit (EAGAIN), and then the flag is set.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Resets the flag, and says how often it was set since the last time.
    pub fn reset(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.0, &mut count) {
            Ok(8) => u64::from_ne_bytes(count),
            // The only failure is a counter at 0 (EAGAIN), and then the flag is not set.
            _ => 0,
        }
    }

    /// Whether the flag is set now.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.wait(Deadline::passed())
    }

    /// Waits until the flag is set, at most until the deadline; whether it is.
    #[must_use]
    pub fn wait(&self, deadline: Deadline) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        loop {
            match poll(&mut fds, deadline.timespec().as_ref()) {
                Ok(found) => return found > 0,
                Err(Errno::INTR) => {}
                // Neither a bad descriptor nor a bad address can be: the flag is not known set.
                Err(_) => return false,
            }
        }
    }

    /// A descriptor of its own for the same flag.
    ///
    /// # Errors
    /// EMFILE of dup(2).
    pub fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Signal {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn it_stays_set_until_it_is_reset() {
        let signal = Signal::new().unwrap();
        assert!(!signal.is_set());
        signal.set();
        signal.set();
        assert!(signal.is_set());
        assert!(signal.is_set(), "looking at it does not reset it");
        assert_eq!(signal.reset(), 2);
        assert!(!signal.is_set(), "one reset undoes any number of sets");
        assert_eq!(signal.reset(), 0);
    }

    #[test]
    fn a_wait_ends_at_its_deadline_or_with_the_flag() {
        let signal = Arc::new(Signal::new().unwrap());
        let start = Instant::now();
        assert!(!signal.wait(Deadline::after(Duration::from_millis(20))));
        assert!(start.elapsed() >= Duration::from_millis(20));
        let setter = Arc::clone(&signal);
        let thread = std::thread::spawn(move || setter.set());
        assert!(signal.wait(Deadline::after(Duration::from_secs(60))));
        thread.join().unwrap();
    }

    #[test]
    fn a_cloned_descriptor_is_the_same_flag() {
        let signal = Signal::new().unwrap();
        let clone = signal.try_clone_fd().unwrap();
        signal.set();
        let mut fds = [PollFd::new(&clone, PollFlags::IN)];
        let now = Deadline::passed().timespec();
        assert_eq!(poll(&mut fds, now.as_ref()).unwrap(), 1);
    }
}
