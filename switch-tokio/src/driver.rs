//! The driver: the task of a runtime that polls the lanes of the runtime's streams, and wakes the tasks
//! that wait for them.
//!
//! It waits in a [`Poller`] without sleeping there. It sleeps in the runtime: the reactor watches the
//! poller's descriptor, which tells during a [`Poller::stand_by`]. The order in each round is: end the
//! sleep, clear the reactor's readiness, ask the poller, wake. What comes after the clearing makes the
//! descriptor readable anew, and what came before is found by asking.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use san_switch::{Connection, Events, Interest, PolledEvent, Poller};
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, Id};

use crate::waiters::Waiters;
use crate::watched::{Tells, Watched, watch};

/// The drivers of all runtimes that live.
static DRIVERS: Mutex<Option<HashMap<Id, Weak<Driver>>>> = Mutex::new(None);

/// All that a stream is told of, each time it changes.
const ALL: Interest = Interest::level(
    Events::READABLE
        .union(Events::WRITABLE)
        .union(Events::READ_CLOSED),
)
.edge();

/// The poller of one runtime, and the streams in it.
pub(crate) struct Driver {
    poller: Poller,
    waiters: Mutex<HashMap<u64, Weak<Waiters>>>,
    next: AtomicU64,
}

/// A stream's registration in a driver; dropping it takes the stream out.
pub(crate) struct Registration {
    driver: Arc<Driver>,
    connection: Arc<Connection>,
    token: u64,
}

impl Driver {
    /// The one of the runtime that this is called in. The first call starts it.
    ///
    /// # Errors
    /// EMFILE, ENFILE or ENOMEM.
    ///
    /// # Panics
    /// Outside a runtime, and in one without I/O.
    pub(crate) fn current() -> io::Result<Arc<Self>> {
        let runtime = Handle::current();
        let mut drivers = lock(&DRIVERS);
        let drivers = drivers.get_or_insert_default();
        if let Some(driver) = drivers.get(&runtime.id()).and_then(Weak::upgrade) {
            return Ok(driver);
        }
        let driver = Arc::new(Self {
            poller: Poller::new()?,
            waiters: Mutex::default(),
            next: AtomicU64::new(0),
        });
        let watched = watch(Arc::clone(&driver), tokio::io::Interest::READABLE)?;
        drivers.retain(|_, driver| driver.strong_count() > 0);
        drivers.insert(runtime.id(), Arc::downgrade(&driver));
        runtime.spawn(drive(watched));
        Ok(driver)
    }

    /// Has `waiters` woken when the connection becomes ready for something.
    ///
    /// # Errors
    /// EMFILE, where its lane needs a descriptor.
    pub(crate) fn add(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        waiters: &Arc<Waiters>,
    ) -> io::Result<Registration> {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.waiters).insert(token, Arc::downgrade(waiters));
        let registration = Registration {
            driver: Arc::clone(self),
            connection: Arc::clone(connection),
            token,
        };
        self.poller.add(connection, token, ALL)?;
        // The driver may sleep, and does not know the connection's lane yet.
        self.poller.waker().wake();
        Ok(registration)
    }

    fn tell(&self, events: &[PolledEvent]) {
        for event in events {
            let waiters = lock(&self.waiters)
                .get(&event.token)
                .and_then(Weak::upgrade);
            if let Some(waiters) = waiters {
                waiters.wake(event.events);
            }
        }
    }
}

impl Tells for Arc<Driver> {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&self.driver.waiters).remove(&self.token);
        // It may not have got into the poller.
        let _ = self.driver.poller.remove(&self.connection, self.token);
    }
}

/// The task. It ends with its runtime.
async fn drive(watched: AsyncFd<Watched<Arc<Driver>>>) {
    let driver: &Driver = watched.get_ref();
    let mut events = Vec::new();
    loop {
        // EINTR is all that can be said here; the next round asks again.
        let _ = driver.poller.wait(&mut events, Some(Duration::ZERO));
        if !events.is_empty() {
            driver.tell(&events);
            // Whoever was woken has the turn before the lanes are polled again.
            tokio::task::yield_now().await;
            continue;
        }
        let Some(asleep) = driver.poller.stand_by() else {
            tokio::task::yield_now().await;
            continue;
        };
        let readable = watched.readable().await;
        drop(asleep);
        match readable {
            Ok(mut readable) => readable.clear_ready(),
            Err(error) => {
                // The runtime shuts down.
                tracing::debug!(%error, "the driver of a runtime ends");
                return;
            }
        }
    }
}

/// Of what is held here, nothing is half done when a thread panics.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
