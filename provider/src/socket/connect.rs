//! Connect: always nonblocking, driven by CM events in the thread `san-cm` (duties 71 to 76).
//!
//! The call starts to resolve the address; the events carry on from there. Every connect has a
//! deadline, which that thread keeps too. The end is recorded and signalled as FD_CONNECT.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use verbs_shim::{CmId, RejectReason, VerbsError};

use crate::core::IdOwner;
use crate::error::{ConnectError, ConnectFailure, WsaCode};
use crate::socket::accept::{own_hello, prepare, set_ack_timeout, transport};
use crate::socket::shared::{AddressFamily, Socket, SocketShared, SocketState};
use crate::socket::state::{Happening, Misfit, Phase};
use crate::sync::lock;
use crate::transfer::Ending;
use crate::wire::{Hello, HelloKind, Refusal, RefusalReason, Session};

/// How to connect.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConnectOptions {
    /// How long it may take; `None`: as configured.
    pub deadline: Option<Duration>,
    /// What the request says of a session. The accepting side's condition function sees it; what
    /// that side answers is [`Socket::peer_session`].
    pub session: Session,
}

impl Socket {
    /// Starts to connect. It never waits: the answer is an error at once, or `WSAEWOULDBLOCK`
    /// ([`ConnectError::is_in_progress`]), and the end comes as FD_CONNECT with its result in
    /// [`Socket::enum_network_events`] (duties 71, 72).
    ///
    /// # Errors
    /// `WSAEWOULDBLOCK`: it goes on. `WSAEALREADY`: one is under way (duty 75). `WSAEISCONN`.
    /// `WSAEINVAL`: the socket listens, or its connect failed before. `WSAEHOSTUNREACH`: no
    /// route. `WSAEAFNOSUPPORT`, `WSAEADDRNOTAVAIL`, `WSAENOBUFS`, `WSAENOTSOCK`,
    /// `WSANOTINITIALISED`.
    #[doc(alias = "WSPConnect")]
    pub fn connect(&self, addr: SocketAddr, options: ConnectOptions) -> Result<(), ConnectError> {
        let socket = &self.shared;
        let core = &socket.core;
        if core.is_stopped() {
            return Err(ConnectFailure::NotInitialised.into());
        }
        let mut state = lock(&socket.state);
        state
            .phase
            .after(Happening::Connect)
            .map_err(|misfit| match misfit {
                Misfit::Closed => ConnectFailure::NotSocket,
                Misfit::Connecting => ConnectFailure::AlreadyConnecting,
                Misfit::Connected => ConnectFailure::AlreadyConnected,
                _ => ConnectFailure::WrongState,
            })?;
        if AddressFamily::of(&addr) != socket.family {
            return Err(ConnectFailure::AddressFamily.into());
        }
        if addr.ip().is_unspecified() || addr.port() == 0 {
            return Err(ConnectFailure::BadAddress.into());
        }
        let id = match state.id.take() {
            Some(id) => id,
            None => core.new_id().map_err(resource_error)?,
        };
        let token = id.token();
        let patience = options.deadline.unwrap_or(core.config.connect_deadline);
        let deadline = Instant::now().checked_add(patience);
        set_ack_timeout(&id, core.config.ack_timeout);
        if let Some(tos) = state.options.tos
            && let Err(error) = id.set_tos(tos)
        {
            tracing::debug!(%error, "the type of service stays as it is");
        }
        core.counters.connects.raise();
        core.set_owner(token, IdOwner::Socket(Arc::downgrade(socket)));
        if let Err(error) = id.resolve_addr(None, addr, patience) {
            core.remove_owner(token);
            core.counters.connects_failed.raise();
            state.id = Some(id);
            return Err(resolve_error(error));
        }
        state.id = Some(id);
        state.peer = Some(addr);
        state.deadline = deadline;
        state.session = options.session;
        let _ = socket.step(&mut state, Happening::Connect);
        drop(state);
        if let Some(when) = deadline {
            core.control.set_deadline(when, token);
        }
        Err(ConnectFailure::InProgress.into())
    }
}

impl SocketShared {
    pub(crate) fn address_resolved(&self) {
        let mut state = lock(&self.state);
        if self.step(&mut state, Happening::AddressResolved).is_err() {
            return;
        }
        let left = state.time_left();
        let result = match &state.id {
            Some(id) => id.resolve_route(left),
            None => return,
        };
        drop(state);
        if let Err(error) = result {
            self.connect_failed(ConnectError::with_source(
                ConnectFailure::Unreachable,
                error,
            ));
        }
    }

    pub(crate) fn route_resolved(&self) {
        let mut state = lock(&self.state);
        if self.step(&mut state, Happening::RouteResolved).is_err() {
            return;
        }
        let result = self.request(&mut state);
        drop(state);
        if let Err(error) = result {
            self.connect_failed(error);
        }
    }

