//! Connecting: the SAN where it has a way, with the way back to TCP (duties 12-21, 23).
//!
//! A connect is a small machine that is driven by whoever waits for it: the blocking
//! [`Switch::connect`](crate::Switch::connect), or an application that polls. No thread works for
//! it. The TCP socket is there first and is the application's descriptor in either case. Once
//! the SAN has connected, TCP is out of the question for that connection.

use crate::companion::plan as companions;
use crate::error::{ConnectError, FallbackReason};
use crate::net::connection::Connection;
use crate::route::table::RouteQuery;
use crate::san::provider::{ProviderSocket, Registered};
use crate::switch::Inner;
use crate::tcp;
use crate::wait::{CancelToken, is_readable, wait_readable};
use rustix::event::epoll;
use rustix::io::Errno;
use san_base::{Deadline, lock};
use san_provider::{
    ConnectError as SpiConnectError, ConnectFailure, EventObject, NetworkEvents, SocketOption,
};
use socket2::Socket;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a connect is made.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    /// Bind to this address first; port 0 leaves the port to the system. Where it is a SAN NIC's,
    /// only that NIC is taken; where it is not, TCP.
    pub local: Option<SocketAddr>,
    /// Overall deadline, SAN and TCP together. `None` takes the switch's setting.
    pub timeout: Option<Duration>,
    /// Calls the connect off.
    pub cancel: Option<CancelToken>,
    /// Do not think of the SAN.
    pub tcp_only: bool,
    /// The type of service of the packets (IP_TOS, IPV6_TCLASS), on either side.
    pub type_of_service: Option<u8>,
}

/// A connect under way. Dropping it calls it off and closes the companion (duty 47).
pub struct PendingConnect {
    inner: Arc<Inner>,
    destination: SocketAddr,
    deadline: Deadline,
    tcp: Option<Socket>,
    stage: Stage,
    fallback: Option<FallbackReason>,
    readiness: OwnedFd,
}

enum Stage {
    San(SanAttempt),
    Tcp { connected: bool },
    Over,
}

struct SanAttempt {
    provider: Arc<Registered>,
    device: String,
    companion: ProviderSocket,
    event: EventObject,
    connected: bool,
    /// When we stop to believe in the provider's own deadline.
    deadline: Deadline,
}

/// How much longer than the provider's own deadline its event is waited for.
const GRACE: Duration = Duration::from_millis(500);

impl PendingConnect {
    pub(crate) fn start(
        inner: Arc<Inner>,
        destination: SocketAddr,
        options: &ConnectOptions,
    ) -> Result<Self, ConnectError> {
        if inner.core.is_closed() {
            return Err(ConnectError::ShutDown);
        }
        let failed = |source| ConnectError::Tcp {
            destination,
            source,
            fallback: None,
        };
        // Duty 10: TCP's socket first.
        let tcp = tcp::socket(destination).map_err(failed)?;
        if let Some(value) = options.type_of_service {
            tcp::set_type_of_service(&tcp, destination, value).map_err(failed)?;
        }
        if let Some(address) = options.local {
            tcp.bind(&address.into())
                .map_err(|source| ConnectError::Local { address, source })?;
        }
        let readiness =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let timeout = options.timeout.unwrap_or(inner.core.config.connect_timeout);
        let mut connect = PendingConnect {
            inner,
            destination,
            deadline: Deadline::after(timeout),
            tcp: Some(tcp),
            stage: Stage::Over,
            fallback: None,
            readiness,
        };
        let attempt = if options.tcp_only {
            None
        } else {
            connect.try_san(options)?
        };
        match attempt {
            Some(attempt) => connect.stage = Stage::San(attempt),
            None => connect.start_tcp()?,
        }
        Ok(connect)
    }

    /// Goes as far as it can without waiting. `None`: not done yet.
    ///
    /// # Errors
    /// [`ConnectError`]; the connect is over then, and another call gives
    /// [`ConnectError::Cancelled`].
    pub fn poll(&mut self) -> Result<Option<Connection>, ConnectError> {
        if let Stage::San(attempt) = &mut self.stage {
            let outcome = match attempt.outcome() {
                None if self.deadline.is_over() => {
                    self.stage = Stage::Over;
                    return Err(self.timed_out());
                }
                None => return Ok(None),
                Some(outcome) => outcome,
            };
            let Stage::San(attempt) = std::mem::replace(&mut self.stage, Stage::Over) else {
                unreachable!("just seen")
            };
            match outcome {
                Ok(()) => return self.connected_san(attempt).map(Some),
                Err(error) => {
                    let _ = epoll::delete(&self.readiness, attempt.event.as_fd());
                    // Duty 21: the companion is closed before TCP is tried.
                    drop(attempt);
                    self.san_failed(error)?;
                    self.start_tcp()?;
                }
            }
        }
        match self.stage {
            Stage::Tcp { connected: true } => self.connected_tcp().map(Some),
            Stage::Tcp { connected: false } if is_readable(self.readiness.as_fd()) => {
                let tcp = self.tcp.as_ref().expect("TCP's stage has a socket");
                match tcp::finish_connect(tcp) {
                    Ok(()) => self.connected_tcp().map(Some),
                    Err(error) if is_not_yet(&error) => Ok(None),
                    Err(error) => Err(self.tcp_failed(error)),
                }
            }
            Stage::Tcp { connected: false } if self.deadline.is_over() => {
                self.stage = Stage::Over;
                Err(self.timed_out())
            }
            Stage::Tcp { connected: false } => Ok(None),
            Stage::San(_) | Stage::Over => Err(ConnectError::Cancelled {
                destination: self.destination,
            }),
        }
    }

