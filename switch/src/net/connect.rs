//! Connecting: the SAN where it has a way, with the way back to TCP (duties 12-21, 23).
//!
//! A connect is a small machine that is driven by whoever waits for it: the blocking
//! [`Switch::connect`](crate::Switch::connect), or an application that polls. No thread works for
//! it. The TCP socket is there first and is the application's descriptor in either case. Once
//! the SAN has connected, TCP is out of the question for that connection.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::io::Errno;
use san_base::Deadline;
use san_provider::{ConnectError as SpiConnectError, NetworkEvents};
use san_stream::Role;
use socket2::Socket;

use super::attempt::{SanAttempt, SanFailure, SanRequest, TcpAttempt};
use super::connection::{Connection, Established};
use super::rooms::Lease;
use crate::carrier::Buffers;
use crate::companion::plan::canonical;
use crate::config::RouteChoice;
use crate::error::ConnectError;
use crate::policy::SocketRole;
use crate::route::fallback::{FallbackReason, NotTried, is_worth_remembering};
use crate::route::not_moved::NotMoved;
use crate::route::table::RouteQuery;
use crate::tcp;
use crate::wait::{CancelToken, wait_readable};

/// How a connect is made.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
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
    /// Whether the SAN is tried first, or the connection may move to it later. `None` takes the rules and
    /// the setting of the switch.
    pub route: Option<RouteChoice>,
    /// The type of service of the packets (IP_TOS, IPV6_TCLASS), on either side.
    pub type_of_service: Option<u8>,
    /// Bytes that may wait to be sent (SO_SNDBUF): see [`Connection::set_send_buffer_size`].
    pub send_buffer: Option<usize>,
    /// Bytes that may wait to be received (SO_RCVBUF): see [`Connection::set_receive_buffer_size`].
    pub receive_buffer: Option<usize>,
}

/// A connect under way. Dropping it calls it off and closes the companion (duty 47).
pub struct PendingConnect {
    asked: Asked,
    stage: Stage,
    readiness: OwnedFd,
    /// Where the SAN gives no connection, TCP is the caller's affair.
    san_alone: bool,
}

/// What is asked for, and what has become of it so far.
struct Asked {
    lease: Lease,
    destination: SocketAddr,
    deadline: Deadline,
    fallback: Option<FallbackReason>,
    /// Why the SAN was not thought of, if it was not.
    not_tried: Option<NotTried>,
    may_move: bool,
    is_tcp_alone: bool,
    buffers: Buffers,
    /// What is logged meanwhile belongs to it.
    span: tracing::Span,
}

/// How far a connect is. The TCP socket, which is the application's descriptor in the end, goes
/// with it.
enum Stage {
    San(SanAttempt, Socket),
    Tcp(TcpAttempt),
    Over,
}

impl ConnectOptions {
    /// Binds to this address first; port 0 leaves the port to the system.
    #[must_use]
    pub fn local(mut self, address: SocketAddr) -> Self {
        self.local = Some(address);
        self
    }

    /// Ends the connect after this time, SAN and TCP together.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Lets this token call the connect off.
    #[must_use]
    pub fn cancel(mut self, token: CancelToken) -> Self {
        self.cancel = Some(token);
        self
    }

    /// Whether the SAN is left out.
    #[must_use]
    pub fn tcp_only(mut self, only: bool) -> Self {
        self.tcp_only = only;
        self
    }

    /// Chooses whether the SAN is tried first, or the connection may move to it later.
    #[must_use]
    pub fn route(mut self, route: RouteChoice) -> Self {
        self.route = Some(route);
        self
    }

    /// Sets the type of service of the packets, on either side.
    #[must_use]
    pub fn type_of_service(mut self, value: u8) -> Self {
        self.type_of_service = Some(value);
        self
    }

    /// Bounds the bytes that may wait to be sent: see [`Connection::set_send_buffer_size`].
    #[must_use]
    pub fn send_buffer(mut self, bytes: usize) -> Self {
        self.send_buffer = Some(bytes);
        self
    }

    /// Bounds the bytes that may wait to be received: see [`Connection::set_receive_buffer_size`].
    #[must_use]
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    fn buffers(&self) -> Buffers {
        Buffers {
            send: self.send_buffer,
            receive: self.receive_buffer,
        }
    }
}

impl PendingConnect {
    pub(crate) fn start(
        lease: Lease,
        destination: SocketAddr,
        options: &ConnectOptions,
    ) -> Result<Self, ConnectError> {
        Self::start_asked(Asked::new(lease, destination, options)?, options)
    }

