//! How a socket comes to be: opened, bound, asked for its names, and its network events selected.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use rustix::io::Errno;
use verbs_shim::VerbsError;
use verbs_shim::fork::ForkGuard;

use super::network_events::{EventRecorder, NetworkEventRecord, NetworkEvents};
use super::settings::Options;
use super::shared::{Socket, SocketShared, SocketState};
use super::state::{Input, InvalidTransition, Phase};
use super::types::{AddressFamily, Protocol, SocketType};
use crate::error::{BindError, QueryError, SelectError, SocketError};
use crate::event::EventObject;
use crate::runtime::{Runtime, SocketPlace};
use crate::statistics::ListenCounters;
use crate::sync::lock;
use crate::wire::Session;

impl Socket {
    pub(crate) fn open(
        runtime: &Arc<Runtime>,
        family: AddressFamily,
        socket_type: SocketType,
        protocol: Protocol,
    ) -> Result<Self, SocketError> {
        if matches!(family, AddressFamily::Other(_)) {
            return Err(SocketError::Family);
        }
        if socket_type != SocketType::Stream {
            return Err(SocketError::Type);
        }
        if protocol != Protocol::Tcp {
            return Err(SocketError::Protocol);
        }
        if runtime.usable().is_err() {
            return Err(SocketError::NotInitialised);
        }
        let limit = runtime.config.max_sockets;
        let place = runtime
            .socket_place()
            .ok_or(SocketError::TooMany { limit })?;
        let socket = Self::new(runtime, family, place);
        // Duty 67: the socket first, then the switch's handle.
        socket
            .ask_for_handle()
            .map_err(|why| SocketError::Handle { why })?;
        Ok(socket)
    }

    /// A socket that the switch does not know of yet.
    pub(crate) fn new(runtime: &Arc<Runtime>, family: AddressFamily, place: SocketPlace) -> Self {
        let number = runtime.next_number();
        let shared = Arc::new(SocketShared {
            runtime: Arc::clone(runtime),
            number,
            family,
            handle: OnceLock::new(),
            state: Mutex::new(SocketState {
                phase: Phase::Open,
                id: None,
                local: None,
                peer: None,
                deadline: None,
                options: Options::default(),
                session: Session::NONE,
                lane: None,
                peer_session: None,
                arrival: None,
                awaited: None,
                place: Some(place),
            }),
            events: Mutex::new(EventRecorder::default()),
            backlog: OnceLock::new(),
            listened: ListenCounters::default(),
            connection: Mutex::new(None),
        });
        runtime.add_socket(number, &shared);
        runtime.counters.sockets_opened.raise();
        tracing::debug!(socket = number, ?family, "socket opened");
        Self {
            shared: ForkGuard::new(shared),
        }
    }

    /// Gets the switch's handle; if there is none the socket is closed.
    pub(crate) fn ask_for_handle(&self) -> Result<(), String> {
        match self
            .shared
            .runtime
            .progress
            .table()
            .create_socket_handle(self.number())
        {
            Ok(handle) => {
                let _ = self.shared.handle.set(handle);
                if let Some(connection) = self.shared.connection() {
                    connection.set_handle(handle);
                }
                Ok(())
            }
            Err(why) => {
                self.shared.shut();
                Err(why.to_string())
            }
        }
    }

    /// Binds to a local address (duties 14, 69). The wildcard address stands for every device,
    /// those that come later too; port 0 for any that is free.
    ///
    /// # Errors
    /// `WSAEADDRNOTAVAIL`: not an address of a device, or the port is taken; never
    /// `WSAEADDRINUSE`. `WSAEFAULT`: an address of the other family. `WSAEINVAL`: bound already.
    /// `WSAENOTSOCK`, `WSAENOBUFS`, `WSAENETDOWN`, `WSANOTINITIALISED`.
    #[doc(alias = "WSPBind")]
    pub fn bind(&self, addr: SocketAddr) -> Result<(), BindError> {
        let socket = &*self.shared;
        socket.runtime.usable()?;
        if AddressFamily::of(&addr) != socket.family {
            return Err(BindError::Family);
        }
        // The kernel would take 127.0.0.1, on which there is no device.
        let is_local = is_wildcard(addr.ip()) || socket.runtime.is_local(addr.ip());
        let mut state = lock(&socket.state);
        state
            .phase
            .after(Input::Bind)
            .map_err(|invalid| match invalid {
                InvalidTransition::Closed => BindError::NotSocket,
                _ => BindError::AlreadyBound,
            })?;
        if !is_local {
            return Err(BindError::NotLocal);
        }
        let id = socket.runtime.new_id()?;
        if socket.family == AddressFamily::V6 {
            id.set_v6_only(state.options.v6_only)?;
        }
        if state.options.reuse_addr {
            id.set_reuse_addr(true)?;
        }
        id.bind(addr).map_err(|error| bind_error(addr, error))?;
        state.local = id.local_addr();
        state.id = Some(id);
        socket
            .step(&mut state, Input::Bind)
            .map_err(|_| BindError::AlreadyBound)
    }

