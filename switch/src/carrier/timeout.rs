//! How long the calls of a stream wait.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use san_base::Deadline;
use socket2::Socket;

/// How long calls wait. It can be changed at any time.
#[derive(Debug)]
pub(crate) struct Timeout {
    /// Nanoseconds; 0 = no end, [`AT_ONCE`] = not at all.
    in_force: AtomicU64,
    /// The same without regard to nonblocking mode.
    wanted: AtomicU64,
}

/// Of a timeout in nonblocking mode.
const AT_ONCE: u64 = u64::MAX;
/// Nanoseconds so few that a call may wait as long twice.
const SHORT: u64 = 1_000_000;

impl Timeout {
    pub(crate) fn new(timeout: Option<Duration>) -> Self {
        let nanoseconds = Self::nanoseconds(timeout);
        Timeout {
            in_force: AtomicU64::new(nanoseconds),
            wanted: AtomicU64::new(nanoseconds),
        }
    }

    fn nanoseconds(timeout: Option<Duration>) -> u64 {
        timeout.map_or(0, |time| {
            let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            nanoseconds.clamp(1, AT_ONCE - 1)
        })
    }

    pub(crate) fn set(&self, timeout: Option<Duration>) {
        let nanoseconds = Self::nanoseconds(timeout);
        self.wanted.store(nanoseconds, Ordering::Relaxed);
        if self.in_force.load(Ordering::Relaxed) != AT_ONCE {
            self.in_force.store(nanoseconds, Ordering::Relaxed);
        }
    }

    pub(crate) fn wanted(&self) -> Option<Duration> {
        match self.wanted.load(Ordering::Relaxed) {
            0 => None,
            nanoseconds => Some(Duration::from_nanos(nanoseconds)),
        }
    }

    pub(crate) fn set_nonblocking(&self, on: bool) {
        let wanted = self.wanted.load(Ordering::Relaxed);
        let in_force = if on { AT_ONCE } else { wanted };
        self.in_force.store(in_force, Ordering::Relaxed);
    }

    pub(crate) fn is_nonblocking(&self) -> bool {
        self.in_force.load(Ordering::Relaxed) == AT_ONCE
    }

    /// How long a call waits that needs no clock for it; `None`: it needs one.
    #[inline]
    pub(crate) fn simple(&self) -> Option<Duration> {
        match self.in_force.load(Ordering::Relaxed) {
            0 => Some(Duration::MAX),
            nanoseconds => Self::simple_end(nanoseconds),
        }
    }

    #[inline(never)]
    fn simple_end(nanoseconds: u64) -> Option<Duration> {
        match nanoseconds {
            AT_ONCE => Some(Duration::ZERO),
            _ => (nanoseconds <= SHORT).then(|| Duration::from_nanos(nanoseconds)),
        }
    }

    #[inline]
    pub(crate) fn deadline(&self) -> Deadline {
        match self.in_force.load(Ordering::Relaxed) {
            0 => Deadline::NEVER,
            AT_ONCE => Deadline::passed(),
            nanoseconds => Deadline::after(Duration::from_nanos(nanoseconds)),
        }
    }
}

/// How long the calls of a stream of ours wait, each way.
#[derive(Debug)]
pub(crate) struct Timeouts {
    pub(crate) send: Timeout,
    pub(crate) receive: Timeout,
}

impl Timeouts {
    pub(crate) fn new(timeout: Option<Duration>) -> Self {
        Self {
            send: Timeout::new(timeout),
            receive: Timeout::new(timeout),
        }
    }
}

/// Who knows how long the calls of a carrier wait.
pub(crate) enum Waits<'a> {
    /// We do.
    Ours(&'a Timeouts),
    /// The kernel does, of this socket.
    Kernels(&'a Socket),
}

impl Waits<'_> {
    /// Whether sends and receives give EAGAIN where they would wait. The timeouts stay as they are,
    /// for later.
    pub(crate) fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        match self {
            Self::Ours(timeouts) => {
                timeouts.send.set_nonblocking(on);
                timeouts.receive.set_nonblocking(on);
                Ok(())
            }
            Self::Kernels(socket) => socket.set_nonblocking(on),
        }
    }

    /// How long a send waits; `None` = until something happens. Never zero.
    pub(crate) fn set_send(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Ours(timeouts) => {
                timeouts.send.set(timeout);
                Ok(())
            }
            Self::Kernels(socket) => socket.set_write_timeout(timeout),
        }
    }

    /// How long a receive waits; `None` = until something happens. Never zero.
    pub(crate) fn set_receive(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Ours(timeouts) => {
                timeouts.receive.set(timeout);
                Ok(())
            }
            Self::Kernels(socket) => socket.set_read_timeout(timeout),
        }
    }

    /// What [`Waits::set_send`] has set, or the settings have.
    pub(crate) fn send(&self) -> io::Result<Option<Duration>> {
        match self {
            Self::Ours(timeouts) => Ok(timeouts.send.wanted()),
            Self::Kernels(socket) => socket.write_timeout(),
        }
    }

    /// What [`Waits::set_receive`] has set, or the settings have.
    pub(crate) fn receive(&self) -> io::Result<Option<Duration>> {
        match self {
            Self::Ours(timeouts) => Ok(timeouts.receive.wanted()),
            Self::Kernels(socket) => socket.read_timeout(),
        }
    }
}

/// What is left, as the provider wants it.
#[inline]
pub(crate) fn left(deadline: Deadline) -> Duration {
    deadline.left().unwrap_or(Duration::MAX)
}
