//! A listener with the standard library's names.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use san_base::Deadline;

use super::handover::Duplicate;
use super::handover::offers::Leaves;
use super::handover::package::Gone;
use super::listener::{ListenOptions, Listener};
use super::process::{Open, process_switch};
use super::std_stream::{TcpStream, each_address};

/// A listener on TCP and, where its address allows, on the SAN: as [`std::net::TcpListener`].
pub struct TcpListener {
    shared: Arc<Shared>,
}

struct Shared {
    listener: Listener,
    is_nonblocking: AtomicBool,
    _open: Open,
}

/// The connections of a listener, one after the other; it never ends.
#[derive(Debug)]
pub struct Incoming<'a> {
    listener: &'a TcpListener,
}

impl TcpListener {
    /// Listens at the first address that can be bound, with the backlog of the settings.
    ///
    /// # Errors
    /// As [`std::net::TcpListener::bind`]: what the last address said.
    pub fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        Self::bind_with(address, &ListenOptions::default())
    }

    /// Listens at the first address that can be bound, in a way that the standard library has no names for:
    /// with a backlog, a condition, buffers.
    ///
    /// # Errors
    /// As [`TcpListener::bind`], and what the options may fail with.
    pub fn bind_with(address: impl ToSocketAddrs, options: &ListenOptions) -> io::Result<Self> {
        let switch = process_switch()?;
        each_address(address, |address| {
            Ok(switch.listen(address, options.clone())?.into())
        })
    }

    /// Offers the listener to another process; see [`Listener::duplicate`].
    ///
    /// # Errors
    /// As [`Listener::duplicate`].
    pub fn duplicate(&self, target: u32) -> io::Result<Duplicate> {
        let what = Arc::clone(&self.shared) as Arc<dyn Leaves>;
        self.shared.listener.lease.offers.offer(target, what)
    }

    /// Takes up a listener that another process has offered.
    ///
    /// # Errors
    /// As [`Switch::listener_from`](crate::Switch::listener_from), and those of making the process's switch.
    pub fn from_duplicate(duplicate: &Duplicate) -> io::Result<Self> {
        Ok(process_switch()?.listener_from(duplicate, None)?.into())
    }

    /// The listener itself, with what the standard library has no name for.
    #[must_use]
    pub fn listener(&self) -> &Listener {
        &self.shared.listener
    }

    /// Where it listens.
    ///
    /// # Errors
    /// None; as the standard library has it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.shared.listener.local_addr())
    }

    /// Another handle of the same listener.
    ///
    /// # Errors
    /// None; as the standard library has it.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::clone(&self.shared),
        })
    }

    /// The next connection, from whichever side, and its peer.
    ///
    /// # Errors
    /// As accept(2); EAGAIN in nonblocking mode when none waits.
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let listener = &self.shared.listener;
        let connection = if self.shared.is_nonblocking.load(Ordering::Relaxed) {
            let waiting = listener.try_accept()?;
            waiting.ok_or_else(|| io::Error::from(io::ErrorKind::WouldBlock))?
        } else {
            listener.accept()?
        };
        let peer = connection.peer_addr();
        Ok((connection.into(), peer))
    }

    /// All connections that come.
    #[must_use]
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming { listener: self }
    }

    /// Whether accept gives EAGAIN when no connection waits. A thread that waits in accept already
    /// goes on.
    ///
    /// # Errors
    /// None; as the standard library has it.
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        self.shared.is_nonblocking.store(on, Ordering::Relaxed);
        Ok(())
    }
}

impl Leaves for Shared {
    fn may_leave(&self) -> io::Result<()> {
        self.listener.may_leave()
    }

    fn leave(&self, target: u32, deadline: Deadline) -> io::Result<Gone> {
        self.listener.leave(target, deadline)
    }
}

impl From<Listener> for TcpListener {
    fn from(listener: Listener) -> Self {
        Self {
            shared: Arc::new(Shared {
                listener,
                is_nonblocking: AtomicBool::new(false),
                _open: Open::new(),
            }),
        }
    }
}

impl Iterator for Incoming<'_> {
    type Item = io::Result<TcpStream>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.listener.accept().map(|(stream, _)| stream))
    }
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpListener")
            .field("addr", &self.shared.listener.local_addr())
            .finish()
    }
}
