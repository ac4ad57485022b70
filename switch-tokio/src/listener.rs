//! A listener.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};

use san_switch::{ListenOptions, Listener, Switch};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::ToSocketAddrs;

use crate::stream::TcpStream;
use crate::watched::{Watched, watch};
use crate::{blocking, process_switch};

/// A listener on TCP and, where its address allows, on the SAN: as `tokio::net::TcpListener`.
pub struct TcpListener {
    listener: AsyncFd<Watched<Listener>>,
}

impl TcpListener {
    /// Listens at the first address that can be bound, with the backlog of the settings.
    ///
    /// # Errors
    /// As `tokio::net::TcpListener::bind`: what the last address said.
    pub async fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        let switch = process_switch().await?;
        let mut last = None;
        for address in tokio::net::lookup_host(address).await? {
            match Self::bind_with(&switch, address, ListenOptions::default()).await {
                Ok(listener) => return Ok(listener),
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

    /// Listens by this switch, with these options.
    ///
    /// # Errors
    /// Those of [`Switch::listen`].
    pub async fn bind_with(
        switch: &Switch,
        address: SocketAddr,
        options: ListenOptions,
    ) -> io::Result<Self> {
        let switch = switch.clone();
        let listener = blocking(move || Ok(switch.listen(address, options)?)).await?;
        Self::from_listener(listener)
    }

    /// A listener of a switch, in the current runtime from now on.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    ///
    /// # Panics
    /// Outside a runtime, and in one without I/O.
    pub fn from_listener(listener: Listener) -> io::Result<Self> {
        let listener = watch(listener, Interest::READABLE)?;
        Ok(Self { listener })
    }

    /// The next connection, from whichever side, and its peer. A call that is dropped has taken none.
    ///
    /// # Errors
    /// As accept(2).
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        std::future::poll_fn(|context| self.poll_accept(context)).await
    }

    /// The same as a poll function. Of several tasks that wait, the last one is woken.
    ///
    /// # Errors
    /// As accept(2).
    pub fn poll_accept(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        loop {
            let mut readable = ready!(self.listener.poll_read_ready(context))?;
            if let Some(connection) = self.listener().try_accept()? {
                let peer = connection.peer_addr();
                let stream = TcpStream::from_connection(connection)?;
                return Poll::Ready(Ok((stream, peer)));
            }
            readable.clear_ready();
        }
    }

    /// The listener itself, with what tokio has no name for.
    #[must_use]
    pub fn listener(&self) -> &Listener {
        self.listener.get_ref()
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.listener().local_addr()
    }
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpListener")
            .field("addr", &self.local_addr())
            .finish()
    }
}
