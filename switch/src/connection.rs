//! A connection: a byte stream over the SAN or over TCP, which the caller uses alike (duties 1,
//! 10, 17).
//!
//! It knows which way was taken and why. The SAN's part is in `san_stream.rs`; TCP's is the
//! kernel's. The addresses come from a cache of its own (duty 49).

use crate::error::FallbackReason;
use crate::listener::Pending;
use crate::provider_socket::{ProviderSocket, Registered};
use crate::san_stream::SanStream;
use crate::switch::Inner;
use socket2::Socket;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// Which way a connection took.
#[derive(Debug, Clone)]
pub enum Route {
    /// Over the SAN.
    San {
        /// The provider's name.
        provider: String,
        /// The RDMA device's name.
        device: String,
    },
    /// Over TCP.
    Tcp {
        /// Why, where the SAN was thought of.
        why: Option<FallbackReason>,
    },
}

/// A connected stream. All calls take `&self`: one thread may send while another receives.
/// Dropping it closes it.
pub struct Connection {
    stream: Stream,
    /// The application's descriptor (duty 10); it carries the bytes only on [`Route::Tcp`].
    tcp: Socket,
    local: SocketAddr,
    peer: SocketAddr,
    route: Route,
    /// The provider stays started while a connection of its lives.
    _inner: Arc<Inner>,
}

enum Stream {
    San(SanStream),
    Tcp,
}

impl Connection {
    pub(crate) fn from_pending(pending: Pending, inner: Arc<Inner>) -> Self {
        let Pending {
            provider,
            socket,
            peer,
            tcp,
        } = pending;
        Self::san(&provider, socket, None, peer, tcp, inner)
    }

    pub(crate) fn from_companion(
        provider: &Registered,
        companion: ProviderSocket,
        device: String,
        peer: SocketAddr,
        tcp: Socket,
        inner: Arc<Inner>,
    ) -> Self {
        Self::san(provider, companion, Some(device), peer, tcp, inner)
    }

    pub(crate) fn from_tcp(
        tcp: Socket,
        local: SocketAddr,
        peer: SocketAddr,
        why: Option<FallbackReason>,
        inner: Arc<Inner>,
    ) -> Self {
        let timeout = inner.core.config.io_timeout;
        // These cannot fail on a socket of ours with a time in the checked range.
        let _ = tcp.set_read_timeout(timeout);
        let _ = tcp.set_write_timeout(timeout);
        Connection {
            stream: Stream::Tcp,
            tcp,
            local,
            peer,
            route: Route::Tcp { why },
            _inner: inner,
        }
    }

    fn san(
        provider: &Registered,
        socket: ProviderSocket,
        device: Option<String>,
        peer: SocketAddr,
        tcp: Socket,
        inner: Arc<Inner>,
    ) -> Self {
        let local = socket.local_addr();
        let device = device.unwrap_or_else(|| {
            let table = inner.core.table();
            let entry = table.own(local.ip());
            entry.map_or_else(String::new, |entry| entry.device.clone())
        });
        Connection {
            stream: Stream::San(SanStream::new(socket, inner.core.config.io_timeout)),
            tcp,
            local,
            peer,
            route: Route::San {
                provider: provider.name.clone(),
                device,
            },
            _inner: inner,
        }
    }

    /// Which way it took, and why.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// Whether the SAN carries it.
    pub fn is_san(&self) -> bool {
        matches!(self.stream, Stream::San(_))
    }

    /// Our end.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The peer's end.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Sends bytes and says how many were taken, at least one unless there were none.
    ///
    /// # Errors
    /// ECONNRESET when the peer is gone, EPIPE after [`Connection::shutdown_write`], EAGAIN after
    /// the timeout, as TCP.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.stream {
            Stream::San(stream) => stream.send(bytes),
            Stream::Tcp => self.tcp.send(bytes),
        }
    }

    /// Receives bytes; 0 means that the peer ended its stream.
    ///
    /// # Errors
    /// ECONNRESET when the peer went without ending its stream, EAGAIN after the timeout.
    pub fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match &self.stream {
            Stream::San(stream) => stream.receive(bytes),
            Stream::Tcp => (&self.tcp).read(bytes),
        }
    }

    /// Ends our stream: the peer reads what was sent and then the end. Receiving goes on.
    ///
    /// # Errors
    /// ENOTCONN or ECONNRESET when the peer is gone.
    pub fn shutdown_write(&self) -> io::Result<()> {
        match &self.stream {
            Stream::San(stream) => stream.end(),
            Stream::Tcp => self.tcp.shutdown(Shutdown::Write),
        }
    }

    /// How long [`Connection::receive`] waits; `None` = until something happens.
    ///
    /// # Errors
    /// EINVAL for a time of zero.
    pub fn set_receive_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match &self.stream {
            Stream::San(stream) => stream.set_receive_timeout(checked(timeout)?),
            Stream::Tcp => self.tcp.set_read_timeout(checked(timeout)?)?,
        }
        Ok(())
    }

    /// How long [`Connection::send`] waits; `None` = until something happens.
    ///
    /// # Errors
    /// EINVAL for a time of zero.
    pub fn set_send_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match &self.stream {
            Stream::San(stream) => stream.set_send_timeout(checked(timeout)?),
            Stream::Tcp => self.tcp.set_write_timeout(checked(timeout)?)?,
        }
        Ok(())
    }
}

impl AsFd for Connection {
    /// The TCP socket: the descriptor that the application holds (duty 10). Over the SAN it is a
    /// TCP socket of its own that is not connected.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

impl Read for &Connection {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.receive(bytes)
    }
}

impl Write for &Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Connection {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.receive(bytes)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("local", &self.local)
            .field("peer", &self.peer)
            .field("route", &self.route)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Route::San { provider, device } => write!(f, "SAN ({provider}, {device})"),
            Route::Tcp { why: None } => f.write_str("TCP"),
            Route::Tcp { why: Some(why) } => write!(f, "TCP, since {why}"),
        }
    }
}

/// std's own rule for socket timeouts.
fn checked(timeout: Option<Duration>) -> io::Result<Option<Duration>> {
    if timeout == Some(Duration::ZERO) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a timeout of zero",
        ));
    }
    Ok(timeout)
}
