//! The CM engine and the ids that stand above it.
//!
//! What it does: keeps the ids, what each is, and how far each has come.
//! What it does not do: move them; that is `cm`, `connect` and `listen`.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;
use san_base::lock;

use super::bind::Bindings;
use super::events::{EventQueue, Queued, QueuedKind};
use super::qp::QpShared;
use crate::cm::{ConnKey, Engine, ListenKey, Peer, Request};
use crate::driver::port::Port;
use crate::driver::rendezvous::Registration;
use crate::driver::route::Route;
use crate::rc::PathMtu;
use crate::time::Time;

/// Code of the ACK timeout unless the user sets one: 4.096 us * 2^17, with six
/// retries about 4 s until a silent peer counts as dead.
const ACK_TIMEOUT: u8 = 17;

#[derive(Debug)]
pub(crate) struct CmState {
    pub(crate) engine: Engine,
    pub(crate) ids: HashMap<u64, Id>,
    pub(crate) by_conn: HashMap<ConnKey, u64>,
    pub(crate) by_listen: HashMap<ListenKey, u64>,
    pub(crate) bindings: Bindings,
    /// When to look after the peers on this host, if there may be any.
    pub(crate) watch_at: Option<Time>,
    /// Where they are put to be looked at, so that looking allocates nothing.
    pub(crate) peers: Vec<SocketAddr>,
    next: u64,
    /// Whose users are to be woken when the lock is free again.
    to_wake: Option<Arc<EventQueue>>,
}

/// The lock of the CM. Whoever has an event is woken when it is given back, not
/// before: else the first thing that they meet is the lock.
#[derive(Debug)]
pub(crate) struct CmGuard<'a>(Option<MutexGuard<'a, CmState>>);

impl<'a> CmGuard<'a> {
    pub(crate) fn lock(cm: &'a Mutex<CmState>) -> Self {
        Self(Some(lock(cm)))
    }
}

impl Deref for CmGuard<'_> {
    type Target = CmState;

    fn deref(&self) -> &CmState {
        self.0.as_deref().expect("held until it is dropped")
    }
}

impl DerefMut for CmGuard<'_> {
    fn deref_mut(&mut self) -> &mut CmState {
        self.0.as_deref_mut().expect("held until it is dropped")
    }
}

impl Drop for CmGuard<'_> {
    fn drop(&mut self) {
        let to_wake = self.to_wake.take();
        self.0 = None;
        if let Some(queue) = to_wake {
            queue.signal();
        }
    }
}

/// What a CM id is.
#[derive(Debug)]
pub(crate) struct Id {
    pub(crate) queue: Arc<EventQueue>,
    pub(crate) phase: Phase,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) peer: Option<SocketAddr>,
    /// Lives with the engine's connection.
    pub(crate) conn: Option<ConnKey>,
    pub(crate) qp: Option<Arc<QpShared>>,
    pub(crate) ack_timeout: u8,
    pub(crate) reuse_addr: bool,
    pub(crate) v6_only: bool,
}

/// How far an id has come.
#[derive(Debug)]
pub(crate) enum Phase {
    Idle,
    Listening(Listener),
    AddrResolved(Route, Arc<Port>),
    RouteResolved(Route, Arc<Port>),
    /// Active, the peer's answer is awaited.
    Connecting(Attempt),
    /// Passive, the user's answer is awaited.
    Requested(Box<Requested>),
    /// Passive, the peer's RTU is awaited.
    Accepted,
    Connected,
    /// Nothing can be done any more but let go.
    Ended,
}

/// What a request says. Apart, since an id keeps the room of its largest phase.
#[derive(Debug)]
pub(crate) struct Requested {
    pub(crate) peer: Peer,
    pub(crate) request: Request,
    /// The way to the peer, if there is one.
    pub(crate) route: Option<Route>,
}

#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) key: ListenKey,
    /// Where it listens. While these are there, other processes find it.
    pub(crate) registrations: Vec<(IpAddr, Registration)>,
}

impl Id {
    fn new(queue: Arc<EventQueue>) -> Self {
        Self {
            queue,
            phase: Phase::Idle,
            local: None,
            peer: None,
            conn: None,
            qp: None,
            ack_timeout: ACK_TIMEOUT,
            reuse_addr: false,
            v6_only: false,
        }
    }
}

impl Id {
    /// Whether the peer's request waits for the user's answer.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(self.phase, Phase::Requested(..))
    }
}

impl CmState {
    pub(crate) fn new(engine: Engine) -> Self {
        Self {
            engine,
            ids: HashMap::new(),
            by_conn: HashMap::new(),
            by_listen: HashMap::new(),
            bindings: Bindings::default(),
            watch_at: None,
            peers: Vec::new(),
            next: 0,
            to_wake: None,
        }
    }

    pub(crate) fn new_id(&mut self, queue: Arc<EventQueue>) -> u64 {
        self.next += 1;
        self.ids.insert(self.next, Id::new(queue));
        self.next
    }

    pub(crate) fn id(&self, token: u64) -> Option<&Id> {
        self.ids.get(&token)
    }

    pub(crate) fn id_mut(&mut self, token: u64) -> io::Result<&mut Id> {
        self.ids.get_mut(&token).ok_or_else(|| Errno::INVAL.into())
    }

    pub(crate) fn migrate(&mut self, token: u64, queue: &Arc<EventQueue>) {
        if let Some(id) = self.ids.get_mut(&token) {
            let old = std::mem::replace(&mut id.queue, queue.clone());
            for event in old.take_all_of(token) {
                self.push(queue, event);
            }
        }
    }

    /// Hands over an event, and has the user woken.
    pub(crate) fn push(&mut self, queue: &Arc<EventQueue>, event: Queued) {
        if !queue.push(event) {
            return;
        }
        // Mostly there is but one.
        if let Some(other) = self.to_wake.replace(queue.clone())
            && !Arc::ptr_eq(&other, queue)
        {
            other.signal();
        }
    }

    /// Tells the user.
    pub(crate) fn tell(&mut self, token: u64, kind: QueuedKind) {
        if let Some(id) = self.ids.get(&token) {
            let queue = id.queue.clone();
            self.push(&queue, Queued { id: token, kind });
        }
    }
}

/// What an active id needs again when the answer comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) ready: Ready,
}

/// What the peer does not say of the connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    /// The PSN we expect first.
    pub(crate) psn: u32,
    pub(crate) mtu: PathMtu,
    pub(crate) responder_resources: u8,
    pub(crate) initiator_depth: u8,
    pub(crate) retry_count: u8,
    pub(crate) ack_timeout: u8,
    /// What we offer; what the peer offers, too, is used.
    pub(crate) features: u16,
}

/// What to connect or accept with.
#[derive(Clone, Copy, Debug)]
pub struct ConnParams<'a> {
    /// For the peer: at most 56 bytes with a request, 196 with an acceptance.
    pub private_data: &'a [u8],
    /// READs to serve at a time.
    pub responder_resources: u8,
    /// READs to have under way at a time; no more than the peer serves.
    pub initiator_depth: u8,
    /// How often to send again until a peer that does not answer counts as
    /// dead, 0 to 6. The passive side obeys the active one's.
    pub retry_count: u8,
    /// How often to send again while the peer has no receive posted, 0 to 6; 7
    /// is always. Told to the peer, who obeys.
    pub rnr_retry_count: u8,
}

impl Default for ConnParams<'_> {
    fn default() -> Self {
        Self {
            private_data: &[],
            responder_resources: 4,
            initiator_depth: 4,
            retry_count: 6,
            rnr_retry_count: 7,
        }
    }
}
