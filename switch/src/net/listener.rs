//! A listener as the application holds it (duties 24-28, 32).
//!
//! What it sees is one listener that behaves as TCP's. The queue in which both sides meet, and the
//! companions, are in `companion/`.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use san_base::{Deadline, lock};
use san_stream::Role;
use socket2::Socket;

use super::connection::{Connection, Established};
use super::rooms::Lease;
use crate::carrier::Buffers;
use crate::carrier::gate::Gate;
use crate::companion::Turn;
use crate::companion::condition::{Condition, Decision, IncomingRequest, Side};
use crate::companion::plan::CompanionStatus;
use crate::companion::shared::{ListenerShared, ReadySan};
use crate::config::{RouteChoice, SOMAXCONN};
use crate::counters::ListenerStats;
use crate::error::{AcceptError, ListenError};
use crate::policy::SocketRole;
use crate::tcp;
use crate::wait::{CancelToken, wait_readable};

/// How a listener is made.
///
/// ```
/// use san_switch::{Decision, ListenOptions};
/// let options = ListenOptions::default()
///     .backlog(16)
///     .condition(|request| {
///         if request.peer.ip().is_loopback() { Decision::Accept } else { Decision::Reject }
///     });
/// ```
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct ListenOptions {
    /// Connections that may wait for accept, on the SAN and, separately, on TCP. `None` takes the
    /// switch's setting, 0 counts as 1. At most [`SOMAXCONN`].
    pub backlog: Option<u32>,
    /// Asked for each request; no function takes all.
    pub condition: Option<Condition>,
    /// For an IPv6 wildcard: leave IPv4 alone. `None` takes the system's default.
    pub only_v6: Option<bool>,
    /// Whether TCP connections that it accepts may move to the SAN later; with [`RouteChoice::Off`] it
    /// has no companions either. `None` takes the rules and the setting of the switch.
    pub route: Option<RouteChoice>,
    /// Bytes that may wait to be sent on what it accepts (SO_SNDBUF): see
    /// [`Connection::set_send_buffer_size`].
    pub send_buffer: Option<usize>,
    /// Bytes that may wait to be received on what it accepts (SO_RCVBUF): see
    /// [`Connection::set_receive_buffer_size`].
    pub receive_buffer: Option<usize>,
}

/// A listener on TCP and, where it fits, on the SAN. Dropping it closes it.
pub struct Listener {
    pub(super) shared: Arc<ListenerShared>,
    pub(super) lease: Lease,
    /// What its TCP connections may do.
    pub(super) route: RouteChoice,
    pub(super) buffers: Buffers,
    /// Accepts that are under way: it goes to another process between them.
    pub(super) gate: Gate,
}

/// What was taken, on which side.
pub(crate) enum Taken<T> {
    San(Connection),
    Tcp(T),
}

impl ListenOptions {
    /// Connections that may wait for accept, on the SAN and, separately, on TCP.
    #[must_use]
    pub fn backlog(mut self, backlog: u32) -> Self {
        self.backlog = Some(backlog);
        self
    }

    /// Asks this function for each request.
    #[must_use]
    pub fn condition(
        mut self,
        condition: impl Fn(&IncomingRequest) -> Decision + Send + Sync + 'static,
    ) -> Self {
        self.condition = Some(Arc::new(condition));
        self
    }

    /// Whether its TCP connections may move to the SAN later. `None` takes the switch's setting.
    #[must_use]
    pub fn route(mut self, route: RouteChoice) -> Self {
        self.route = Some(route);
        self
    }

    /// Bounds the bytes that may wait to be sent on what it accepts: see
    /// [`Connection::set_send_buffer_size`].
    #[must_use]
    pub fn send_buffer(mut self, bytes: usize) -> Self {
        self.send_buffer = Some(bytes);
        self
    }

    /// Bounds the bytes that may wait to be received on what it accepts: see
    /// [`Connection::set_receive_buffer_size`].
    #[must_use]
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// Whether an IPv6 wildcard leaves IPv4 alone.
    #[must_use]
    pub fn only_v6(mut self, only: bool) -> Self {
        self.only_v6 = Some(only);
        self
    }
}

