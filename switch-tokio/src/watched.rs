//! What the runtime's reactor watches: values by the descriptor that tells of them.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use san_switch::{Connection, Listener, PendingConnect};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A value of which one descriptor tells, the same from beginning to end, and open that long.
pub(crate) trait Tells {
    fn descriptor(&self) -> BorrowedFd<'_>;
}

impl Tells for Listener {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.readiness()
    }
}

impl Tells for PendingConnect {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.readiness()
    }
}

/// Its TCP socket, which is the stream's own where TCP carries it.
impl Tells for Arc<Connection> {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.companion_fd()
    }
}

/// A value as the reactor takes it.
pub(crate) struct Watched<T>(T);

impl<T: Tells> AsRawFd for Watched<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.descriptor().as_raw_fd()
    }
}

impl<T> Deref for Watched<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Watched<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// Has the reactor of the current runtime watch a value. The reactor forgets it before the value goes.
///
/// # Errors
/// What epoll_ctl(2) says.
///
/// # Panics
/// Outside a runtime, and in one without I/O.
#[expect(
    deprecated,
    reason = "the successor is unsafe, and asks for what `Tells` promises: one descriptor that stays open"
)]
pub(crate) fn watch<T: Tells>(value: T, interest: Interest) -> io::Result<AsyncFd<Watched<T>>> {
    AsyncFd::with_interest(Watched(value), interest)
}
