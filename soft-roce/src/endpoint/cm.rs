//! The CM engine and the ids that stand above it.
//!
//! What it does: keeps the ids; hands the engine's events to them and its
//! messages to the sockets.
//! What it does not do: what users ask of ids (`listen`, `connect`).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::bind::Bindings;
use super::connect::Attempt;
use super::event::{ChannelShared, CmEventKind, PrivateData, Queued, QueuedKind};
use super::inner::{Inner, lock};
use super::qp::QpShared;
use super::timers::NEVER;
use crate::cm::{ConnKey, Engine, Event, ListenKey, Peer, Request, Transmit};
use crate::driver::port::Port;
use crate::driver::rendezvous::Registration;
use crate::driver::route::Route;
use crate::time::Time;
use crate::wire::mad::{MAD_PACKET_LEN, emit_packet};
use crate::wire::{FlowCrc, ICRC_LEN};

/// Code of the ACK timeout unless the user sets one: 4.096 us * 2^17, with six
/// retries about 4 s until a silent peer counts as dead.
const ACK_TIMEOUT: u8 = 17;

#[derive(Debug)]
pub(super) struct CmState {
    pub(super) engine: Engine,
    pub(super) ids: HashMap<u64, Id>,
    pub(super) by_conn: HashMap<ConnKey, u64>,
    pub(super) by_listen: HashMap<ListenKey, u64>,
    pub(super) bindings: Bindings,
    /// When to look after the peers on this host, if there may be any.
    pub(super) watch_at: Option<Time>,
    /// Where they are put to be looked at, so that looking allocates nothing.
    pub(super) peers: Vec<SocketAddr>,
    next: u64,
}

/// What a CM id is.
#[derive(Debug)]
pub(super) struct Id {
    channel: Arc<ChannelShared>,
    pub(super) phase: Phase,
    pub(super) local: Option<SocketAddr>,
    pub(super) peer: Option<SocketAddr>,
    /// Lives with the engine's connection.
    pub(super) conn: Option<ConnKey>,
    pub(super) qp: Option<Arc<QpShared>>,
    pub(super) ack_timeout: u8,
    pub(super) reuse_addr: bool,
    pub(super) v6_only: bool,
}

/// How far an id has come.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "an id is large anyway")]
pub(super) enum Phase {
    Idle,
    Listening(Listener),
    AddrResolved(Route, Arc<Port>),
    RouteResolved(Route, Arc<Port>),
    /// Active, the peer's answer is awaited.
    Connecting(Attempt),
    /// Passive, the user's answer is awaited. The way to the peer, if there is one.
    Requested(Peer, Request, Option<Route>),
    /// Passive, the peer's RTU is awaited.
    Accepted,
    Connected,
    /// Nothing can be done any more but let go.
    Ended,
}

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) key: ListenKey,
    /// Where it listens. While these are there, other processes find it.
    pub(super) registrations: Vec<(IpAddr, Registration)>,
}