    fn start_asked(mut asked: Asked, options: &ConnectOptions) -> Result<Self, ConnectError> {
        let tcp = asked.tcp_socket(options)?;
        let readiness = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| asked.tcp_failed(errno.into()))?;
        let mut connect = Self::prepared(asked, readiness);
        let span = connect.asked.span.clone();
        let _entered = span.enter();
        let attempt = match connect.asked.begins_on_tcp() {
            true => None,
            false => connect.try_san(options)?,
        };
        match attempt {
            Some(attempt) => connect.stage = Stage::San(attempt, tcp),
            None => connect.start_tcp(tcp)?,
        }
        Ok(connect)
    }

    /// Connects, and waits for the end. Where TCP is the only way, it takes no more calls of the system than
    /// it must.
    pub(crate) fn connect(
        lease: Lease,
        destination: SocketAddr,
        options: &ConnectOptions,
    ) -> Result<Connection, ConnectError> {
        let mut asked = Asked::new(lease, destination, options)?;
        if options.cancel.is_some() || !asked.begins_on_tcp() {
            return Self::start_asked(asked, options)?.wait(options.cancel.as_ref());
        }
        let tcp = asked.tcp_socket(options)?;
        let span = asked.span.clone();
        let _entered = span.enter();
        match tcp::connect_within(&tcp, destination, asked.deadline) {
            Ok(true) => asked.connected_tcp(tcp),
            Ok(false) => {
                // A signal came: the connect goes on by itself.
                let readiness = epoll::create(epoll::CreateFlags::CLOEXEC)
                    .map_err(|errno| asked.tcp_failed(errno.into()))?;
                let mut connect = Self::prepared(asked, readiness);
                let attempt = TcpAttempt::started(tcp, &connect.readiness)
                    .map_err(|error| connect.asked.tcp_failed(error))?;
                connect.stage = Stage::Tcp(attempt);
                connect.wait(None)
            }
            // The kernel's own has a number.
            Err(error) if error.raw_os_error().is_none() => Err(asked.timed_out()),
            Err(error) => Err(asked.tcp_failed(error)),
        }
    }

    /// Starts to connect over the SAN alone, or says why it does not serve this connect. `companion` is the
    /// application's socket, bound to [`ConnectOptions::local`] if that is set. A failure that is not
    /// [`ConnectError::San`] leaves TCP to the caller.
    pub(crate) fn start_san(
        lease: Lease,
        destination: SocketAddr,
        options: &ConnectOptions,
        companion: Socket,
    ) -> Result<Result<Self, FallbackReason>, ConnectError> {
        let mut asked = Asked::new(lease, destination, options)?;
        let readiness = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| asked.tcp_failed(errno.into()))?;
        let mut connect = Self::prepared(asked, tcp::aside(readiness));
        if connect.asked.is_tcp_alone {
            return Ok(Err(FallbackReason::NotTried(NotTried::SaidTcp)));
        }
        let span = connect.asked.span.clone();
        let _entered = span.enter();
        connect.san_alone = true;
        let Some(attempt) = connect.try_san(options)? else {
            let not_tried = connect.asked.not_tried.unwrap_or(NotTried::NoSan);
            let why = connect.asked.fallback.take();
            return Ok(Err(why.unwrap_or(FallbackReason::NotTried(not_tried))));
        };
        connect.stage = Stage::San(attempt, companion);
        Ok(Ok(connect))
    }

    fn prepared(asked: Asked, readiness: OwnedFd) -> Self {
        Self {
            asked,
            stage: Stage::Over,
            readiness,
            san_alone: false,
        }
    }

    /// Goes as far as it can without waiting. `None`: not done yet.
    ///
    /// # Errors
    /// [`ConnectError`]; the connect is over then, and another call gives
    /// [`ConnectError::Cancelled`].
    pub fn poll(&mut self) -> Result<Option<Connection>, ConnectError> {
        let span = self.asked.span.clone();
        let _entered = span.enter();
        loop {
            // An error, and a connection, leave it over.
            match std::mem::replace(&mut self.stage, Stage::Over) {
                Stage::San(mut attempt, tcp) => match attempt.outcome() {
                    Some(Ok(())) => return Ok(Some(self.connected_san(attempt, tcp))),
                    Some(Err(error)) => self.take_tcp_instead(attempt, error, tcp)?,
                    None => return self.not_yet(Stage::San(attempt, tcp)),
                },
                Stage::Tcp(attempt) => match attempt.outcome() {
                    Some(Ok(())) => {
                        let socket = attempt.into_socket();
                        let socket = socket.map_err(|error| self.asked.tcp_failed(error))?;
                        return self.asked.connected_tcp(socket).map(Some);
                    }
                    Some(Err(error)) => return Err(self.asked.tcp_failed(error)),
                    None => return self.not_yet(Stage::Tcp(attempt)),
                },
                Stage::Over => {
                    return Err(ConnectError::Cancelled {
                        destination: self.asked.destination,
                    });
                }
            }
        }
    }

    /// A descriptor that is readable when [`PendingConnect::poll`] has something to do. The
    /// deadlines do not show in it: see [`PendingConnect::deadline`].
    pub fn readiness(&self) -> BorrowedFd<'_> {
        self.readiness.as_fd()
    }

    /// When [`PendingConnect::poll`] must be called again even if nothing becomes readable.
    pub fn deadline(&self) -> Option<Instant> {
        let overall = self.asked.deadline.instant();
        match &self.stage {
            Stage::San(attempt, _) => [overall, attempt.deadline.instant()]
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
                    destination: self.asked.destination,
                });
            }
            if let Some(connection) = self.poll()? {
                return Ok(connection);
            }
            let deadline = Deadline::at(self.deadline());
            let waited = match cancel {
                Some(cancel) => {
                    wait_readable([self.readiness(), cancel.as_fd()], deadline).map(drop)
                }
                None => wait_readable([self.readiness()], deadline).map(drop),
            };
            waited.map_err(|error| self.asked.tcp_failed(error))?;
        }
    }

    /// Starts on the SAN if it has a way there. `None`: take TCP.
    fn try_san(&mut self, options: &ConnectOptions) -> Result<Option<SanAttempt>, ConnectError> {
        let Some(request) = self.san_request(options) else {
            return Ok(None);
        };
        match SanAttempt::start(request) {
            Ok(attempt) => {
                let data = epoll::EventData::new_u64(0);
                let fd = attempt.event.as_fd();
                match epoll::add(&self.readiness, fd, data, epoll::EventFlags::IN) {
                    Ok(()) => Ok(Some(attempt)),
                    Err(errno) => Err(self.asked.tcp_failed(errno.into())),
                }
            }
            Err(SanFailure::Companion(failure)) => {
                self.asked.fallback = Some(failure.into());
                Ok(None)
            }
            Err(SanFailure::Connect(error)) => {
                self.san_failed(error)?;
                Ok(None)
            }
        }
    }

    /// Whether the SAN has a way there that is worth trying, and which.
    fn san_request(&mut self, options: &ConnectOptions) -> Option<SanRequest> {
        let local = options.local;
        let table = self.asked.lease.routes.table();
        if table.entries().is_empty() {
            self.asked.not_tried = Some(self.asked.lease.why_no_san());
            return None;
        }
        let destination = canonical(self.asked.destination);
        let query = RouteQuery {
            destination,
            bound: local.map(|address| address.ip()),
            preferred: tcp::preferred_source(destination),
        };
        let Some(entry) = table.route(&query) else {
            self.asked.not_tried = Some(table.why_none(&query));
            return None;
        };
        let provider = self.asked.lease.providers.nth(entry.provider)?;
        if let Some(reason) = self.asked.lease.routes.remembered(destination) {
            self.asked.lease.counters.remembered.raise();
            self.asked.fallback = Some(FallbackReason::Remembered(Box::new(reason)));
            return None;
        }
        let bound = local.map(|address| address.ip().to_canonical());
        let bound = bound.filter(|ip| !ip.is_unspecified());
        let budget = self.asked.lease.config.fabric_connect_timeout;
        Some(SanRequest {
            provider,
            device: entry.device.clone(),
            // Duty 13: the companion has the TCP socket's address. An application that bound none
            // gets the NIC's. On the loopback the NIC has more addresses than the one that is named.
            from: SocketAddr::new(bound.unwrap_or(entry.ip), local.map_or(0, |a| a.port())),
            destination,
            budget: budget.min(self.asked.deadline.left().unwrap_or(budget)),
            type_of_service: options.type_of_service,
        })
    }

    /// The SAN gave no connection: TCP, unless that was final.
    fn take_tcp_instead(
        &mut self,
        attempt: SanAttempt,
        error: SpiConnectError,
        tcp: Socket,
    ) -> Result<(), ConnectError> {
        let _ = epoll::delete(&self.readiness, attempt.event.as_fd());
        // Duty 21: the companion is closed before TCP is tried.
        drop(attempt);
        self.san_failed(error)?;
        if self.san_alone {
            return Err(self.asked.tcp_failed(Errno::AGAIN.into()));
        }
        self.start_tcp(tcp)
    }

    /// Judges a failure of the SAN: final, or a reason to try TCP (duty 21).
    fn san_failed(&mut self, error: SpiConnectError) -> Result<(), ConnectError> {
        if !error.may_try_tcp() {
            self.asked.lease.counters.refused.raise();
            return Err(ConnectError::San {
                destination: self.asked.destination,
                source: error,
            });
        }
        tracing::debug!(destination = %self.asked.destination, %error, "the SAN gives no connection");
        let costly = is_worth_remembering(error.failure());
        let reason = FallbackReason::Connect(error);
        if costly {
            let destination = canonical(self.asked.destination);
            self.asked
                .lease
                .routes
                .remember(destination, reason.clone());
        }
        self.asked.fallback = Some(reason);
        Ok(())
    }

    fn start_tcp(&mut self, tcp: Socket) -> Result<(), ConnectError> {
        let attempt = TcpAttempt::start(tcp, self.asked.destination, &self.readiness)
            .map_err(|error| self.asked.tcp_failed(error))?;
        self.stage = Stage::Tcp(attempt);
        Ok(())
    }

    fn not_yet(&mut self, stage: Stage) -> Result<Option<Connection>, ConnectError> {
        if self.asked.deadline.is_over() {
            return Err(self.asked.timed_out());
        }
        self.stage = stage;
        Ok(None)
    }

    fn connected_san(&mut self, attempt: SanAttempt, companion: Socket) -> Connection {
        self.asked.lease.counters.connected_san.raise();
        // The event object's descriptor is not needed any more, and the selection holds it.
        let _ = attempt
            .companion
            .event_select(&attempt.event, NetworkEvents::NONE);
        let established = Established::San {
            provider: attempt.provider,
            socket: attempt.companion,
            device: Some(attempt.device),
            peer: self.asked.destination,
            companion,
        };
        self.asked.opened(established)
    }
}

