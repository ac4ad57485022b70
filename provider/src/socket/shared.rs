//! Sockets: what they are made of, bind, names, and the events of their network side.
//!
//! A [`Socket`] is a cheap handle; all clones are one socket. After close every call through any
//! of them says that it is no socket (duty 115). Listen, accept, connect, close, options and
//! transfers are in files of their own; the states are in `state.rs`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use rustix::io::Errno;
use verbs_shim::{CmId, VerbsError};

use crate::core::{Core, SocketPlace};
use crate::error::{BindError, QueryError, SelectError, SocketError};
use crate::event::EventObject;
use crate::socket::backlog::Backlog;
use crate::socket::duplicate::{Arrival, Awaited};
use crate::socket::listen::Pending;
use crate::socket::network_events::{EventRecorder, NetworkEventRecord, NetworkEvents};
use crate::socket::options::Options;
use crate::socket::state::{Happening, Misfit, Phase};
use crate::statistics::ListenCounters;
use crate::sync::lock;
use crate::transfer::Connection;
use crate::upcalls::SwitchHandle;
use crate::wire::Session;

/// The address family of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AddressFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Another one, by its number: not offered.
    Other(u16),
}

/// The type of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SocketType {
    /// A stream.
    Stream,
    /// Another one, by its number: not offered.
    Other(i32),
}

/// The protocol of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// TCP's, which 0 stands for too.
    Tcp,
    /// Another one, by its number: not offered.
    Other(i32),
}

impl AddressFamily {
    /// The family of an address.
    #[must_use]
    pub fn of(addr: &SocketAddr) -> Self {
        match addr {
            SocketAddr::V4(_) => Self::V4,
            SocketAddr::V6(_) => Self::V6,
        }
    }
}

/// A socket of the provider.
#[derive(Clone)]
pub struct Socket {
    pub(crate) shared: Arc<SocketShared>,
}

pub(crate) struct SocketShared {
    pub(crate) core: Arc<Core>,
    pub(crate) number: u64,
    pub(crate) family: AddressFamily,
    pub(crate) handle: OnceLock<SwitchHandle>,
    pub(crate) state: Mutex<SocketState>,
    pub(crate) events: Mutex<EventRecorder>,
    /// Set when it listens for the first time.
    pub(crate) backlog: OnceLock<Mutex<Backlog<Pending>>>,
    /// What it counts while it listens.
    pub(crate) listened: ListenCounters,
    /// Its data path, from the making of its queue pair until close.
    pub(crate) connection: Mutex<Option<Arc<Connection>>>,
}

pub(crate) struct SocketState {
    pub(crate) phase: Phase,
    pub(crate) id: Option<CmId>,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) peer: Option<SocketAddr>,
    /// When the connect under way ends.
    pub(crate) deadline: Option<Instant>,
    pub(crate) options: Options,
    /// What its connect says of a session.
    pub(crate) session: Session,
    /// What the peer has said, once it has.
    pub(crate) peer_session: Option<Session>,
    /// What its connect brings along from another process.
    pub(crate) arrival: Option<Box<Arrival>>,
    /// Its peer moves to another process, and is awaited.
    pub(crate) awaited: Option<Box<Awaited>>,
    pub(crate) place: Option<SocketPlace>,
}

impl Socket {
    pub(crate) fn open(
        core: &Arc<Core>,
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
        if core.is_stopped() {
            return Err(SocketError::NotInitialised);
        }
        let limit = core.config.max_sockets;
        let place = core.socket_place().ok_or(SocketError::TooMany { limit })?;
        let socket = Self::new(core, family, place);
        // Duty 67: the socket first, then the switch's handle.
        socket
            .ask_for_handle()
            .map_err(|why| SocketError::Handle { why })?;
        Ok(socket)
    }

    /// A socket that the switch does not know of yet.
    pub(crate) fn new(core: &Arc<Core>, family: AddressFamily, place: SocketPlace) -> Self {
        let number = core.next_number();
        let shared = Arc::new(SocketShared {
            core: Arc::clone(core),
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
        core.add_socket(number, &shared);
        core.counters.sockets_opened.raise();
        tracing::debug!(socket = number, ?family, "socket opened");
        Self { shared }
    }

    /// Gets the switch's handle; if there is none the socket is closed.
    pub(crate) fn ask_for_handle(&self) -> Result<(), String> {
        match self.shared.core.progress.table().create_socket_handle(self) {
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

    /// A number that no other socket of this provider has or had since startup.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.shared.number
    }

    /// The handle that the switch gave.
    #[must_use]
    pub fn handle(&self) -> Option<SwitchHandle> {
        self.shared.handle.get().copied()
    }

    /// The address family.
    #[must_use]
    pub fn family(&self) -> AddressFamily {
        self.shared.family
    }

    /// Whether both are the same socket.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
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
        if socket.core.is_stopped() {
            return Err(BindError::NotInitialised);
        }
        if AddressFamily::of(&addr) != socket.family {
            return Err(BindError::Family);
        }
        // The kernel would take 127.0.0.1, on which there is no device.
        let is_local = is_wildcard(addr.ip()) || socket.core.is_local(addr.ip());
        let mut state = lock(&socket.state);
        state
            .phase
            .after(Happening::Bind)
            .map_err(|misfit| match misfit {
                Misfit::Closed => BindError::NotSocket,
                _ => BindError::AlreadyBound,
            })?;
        if !is_local {
            return Err(BindError::NotLocal);
        }
        let id = socket.core.new_id()?;
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
            .step(&mut state, Happening::Bind)
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
        if self.shared.core.is_stopped() {
            return Err(SelectError::NotInitialised);
        }
        match lock(&self.shared.state).phase {
            Phase::Closed => Err(SelectError::NotSocket),
            _ => Ok(()),
        }
    }

    fn open_state(&self) -> Result<MutexGuard<'_, SocketState>, QueryError> {
        if self.shared.core.is_stopped() {
            return Err(QueryError::NotInitialised);
        }
        let state = lock(&self.shared.state);
        match state.phase {
            Phase::Closed => Err(QueryError::NotSocket),
            _ => Ok(state),
        }
    }
}

impl SocketShared {
    /// The data path, if there is one.
    pub(crate) fn connection(&self) -> Option<Arc<Connection>> {
        lock(&self.connection).clone()
    }

    /// The one way from phase to phase.
    pub(crate) fn step(&self, state: &mut SocketState, happening: Happening) -> Result<(), Misfit> {
        let next = state.phase.after(happening)?;
        if next != state.phase {
            tracing::debug!(
                socket = self.number,
                from = %state.phase,
                to = %next,
                local = state.local.map(tracing::field::display),
                peer = state.peer.map(tracing::field::display),
                "state"
            );
            state.phase = next;
        }
        Ok(())
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

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl fmt::Debug for SocketShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.state);
        f.debug_struct("Socket")
            .field("number", &self.number)
            .field("phase", &state.phase)
            .field("local", &state.local)
            .field("peer", &state.peer)
            .finish_non_exhaustive()
    }
}