    /// A descriptor that is readable when [`PendingConnect::poll`] has something to do. The
    /// deadlines do not show in it: see [`PendingConnect::deadline`].
    pub fn readiness(&self) -> BorrowedFd<'_> {
        self.readiness.as_fd()
    }

    /// When [`PendingConnect::poll`] must be called again even if nothing becomes readable.
    pub fn deadline(&self) -> Option<Instant> {
        let overall = self.deadline.instant();
        match &self.stage {
            Stage::San(attempt) => [overall, attempt.deadline.instant()]
                .into_iter()
                .flatten()
                .min(),
            _ => overall,
        }
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self, cancel: Option<&CancelToken>) -> Result<Connection, ConnectError> {
        loop {
            if cancel.is_some_and(CancelToken::is_cancelled) {
                return Err(ConnectError::Cancelled {
                    destination: self.destination,
                });
            }
            if let Some(connection) = self.poll()? {
                return Ok(connection);
            }
            let deadline = self.deadline().map_or(Deadline::NEVER, Deadline::at);
            let waited = match cancel {
                Some(cancel) => {
                    wait_readable([self.readiness(), cancel.as_fd()], deadline).map(drop)
                }
                None => wait_readable([self.readiness()], deadline).map(drop),
            };
            waited.map_err(|error| self.tcp_failed(error))?;
        }
    }

    /// Starts on the SAN if it has a way there. `None`: take TCP.
    fn try_san(&mut self, options: &ConnectOptions) -> Result<Option<SanAttempt>, ConnectError> {
        let local = options.local;
        let core = &self.inner.core;
        let table = core.table();
        if table.entries().is_empty() {
            return Ok(None);
        }
        let destination = companions::canonical(self.destination);
        let entry = table.route(&RouteQuery {
            destination,
            bound: local.map(|address| address.ip()),
            preferred: tcp::preferred_source(destination),
        });
        let Some(entry) = entry else {
            return Ok(None);
        };
        let Some(provider) = core.provider(entry.provider) else {
            return Ok(None);
        };
        let remembered = lock(&core.negative).lookup(destination, Instant::now());
        if let Some(reason) = remembered {
            core.counters.remembered.raise();
            self.fallback = Some(FallbackReason::Remembered(Box::new(reason)));
            return Ok(None);
        }
        // Duty 13: the companion has the TCP socket's address. An application that bound none
        // gets the NIC's.
        let from = SocketAddr::new(entry.ip, local.map_or(0, |address| address.port()));
        let budget = core.config.fabric_connect_timeout;
        let budget = budget.min(self.deadline.left().unwrap_or(budget));
        let device = entry.device.clone();
        let tos = options.type_of_service;
        match SanAttempt::start(provider, device, from, destination, budget, tos) {
            Ok(attempt) => {
                let data = epoll::EventData::new_u64(0);
                let fd = attempt.event.as_fd();
                match epoll::add(&self.readiness, fd, data, epoll::EventFlags::IN) {
                    Ok(()) => Ok(Some(attempt)),
                    Err(errno) => Err(self.tcp_failed(errno.into())),
                }
            }
            Err(Failure::Companion(reason)) => {
                self.fallback = Some(reason);
                Ok(None)
            }
            Err(Failure::Connect(error)) => {
                self.san_failed(error)?;
                Ok(None)
            }
        }
    }

    /// Judges a failure of the SAN: final, or a reason to try TCP (duty 21).
    fn san_failed(&mut self, error: SpiConnectError) -> Result<(), ConnectError> {
        let core = &self.inner.core;
        if !error.may_try_tcp() {
            core.counters.refused.raise();
            return Err(ConnectError::San {
                destination: self.destination,
                error,
            });
        }
        tracing::debug!(destination = %self.destination, %error, "the SAN gives no connection");
        let costly = is_worth_remembering(error.failure());
        let reason = FallbackReason::Connect(error);
        if costly {
            let destination = companions::canonical(self.destination);
            lock(&core.negative).insert(destination, reason.clone(), Instant::now());
        }
        self.fallback = Some(reason);
        Ok(())
    }

    fn start_tcp(&mut self) -> Result<(), ConnectError> {
        let tcp = self.tcp.as_ref().expect("not handed out yet");
        match tcp::start_connect(tcp, self.destination) {
            Ok(connected) => {
                let data = epoll::EventData::new_u64(0);
                let fd = tcp.as_fd();
                if let Err(errno) = epoll::add(&self.readiness, fd, data, epoll::EventFlags::OUT) {
                    return Err(self.tcp_failed(errno.into()));
                }
                self.stage = Stage::Tcp { connected };
                Ok(())
            }
            Err(error) => Err(self.tcp_failed(error)),
        }
    }

    fn connected_san(&mut self, attempt: SanAttempt) -> Result<Connection, ConnectError> {
        let core = &self.inner.core;
        core.counters.connected_san.raise();
        // The event object's descriptor is not needed any more, and the selection holds it.
        let _ = attempt
            .companion
            .event_select(&attempt.event, NetworkEvents::NONE);
        let tcp = self.tcp.take().expect("not handed out yet");
        Ok(Connection::from_companion(
            &attempt.provider,
            attempt.companion,
            attempt.device,
            self.destination,
            tcp,
            Arc::clone(&self.inner),
        ))
    }

    fn connected_tcp(&mut self) -> Result<Connection, ConnectError> {
        self.stage = Stage::Over;
        let tcp = self.tcp.take().expect("not handed out yet");
        let prepared = tcp
            .set_nonblocking(false)
            .and_then(|()| tcp::local_addr(&tcp));
        let local = prepared.map_err(|error| self.tcp_failed(error))?;
        let counters = &self.inner.core.counters;
        let fallback = self.fallback.take();
        match fallback {
            Some(_) => counters.fallbacks.raise(),
            None => counters.connected_tcp.raise(),
        }
        let inner = Arc::clone(&self.inner);
        Ok(Connection::from_tcp(
            tcp,
            local,
            self.destination,
            fallback,
            inner,
        ))
    }

    fn tcp_failed(&mut self, source: io::Error) -> ConnectError {
        self.stage = Stage::Over;
        ConnectError::Tcp {
            destination: self.destination,
            source,
            fallback: self.fallback.take(),
        }
    }

    fn timed_out(&mut self) -> ConnectError {
        ConnectError::TimedOut {
            destination: self.destination,
            fallback: self.fallback.take(),
        }
    }
}

