//! Waiting: for descriptors, with a deadline, and so that another thread can call it off.
//!
//! The only place where the callers' threads sleep on more than one thing. No policy: who waits
//! decides what the outcome means.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use san_base::{Deadline, Signal, timespec};

/// Calls off an accept or a connect that another thread waits in.
///
/// Clones are the same token. Once cancelled it stays so.
///
/// ```
/// let token = san_switch::CancelToken::new()?;
/// let remote = token.clone();
/// std::thread::spawn(move || remote.cancel());
/// # while !token.is_cancelled() { std::thread::yield_now() }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct CancelToken {
    signal: Arc<Signal>,
}

impl CancelToken {
    /// A token that is not cancelled.
    ///
    /// # Errors
    /// EMFILE, ENFILE or ENOMEM of eventfd(2).
    pub fn new() -> io::Result<Self> {
        Ok(CancelToken {
            signal: Arc::new(Signal::new()?),
        })
    }

    /// Calls off every wait with this token, those that come later too.
    pub fn cancel(&self) {
        self.signal.set();
    }

    /// Whether [`CancelToken::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        is_readable(self.as_fd())
    }
}

impl AsFd for CancelToken {
    /// Readable once cancelled.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }
}

/// Waits until one of the descriptors is readable (or has an error), and says which are.
/// All `false` means that the deadline passed.
pub(crate) fn wait_readable<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    deadline: Deadline,
) -> io::Result<[bool; N]> {
    let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    wait(&mut fds, deadline)?;
    Ok(fds.map(|fd| !fd.revents().is_empty()))
}

/// Whether a read would not block now.
pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let now = timespec(Duration::ZERO);
    matches!(poll(&mut fds, Some(&now)), Ok(n) if n > 0)
}

fn wait(fds: &mut [PollFd<'_>], deadline: Deadline) -> io::Result<()> {
    loop {
        match poll(fds, deadline.timespec().as_ref()) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_wait_ends_at_its_deadline_and_says_so() {
        let quiet = Signal::new().unwrap();
        let start = Instant::now();
        let deadline = Deadline::after(Duration::from_millis(30));
        assert_eq!(wait_readable([quiet.as_fd()], deadline).unwrap(), [false]);
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert!(deadline.is_over() && !Deadline::NEVER.is_over());
    }

    #[test]
    fn a_wait_says_which_descriptor_it_was() {
        let (quiet, loud) = (Signal::new().unwrap(), Signal::new().unwrap());
        loud.set();
        loud.set();
        let seen = wait_readable([quiet.as_fd(), loud.as_fd()], Deadline::NEVER);
        assert_eq!(seen.unwrap(), [false, true]);
        loud.reset();
        assert!(!is_readable(loud.as_fd()));
        loud.reset();
    }

    #[test]
    fn a_token_cancels_a_wait_of_another_thread_and_all_later_ones() {
        let token = CancelToken::new().unwrap();
        let remote = token.clone();
        assert!(!token.is_cancelled());
        let waiter = std::thread::spawn(move || {
            wait_readable([remote.as_fd()], Deadline::after(Duration::from_secs(20)))
        });
        token.cancel();
        assert_eq!(waiter.join().unwrap().unwrap(), [true]);
        assert!(token.is_cancelled());
    }
}
