//! A provider's socket that closes itself, with errors that say which step failed.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use san_provider::wire::Session;
use san_provider::{
    AcceptError, ConnectError, ConnectOptions, ConnectionRequest, Decision, EventObject,
    NetworkEventRecord, NetworkEvents, SelectError, Socket, SocketOption,
};

use super::failure::StepFailure;

/// A socket of a provider. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct ProviderSocket(Socket);

/// An address that the kernel does not tell.
pub(crate) const UNKNOWN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));

/// What a provider's accept gave.
#[derive(Debug)]
pub(crate) struct AcceptedSocket {
    pub(crate) socket: ProviderSocket,
    pub(crate) peer: SocketAddr,
}

impl ProviderSocket {
    pub(super) fn new(socket: Socket) -> Self {
        Self(socket)
    }

    /// One that another process had.
    pub(crate) fn taken_up(socket: Socket) -> Self {
        Self(socket)
    }

    pub(crate) fn bind(&self, address: SocketAddr) -> Result<(), StepFailure> {
        self.0
            .bind(address)
            .map_err(|error| StepFailure::new("bind", error.code(), error))
    }

    pub(crate) fn listen(&self, backlog: u32) -> Result<(), StepFailure> {
        self.0
            .listen(backlog)
            .map_err(|error| StepFailure::new("listen", error.code(), error))
    }

    pub(crate) fn event_select(
        &self,
        event: &EventObject,
        events: NetworkEvents,
    ) -> Result<(), StepFailure> {
        self.0
            .event_select(event, events)
            .map_err(|error| StepFailure::new("select events", error.code(), error))
    }

    /// What happened since the last call; the event object is reset.
    pub(crate) fn network_events(
        &self,
        event: &EventObject,
    ) -> Result<NetworkEventRecord, SelectError> {
        self.0.enum_network_events(Some(event))
    }

    pub(crate) fn connect(
        &self,
        destination: SocketAddr,
        budget: Duration,
    ) -> Result<(), ConnectError> {
        self.connect_with(destination, budget, Session::NONE)
    }

    /// As [`ProviderSocket::connect`], with a session in the request.
    pub(crate) fn connect_with(
        &self,
        destination: SocketAddr,
        budget: Duration,
        session: Session,
    ) -> Result<(), ConnectError> {
        let options = ConnectOptions {
            deadline: Some(budget),
            session,
            ..ConnectOptions::default()
        };
        self.0.connect(destination, options)
    }

    /// Answers the request that waits longest, as the condition decides.
    pub(crate) fn accept(
        &self,
        condition: impl FnMut(&ConnectionRequest) -> Decision,
    ) -> Result<AcceptedSocket, AcceptError> {
        let accepted = self.0.accept(condition)?;
        let peer = accepted.peer.unwrap_or(UNKNOWN);
        Ok(AcceptedSocket {
            socket: ProviderSocket(accepted.socket),
            peer,
        })
    }

    /// Sets an option of the TCP socket on its companion (duty 15).
    pub(crate) fn set_option(&self, option: SocketOption, value: u32) -> Result<(), StepFailure> {
        self.0
            .set_option(option, value)
            .map_err(|error| StepFailure::new("set an option", error.code(), error))
    }

    /// Bytes of the largest message that the peer takes.
    pub(crate) fn max_message_size(&self) -> usize {
        let size = self.0.option(SocketOption::MaxMessageSize);
        // One that is closed already sends nothing anyway.
        size.map_or(1, |size| usize::try_from(size).unwrap_or(usize::MAX).max(1))
    }

    /// Our end's address; the wildcard if the provider does not know it.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.0.local_addr().ok().flatten().unwrap_or(UNKNOWN)
    }

    /// The socket itself, for data.
    pub(crate) fn data(&self) -> &Socket {
        &self.0
    }

    /// Closes it; again does nothing.
    pub(crate) fn close(&self) {
        let _ = self.0.close();
    }
}

impl Drop for ProviderSocket {
    fn drop(&mut self) {
        self.close();
    }
}
