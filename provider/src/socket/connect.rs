//! Connect: always nonblocking, driven by CM events in the thread `san-cm` (duties 71 to 76).
//!
//! The call starts to resolve the address; the events carry on from there (`life_cycle.rs`). Every
//! connect has a deadline, which that thread keeps too. The end is recorded and signalled as FD_CONNECT.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use verbs_shim::VerbsError;

use super::shared::Socket;
use super::state::{Input, InvalidTransition};
use super::types::AddressFamily;
use crate::cm::negotiation::set_ack_timeout;
use crate::error::{ConnectError, ConnectFailure};
use crate::owners::Role;
use crate::sync::lock;
use crate::wire::Session;

/// How to connect.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConnectOptions {
    /// How long it may take; `None`: as configured.
    pub deadline: Option<Duration>,
    /// What the request says of a session. The accepting side's condition function sees it; what
    /// that side answers is [`Socket::peer_session`].
    pub session: Session,
    /// Which completion queues the connection shares with others: those of connections with the same
    /// number on the same device. One number for each thread or event loop, so that they share nothing.
    /// `None`: the provider chooses.
    pub lane: Option<u32>,
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
        let runtime = &socket.runtime;
        runtime.usable()?;
        let mut state = lock(&socket.state);
        state
            .phase
            .after(Input::Connect)
            .map_err(|invalid| match invalid {
                InvalidTransition::Closed => ConnectFailure::NotSocket,
                InvalidTransition::Connecting => ConnectFailure::AlreadyConnecting,
                InvalidTransition::Connected => ConnectFailure::AlreadyConnected,
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
            None => runtime.new_id().map_err(ConnectError::of_resources)?,
        };
        let token = id.token();
        let patience = options.deadline.unwrap_or(runtime.config.connect_deadline);
        let deadline = Instant::now().checked_add(patience);
        set_ack_timeout(&id, runtime.config.ack_timeout);
        if let Some(tos) = state.options.tos
            && let Err(error) = id.set_tos(tos)
        {
            tracing::debug!(%error, "the type of service stays as it is");
        }
        runtime.counters.connects.raise();
        runtime.owners.set(token, Role::Own, socket);
        if let Err(error) = id.resolve_addr(None, addr, patience) {
            runtime.owners.remove(token);
            runtime.counters.connects_failed.raise();
            state.id = Some(id);
            return Err(resolve_error(error));
        }
        state.id = Some(id);
        state.peer = Some(addr);
        state.deadline = deadline;
        state.session = options.session;
        state.lane = options.lane;
        let _ = socket.step(&mut state, Input::Connect);
        drop(state);
        if let Some(when) = deadline {
            runtime.control.set_deadline(when, token);
        }
        Err(ConnectFailure::InProgress.into())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::WsaCode;

    #[test]
    fn no_route_is_told_from_no_device() {
        let error = |errno: Errno| resolve_error(VerbsError::from_errno("x", errno.raw_os_error()));
        assert_eq!(error(Errno::NETUNREACH).code(), WsaCode::HostUnreachable);
        assert_eq!(error(Errno::NODEV).code(), WsaCode::TimedOut);
        assert!(error(Errno::NODEV).may_try_tcp());
        assert_eq!(error(Errno::NODEV).failure(), ConnectFailure::Unreachable);
        assert_eq!(error(Errno::INVAL).code(), WsaCode::Invalid);
        assert_eq!(error(Errno::INVAL).failure(), ConnectFailure::System);
    }
}
