//! A stream.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use san_switch::{ConnectOptions, Connection, Route, Switch};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::ToSocketAddrs;

use crate::source::Source;
use crate::waiters::Way;
use crate::{blocking, connecting, process_switch};

/// A TCP stream, carried by the SAN where both ends have one: as `tokio::net::TcpStream`.
///
/// One task may read while another writes ([`TcpStream::into_split`]). Of two tasks that read at a
/// time only the last one is woken.
pub struct TcpStream {
    source: Arc<Source>,
}

impl TcpStream {
    /// Connects to the first address that answers.
    ///
    /// # Errors
    /// As `tokio::net::TcpStream::connect`: what the last address said.
    pub async fn connect(address: impl ToSocketAddrs) -> io::Result<Self> {
        let switch = process_switch().await?;
        let mut last = None;
        for address in tokio::net::lookup_host(address).await? {
            match Self::connect_with(&switch, address, ConnectOptions::default()).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "could not resolve to any address",
            )
        }))
    }

    /// Connects by this switch, with these options. Dropping the future calls the connect off.
    ///
    /// # Errors
    /// Those of [`Switch::connect`], with the numbers that TCP has for them.
    pub async fn connect_with(
        switch: &Switch,
        address: SocketAddr,
        options: ConnectOptions,
    ) -> io::Result<Self> {
        let connection = connecting::connect(switch.clone(), address, options).await?;
        Self::from_connection(connection)
    }

    /// A connection of a switch, in the current runtime from now on.
    ///
    /// # Errors
    /// EMFILE and the like.
    ///
    /// # Panics
    /// Outside a runtime, and in one without I/O.
    pub fn from_connection(connection: Connection) -> io::Result<Self> {
        let source = Arc::new(Source::new(connection)?);
        Ok(Self { source })
    }

    /// The connection itself, with what tokio has no name for. It is in nonblocking mode.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.source.connection
    }

    /// Which way the stream took, and why.
    #[must_use]
    pub fn route(&self) -> &Route {
        self.connection().route()
    }

    /// The peer's end.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.connection().peer_addr()
    }

    /// Our end.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.connection().local_addr()
    }

    /// Reads bytes that the next read gets again.
    ///
    /// # Errors
    /// As a read.
    pub async fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        std::future::poll_fn(|context| {
            let call = |connection: &Connection| connection.peek(bytes);
            self.source.poll_call(Way::Read, context, call)
        })
        .await
    }

    /// The error that no call has said yet, and clears it.
    ///
    /// # Errors
    /// Over TCP what getsockopt(2) says.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.connection().take_error()
    }

    /// Ends our stream, and waits until all of it is in the memory of the peer's host. A process that
    /// ends right after this loses nothing. The wait takes a thread for blocking work.
    ///
    /// # Errors
    /// ECONNRESET when the peer is gone and has not taken everything in; EAGAIN after the timeout.
    pub async fn finish(&self, timeout: Option<Duration>) -> io::Result<()> {
        let connection = Arc::clone(&self.source.connection);
        blocking(move || connection.finish(timeout)).await
    }

    pub(crate) fn poll_receive(
        &self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let received = self.source.poll_call(Way::Read, context, |connection| {
            connection.receive(buffer.initialize_unfilled())
        });
        received.map_ok(|count| buffer.advance(count))
    }

    pub(crate) fn poll_send(
        &self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.source
            .poll_call(Way::Write, context, |connection| connection.send(bytes))
    }

    /// Sends several pieces, as far as there is room.
    pub(crate) fn poll_send_vectored(
        &self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.source.poll_call(Way::Write, context, |connection| {
            let mut sent = 0;
            for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
                match connection.send(piece) {
                    Ok(taken) => {
                        sent += taken;
                        if taken < piece.len() {
                            break;
                        }
                    }
                    Err(_) if sent > 0 => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(sent)
        })
    }

    pub(crate) fn end(&self) -> Poll<io::Result<()>> {
        match self.connection().shutdown(Shutdown::Write) {
            // There is nobody to tell it to.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            outcome => Poll::Ready(outcome),
        }
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_receive(context, buffer)
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end()
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpStream")
            .field("addr", &self.local_addr())
            .field("peer", &self.peer_addr())
            .field("route", self.route())
            .finish()
    }
}
