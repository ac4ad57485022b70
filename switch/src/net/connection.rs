//! A connection: a byte stream over the SAN or over TCP, which the caller uses alike (duties 1,
//! 10, 17).
//!
//! It knows which way was taken and why. The SAN's part is in `carrier/san.rs`; TCP's is the
//! kernel's. The addresses come from a cache of its own (duty 49).

use crate::carrier::san::SanStream;
use crate::counters::TcpCounters;
use crate::error::FallbackReason;
use crate::net::listener::Pending;
use crate::san::provider::{ProviderSocket, Registered};
use crate::switch::Inner;
use san_base::lock;
use socket2::Socket;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

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
    info: Arc<ConnectionInfo>,
    /// The provider stays started while a connection of its lives.
    inner: Arc<Inner>,
}

/// What is known of an open connection from outside.
pub(crate) struct ConnectionInfo {
    number: u64,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) route: Route,
    pub(crate) since: Instant,
    /// Over the SAN the provider counts.
    pub(crate) san: Option<san_provider::Socket>,
    /// What a connection over TCP counted.
    pub(crate) tcp: TcpCounters,
}

/// The open connections of a switch, for those who ask. Only a connection's beginning and end are
/// noted here.
#[derive(Default)]
pub(crate) struct OpenConnections {
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, Weak<ConnectionInfo>>>,
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
        let route = Route::Tcp { why };
        let info = inner.core.connections.add(local, peer, route, None);
        Connection {
            stream: Stream::Tcp,
            tcp,
            info,
            inner,
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
        let route = Route::San {
            provider: provider.name.clone(),
            device,
        };
        let san = Some(socket.data().clone());
        let info = inner.core.connections.add(local, peer, route, san);
        Connection {
            stream: Stream::San(SanStream::new(socket, inner.core.config.io_timeout)),
            tcp,
            info,
            inner,
        }
    }

    /// Which way it took, and why.
    pub fn route(&self) -> &Route {
        &self.info.route
    }

    /// Whether the SAN carries it.
    pub fn is_san(&self) -> bool {
        matches!(self.stream, Stream::San(_))
    }

    /// Our end.
    pub fn local_addr(&self) -> SocketAddr {
        self.info.local
    }

    /// The peer's end.
    pub fn peer_addr(&self) -> SocketAddr {
        self.info.peer
    }

    /// Sends bytes and says how many were taken, at least one unless there were none.
    ///
    /// # Errors
    /// ECONNRESET when the peer is gone, EPIPE after [`Connection::shutdown_write`], EAGAIN after
    /// the timeout, as TCP.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.stream {
            Stream::San(stream) => stream.send(bytes),
            Stream::Tcp => {
                let sent = self.tcp.send(bytes)?;
                self.info.tcp.messages_sent.raise();
                self.info.tcp.bytes_sent.add(sent as u64);
                Ok(sent)
            }
        }
    }

    /// Receives bytes; 0 means that the peer ended its stream.
    ///
    /// # Errors
    /// ECONNRESET when the peer went without ending its stream, EAGAIN after the timeout.
    pub fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match &self.stream {
            Stream::San(stream) => stream.receive(bytes),
            Stream::Tcp => {
                let received = (&self.tcp).read(bytes)?;
                self.info.tcp.messages_received.raise();
                self.info.tcp.bytes_received.add(received as u64);
                Ok(received)
            }
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

impl Drop for Connection {
    fn drop(&mut self) {
        self.inner.core.connections.remove(&self.info);
    }
}

impl OpenConnections {
    /// At most so many, the oldest first, and how many more there are.
    pub(crate) fn oldest(&self, most: usize) -> (Vec<Arc<ConnectionInfo>>, usize) {
        let open = lock(&self.open);
        let omitted = open.len().saturating_sub(most);
        let listed = open.values().take(most).filter_map(Weak::upgrade).collect();
        (listed, omitted)
    }

    fn add(
        &self,
        local: SocketAddr,
        peer: SocketAddr,
        route: Route,
        san: Option<san_provider::Socket>,
    ) -> Arc<ConnectionInfo> {
        let info = Arc::new(ConnectionInfo {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            local,
            peer,
            route,
            since: Instant::now(),
            san,
            tcp: TcpCounters::default(),
        });
        lock(&self.open).insert(info.number, Arc::downgrade(&info));
        info
    }

    fn remove(&self, info: &ConnectionInfo) {
        lock(&self.open).remove(&info.number);
    }
}

impl fmt::Debug for OpenConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = lock(&self.open).len();
        f.debug_struct("OpenConnections")
            .field("open", &open)
            .finish_non_exhaustive()
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
            .field("local", &self.info.local)
            .field("peer", &self.info.peer)
            .field("route", &self.info.route)
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