impl Id {
    fn new(channel: Arc<ChannelShared>) -> Self {
        Self {
            channel,
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
    pub(super) fn is_pending(&self) -> bool {
        matches!(self.phase, Phase::Requested(..))
    }
}

impl CmState {
    pub(super) fn new(engine: Engine) -> Self {
        Self {
            engine,
            ids: HashMap::new(),
            by_conn: HashMap::new(),
            by_listen: HashMap::new(),
            bindings: Bindings::default(),
            watch_at: None,
            peers: Vec::new(),
            next: 0,
        }
    }

    pub(super) fn new_id(&mut self, channel: Arc<ChannelShared>) -> u64 {
        self.next += 1;
        self.ids.insert(self.next, Id::new(channel));
        self.next
    }

    pub(super) fn id(&self, token: u64) -> Option<&Id> {
        self.ids.get(&token)
    }

    pub(super) fn id_mut(&mut self, token: u64) -> io::Result<&mut Id> {
        self.ids.get_mut(&token).ok_or_else(|| Errno::INVAL.into())
    }

    pub(super) fn migrate(&mut self, token: u64, channel: &Arc<ChannelShared>) {
        if let Some(id) = self.ids.get_mut(&token) {
            let old = std::mem::replace(&mut id.channel, channel.clone());
            for event in old.take_all_of(token) {
                channel.push(event);
            }
        }
    }

    /// Tells the user.
    pub(super) fn tell(&self, token: u64, kind: CmEventKind) {
        if let Some(id) = self.ids.get(&token) {
            id.channel.push(Queued {
                id: token,
                kind: QueuedKind::Plain(kind),
            });
        }
    }
}

impl Inner {
    /// Frees a request's place in its backlog: the user has it in hand.
    pub(super) fn taken(&self, conn: ConnKey) {
        lock(&self.cm).engine.taken(conn);
    }

    /// Lets go of an id, and of the requests of a listener that nobody has read.
    pub(super) fn destroy_id(&self, token: u64) {
        let mut guard = lock(&self.cm);
        let now = self.now();
        let mut doomed = vec![token];
        while let Some(token) = doomed.pop() {
            let cm = &mut *guard;
            let Some(id) = cm.ids.remove(&token) else {
                continue;
            };
            for event in id.channel.take_all_of(token) {
                if let QueuedKind::Request { id, .. } = event.kind {
                    doomed.push(id);
                }
            }
            if let Phase::Listening(listener) = &id.phase {
                cm.by_listen.remove(&listener.key);
                cm.engine.unlisten(listener.key);
            }
            if let Some(conn) = id.conn {
                cm.by_conn.remove(&conn);
                cm.engine.destroy(now, conn);
            }
            if let Some(local) = id.local {
                cm.bindings.release(token, local.port());
            }
            if let Some(qp) = &id.qp {
                qp.conn.store(0, Ordering::Release);
            }
        }
        self.pump(&mut guard, now);
    }

    /// Hands on what the engine has to say and to send.
    pub(super) fn pump(&self, cm: &mut CmState, now: Time) {
        loop {
            while let Some(transmit) = cm.engine.poll_transmit() {
                self.send_mad(&transmit);
            }
            // Handling an event may make the engine say more.
            let Some(event) = cm.engine.poll_event() else {
                break;
            };
            self.on_event(cm, now, &event);
        }
        let next = [cm.engine.poll_timeout(), cm.watch_at];
        let deadline = next.into_iter().flatten().min();
        let deadline = deadline.map_or(NEVER, Time::nanos);
        self.cm_deadline.store(deadline, Ordering::Release);
        self.thread_by(deadline);
    }

    fn on_event(&self, cm: &mut CmState, now: Time, event: &Event) {
        if let Event::ConnectRequest {
            listener,
            conn,
            peer,
            request,
        } = event
        {
            self.on_request(cm, now, (*listener, *conn), peer, request);
            return;
        }
        let conn = event.conn();
        let Some(&token) = cm.by_conn.get(&conn) else {
            return;
        };
        if cm.id(token).is_some_and(Id::is_pending) {
            // As for rdma_cm: who has not answered yet hears of it when it does.
            self.end(cm, token, conn);
            return;
        }
        let kind = match event {
            Event::ConnectRequest { .. } => return,
            Event::ConnectResponse {
                peer, private_data, ..
            } => self.on_response(cm, now, token, peer, private_data),
            Event::Established { .. } => {
                self.set_phase(cm, token, Phase::Connected);
                CmEventKind::Established {
                    private_data: PrivateData::EMPTY,
                }
            }
            Event::Rejected {
                reason,
                private_data,
                ..
            } => {
                self.end(cm, token, conn);
                let private_data = PrivateData::new(private_data);
                CmEventKind::Rejected {
                    reason: *reason,
                    private_data,
                }
            }
            Event::Unreachable { .. } => {
                self.end(cm, token, conn);
                CmEventKind::Unreachable(Errno::TIMEDOUT.raw_os_error())
            }
            Event::Disconnected { .. } => {
                self.set_phase(cm, token, Phase::Ended);
                CmEventKind::Disconnected
            }
            Event::TimewaitExit { .. } => {
                self.end(cm, token, conn);
                CmEventKind::TimewaitExit
            }
        };
        cm.tell(token, kind);
    }

    fn on_request(
        &self,
        cm: &mut CmState,
        now: Time,
        (listener, conn): (ListenKey, ConnKey),
        peer: &Peer,
        request: &Request,
    ) {
        let listening = cm.by_listen.get(&listener);
        let found = listening.and_then(|token| Some((*token, cm.ids.get(token)?.channel.clone())));
        let Some((listener, channel)) = found else {
            cm.engine.destroy(now, conn);
            return;
        };
        let route = Route::to(peer.path.remote, Some(peer.path.local.ip())).ok();
        if route.is_some_and(|route| request.mtu > route.mtu.code()) {
            tracing::info!(peer = %request.src, mtu = request.mtu, "request for too large packets");
            // The engine has just told of the request.
            let _ = cm.engine.refuse_mtu(now, conn);
            return;
        }
        let token = cm.new_id(channel.clone());
        if let Some(id) = cm.ids.get_mut(&token) {
            id.phase = Phase::Requested(*peer, *request, route);
            id.local = Some(request.dst);
            id.peer = Some(request.src);
            id.conn = Some(conn);
        }
        cm.by_conn.insert(conn, token);
        self.watch(cm, now);
        let kind = QueuedKind::Request {
            id: token,
            conn,
            private_data: PrivateData::new(&request.private_data),
            responder_resources: peer.responder_resources,
            initiator_depth: peer.initiator_depth,
            src: request.src,
            dst: request.dst,
        };
        channel.push(Queued { id: listener, kind });
    }

    fn set_phase(&self, cm: &mut CmState, token: u64, phase: Phase) {
        if let Some(id) = cm.ids.get_mut(&token) {
            if let Some(qp) = &id.qp {
                qp.set_awaiting(0);
            }
            id.phase = phase;
        }
    }

    /// The engine has forgotten the connection.
    fn end(&self, cm: &mut CmState, token: u64, conn: ConnKey) {
        self.set_phase(cm, token, Phase::Ended);
        cm.by_conn.remove(&conn);
        if let Some(id) = cm.ids.get_mut(&token) {
            id.conn = None;
            if let Some(qp) = &id.qp {
                qp.conn.store(0, Ordering::Release);
            }
        }
    }

    fn send_mad(&self, transmit: &Transmit) {
        let path = transmit.path;
        let Some(port) = self.port_at(path.local) else {
            return;
        };
        let mut packet = [0; MAD_PACKET_LEN + ICRC_LEN];
        let psn = self.mad_psn.fetch_add(1, Ordering::Relaxed);
        emit_packet(psn, &transmit.mad, &mut packet[..MAD_PACKET_LEN]);
        FlowCrc::new(path.local, path.remote).seal(0, &mut packet);
        port.send(path.remote, &packet, packet.len());
    }
}
