//! A listener: TCP's listening socket, its companions, and the merged queue of both (duties
//! 24-28, 32).
//!
//! What the application sees is one listener that behaves as TCP's. The accept thread feeds the
//! SAN side; the TCP side stays in the kernel until it is the application's turn. Making and
//! retiring companions is `core.rs`'s business.

use crate::companion::plan::{CompanionStatus, Companions};
use crate::companion::ready_queue::{ReadyQueue, Turn};
use crate::config::SOMAXCONN;
use crate::core::{Companion, Core};
use crate::counters::{ListenerCounters, ListenerStats};
use crate::error::{AcceptError, ListenError};
use crate::net::connection::Connection;
use crate::san::provider::{AcceptedSocket, ProviderSocket, Registered};
use crate::switch::Inner;
use crate::tcp;
use crate::wait::{CancelToken, wait_readable};
use rustix::event::epoll;
use san_base::{Deadline, Signal, lock};
use socket2::Socket;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How a listener is made.
#[derive(Clone, Default)]
pub struct ListenOptions {
    /// Connections that may wait for accept, on the SAN and, separately, on TCP. `None` takes the
    /// switch's setting, 0 counts as 1. At most [`SOMAXCONN`].
    pub backlog: Option<u32>,
    /// Asked for each request; no function takes all.
    pub condition: Option<Condition>,
    /// For an IPv6 wildcard: leave IPv4 alone. `None` takes the system's default.
    pub only_v6: Option<bool>,
}

/// The application's condition function. For the SAN it runs in the accept thread, before the
/// peer is told anything, and all listeners wait for it: it should decide, not work. For TCP it
/// runs in accept, when TCP has answered the peer already; a rejected connection is reset.
pub type Condition = Arc<dyn Fn(&IncomingRequest) -> Decision + Send + Sync>;

/// What a condition function is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IncomingRequest {
    /// Who asks.
    pub peer: SocketAddr,
    /// The address of ours that was asked for.
    pub local: SocketAddr,
    /// Which way the request came.
    pub side: Side,
}

/// Which way a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Over the SAN.
    San,
    /// Over TCP.
    Tcp,
}

/// What a condition function answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Take the connection.
    Accept,
    /// Refuse it: a SAN peer's connect fails with ECONNREFUSED, a TCP peer is reset.
    Reject,
}

/// A listener on TCP and, where it fits, on the SAN. Dropping it closes it.
pub struct Listener {
    shared: Arc<ListenerShared>,
    inner: Arc<Inner>,
}

/// The part that the accept thread sees too.
pub(crate) struct ListenerShared {
    pub(crate) token: u64,
    pub(crate) tcp: Socket,
    pub(crate) address: SocketAddr,
    pub(crate) only_v6: bool,
    pub(crate) backlog: u32,
    pub(crate) companions: Mutex<Companions<Arc<Companion>>>,
    pub(crate) counters: ListenerCounters,
    condition: Mutex<Option<Condition>>,
    queue: Mutex<ReadyQueue<Pending>>,
    closed: AtomicBool,
    /// Set while a SAN connection waits, and for good once closed.
    ready: Signal,
    /// The TCP socket and `ready` in one.
    readiness: OwnedFd,
}

/// An accepted SAN connection that waits for the application.
pub(crate) struct Pending {
    pub(crate) provider: Arc<Registered>,
    pub(crate) socket: ProviderSocket,
    pub(crate) peer: SocketAddr,
    pub(crate) tcp: Socket,
}

