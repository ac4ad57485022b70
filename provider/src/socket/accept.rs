//! Accept: the condition function, and the answer to the peer (duties 27 to 30, 84 to 90).

use std::net::SocketAddr;
use std::sync::Mutex;

use super::backlog::{Backlog, Standing, Ticket};
use super::shared::{QueuedRequest, Socket, SocketShared};
use super::state::{Input, Phase};
use crate::cm::negotiation::{own_hello, prepare, set_ack_timeout, transport};
use crate::cm::refusal::refuse;
use crate::error::AcceptError;
use crate::owners::Role;
use crate::sync::lock;
use crate::wire::{Features, Hello, HelloKind, RefusalReason, Session};

/// What a condition function decides about.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectionRequest {
    /// Who asks. Unspecified if the peer's kernel did not say.
    pub peer: Option<SocketAddr>,
    /// The local address that was asked for.
    pub local: Option<SocketAddr>,
    /// Bytes of a message that the peer takes.
    pub max_message_size: u32,
    /// Bytes of an RDMA transfer that the peer takes; 0 is none.
    pub max_rdma_size: u32,
    /// What the peer can do.
    pub features: Features,
    /// What the peer says of a session.
    pub session: Session,
}

/// What a condition function decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The peer's connect succeeds.
    #[doc(alias = "CF_ACCEPT")]
    Accept,
    /// The same, and how.
    AcceptWith(AcceptOptions),
    /// The peer's connect fails with `WSAECONNREFUSED`, or as the [`Rejection`] says.
    #[doc(alias = "CF_REJECT")]
    Reject(Rejection),
    /// Not now: the request goes back to the head of the queue.
    #[doc(alias = "CF_DEFER")]
    Defer,
}

/// How to accept.
///
/// ```
/// use san_provider::{AcceptOptions, Decision, wire::Session};
///
/// let decision = Decision::AcceptWith(AcceptOptions::default().session(Session::with_id(7)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct AcceptOptions {
    /// What the reply says of a session.
    pub session: Session,
    /// Which completion queues the connection shares with others: those of connections with the same
    /// number on the same device. One number for each thread or event loop, so that they share nothing.
    /// `None`: the provider chooses.
    pub lane: Option<u32>,
}

impl AcceptOptions {
    /// The same with this session in the reply.
    #[must_use]
    pub const fn session(mut self, session: Session) -> Self {
        self.session = session;
        self
    }

    /// The same with this hint.
    #[must_use]
    pub const fn lane(mut self, lane: u32) -> Self {
        self.lane = Some(lane);
        self
    }
}

/// Why a request is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// The condition function does not want it.
    Unwanted,
    /// As many connections wait as the application's backlog allows.
    BacklogFull {
        /// That backlog.
        backlog: u32,
    },
    /// Not now; the peer may ask again. Its connect fails so that TCP may be tried.
    NotNow,
    /// There is no connection like the one that the request is about. The peer's connect fails so
    /// that TCP may be tried.
    NoSuchConnection,
}

impl Rejection {
    /// What the peer is told: the reason, and the backlog that goes with it.
    const fn refusal(self) -> (RefusalReason, u32) {
        match self {
            Self::Unwanted => (RefusalReason::Condition, 0),
            Self::BacklogFull { backlog } => (RefusalReason::ReadyQueueFull, backlog),
            Self::NotNow => (RefusalReason::NotNow, 0),
            Self::NoSuchConnection => (RefusalReason::NoSuchConnection, 0),
        }
    }
}

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// Its socket.
    pub socket: Socket,
    /// The peer's address (duty 89).
    pub peer: Option<SocketAddr>,
}

