//! One attempt to connect, over the SAN or over TCP: started, and asked for its outcome.
//!
//! Nothing waits here, and nothing is decided: `connect.rs` does both.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll;
use rustix::io::Errno;
use san_base::Deadline;
use san_provider::{
    ConnectError as SpiConnectError, ConnectFailure, EventObject, NetworkEvents, SocketOption,
};
use socket2::Socket;

use crate::route::fallback::FallbackReason;
use crate::san::failure::StepFailure;
use crate::san::provider::StartedProvider;
use crate::san::socket::ProviderSocket;
use crate::tcp;

/// How much longer than the provider's own deadline its event is waited for.
const GRACE: Duration = Duration::from_millis(500);

/// What the SAN is asked for.
pub(super) struct SanRequest {
    pub(super) provider: Arc<StartedProvider>,
    pub(super) device: String,
    pub(super) from: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) budget: Duration,
    pub(super) type_of_service: Option<u8>,
}

/// The SAN is being tried.
pub(super) struct SanAttempt {
    pub(super) provider: Arc<StartedProvider>,
    pub(super) device: String,
    pub(super) companion: ProviderSocket,
    pub(super) event: EventObject,
    /// When we stop to believe in the provider's own deadline.
    pub(super) deadline: Deadline,
    connected: bool,
}

/// TCP is being tried.
pub(super) struct TcpAttempt {
    socket: Socket,
    connected: bool,
}

/// Why the SAN cannot even be tried.
pub(super) enum SanFailure {
    Companion(StepFailure),
    Connect(SpiConnectError),
}

impl SanAttempt {
    /// Duties 13-15, 19: socket, bind, options, event object, nonblocking connect.
    pub(super) fn start(request: SanRequest) -> Result<Self, SanFailure> {
        let SanRequest {
            provider,
            device,
            from,
            destination,
            budget,
            type_of_service,
        } = request;
        let prepare = || {
            let companion = provider.socket(destination)?;
            companion.bind(from)?;
            if let Some(tos) = type_of_service {
                companion.set_option(SocketOption::TypeOfService, tos.into())?;
            }
            let event = provider.event_object()?;
            companion.event_select(&event, NetworkEvents::CONNECT)?;
            Ok((companion, event))
        };
        let (companion, event) = prepare().map_err(SanFailure::Companion)?;
        let connected = match companion.connect(destination, budget) {
            Ok(()) => true,
            Err(error) if error.is_in_progress() => false,
            Err(error) => return Err(SanFailure::Connect(error)),
        };
        Ok(Self {
            provider,
            device,
            companion,
            event,
            connected,
            deadline: Deadline::after(budget + GRACE),
        })
    }

    /// Duty 20: the outcome, once the event object says that there is one.
    pub(super) fn outcome(&mut self) -> Option<Result<(), SpiConnectError>> {
        if self.connected {
            return Some(Ok(()));
        }
        if self.event.is_set() {
            match self.companion.network_events(&self.event) {
                Ok(record) => {
                    if let Some(outcome) = record.connect {
                        return Some(outcome);
                    }
                }
                Err(_) => return Some(Err(ConnectFailure::NetDown.into())),
            }
        }
        self.deadline
            .is_over()
            .then(|| Err(ConnectFailure::TimedOut.into()))
    }
}

impl TcpAttempt {
    /// Starts to connect, and has `readiness` tell when there may be an outcome.
    pub(super) fn start(
        socket: Socket,
        destination: SocketAddr,
        readiness: &impl AsFd,
    ) -> io::Result<Self> {
        let connected = tcp::start_connect(&socket, destination)?;
        Ok(Self {
            connected,
            ..Self::watched(socket, readiness)?
        })
    }

    /// One that was started by a call that waited, and was interrupted.
    pub(super) fn started(socket: Socket, readiness: &impl AsFd) -> io::Result<Self> {
        tcp::set_nonblocking(&socket, true)?;
        Self::watched(socket, readiness)
    }

    fn watched(socket: Socket, readiness: &impl AsFd) -> io::Result<Self> {
        let data = epoll::EventData::new_u64(0);
        epoll::add(readiness, socket.as_fd(), data, epoll::EventFlags::OUT)?;
        Ok(Self {
            socket,
            connected: false,
        })
    }

    /// The connected socket, in blocking mode.
    pub(super) fn into_socket(self) -> io::Result<Socket> {
        tcp::set_nonblocking(&self.socket, false)?;
        Ok(self.socket)
    }

    /// The outcome, to be asked for when `readiness` says that there may be one.
    pub(super) fn outcome(&self) -> Option<io::Result<()>> {
        if self.connected {
            return Some(Ok(()));
        }
        match tcp::finish_connect(&self.socket) {
            Err(error) if is_not_yet(&error) => None,
            outcome => Some(outcome),
        }
    }
}

impl From<StepFailure> for FallbackReason {
    fn from(failure: StepFailure) -> Self {
        Self::Companion {
            step: failure.step,
            source: failure.source,
            code: failure.code,
        }
    }
}

fn is_not_yet(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error())
}
