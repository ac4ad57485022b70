//! Calls of sockets in blocking mode that have to wait.
//!
//! The connection waits [`FIRST`] itself, which is the quickest way to learn of what comes soon. After that
//! the call sleeps here, by ppoll(2), which a signal ends: signals are handled nowhere else meanwhile. So one
//! may go unnoticed that comes in the first moment of a call, as one does that comes right before it.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use san_base::Deadline;

use super::epolls::Kernel;
use super::stream::Stream;
use super::timeouts::{FIRST, Wanted};
use crate::net::connection::Connection;
use crate::ready::sleeper::{Waited, wait_for};

/// One call that may wait.
pub(super) struct Waiting<'a> {
    stream: &'a Stream,
    wanted: Wanted,
    /// It waits only where the socket is in blocking mode, too.
    may_wait: bool,
    /// When it ends; made when it first has to wait.
    deadline: Option<Deadline>,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(stream: &'a Stream, wanted: Wanted, may_wait: bool) -> Self {
        Self {
            stream,
            wanted,
            may_wait,
            deadline: None,
        }
    }

    /// Calls until that does not say EAGAIN, if the socket is in blocking mode.
    ///
    /// # Errors
    /// The call's; EAGAIN after SO_RCVTIMEO or SO_SNDTIMEO; EINTR.
    #[inline]
    pub(super) fn until<T>(
        &mut self,
        connection: &Connection,
        mut call: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match call() {
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        && self.may_wait
                        && !self.stream.is_nonblocking() =>
                {
                    self.sleep(connection)?;
                }
                outcome => return outcome,
            }
        }
    }

    /// Sleeps until the call may have something to do.
    #[cold]
    fn sleep(&mut self, connection: &Connection) -> io::Result<()> {
        let timeout = self.stream.timeout(self.wanted);
        let left = timeout.map(|timeout| timeout.saturating_sub(FIRST));
        let deadline = *self.deadline.get_or_insert_with(|| Deadline::after(left));
        if deadline.is_over() {
            return Err(Errno::AGAIN.into());
        }
        let (events, flags) = match self.wanted {
            Wanted::Bytes => (EventFlags::IN | EventFlags::RDHUP, PollFlags::IN),
            Wanted::Room => (EventFlags::OUT, PollFlags::OUT),
        };
        let mut waited = Waited {
            source: self.stream.source(),
            wanted: events,
            found: EventFlags::empty(),
        };
        let on_tcp = (connection.companion_fd(), flags);
        let kernel = super::kernel().ok_or(Errno::AGAIN)?;
        let slept = kernel.hear_signals(&mut |sleep| {
            let mut poll = |others: &[BorrowedFd<'_>], timeout: Option<Duration>| {
                let mut fds: Vec<_> = others.iter().map(|fd| (*fd, PollFlags::IN)).collect();
                // What it is ready for there, the stream says.
                if self.stream.is_on_tcp() {
                    fds.push(on_tcp);
                }
                sleep(&fds, timeout).map(|()| 0)
            };
            wait_for(&mut [&mut waited], deadline.left(), &mut poll).map(drop)
        });
        match slept {
            Err(error)
                if error.kind() == io::ErrorKind::Interrupted && goes_on_after_signal(timeout) =>
            {
                Ok(())
            }
            slept => slept,
        }
    }
}

/// Whether a call goes on that a signal has interrupted, as the kernel decides for sockets: never if it has
/// a time (signal(7)).
pub(super) fn goes_on_after_signal(timeout: Option<Duration>) -> bool {
    timeout.is_none() && super::kernel().is_some_and(Kernel::restarts)
}