impl Listener {
    /// Listens on TCP first, always; then makes the companions (duty 24).
    pub(crate) fn open(
        lease: Lease,
        address: SocketAddr,
        options: ListenOptions,
    ) -> Result<Self, ListenError> {
        if lease.is_closed() {
            return Err(ListenError::ShutDown);
        }
        let backlog = options.backlog.unwrap_or(lease.config.backlog).max(1);
        if backlog > SOMAXCONN {
            return Err(ListenError::Backlog { backlog });
        }
        let failed = |source| ListenError::Tcp { address, source };
        let buffers = Buffers {
            send: options.send_buffer,
            receive: options.receive_buffer,
        };
        let tcp = tcp::listen(address, backlog, options.only_v6, buffers).map_err(failed)?;
        let token = lease.companions.new_token();
        let shared = ListenerShared::new(token, tcp, backlog, options.condition).map_err(failed)?;
        let route = lease.route(SocketRole::Listen, shared.address, options.route);
        let listener = Self::begin(lease, shared, route, buffers).map_err(failed)?;
        if listener.lease.is_closed() {
            return Err(ListenError::ShutDown);
        }
        Ok(listener)
    }

    /// A listener on a socket that listens already, whose owner goes on using it: closing the
    /// listener leaves it as it is.
    pub(crate) fn adopt(lease: Lease, tcp: Socket, backlog: u32) -> Result<Self, ListenError> {
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let address = tcp::local_addr(&tcp).unwrap_or(unknown);
        let failed = |source| ListenError::Tcp { address, source };
        let token = lease.companions.new_token();
        let shared = ListenerShared::adopted(token, tcp, backlog).map_err(failed)?;
        // A program that takes its TCP connections from the kernel itself: they do not move.
        let route = match lease.route(SocketRole::Listen, shared.address, None) {
            RouteChoice::Off => RouteChoice::Off,
            _ => RouteChoice::Direct,
        };
        Self::begin(lease, shared, route, Buffers::default()).map_err(failed)
    }

    fn begin(
        lease: Lease,
        shared: ListenerShared,
        route: RouteChoice,
        buffers: Buffers,
    ) -> io::Result<Self> {
        let shared = Arc::new(match route {
            RouteChoice::Off => shared.tcp_alone(),
            _ => shared,
        });
        lease.companions.add(&shared);
        Ok(Self {
            shared,
            lease,
            route,
            buffers,
            gate: Gate::default(),
        })
    }

    /// One that another process had.
    pub(super) fn take_up(
        lease: Lease,
        tcp: Socket,
        backlog: u32,
        condition: Option<Condition>,
        route: RouteChoice,
        buffers: Buffers,
    ) -> io::Result<Self> {
        let token = lease.companions.new_token();
        let shared = ListenerShared::new(token, tcp, backlog.clamp(1, SOMAXCONN), condition)?;
        Self::begin(lease, shared, route, buffers)
    }

    /// Waits for a connection, from whichever side, in order of arrival.
    ///
    /// # Errors
    /// [`AcceptError`].
    pub fn accept(&self) -> Result<Connection, AcceptError> {
        self.accept_until(Deadline::NEVER, None)
    }

    /// Waits at most this long.
    ///
    /// # Errors
    /// [`AcceptError::TimedOut`] and the others of [`Listener::accept`].
    pub fn accept_timeout(&self, timeout: Duration) -> Result<Connection, AcceptError> {
        self.accept_until(Deadline::after(timeout), None)
    }

    /// Waits until a connection comes, the time is over, or the token is cancelled.
    ///
    /// # Errors
    /// [`AcceptError::Cancelled`] and the others of [`Listener::accept_timeout`].
    pub fn accept_cancellable(
        &self,
        cancel: &CancelToken,
        timeout: Option<Duration>,
    ) -> Result<Connection, AcceptError> {
        self.accept_until(Deadline::after(timeout), Some(cancel))
    }

    /// Takes a connection if one waits.
    ///
    /// # Errors
    /// [`AcceptError::Closed`], and TCP's errors.
    pub fn try_accept(&self) -> Result<Option<Connection>, AcceptError> {
        loop {
            match self.take(|| tcp::accept(&self.shared.tcp))? {
                None => return Ok(None),
                Some(Taken::San(connection)) => return Ok(Some(connection)),
                Some(Taken::Tcp((socket, peer))) => {
                    if let Some(connection) = self.tcp_connection(socket, peer)? {
                        return Ok(Some(connection));
                    }
                }
            }
        }
    }

    /// Takes what waits, on the side whose turn it is. `accept` is TCP's accept, which must not wait.
    pub(crate) fn take<T>(
        &self,
        accept: impl FnOnce() -> io::Result<Option<T>>,
    ) -> Result<Option<Taken<T>>, AcceptError> {
        if self.shared.is_closed() {
            return Err(AcceptError::Closed);
        }
        let pass = self.gate.enter();
        let turn = match self.shared.take() {
            Turn::San(ready) => return Ok(Some(Taken::San(self.san_connection(ready)))),
            Turn::Tcp(turn) => turn,
        };
        let Ok(_pass) = pass else {
            // What is left of the listener here are connections over the SAN.
            let next = self.shared.tcp_would_block(turn);
            let next = next.map(|ready| Taken::San(self.san_connection(ready)));
            return next.map_or(Err(AcceptError::Closed), |taken| Ok(Some(taken)));
        };
        let accepted = accept().map_err(|error| {
            // A socket that was shut down meanwhile answers EINVAL.
            if self.shared.is_closed() {
                AcceptError::Closed
            } else {
                AcceptError::System(error)
            }
        })?;
        let Some(accepted) = accepted else {
            let next = self.shared.tcp_would_block(turn);
            return Ok(next.map(|ready| Taken::San(self.san_connection(ready))));
        };
        self.shared.tcp_taken(turn);
        Ok(Some(Taken::Tcp(accepted)))
    }

