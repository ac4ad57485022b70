//! What the library asks of a stream that began on TCP and may move, besides what it asks of any.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;

use super::epolls::EpollOp;
use super::sites::Site;
use super::stream::Stream;
use super::upgrading::{Host, Upgrading, Whose};

impl Stream {
    /// A call on this number begins. `true`: it is the kernel's, and is counted until [`Stream::end`];
    /// `false`: ask the stream.
    ///
    /// # Errors
    /// ENOTCONN: another process has the stream, and does not give it back.
    #[inline]
    pub fn begin(&self, fd: RawFd) -> io::Result<bool> {
        match &self.state().upgrading {
            None => Ok(false),
            Some(upgrading) => {
                let host = || Arc::clone(self.state()) as Arc<dyn Host>;
                Ok(upgrading.begin(fd, host)? == Whose::Kernels)
            }
        }
    }

    /// A call that was begun is over.
    #[inline]
    pub fn end(&self) {
        if let Some(upgrading) = &self.state().upgrading {
            upgrading.end();
        }
    }

    /// The kernel has read so many bytes for the program, or written them: the first of `pieces`.
    #[inline]
    pub fn note<'a>(&self, is_read: bool, bytes: usize, pieces: impl Iterator<Item = &'a [u8]>) {
        if let Some(upgrading) = &self.state().upgrading {
            upgrading.note(is_read, bytes, pieces);
        }
    }

    /// The kernel gets it for good, since a call needs what it alone can do; or another process gets it.
    pub fn to_kernel(&self) {
        if let Some(upgrading) = &self.state().upgrading
            && !upgrading.to_kernel()
        {
            tracing::warn!("a connection does not come back to TCP in time");
        }
    }

    /// The process is about to fork, for the time of this number ([`super::next_fork`]). The child has the
    /// stream, too.
    pub fn before_fork(&self, fork: u32) {
        if let Some(upgrading) = &self.state().upgrading {
            upgrading.before_fork(fork);
        }
    }

    /// This process was forked, and has inherited the stream. Nothing is done that may not be done between
    /// fork and exec.
    pub fn in_child(&self) {
        if let Some(upgrading) = &self.state().upgrading {
            upgrading.in_child();
        }
    }

    /// Whether the library of this process has it, on TCP or on the SAN.
    pub fn is_moving(&self) -> bool {
        let upgrading = self.state().upgrading.as_ref();
        upgrading.is_some_and(Upgrading::is_ours)
    }

    /// Whether the kernel's descriptor tells what the stream is ready for.
    pub fn is_on_tcp(&self) -> bool {
        let upgrading = self.state().upgrading.as_ref();
        upgrading.is_some_and(|upgrading| !upgrading.is_away())
    }

    /// epoll_ctl(2) on a stream that may move.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn control_moving(
        &self,
        epoll: RawFd,
        operation: EpollOp,
        fd: RawFd,
        interest: (EventFlags, u64),
    ) -> io::Result<Option<()>> {
        let Some(upgrading) = &self.state().upgrading else {
            return Ok(None);
        };
        let registrations = &self.state().registrations;
        let site = Site::new(upgrading.kernel(), epoll, fd);
        match operation {
            EpollOp::Add => registrations.add(&self.source(), site, interest)?,
            EpollOp::Modify => registrations.modify(&site, interest)?,
            EpollOp::Delete => registrations.delete(&site)?,
        }
        Ok(Some(()))
    }
}