impl Socket {
    /// Takes the request that waits longest and answers it as `condition` decides (duties 84 to
    /// 90). Never waits: without a request it is `WSAEWOULDBLOCK`.
    ///
    /// The condition function runs in this thread, with no lock held; the peer is told nothing
    /// before it has returned, and the request keeps its place in the backlog until then. If it
    /// panics, the request is rejected and the panic goes on. The event object is reset before
    /// accept returns, and set again if requests are still queued.
    ///
    /// The socket can be used at once: what is sent before the peer has confirmed waits for that.
    ///
    /// # Errors
    /// `WSAEWOULDBLOCK`. `WSAECONNREFUSED`: the condition function rejected. `WSATRY_AGAIN`: it
    /// put the request off. `WSAECONNRESET`: the peer gave up. `WSAEINVAL`: the socket does not
    /// listen. `WSAEMFILE`, `WSAENOBUFS`, `WSAENETDOWN`: the request was refused for that reason.
    /// `WSAENOTSOCK`, `WSANOTINITIALISED`.
    #[doc(alias = "WSPAccept")]
    pub fn accept<F>(&self, condition: F) -> Result<Accepted, AcceptError>
    where
        F: FnOnce(&ConnectionRequest) -> Decision,
    {
        let socket = &*self.shared;
        socket.runtime.usable()?;
        match lock(&socket.state).phase {
            Phase::Closed => return Err(AcceptError::NotSocket),
            Phase::Listening => {}
            _ => return Err(AcceptError::NotListening),
        }
        let Some(backlog) = socket.backlog.get() else {
            return Err(AcceptError::NotListening);
        };
        let Some((ticket, pending)) = lock(backlog).take() else {
            socket.accept_returns(backlog);
            return Err(AcceptError::WouldBlock);
        };
        let mut deciding = PendingAccept {
            socket,
            backlog,
            request: Some((ticket, pending)),
        };
        let decision = condition(&deciding.describe());
        match decision {
            Decision::Accept => deciding.accept(&AcceptOptions::default()),
            Decision::AcceptWith(options) => deciding.accept(&options),
            Decision::Reject(rejection) => {
                let (reason, backlog) = rejection.refusal();
                deciding.refuse(reason, backlog);
                Err(AcceptError::Refused)
            }
            Decision::Defer => deciding.defer(),
        }
    }
}

impl SocketShared {
    /// Duty 88: the event is reset, and set again while requests are queued.
    fn accept_returns(&self, backlog: &Mutex<Backlog<QueuedRequest>>) {
        let backlog = lock(backlog);
        lock(&self.events).accept_returns(backlog.queued() > 0);
    }
}

/// A request that was taken and has to be answered. Dropped without an answer, which only a panic
/// of the condition function does, it is rejected.
struct PendingAccept<'a> {
    socket: &'a SocketShared,
    backlog: &'a Mutex<Backlog<QueuedRequest>>,
    request: Option<(Ticket, QueuedRequest)>,
}

