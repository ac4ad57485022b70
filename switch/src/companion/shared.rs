//! The part of a listener that the accept thread sees too: TCP's listening socket, the companions,
//! and the merged queue of both (duties 24-28, 32).
//!
//! The accept thread feeds the SAN side; the TCP side stays in the kernel until it is the
//! application's turn. Making and retiring companions is the keeper's business (`keeper.rs`).

use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::epoll;
use san_base::{Signal, lock};
use socket2::Socket;

use super::condition::{Condition, Decision, IncomingRequest};
use super::plan::Companions;
use super::ready_queue::{ReadyQueue, TcpTurn, Turn};
use super::socket::Companion;
use crate::counters::ListenerCounters;
use crate::san::provider::StartedProvider;
use crate::san::socket::{AcceptedSocket, ProviderSocket};
use crate::tcp;

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
    queue: Mutex<ReadyQueue<ReadySan>>,
    closed: AtomicBool,
    /// TCP's socket is somebody else's, who goes on using it.
    pub(super) is_adopted: bool,
    /// Another process has TCP's socket, too, and listens on.
    has_left: AtomicBool,
    /// It has no companions, whatever the table says.
    pub(super) is_tcp_alone: bool,
    /// TCP's arrivals are stamped: from the first SAN connection on. Before that there is nothing to put
    /// in order, and the accept thread need not wake up for each of them.
    is_stamping: AtomicBool,
    /// Set while a SAN connection waits, and for good once closed.
    ready: Signal,
    /// The TCP socket and `ready` in one.
    readiness: OwnedFd,
}

/// An accepted SAN connection that waits for the application.
pub(crate) struct ReadySan {
    pub(crate) provider: Arc<StartedProvider>,
    pub(crate) socket: ProviderSocket,
    pub(crate) peer: SocketAddr,
    pub(crate) tcp: Socket,
}

impl ReadySan {
    pub(crate) fn new(companion: &Companion, accepted: AcceptedSocket, tcp: Socket) -> Self {
        ReadySan {
            provider: Arc::clone(&companion.provider),
            socket: accepted.socket,
            peer: accepted.peer,
            tcp,
        }
    }
}

impl ListenerShared {
    pub(crate) fn new(
        token: u64,
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
            token,
            address,
            only_v6: address.is_ipv6() && tcp.only_v6()?,
            tcp,
            backlog,
            companions: Mutex::default(),
            counters: ListenerCounters::default(),
            condition: Mutex::new(condition),
            queue: Mutex::new(ReadyQueue::new(backlog as usize)),
            closed: AtomicBool::new(false),
            is_adopted: false,
            has_left: AtomicBool::new(false),
            is_tcp_alone: false,
            is_stamping: AtomicBool::new(false),
            ready,
            readiness,
        })
    }

    /// The same on a socket that is somebody else's.
    pub(crate) fn adopted(token: u64, tcp: Socket, backlog: u32) -> io::Result<Self> {
        Ok(ListenerShared {
            is_adopted: true,
            ..Self::new(token, tcp, backlog, None)?
        })
    }

    /// The same without companions: the operator, or the program, wants TCP.
    pub(crate) fn tcp_alone(self) -> Self {
        ListenerShared {
            is_tcp_alone: true,
            ..self
        }
    }

    /// A descriptor that is readable while a SAN connection waits.
    pub(crate) fn san_ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
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
    pub(crate) fn push_san(&self, pending: ReadySan) -> Result<(), ReadySan> {
        let mut queue = lock(&self.queue);
        if self.is_closed() {
            return Err(pending);
        }
        queue.push_san(pending)?;
        self.ready.set();
        Ok(())
    }

    /// The first SAN connection is about to be queued: what waits on TCP came before it. `true`: the
    /// caller has later arrivals told from now on.
    pub(super) fn begin_to_stamp(&self) -> bool {
        if self.is_stamping.swap(true, Ordering::AcqRel) {
            return false;
        }
        if tcp::has_waiting(&self.tcp) {
            self.tcp_arrived();
        }
        true
    }

    pub(crate) fn tcp_arrived(&self) {
        lock(&self.queue).tcp_arrived();
    }

    /// A descriptor that is readable when accept would not wait.
    pub(crate) fn readiness(&self) -> BorrowedFd<'_> {
        self.readiness.as_fd()
    }

    /// Whose turn it is.
    pub(crate) fn take(&self) -> Turn<ReadySan> {
        lock(&self.queue).take()
    }

    /// TCP's accept gave a connection.
    pub(crate) fn tcp_taken(&self, turn: TcpTurn) {
        // Without stamps nobody asks.
        let more = self.is_stamping.load(Ordering::Acquire) && tcp::has_waiting(&self.tcp);
        lock(&self.queue).tcp_taken(turn, more);
    }

    /// TCP's accept found nothing. Gives the SAN connection whose turn it then is, if one waits.
    pub(crate) fn tcp_would_block(&self, turn: TcpTurn) -> Option<ReadySan> {
        lock(&self.queue).tcp_would_block(turn)
    }

    /// From now on nothing is queued and accept finds the listener closed. Gives what waited;
    /// `None`: it was closed before.
    pub(super) fn close(&self) -> Option<Vec<ReadySan>> {
        let mut queue = lock(&self.queue);
        if self.closed.swap(true, Ordering::AcqRel) {
            return None;
        }
        self.ready.set();
        Some(queue.drain_san())
    }

    /// Another process listens on with the same socket.
    pub(super) fn leave(&self) {
        self.has_left.store(true, Ordering::Release);
        *lock(&self.condition) = None;
        // Whoever waits finds out.
        self.ready.set();
    }

    /// Stops TCP's listening; the descriptors themselves live as long as the listener.
    pub(super) fn stop(&self) {
        // A listening socket that is shut down refuses like a closed one.
        if !self.is_adopted && !self.has_left.load(Ordering::Acquire) {
            let _ = self.tcp.shutdown(Shutdown::Both);
        }
        *lock(&self.condition) = None;
    }

    /// To be called when a SAN connection was taken: the flag falls with the last one.
    pub(crate) fn lower_flag(&self) {
        let queue = lock(&self.queue);
        let stays_set = self.is_closed() || self.has_left.load(Ordering::Acquire);
        if queue.san_waiting() == 0 && !stays_set {
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
