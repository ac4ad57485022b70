//! Waiting: for descriptors, with a deadline, and so that another thread can call it off.
//!
//! The only place where the callers' threads sleep on more than one thing. No policy: who waits
//! decides what the outcome means.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// An eventfd used as a flag that descriptors' waiters see.
#[derive(Debug)]
pub(crate) struct Signal(OwnedFd);

impl Signal {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Signal(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    pub(crate) fn set(&self) {
        // Can fail only with a full counter, and then the flag is set already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    pub(crate) fn reset(&self) {
        // Fails only when the flag is not set.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A moment after which nobody waits any more; `None` = none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    pub(crate) const NEVER: Deadline = Deadline(None);

    pub(crate) fn after(timeout: Option<Duration>) -> Self {
        // A sum past the clock's end is never reached.
        Deadline(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    pub(crate) fn at(moment: Instant) -> Self {
        Deadline(Some(moment))
    }

    pub(crate) fn instant(self) -> Option<Instant> {
        self.0
    }

    pub(crate) fn remaining(self) -> Option<Duration> {
        self.0
            .map(|moment| moment.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn passed(self) -> bool {
        self.remaining().is_some_and(|left| left.is_zero())
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
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut fds, Some(&now)), Ok(n) if n > 0)
}

pub(crate) fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

fn wait(fds: &mut [PollFd<'_>], deadline: Deadline) -> io::Result<()> {
    loop {
        let timeout = deadline.remaining().map(timespec);
        match poll(fds, timeout.as_ref()) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_at_its_deadline_and_says_so() {
        let quiet = Signal::new().unwrap();
        let start = Instant::now();
        let deadline = Deadline::after(Some(Duration::from_millis(30)));
        assert_eq!(wait_readable([quiet.as_fd()], deadline).unwrap(), [false]);
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert!(deadline.passed() && !Deadline::NEVER.passed());
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
            wait_readable(
                [remote.as_fd()],
                Deadline::after(Some(Duration::from_secs(20))),
            )
        });
        token.cancel();
        assert_eq!(waiter.join().unwrap().unwrap(), [true]);
        assert!(token.is_cancelled());
    }

    #[test]
    fn a_deadline_past_the_end_of_time_is_none() {
        assert!(Deadline::after(Some(Duration::MAX)).instant().is_none());
    }
}