    /// Makes the queue pair and sends the request.
    fn request(&self, state: &mut SocketState) -> Result<(), ConnectError> {
        let arrival = state.arrival.take();
        let Some(id) = &state.id else {
            return Err(ConnectFailure::System.into());
        };
        let connection = prepare(self, id).map_err(resource_error)?;
        if let Some(handle) = self.handle.get() {
            connection.set_handle(*handle);
        }
        let mut hello = own_hello(self, &connection, state.session);
        if let Some(arrival) = arrival {
            arrival.into_request(&mut hello, &connection);
        }
        let private_data = hello.emit(HelloKind::Request);
        *lock(&self.connection) = Some(connection);
        let config = &self.core.config;
        id.connect(&transport(config, &private_data))
            .map_err(|error| ConnectError::with_source(ConnectFailure::System, error))?;
        state.local = id.local_addr().or(state.local);
        Ok(())
    }

    /// Both sides know of the connection.
    pub(crate) fn established(&self, private_data: &[u8]) {
        let mut state = lock(&self.state);
        let Some(connection) = self.connection() else {
            return;
        };
        if state.phase == Phase::Accepted {
            let _ = self.step(&mut state, Happening::Established);
            drop(state);
            connection.established();
            return;
        }
        if state.phase == Phase::Ended {
            // It broke before the peer's confirmation was here, when its CM could not be told.
            self.disconnect(&state);
            return;
        }
        if state.phase != Phase::Requested {
            return;
        }
        let hello = match Hello::parse(HelloKind::Reply, private_data) {
            Ok(hello) => hello,
            Err(malformed) => {
                tracing::debug!(socket = self.number, why = %malformed, "not our reply");
                drop(state);
                self.connect_failed(ConnectFailure::ForeignReply.into());
                return;
            }
        };
        let _ = self.step(&mut state, Happening::Established);
        state.peer_session = Some(hello.session);
        self.cancel_deadline(&mut state);
        drop(state);
        connection.negotiated(&hello);
        connection.established();
        self.core.counters.connects_succeeded.raise();
        self.signal_connect(Ok(()));
    }

    pub(crate) fn resolve_failed(&self, call: &'static str, errno: i32) {
        let source = VerbsError::from_errno(call, errno);
        self.connect_failed(ConnectError::with_source(
            ConnectFailure::Unreachable,
            source,
        ));
    }

    /// The peer does not answer: while connecting, or later.
    pub(crate) fn unreachable(&self, errno: i32) {
        let is_connecting = lock(&self.state).phase.is_connecting();
        if is_connecting {
            self.resolve_failed("rdma_connect", errno);
        } else {
            self.ended(Ending::TimedOut);
        }
    }

    /// The peer, or its kernel, said no: to our request, or to our reply.
    pub(crate) fn rejected(&self, reason: RejectReason, private_data: &[u8]) {
        let phase = lock(&self.state).phase;
        if !phase.is_connecting() {
            self.ended(Ending::Reset);
            return;
        }
        let failure = failure_of(reason, private_data, self.core.config.strict);
        if ConnectError::from(failure).code() == WsaCode::ConnRefused {
            self.core.counters.connects_refused.raise();
        }
        self.connect_failed(failure.into());
    }

    pub(crate) fn device_removed(&self) {
        let (phase, device) = {
            let state = lock(&self.state);
            (state.phase, state.id.as_ref().and_then(CmId::device))
        };
        if let Some(device) = device {
            tracing::warn!(
                device = device.name(),
                socket = self.number,
                "device removed"
            );
            self.core.devices.forget(&device);
            self.core.memory.shed();
        }
        if phase.is_connecting() {
            self.connect_failed(ConnectFailure::NetDown.into());
        } else {
            self.ended(Ending::NetDown);
        }
    }

    /// The connect under way is over: everything it had is freed, then it is told.
    pub(crate) fn connect_failed(&self, error: ConnectError) {
        let id = {
            let mut state = lock(&self.state);
            if self.step(&mut state, Happening::ConnectFailed).is_err() {
                return;
            }
            self.cancel_deadline(&mut state);
            tracing::debug!(socket = self.number, peer = ?state.peer, %error, "connect failed");
            state.id.take()
        };
        if error.code() != WsaCode::ConnRefused {
            self.core.counters.connects_failed.raise();
        }
        if let Some(id) = &id {
            self.core.remove_owner(id.token());
            if error.failure() == ConnectFailure::ForeignReply {
                // They believe that they are connected.
                let _ = id.disconnect();
            }
        }
        let connection = lock(&self.connection).take();
        if let Some(connection) = connection {
            connection.close();
        }
        drop(id);
        self.signal_connect(Err(error));
    }

    /// The peer ended the connection, or it broke (duty 113).
    pub(crate) fn ended(&self, ending: Ending) {
        let mut state = lock(&self.state);
        if self.step(&mut state, Happening::PeerEnded).is_err() {
            return;
        }
        // Once: messages behind the one that broke it are found to be wrong, too.
        if let Ending::Protocol(violation) = ending {
            self.core.counters.protocol_violations.raise();
            tracing::warn!(socket = self.number, peer = ?state.peer, %violation, "connection broken");
        }
        self.disconnect(&state);
        let awaited = state.awaited.take();
        drop(state);
        self.core.await_no_longer(awaited);
        self.core.counters.connections_ended.raise();
        if let Some(connection) = self.connection() {
            connection.end(ending);
        }
    }

