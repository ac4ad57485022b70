//! A connection in a runtime: calls that do not wait, and who is woken when they would not have to.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use san_switch::Connection;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::coop;

use crate::driver::{Driver, Registration};
use crate::waiters::{Waiters, Way};
use crate::watched::{Watched, watch};

/// A connection, and how its runtime hears of it.
pub(crate) struct Source {
    // The first two go before the connection: they take it out of what watches it.
    #[expect(
        dead_code,
        reason = "it takes the stream out of its driver when it is dropped"
    )]
    registration: Option<Registration>,
    descriptor: Option<AsyncFd<Watched<Arc<Connection>>>>,
    waiters: Arc<Waiters>,
    pub(crate) connection: Arc<Connection>,
}

impl Source {
    /// A connection that belongs to the current runtime from now on.
    ///
    /// # Errors
    /// EMFILE and the like; over TCP what epoll_ctl(2) says.
    pub(crate) fn new(connection: Connection) -> io::Result<Self> {
        connection.set_nonblocking(true)?;
        connection.set_close_in_background(true);
        let connection = Arc::new(connection);
        let waiters = Arc::<Waiters>::default();
        let (mut registration, mut descriptor) = (None, None);
        if connection.may_move() || connection.lane().is_some() {
            registration = Some(Driver::current()?.add(&connection, &waiters)?);
        } else {
            // It is on TCP for good, where the descriptor tells.
            let both = Interest::READABLE | Interest::WRITABLE;
            descriptor = Some(watch(Arc::clone(&connection), both)?);
        }
        Ok(Self {
            registration,
            descriptor,
            waiters,
            connection,
        })
    }

    /// Does a call that says EAGAIN instead of waiting, and has the task woken when it is worth
    /// calling again.
    pub(crate) fn poll_call<T>(
        &self,
        way: Way,
        context: &mut Context<'_>,
        mut call: impl FnMut(&Connection) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        // A stream that is always ready must not keep the other tasks from running.
        let budget = ready!(coop::poll_proceed(context));
        let mut is_registered = false;
        loop {
            match call(&self.connection) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                outcome => {
                    budget.made_progress();
                    return Poll::Ready(outcome);
                }
            }
            // What comes before the waker is registered is found by the second call.
            if !is_registered {
                self.waiters.register(way, context);
                is_registered = true;
                if self.descriptor.is_none() {
                    continue;
                }
            }
            let Some(descriptor) = &self.descriptor else {
                return Poll::Pending;
            };
            let ready = match way {
                Way::Read => descriptor.poll_read_ready(context),
                Way::Write => descriptor.poll_write_ready(context),
            };
            ready!(ready)?.clear_ready();
        }
    }
}