impl PendingAccept<'_> {
    fn describe(&self) -> ConnectionRequest {
        let pending = self.request.as_ref().map(|(_, pending)| pending);
        let hello = pending.map(|p| p.hello);
        ConnectionRequest {
            peer: pending.and_then(|p| p.peer),
            local: pending.and_then(|p| p.local),
            max_message_size: hello.map_or(0, |h| h.max_message_size),
            max_rdma_size: hello.map_or(0, |h| h.max_rdma_size),
            features: hello.map(|h| h.features).unwrap_or_default(),
            session: hello.map(|h| h.session).unwrap_or_default(),
        }
    }

    /// Refuses the request; `false`: the peer has given up, and nobody was told.
    fn refuse(&mut self, reason: RefusalReason, backlog: u32) -> bool {
        let Some((ticket, pending)) = self.request.take() else {
            return false;
        };
        let standing = lock(self.backlog).standing(&ticket);
        let token = pending.id.token();
        let told = match standing {
            Standing::PeerGone => {
                drop(pending);
                false
            }
            _ => refuse(
                &self.socket.runtime,
                Some(&self.socket.listened),
                pending.id,
                reason,
                backlog,
            ),
        };
        self.socket.runtime.owners.remove(token);
        self.answered(ticket);
        told
    }

    fn answered(&self, ticket: Ticket) {
        lock(self.backlog).answered(ticket);
        self.socket.accept_returns(self.backlog);
    }

    fn defer(&mut self) -> Result<Accepted, AcceptError> {
        let Some((ticket, pending)) = self.request.take() else {
            return Err(AcceptError::Deferred);
        };
        let token = pending.id.token();
        let deferred = lock(self.backlog).defer(ticket, pending);
        self.socket.runtime.counters.deferred.raise();
        let result = match deferred {
            Ok(()) => Err(AcceptError::Deferred),
            Err((Standing::Closed, pending)) => {
                self.socket.runtime.owners.remove(token);
                let reason = RefusalReason::Closing;
                refuse(
                    &self.socket.runtime,
                    Some(&self.socket.listened),
                    pending.id,
                    reason,
                    0,
                );
                Err(AcceptError::NotSocket)
            }
            Err((_, pending)) => {
                drop(pending);
                Err(AcceptError::PeerGone)
            }
        };
        self.socket.accept_returns(self.backlog);
        result
    }

    fn accept(&mut self, options: &AcceptOptions) -> Result<Accepted, AcceptError> {
        let Some((ticket, pending)) = &self.request else {
            return Err(AcceptError::WouldBlock);
        };
        // Not in the match itself: the lock would be held in its arms.
        let standing = lock(self.backlog).standing(ticket);
        match standing {
            Standing::Good => {}
            Standing::PeerGone => {
                self.refuse(RefusalReason::Closing, 0);
                return Err(AcceptError::PeerGone);
            }
            Standing::Closed => {
                self.refuse(RefusalReason::Closing, 0);
                return Err(AcceptError::NotSocket);
            }
        }
        let (socket, reply) = match self.make_socket(pending, options) {
            Ok(made) => made,
            // The kernel says nothing of a peer that gives up before the accept. But then there is
            // neither a queue pair to be had for it, nor anybody to refuse.
            Err(error) => {
                match self.socket.listened.refused_resources.value() {
                    // Once for each listener: an operator has to see it, a flood must not flood.
                    0 => tracing::warn!(%error, "no connection for a request"),
                    _ => tracing::debug!(%error, "no connection for a request"),
                }
                return Err(match self.refuse(RefusalReason::NoResources, 0) {
                    true => error,
                    false => AcceptError::PeerGone,
                });
            }
        };
        if let Err(why) = socket.ask_for_handle() {
            self.refuse(RefusalReason::NoResources, 0);
            return Err(AcceptError::Handle { why });
        }
        let Some((ticket, pending)) = self.request.take() else {
            return Err(AcceptError::WouldBlock);
        };
        let (peer, token) = (pending.peer, pending.id.token());
        let answer = self.answer(&socket, pending, &reply);
        if answer.is_err() {
            self.socket.runtime.counters.withdrawn.raise();
            self.socket.listened.withdrawn.raise();
            self.socket.runtime.owners.remove(token);
            socket.shared.shut();
        }
        self.answered(ticket);
        answer?;
        self.socket.runtime.counters.accepted.raise();
        self.socket.listened.accepted.raise();
        Ok(Accepted { socket, peer })
    }

    /// The socket of the connection, with its queue pair and posted receives, and the reply.
    fn make_socket(
        &self,
        pending: &QueuedRequest,
        options: &AcceptOptions,
    ) -> Result<(Socket, Hello), AcceptError> {
        let runtime = &self.socket.runtime;
        let config = &runtime.config;
        let limit = config.max_sockets;
        let place = runtime
            .socket_place()
            .ok_or(AcceptError::TooMany { limit })?;
        let connection = prepare(runtime, &pending.id, options.lane)?;
        connection.negotiated(&pending.hello);
        let socket = Socket::new(runtime, self.socket.family, place);
        let hello = own_hello(config, &connection, options.session);
        *lock(&socket.shared.connection) = Some(connection);
        Ok((socket, hello))
    }

    /// Tells the peer. From here on the id is the new socket's.
    fn answer(
        &self,
        socket: &Socket,
        pending: QueuedRequest,
        reply: &Hello,
    ) -> Result<(), AcceptError> {
        let shared = &socket.shared;
        let config = &shared.runtime.config;
        let mut state = lock(&shared.state);
        shared
            .step(&mut state, Input::Accept)
            .map_err(|_| AcceptError::NotSocket)?;
        state.local = pending.local;
        state.peer = pending.peer;
        state.peer_session = Some(pending.hello.session);
        let token = pending.id.token();
        shared.runtime.owners.set(token, Role::Own, shared);
        set_ack_timeout(&pending.id, config.ack_timeout);
        let private_data = reply.emit(HelloKind::Reply);
        let accepted = pending.id.accept(&transport(config, &private_data));
        state.id = Some(pending.id);
        accepted.map_err(|error| {
            // The kernel has no other word for a request that is not there any more.
            tracing::debug!(%error, peer = ?state.peer, "the peer gave up before the accept");
            AcceptError::PeerGone
        })
    }
}

impl Drop for PendingAccept<'_> {
    fn drop(&mut self) {
        self.refuse(RefusalReason::Condition, 0);
    }
}
