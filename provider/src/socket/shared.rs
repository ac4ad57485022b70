//! A socket: what it is made of, and its handle.
//!
//! A [`Socket`] is a cheap handle; all clones are one socket. What can be done with it is in the
//! other files of this folder.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use verbs_shim::CmId;
use verbs_shim::fork::ForkGuard;

use super::backlog::Backlog;
use super::duplicate::arrival::Arrival;
use super::duplicate::awaited::Awaited;
use super::network_events::EventRecorder;
use super::settings::Options;
use super::state::{Input, InvalidTransition, Phase};
use super::types::AddressFamily;
use crate::handles::SwitchHandle;
use crate::runtime::{Runtime, SocketPlace};
use crate::statistics::ListenCounters;
use crate::sync::lock;
use crate::transfer::Connection;
use crate::wire::{Hello, Session};

/// A socket of the provider.
#[derive(Clone)]
pub struct Socket {
    pub(crate) shared: ForkGuard<Arc<SocketShared>>,
}

pub(crate) struct SocketShared {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) number: u64,
    pub(crate) family: AddressFamily,
    pub(crate) handle: OnceLock<SwitchHandle>,
    pub(crate) state: Mutex<SocketState>,
    pub(crate) events: Mutex<EventRecorder>,
    /// Set when it listens for the first time.
    pub(crate) backlog: OnceLock<Mutex<Backlog<QueuedRequest>>>,
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
    /// Which lane its connect asks for.
    pub(crate) lane: Option<u32>,
    /// What the peer has said, once it has.
    pub(crate) peer_session: Option<Session>,
    /// What its connect brings along from another process.
    pub(crate) arrival: Option<Box<Arrival>>,
    /// Its peer moves to another process, and is awaited.
    pub(crate) awaited: Option<Box<Awaited>>,
    pub(crate) place: Option<SocketPlace>,
}

/// A request with a place in a backlog.
#[derive(Debug)]
pub(crate) struct QueuedRequest {
    pub(crate) id: CmId,
    pub(crate) hello: Hello,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) peer: Option<SocketAddr>,
}

impl Socket {
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
}

impl SocketShared {
    /// The data path, if there is one.
    pub(crate) fn connection(&self) -> Option<Arc<Connection>> {
        lock(&self.connection).clone()
    }

    /// The one way from phase to phase.
    pub(crate) fn step(
        &self,
        state: &mut SocketState,
        input: Input,
    ) -> Result<(), InvalidTransition> {
        let next = state.phase.after(input)?;
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

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl fmt::Debug for SocketShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.runtime.is_inherited() {
            return f.write_str("Socket(another process's)");
        }
        let state = lock(&self.state);
        f.debug_struct("Socket")
            .field("number", &self.number)
            .field("phase", &state.phase)
            .field("local", &state.local)
            .field("peer", &state.peer)
            .finish_non_exhaustive()
    }
}