impl Listener {
    /// Listens on TCP first, always; then makes the companions (duty 24).
    pub(crate) fn open(
        inner: Arc<Inner>,
        address: SocketAddr,
        options: ListenOptions,
    ) -> Result<Self, ListenError> {
        let core = &inner.core;
        if core.is_closed() {
            return Err(ListenError::ShutDown);
        }
        let backlog = options.backlog.unwrap_or(core.config.backlog).max(1);
        if backlog > SOMAXCONN {
            return Err(ListenError::Backlog { backlog });
        }
        let failed = |source| ListenError::Tcp { address, source };
        let tcp = tcp::listen(address, backlog, options.only_v6).map_err(failed)?;
        let shared = ListenerShared::new(core, tcp, backlog, options.condition).map_err(failed)?;
        let shared = Arc::new(shared);
        core.watch_listener(&shared).map_err(|source| {
            core.forget_listener(&shared);
            failed(source)
        })?;
        core.ensure_companions(&shared, false);
        let listener = Listener { shared, inner };
        if listener.inner.core.is_closed() {
            return Err(ListenError::ShutDown);
        }
        Ok(listener)
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
            if self.shared.is_closed() {
                return Err(AcceptError::Closed);
            }
            // Bound to a name, so that the lock is not held over the arms.
            let turn = lock(&self.shared.queue).take();
            let pending = match turn {
                Turn::San(pending) => pending,
                Turn::Tcp(turn) => match self.shared.tcp_accept() {
                    Ok(Some((socket, peer))) => {
                        let more = tcp::has_waiting(&self.shared.tcp);
                        lock(&self.shared.queue).tcp_taken(turn, more);
                        if let Some(connection) = self.tcp_connection(socket, peer)? {
                            return Ok(Some(connection));
                        }
                        continue;
                    }
                    Ok(None) => {
                        let next = lock(&self.shared.queue).tcp_would_block(turn);
                        match next {
                            Some(pending) => pending,
                            None => return Ok(None),
                        }
                    }
                    Err(error) => return Err(error),
                },
            };
            self.shared.lower_flag();
            self.shared.counters.san_accepted.raise();
            return Ok(Some(Connection::from_pending(
                pending,
                Arc::clone(&self.inner),
            )));
        }
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
        let name = |index| {
            let provider = self.inner.core.provider(index);
            provider.map_or_else(String::new, |registered| registered.name.clone())
        };
        lock(&self.shared.companions).status(name)
    }

    /// SAN connections that wait for accept at this moment.
    pub fn san_waiting(&self) -> usize {
        self.shared.san_waiting()
    }

    /// A descriptor that is readable when accept would not wait, for any epoll set. It is closed
    /// with the listener.
    pub fn readiness(&self) -> BorrowedFd<'_> {
        self.shared.readiness.as_fd()
    }

    /// What was seen so far.
    pub fn stats(&self) -> ListenerStats {
        self.shared.counters.snapshot()
    }

    /// Stops listening on both sides. Connections that wait are closed; accepts that wait return
    /// [`AcceptError::Closed`].
    pub fn close(&self) {
        self.shared.close(&self.inner.core);
    }

    fn accept_until(
        &self,
        deadline: Deadline,
        cancel: Option<&CancelToken>,
    ) -> Result<Connection, AcceptError> {
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
        let local = tcp::local_addr(&socket)?;
        let side = Side::Tcp;
        if self.shared.ask(&IncomingRequest { peer, local, side }) == Decision::Reject {
            self.shared.counters.refused_condition.raise();
            // A linger time of zero has close send a reset.
            socket.set_linger(Some(Duration::ZERO))?;
            return Ok(None);
        }
        self.shared.counters.tcp_accepted.raise();
        let inner = Arc::clone(&self.inner);
        Ok(Some(Connection::from_tcp(socket, local, peer, None, inner)))
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

impl Pending {
    pub(crate) fn new(companion: &Companion, accepted: AcceptedSocket, tcp: Socket) -> Self {
        Pending {
            provider: Arc::clone(&companion.provider),
            socket: accepted.socket,
            peer: accepted.peer,
            tcp,
        }
    }
}

impl ListenerShared {
    fn new(
        core: &Core,
        tcp: Socket,
        backlog: u32,
        condition: Option<Condition>,
    ) -> io::Result<Self> {
        let ready = Signal::new()?;
        let readiness = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for fd in [tcp.as_fd(), ready.as_fd()] {
            let data = epoll::EventData::new_u64(0);
            epoll::add(&readiness, fd, data, epoll::EventFlags::IN)?;
        }
        let address = tcp::local_addr(&tcp)?;
        Ok(ListenerShared {
            token: core.new_token(),
            address,
            only_v6: address.is_ipv6() && tcp.only_v6()?,
            tcp,
            backlog,
            companions: Mutex::default(),
            counters: ListenerCounters::default(),
            condition: Mutex::new(condition),
            queue: Mutex::new(ReadyQueue::new(backlog as usize)),
            closed: AtomicBool::new(false),
            ready,
            readiness,
        })
    }

    /// Accepted SAN connections that wait for the application.
    pub(crate) fn san_waiting(&self) -> usize {
        lock(&self.queue).san_waiting()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether another SAN connection may wait. A closed listener has no room.
    pub(crate) fn has_room(&self) -> bool {
        !self.is_closed() && !lock(&self.queue).is_full()
    }

    /// Asks the condition function. One that panics has rejected.
    pub(crate) fn ask(&self, request: &IncomingRequest) -> Decision {
        let condition = lock(&self.condition).clone();
        let Some(condition) = condition else {
            return Decision::Accept;
        };
        catch_unwind(AssertUnwindSafe(|| condition(request))).unwrap_or_else(|_| {
            tracing::error!(peer = %request.peer, "the condition function panicked");
            Decision::Reject
        })
    }

    /// Queues an accepted SAN connection and wakes the waiters.
    ///
    /// # Errors
    /// Gives it back when the listener is closed or has no room.
    pub(crate) fn push_san(&self, pending: Pending) -> Result<(), Pending> {
        let mut queue = lock(&self.queue);
        if self.is_closed() {
            return Err(pending);
        }
        queue.push_san(pending)?;
        self.ready.set();
        Ok(())
    }

    pub(crate) fn tcp_arrived(&self) {
        lock(&self.queue).tcp_arrived();
    }

    /// Closes both sides; the descriptors themselves live as long as the [`Listener`].
    pub(crate) fn close(&self, core: &Core) {
        let waiting = {
            let mut queue = lock(&self.queue);
            if self.closed.swap(true, Ordering::AcqRel) {
                return;
            }
            self.ready.set();
            queue.drain_san()
        };
        // Out of the books first, so that no companion is made for it any more.
        core.forget_listener(self);
        // A listening socket that is shut down refuses like a closed one.
        let _ = self.tcp.shutdown(std::net::Shutdown::Both);
        *lock(&self.condition) = None;
        drop(waiting);
    }

    fn tcp_accept(&self) -> Result<Option<(Socket, SocketAddr)>, AcceptError> {
        tcp::accept(&self.tcp).map_err(|error| {
            // A socket that was shut down meanwhile answers EINVAL.
            if self.is_closed() {
                AcceptError::Closed
            } else {
                AcceptError::System(error)
            }
        })
    }

    fn lower_flag(&self) {
        let queue = lock(&self.queue);
        if queue.san_waiting() == 0 && !self.is_closed() {
            self.ready.reset();
        }
    }
}

impl fmt::Debug for ListenerShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerShared")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
