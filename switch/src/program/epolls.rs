//! A program's epoll sets with sockets of ours in them.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::event::epoll::Event;
use verbs_shim::fork::ForkGuard;

use super::Held;
use super::shared::Record;
use crate::ready::event_loop::{EventLoop, KernelWait, kernels_alone};

/// Bytes that a TCP connection has moved, as the kernel counts them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Bytes that were written to it.
    pub written: u64,
    /// Bytes that were read from it.
    pub read: u64,
}

/// ppoll(2): sleeps until one of these is ready, or the time is over. EINTR: a signal was handled.
pub type Sleep<'a> = &'a dyn Fn(&[(BorrowedFd<'_>, PollFlags)], Option<Duration>) -> io::Result<()>;

/// What only the library can do: it has the table of numbers, and may name a descriptor by its number.
pub trait Kernel: Sync {
    /// epoll_ctl(2) of the kernel: adds `fd` with these flags and data.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    fn epoll_add(&self, epoll: RawFd, fd: RawFd, flags: u32, data: u64) -> io::Result<()>;

    /// epoll_ctl(2) of the kernel: changes what is told of `fd`.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    fn epoll_modify(&self, epoll: RawFd, fd: RawFd, flags: u32, data: u64) -> io::Result<()>;

    /// epoll_ctl(2) of the kernel: takes `fd` out.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    fn epoll_delete(&self, epoll: RawFd, fd: RawFd) -> io::Result<()>;

    /// The epoll set under this number, in the table from now on.
    ///
    /// # Errors
    /// As epoll_ctl(2); EMFILE.
    fn epoll(&self, number: RawFd) -> io::Result<Arc<Held>>;

    /// The numbers under which the program has made epoll sets; some may be closed.
    fn epoll_numbers(&self) -> Vec<RawFd>;

    /// Tells of each number under which the program has something.
    fn each(&self, tell: &mut dyn FnMut(RawFd, &Held));

    /// A number of the program's, for the time of its call.
    fn borrow(&self, number: RawFd) -> Option<BorrowedFd<'static>>;

    /// Closes a number that this process has inherited.
    fn close(&self, number: RawFd);

    /// Has `wait` run so that signals of this thread are handled only while it sleeps, by the function that
    /// it is given.
    ///
    /// # Errors
    /// Those of `wait`.
    fn hear_signals(&self, wait: &mut dyn FnMut(Sleep<'_>) -> io::Result<()>) -> io::Result<()>;

    /// Whether a call goes on that a signal of the program's has interrupted (SA_RESTART). It is asked right
    /// after such a signal.
    fn restarts(&self) -> bool;

    /// What the kernel has moved on a TCP socket; `None`: it does not say.
    fn tcp_counts(&self, fd: BorrowedFd<'_>) -> Option<Counts>;

    /// Memory that this process shares with those that it forks. Empty: there is none.
    fn records(&self) -> &'static [Record];
}

/// What epoll_ctl(2) does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpollOp {
    /// EPOLL_CTL_ADD.
    Add,
    /// EPOLL_CTL_MOD.
    Modify,
    /// EPOLL_CTL_DEL.
    Delete,
}

/// An epoll set.
pub struct Epoll {
    looped: ForkGuard<Arc<EventLoop>>,
}

impl Epoll {
    /// The epoll set of this descriptor.
    ///
    /// # Errors
    /// EINVAL if it is none; EMFILE.
    pub fn new(epoll: BorrowedFd<'_>) -> io::Result<Self> {
        let looped = Arc::new(EventLoop::new(epoll)?);
        Ok(Self {
            looped: ForkGuard::new(looped),
        })
    }

    /// The loop, unless it is another process's.
    pub(super) fn own_loop(&self) -> Option<&Arc<EventLoop>> {
        (!ForkGuard::is_inherited(&self.looped)).then_some(&*self.looped)
    }

    pub(super) fn looped(&self) -> &Arc<EventLoop> {
        &self.looped
    }

    /// epoll_wait(2); `kernel` is the kernel's. In a child that has inherited the set nothing of ours is
    /// told, but our descriptors are in it.
    ///
    /// # Errors
    /// As epoll_wait(2).
    pub fn wait(
        &self,
        events: &mut [Event],
        timeout: Option<Duration>,
        kernel: KernelWait<'_>,
    ) -> io::Result<Option<usize>> {
        if ForkGuard::is_inherited(&self.looped) {
            return kernels_alone(events, timeout, kernel).map(Some);
        }
        self.looped.wait(events, timeout, kernel).map(Some)
    }
}