impl fmt::Debug for PendingConnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match &self.stage {
            Stage::San(_) => "SAN",
            Stage::Tcp { .. } => "TCP",
            Stage::Over => "over",
        };
        f.debug_struct("PendingConnect")
            .field("destination", &self.destination)
            .field("stage", &stage)
            .finish_non_exhaustive()
    }
}

enum Failure {
    Companion(FallbackReason),
    Connect(SpiConnectError),
}

impl SanAttempt {
    /// Duties 13-15, 19: socket, bind, options, event object, nonblocking connect.
    fn start(
        provider: Arc<Registered>,
        device: String,
        from: SocketAddr,
        destination: SocketAddr,
        budget: Duration,
        tos: Option<u8>,
    ) -> Result<Self, Failure> {
        let prepare = || {
            let companion = provider.socket(destination)?;
            companion.bind(from)?;
            if let Some(tos) = tos {
                companion.set_option(SocketOption::TypeOfService, tos.into())?;
            }
            let event = provider.event_object()?;
            companion.event_select(&event, NetworkEvents::CONNECT)?;
            Ok((companion, event))
        };
        let (companion, event) = prepare()
            .map_err(|failure: companions::CompanionFailure| Failure::Companion(failure.into()))?;
        let connected = match companion.connect(destination, budget) {
            Ok(()) => true,
            Err(error) if error.is_in_progress() => false,
            Err(error) => return Err(Failure::Connect(error)),
        };
        Ok(SanAttempt {
            provider,
            device,
            companion,
            event,
            connected,
            deadline: Deadline::after(budget + GRACE),
        })
    }

    /// Duty 20: the outcome, once the event object says that there is one.
    fn outcome(&mut self) -> Option<Result<(), SpiConnectError>> {
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

/// Failures that cost time, and that the next connect would meet again.
fn is_worth_remembering(failure: ConnectFailure) -> bool {
    matches!(
        failure,
        ConnectFailure::TimedOut | ConnectFailure::Unreachable
    )
}

fn is_not_yet(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error())
}