    /// A descriptor that is readable while a connection over the SAN waits.
    pub(crate) fn san_ready(&self) -> BorrowedFd<'_> {
        self.shared.san_ready()
    }

    /// The address it is bound to, with the port that TCP was given.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.address
    }

    /// The backlog, as it is in force.
    pub fn backlog(&self) -> u32 {
        self.shared.backlog
    }

    /// How the companions stand: none where the listener is not bound to a SAN address, or there
    /// is no SAN.
    pub fn san_status(&self) -> Vec<CompanionStatus> {
        let name = |number| self.lease.providers.name(number);
        lock(&self.shared.companions).status(name)
    }

    /// SAN connections that wait for accept at this moment.
    pub fn san_waiting(&self) -> usize {
        self.shared.san_waiting()
    }

    /// A descriptor that is readable when accept would not wait, for any epoll set. It is closed
    /// with the listener.
    pub fn readiness(&self) -> BorrowedFd<'_> {
        self.shared.readiness()
    }

    /// What was seen so far.
    pub fn stats(&self) -> ListenerStats {
        self.shared.counters.snapshot()
    }

    /// Stops listening on both sides. Connections that wait are closed; accepts that wait return
    /// [`AcceptError::Closed`].
    pub fn close(&self) {
        self.lease.companions.close(&self.shared);
    }

    pub(super) fn accept_by(&self, deadline: Deadline) -> Result<Connection, AcceptError> {
        self.accept_until(deadline, None)
    }

    fn accept_until(
        &self,
        deadline: Deadline,
        cancel: Option<&CancelToken>,
    ) -> Result<Connection, AcceptError> {
        // Held by each accept that waits.
        let _pass = self.gate.enter();
        loop {
            if cancel.is_some_and(CancelToken::is_cancelled) {
                return Err(AcceptError::Cancelled);
            }
            if let Some(connection) = self.try_accept()? {
                return Ok(connection);
            }
            if deadline.is_over() {
                return Err(AcceptError::TimedOut);
            }
            let readiness = self.readiness();
            match cancel {
                Some(cancel) => {
                    wait_readable([readiness, cancel.as_fd()], deadline)?;
                }
                None => {
                    wait_readable([readiness], deadline)?;
                }
            }
        }
    }

    /// Shows a TCP connection to the condition function; `None` = rejected, and reset.
    fn tcp_connection(
        &self,
        socket: Socket,
        peer: SocketAddr,
    ) -> Result<Option<Connection>, AcceptError> {
        // One that listens at an address is connected at no other.
        let local = match self.shared.address.ip().is_unspecified() {
            true => tcp::local_addr(&socket)?,
            false => self.shared.address,
        };
        let side = Side::Tcp;
        if self.shared.ask(&IncomingRequest { peer, local, side }) == Decision::Reject {
            self.shared.counters.refused_condition.raise();
            // A linger time of zero has close send a reset.
            socket.set_linger(Some(Duration::ZERO))?;
            return Ok(None);
        }
        self.shared.counters.tcp_accepted.raise();
        let established = Established::Tcp {
            socket,
            local,
            peer,
            why: None,
            may_move: (self.route == RouteChoice::Upgrade).then_some(Role::Acceptor),
        };
        let lease = self.lease.clone();
        Ok(Some(Connection::open(established, lease, self.buffers)))
    }

    fn san_connection(&self, ready: ReadySan) -> Connection {
        self.shared.lower_flag();
        self.shared.counters.san_accepted.raise();
        let established = Established::San {
            provider: ready.provider,
            socket: ready.socket,
            device: None,
            peer: ready.peer,
            companion: ready.tcp,
        };
        Connection::open(established, self.lease.clone(), self.buffers)
    }
}

impl AsFd for Listener {
    /// The TCP listening socket: the descriptor that the application holds (duty 10).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.tcp.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("address", &self.shared.address)
            .field("san", &self.san_status())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ListenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenOptions")
            .field("backlog", &self.backlog)
            .field("condition", &self.condition.is_some())
            .field("only_v6", &self.only_v6)
            .finish()
    }
}