impl Asked {
    /// # Errors
    /// [`ConnectError::ShutDown`].
    fn new(
        lease: Lease,
        destination: SocketAddr,
        options: &ConnectOptions,
    ) -> Result<Self, ConnectError> {
        if lease.is_closed() {
            return Err(ConnectError::ShutDown);
        }
        let timeout = options.timeout.unwrap_or(lease.config.connect_timeout);
        let route = lease.route(SocketRole::Connect, destination, options.route);
        Ok(Self {
            lease,
            destination,
            deadline: Deadline::after(timeout),
            fallback: None,
            not_tried: None,
            may_move: !options.tcp_only && route == RouteChoice::Upgrade,
            is_tcp_alone: options.tcp_only || route == RouteChoice::Off,
            buffers: options.buffers(),
            span: tracing::debug_span!("connect", %destination),
        })
    }

    /// Duty 10: TCP's socket first.
    fn tcp_socket(&mut self, options: &ConnectOptions) -> Result<Socket, ConnectError> {
        let destination = self.destination;
        let tcp = tcp::socket(destination).map_err(|error| self.tcp_failed(error))?;
        if let Some(value) = options.type_of_service {
            tcp::set_type_of_service(&tcp, destination, value)
                .map_err(|error| self.tcp_failed(error))?;
        }
        tcp::set_buffers(&tcp, options.buffers()).map_err(|error| self.tcp_failed(error))?;
        if let Some(address) = options.local {
            tcp.bind(&address.into())
                .map_err(|source| ConnectError::Local { address, source })?;
        }
        Ok(tcp)
    }