    pub(crate) fn disconnect(&self, state: &SocketState) {
        if let Some(id) = &state.id
            && let Err(error) = id.disconnect()
        {
            tracing::trace!(socket = self.number, %error, "disconnect");
        }
    }

    pub(crate) fn cancel_deadline(&self, state: &mut SocketState) {
        if let (Some(when), Some(id)) = (state.deadline.take(), &state.id) {
            self.core.control.cancel_deadline(when, id.token());
        }
    }

    fn signal_connect(&self, result: Result<(), ConnectError>) {
        if lock(&self.events).connect_ended(result) {
            self.core.counters.events_signalled.raise();
        }
    }
}

impl SocketState {
    fn time_left(&self) -> Duration {
        // The kernel counts in milliseconds, and takes 0 for no time at all.
        let left = self
            .deadline
            .map(|when| when.saturating_duration_since(Instant::now()));
        left.unwrap_or(Duration::from_secs(3600))
            .max(Duration::from_millis(1))
    }
}

/// Duty 73: what a reject says about TCP.
fn failure_of(reason: RejectReason, private_data: &[u8], strict: bool) -> ConnectFailure {
    if let Ok(refusal) = Refusal::parse(private_data) {
        return match refusal.reason {
            RefusalReason::BacklogFull | RefusalReason::ReadyQueueFull => {
                ConnectFailure::BacklogFull {
                    backlog: refusal.backlog,
                }
            }
            RefusalReason::Condition => ConnectFailure::RejectedByPeer,
            RefusalReason::NotOurProtocol => ConnectFailure::NotOurProtocol,
            RefusalReason::Version => ConnectFailure::VersionMismatch {
                lowest: refusal.lowest_version,
                highest: refusal.highest_version,
            },
            RefusalReason::Closing => ConnectFailure::ListenerClosing,
            RefusalReason::NotNow => ConnectFailure::NotNow,
            RefusalReason::NoSuchConnection => ConnectFailure::NoSuchConnection,
            RefusalReason::NoResources | RefusalReason::Unknown(_) => {
                ConnectFailure::PeerOutOfResources
            }
        };
    }
    match reason {
        RejectReason::InvalidServiceId => ConnectFailure::NobodyListens { strict },
        other => ConnectFailure::ForeignReject {
            reason: u16::try_from(other.raw()).unwrap_or(u16::MAX),
        },
    }
}

fn resolve_error(error: VerbsError) -> ConnectError {
    let is = |errno: Errno| error.errno() == errno.raw_os_error();
    let failure = if is(Errno::NETUNREACH) || is(Errno::HOSTUNREACH) {
        ConnectFailure::NoRoute
    } else if is(Errno::ADDRNOTAVAIL) || is(Errno::NODEV) || is(Errno::TIMEDOUT) {
        ConnectFailure::Unreachable
    } else {
        ConnectFailure::System
    };
    ConnectError::with_source(failure, error)
}

fn resource_error(error: VerbsError) -> ConnectError {
    let failure = match WsaCode::from_errno(error.errno()) {
        WsaCode::NetDown => ConnectFailure::NetDown,
        _ => ConnectFailure::OutOfResources,
    };
    ConnectError::with_source(failure, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wsd_073_only_our_refusals_are_final() {
        let ours = |reason| Refusal::new(reason, 16).emit();
        let consumer = RejectReason::ConsumerDefined;
        let failure = |reason| failure_of(consumer, &ours(reason), false);
        assert_eq!(
            failure(RefusalReason::BacklogFull),
            ConnectFailure::BacklogFull { backlog: 16 }
        );
        assert_eq!(
            failure(RefusalReason::ReadyQueueFull),
            ConnectFailure::BacklogFull { backlog: 16 }
        );
        assert_eq!(
            failure(RefusalReason::Condition),
            ConnectFailure::RejectedByPeer
        );
        assert_eq!(
            failure(RefusalReason::Closing),
            ConnectFailure::ListenerClosing
        );
        assert_eq!(
            failure(RefusalReason::Unknown(77)),
            ConnectFailure::PeerOutOfResources
        );
        // The same CM reason without our data: a process that died, or somebody else's program.
        assert_eq!(
            failure_of(consumer, &[0; 148], false),
            ConnectFailure::ForeignReject { reason: 28 }
        );
        assert_eq!(
            failure_of(RejectReason::InvalidServiceId, &[0; 148], false),
            ConnectFailure::NobodyListens { strict: false }
        );
        assert_eq!(
            failure_of(RejectReason::InvalidServiceId, &[], true),
            ConnectFailure::NobodyListens { strict: true }
        );
    }

    #[test]
    fn no_route_is_told_from_no_device() {
        let error = |errno: Errno| resolve_error(VerbsError::from_errno("x", errno.raw_os_error()));
        assert_eq!(error(Errno::NETUNREACH).code(), WsaCode::HostUnreachable);
        assert_eq!(error(Errno::NODEV).code(), WsaCode::TimedOut);
        assert!(error(Errno::NODEV).may_try_tcp());
        assert_eq!(error(Errno::INVAL).code(), WsaCode::Invalid);
    }
}