    /// The local address, once there is one.
    ///
    /// # Errors
    /// `WSAENOTSOCK`, `WSANOTINITIALISED`.
    #[doc(alias = "WSPGetSockName")]
    pub fn local_addr(&self) -> Result<Option<SocketAddr>, QueryError> {
        Ok(self.open_state()?.local)
    }

    /// The peer's address, once there is one.
    ///
    /// # Errors
    /// `WSAENOTSOCK`, `WSANOTINITIALISED`.
    #[doc(alias = "WSPGetPeerName")]
    pub fn peer_addr(&self) -> Result<Option<SocketAddr>, QueryError> {
        Ok(self.open_state()?.peer)
    }

    /// What the peer has said of a session: in its request, if it was accepted here, else in its
    /// reply, which is here with FD_CONNECT. `None` before that, and of a connection that was
    /// taken up from another process.
    ///
    /// # Errors
    /// `WSAENOTSOCK`, `WSANOTINITIALISED`.
    pub fn peer_session(&self) -> Result<Option<Session>, QueryError> {
        Ok(self.open_state()?.peer_session)
    }

    /// Selects the network events that set `event`, in place of those selected before; with
    /// [`NetworkEvents::NONE`] none (duties 19, 26, 82). What is already so sets it at once.
    ///
    /// # Errors
    /// `WSAENOTSOCK`, `WSANOTINITIALISED`.
    #[doc(alias = "WSPEventSelect")]
    pub fn event_select(
        &self,
        event: &EventObject,
        events: NetworkEvents,
    ) -> Result<(), SelectError> {
        self.check_select()?;
        // In this order everywhere: backlog, then events.
        let backlog = self.shared.backlog.get().map(lock);
        let queued = backlog.as_ref().is_some_and(|backlog| backlog.queued() > 0);
        lock(&self.shared.events).select(event, events, queued);
        Ok(())
    }

    /// What happened of the selected events since the last call; `event` is reset (duties 20, 81,
    /// 83).
    ///
    /// # Errors
    /// `WSAENOTSOCK`, `WSANOTINITIALISED`.
    #[doc(alias = "WSPEnumNetworkEvents")]
    pub fn enum_network_events(
        &self,
        event: Option<&EventObject>,
    ) -> Result<NetworkEventRecord, SelectError> {
        self.check_select()?;
        Ok(lock(&self.shared.events).take(event))
    }

    fn check_select(&self) -> Result<(), SelectError> {
        self.shared.runtime.usable()?;
        match lock(&self.shared.state).phase {
            Phase::Closed => Err(SelectError::NotSocket),
            _ => Ok(()),
        }
    }

    fn open_state(&self) -> Result<MutexGuard<'_, SocketState>, QueryError> {
        self.shared.runtime.usable()?;
        let state = lock(&self.shared.state);
        match state.phase {
            Phase::Closed => Err(QueryError::NotSocket),
            _ => Ok(state),
        }
    }
}

fn is_wildcard(ip: IpAddr) -> bool {
    ip.is_unspecified()
}

fn bind_error(addr: SocketAddr, error: VerbsError) -> BindError {
    let is = |errno: Errno| error.errno() == errno.raw_os_error();
    // For the wildcard the kernel says EADDRNOTAVAIL of a port that is taken.
    if is(Errno::ADDRINUSE) || (is(Errno::ADDRNOTAVAIL) && is_wildcard(addr.ip())) {
        BindError::PortTaken
    } else if is(Errno::ADDRNOTAVAIL) || is(Errno::NODEV) {
        BindError::NotLocal
    } else {
        error.into()
    }
}