    /// Whether the SAN is not thought of now.
    fn begins_on_tcp(&mut self) -> bool {
        let begins = self.is_tcp_alone || self.may_move;
        if begins {
            self.not_tried = Some(match self.may_move {
                true => NotTried::NotMoved(NotMoved::Short),
                false => NotTried::SaidTcp,
            });
        }
        begins
    }

    fn timed_out(&mut self) -> ConnectError {
        ConnectError::TimedOut {
            destination: self.destination,
            fallback: self.fallback.take(),
        }
    }

    fn connected_tcp(&mut self, socket: Socket) -> Result<Connection, ConnectError> {
        let local = tcp::local_addr(&socket).map_err(|error| self.tcp_failed(error))?;
        let why = self.fallback.take();
        match why {
            Some(_) => self.lease.counters.fallbacks.raise(),
            None => self.lease.counters.connected_tcp.raise(),
        }
        let why = why.or(self.not_tried.map(FallbackReason::NotTried));
        let established = Established::Tcp {
            socket,
            local,
            peer: self.destination,
            why,
            may_move: self.may_move.then_some(Role::Connector),
        };
        Ok(self.opened(established))
    }

    fn opened(&self, established: Established) -> Connection {
        let connection = Connection::open(established, self.lease.clone(), self.buffers);
        tracing::debug!(route = %connection.route(), "connected");
        connection
    }

    fn tcp_failed(&mut self, source: io::Error) -> ConnectError {
        ConnectError::Tcp {
            destination: self.destination,
            source,
            fallback: self.fallback.take(),
        }
    }
}

impl fmt::Debug for PendingConnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match &self.stage {
            Stage::San(..) => "SAN",
            Stage::Tcp(_) => "TCP",
            Stage::Over => "over",
        };
        f.debug_struct("PendingConnect")
            .field("destination", &self.asked.destination)
            .field("stage", &stage)
            .finish_non_exhaustive()
    }
}
