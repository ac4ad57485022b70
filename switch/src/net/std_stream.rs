//! A stream with the standard library's names.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use san_base::Deadline;
use socket2::SockRef;

use super::connect::ConnectOptions;
use super::connection::Connection;
use super::handover::Duplicate;
use super::handover::offers::Leaves;
use super::handover::package::Gone;
use super::process::{Open, process_switch};
use crate::route::fallback::Route;

/// How long the last stream of a process waits for its bytes when it is closed.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// A TCP stream, carried by the SAN where both ends have one: as [`std::net::TcpStream`].
pub struct TcpStream {
    shared: Arc<Shared>,
}

struct Shared {
    connection: Connection,
    open: Open,
}

impl TcpStream {
    /// Connects to the first address that answers.
    ///
    /// # Errors
    /// As [`std::net::TcpStream::connect`]: what the last address said.
    pub fn connect(address: impl ToSocketAddrs) -> io::Result<Self> {
        Self::connect_with(address, &ConnectOptions::default())
    }

    /// Connects to the first address that answers, in a way that the standard library has no names for:
    /// which route, which buffers, from which address.
    ///
    /// # Errors
    /// As [`TcpStream::connect`], and what the options may fail with.
    pub fn connect_with(address: impl ToSocketAddrs, options: &ConnectOptions) -> io::Result<Self> {
        let switch = process_switch()?;
        each_address(address, |address| {
            Ok(Self::from(switch.connect(address, options)?))
        })
    }

    /// Connects within a time.
    ///
    /// # Errors
    /// As [`std::net::TcpStream::connect_timeout`]: EINVAL for a time of zero.
    pub fn connect_timeout(address: &SocketAddr, timeout: Duration) -> io::Result<Self> {
        if timeout.is_zero() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a timeout of zero",
            ));
        }
        let options = ConnectOptions::default().timeout(timeout);
        Ok(process_switch()?.connect(*address, &options)?.into())
    }

    /// Offers the stream to another process; see [`Connection::duplicate`].
    ///
    /// # Errors
    /// As [`Connection::duplicate`].
    pub fn duplicate(&self, target: u32) -> io::Result<Duplicate> {
        let what = Arc::clone(&self.shared) as Arc<dyn Leaves>;
        self.shared.connection.lease.offers.offer(target, what)
    }

    /// Takes up a stream that another process has offered.
    ///
    /// # Errors
    /// As [`Switch::connection_from`](crate::Switch::connection_from), and those of making the process's switch.
    pub fn from_duplicate(duplicate: &Duplicate) -> io::Result<Self> {
        Ok(process_switch()?.connection_from(duplicate)?.into())
    }

    /// Which way the stream took, and why.
    #[must_use]
    pub fn route(&self) -> &Route {
        self.shared.connection.route()
    }

    /// The connection itself, with what the standard library has no name for.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.shared.connection
    }

    /// The peer's end.
    ///
    /// # Errors
    /// None; as the standard library has it.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.shared.connection.peer_addr())
    }

    /// Our end.
    ///
    /// # Errors
    /// None; as the standard library has it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.shared.connection.local_addr())
    }

    /// Closes the reading half, the writing half, or both, and ends the calls of other threads that wait
    /// for what cannot come any more.
    ///
    /// # Errors
    /// ENOTCONN or ECONNRESET when the peer is gone.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.shared.connection.shutdown(how)
    }

    /// Another handle of the same stream.
    ///
    /// # Errors
    /// None; as the standard library has it.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::clone(&self.shared),
        })
    }

    /// How long a read waits.
    ///
    /// # Errors
    /// EINVAL for a time of zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.shared.connection.set_receive_timeout(timeout)
    }

    /// How long a write waits.
    ///
    /// # Errors
    /// EINVAL for a time of zero.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.shared.connection.set_send_timeout(timeout)
    }

    /// How long a read waits.
    ///
    /// # Errors
    /// Over TCP what getsockopt(2) says.
    pub fn read_timeout(&self) -> io::Result<Option<Duration>> {
        self.shared.connection.receive_timeout()
    }

    /// How long a write waits.
    ///
    /// # Errors
    /// Over TCP what getsockopt(2) says.
    pub fn write_timeout(&self) -> io::Result<Option<Duration>> {
        self.shared.connection.send_timeout()
    }

    /// Reads bytes that the next read gets again.
    ///
    /// # Errors
    /// As a read.
    pub fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.shared.connection.peek(bytes)
    }

    /// Sets TCP_NODELAY. Over the SAN bytes travel at once whatever it says.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_nodelay(&self, on: bool) -> io::Result<()> {
        SockRef::from(&self.shared.connection.companion_fd()).set_tcp_nodelay(on)
    }

    /// What [`TcpStream::set_nodelay`] has set.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn nodelay(&self) -> io::Result<bool> {
        SockRef::from(&self.shared.connection.companion_fd()).tcp_nodelay()
    }

    /// The error that no call has said yet, and clears it.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.shared.connection.take_error()
    }

    /// Whether calls give EAGAIN where they would wait.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        self.shared.connection.set_nonblocking(on)
    }
}

/// Tries each address; what the last one said, if none does.
pub(super) fn each_address<T>(
    address: impl ToSocketAddrs,
    mut attempt: impl FnMut(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let mut last = io::Error::new(
        io::ErrorKind::InvalidInput,
        "could not resolve to any addresses",
    );
    for address in address.to_socket_addrs()? {
        match attempt(address) {
            Ok(made) => return Ok(made),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl From<Connection> for TcpStream {
    fn from(connection: Connection) -> Self {
        Self {
            shared: Arc::new(Shared {
                connection,
                open: Open::new(),
            }),
        }
    }
}

impl Leaves for Shared {
    fn may_leave(&self) -> io::Result<()> {
        self.connection.may_leave()
    }

    fn leave(&self, target: u32, deadline: Deadline) -> io::Result<Gone> {
        self.connection.leave(target, deadline)
    }
}

impl Drop for Shared {
    /// The last stream of a process: what is under way would end with the process.
    fn drop(&mut self) {
        if !self.open.is_last() || !self.connection.is_san() {
            return;
        }
        let begun = Instant::now();
        if let Err(error) = self.connection.finish(Some(LAST_PATIENCE))
            && error.kind() == io::ErrorKind::WouldBlock
        {
            tracing::warn!(
                peer = %self.connection.peer_addr(),
                waited = ?begun.elapsed(),
                "the peer has not taken everything in; what is left ends with this process"
            );
        }
    }
}

impl Read for &TcpStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.shared.connection.receive(bytes)
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.shared.connection.receive_vectored(buffers)
    }
}

impl Write for &TcpStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.shared.connection.send(bytes)
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut written = 0;
        for buffer in buffers.iter().filter(|buffer| !buffer.is_empty()) {
            match self.write(buffer) {
                Ok(taken) if taken == buffer.len() => written += taken,
                Ok(taken) => return Ok(written + taken),
                Err(_) if written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for TcpStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&*self).read(bytes)
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self).read_vectored(buffers)
    }
}

impl Write for TcpStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpStream")
            .field("addr", &self.shared.connection.local_addr())
            .field("peer", &self.shared.connection.peer_addr())
            .field("route", self.route())
            .finish()
    }
}
