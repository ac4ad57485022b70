//! The engine: its tables, the calls of its user, and what comes out.
//!
//! What it does: connect, listen, accept, reject, ready, disconnect, destroy.
//! What it does not do: messages from the peer (`receive`) and time (`timer`).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;

use super::conn::{Conn, Retry, State};
use super::listen::Listeners;
use super::recent::{Recent, RemoteKey};
use super::types::{
    Accept, CmError, Config, ConnKey, Connect, Counters, Event, ListenKey, Path, Transmit,
};
use crate::rc::keys::KeySource;
use crate::time::Time;
use crate::wire::DEFAULT_PKEY;
use crate::wire::cm::{
    CmMessage, CmaHeader, Dreq, Rej, RejReason, Rejected, Rep, Req, Rtu, padded, service_of_port,
};
use crate::wire::mad::{MAD_LEN, MadBytes};

/// Code of the time we take at most to answer a message: 4.096 us * 2^17, about
/// half a second. It also decides how soon the peer's CM repeats what it sent.
const RESPONSE_TIMEOUT: u8 = 17;
/// Code of the time we expect a peer to take.
const REMOTE_RESPONSE_TIMEOUT: u8 = 20;
/// Most that the field of the REQ holds.
const MAX_CM_RETRIES: u8 = 15;
const HOP_LIMIT: u8 = 64;
/// Code of the longest time we take to acknowledge: 4.096 us * 2^8, a
/// millisecond.
const ACK_DELAY: u8 = 8;

/// The CM of one endpoint.
#[derive(Debug)]
pub struct Engine {
    pub(super) config: Config,
    pub(super) keys: KeySource,
    pub(super) conns: HashMap<ConnKey, Conn>,
    /// Connections of which the peer's side is known, by the peer's names.
    pub(super) by_remote: HashMap<RemoteKey, ConnKey>,
    /// The same by the peer's GUID and queue pair; timewait is left out.
    pub(super) by_peer_qp: HashMap<(u64, u32), ConnKey>,
    pub(super) listeners: Listeners,
    pub(super) recent: Recent,
    pub(super) timers: BTreeSet<(Time, ConnKey)>,
    pub(super) out: VecDeque<Transmit>,
    pub(super) events: VecDeque<Event>,
    pub(super) counters: Counters,
}

impl Engine {
    /// An engine that takes its communication ids from `keys`.
    #[must_use]
    pub fn new(config: Config, keys: KeySource) -> Self {
        Self {
            config,
            keys,
            conns: HashMap::new(),
            by_remote: HashMap::new(),
            by_peer_qp: HashMap::new(),
            listeners: Listeners::default(),
            recent: Recent::default(),
            timers: BTreeSet::new(),
            out: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Engine::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Connections and attempts there are, those in timewait among them.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// Starts to take requests for an address (or a wildcard) and port. At most
    /// `backlog` of them wait for [`Engine::taken`]; more are refused.
    ///
    /// # Errors
    /// [`CmError::InUse`].
    pub fn listen(
        &mut self,
        addr: SocketAddr,
        v6_only: bool,
        backlog: usize,
    ) -> Result<ListenKey, CmError> {
        self.listeners.add(addr, v6_only, backlog)
    }

    /// Stops to take requests. Those told already stay.
    pub fn unlisten(&mut self, key: ListenKey) {
        self.listeners.remove(key);
    }

    /// Says that the user has the request in hand: its place in the backlog is
    /// free for another.
    pub fn taken(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(&key) else {
            return;
        };
        if let State::ReqReceived(place) = &mut conn.state
            && let Some(listener) = place.take()
        {
            self.listeners.release(listener);
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// [`CmError::Full`].
    pub fn connect(&mut self, now: Time, connect: &Connect) -> Result<ConnKey, CmError> {
        if self.conns.len() >= self.config.max_connections {
            return Err(CmError::Full);
        }
        let key = self.fresh_key();
        let tid = self.keys.next_u64();
        let req = self.req(key, connect);
        let conn = Conn {
            state: State::ReqSent,
            path: connect.path,
            tid,
            remote_id: 0,
            remote_guid: 0,
            qpn: connect.qpn,
            remote_qpn: 0,
            sent: [0; MAD_LEN],
            retry: Retry::new(&self.config, self.config.retries),
            deadline: None,
            orphan: false,
        };
        self.conns.insert(key, conn);
        self.send_and_repeat(now, key, &CmMessage::Req(req), self.config.retries);
        Ok(key)
    }

    /// Accepts a request: the queue pair is ready to receive and to send.
    ///
    /// # Errors
    /// [`CmError`]: the attempt is over, or was answered already.
    pub fn accept(&mut self, now: Time, key: ConnKey, accept: &Accept) -> Result<(), CmError> {
        self.taken(key);
        let guid = self.config.guid;
        let conn = self.conns.get_mut(&key).ok_or(CmError::Unknown)?;
        if !matches!(conn.state, State::ReqReceived(_)) {
            return Err(CmError::State);
        }
        conn.state = State::RepSent;
        conn.qpn = accept.qpn;
        let rep = Rep {
            local_comm_id: key.0,
            remote_comm_id: conn.remote_id,
            qpn: accept.qpn,
            extension: accept.extension.to_bits(),
            starting_psn: accept.psn,
            responder_resources: accept.responder_resources,
            initiator_depth: accept.initiator_depth,
            target_ack_delay: ACK_DELAY,
            flow_control: false,
            rnr_retry_count: accept.rnr_retry_count,
            srq: accept.srq,
            ca_guid: guid,
            private_data: accept.private_data,
        };
        self.send_and_repeat(now, key, &CmMessage::Rep(rep), self.config.retries);
        Ok(())
    }

    /// Refuses a request, or a reply. The key is free afterwards.
    ///
    /// # Errors
    /// [`CmError`]: the attempt is over, or was answered already.
    pub fn reject(
        &mut self,
        now: Time,
        key: ConnKey,
        reason: RejReason,
        private_data: &[u8],
    ) -> Result<(), CmError> {
        self.taken(key);
        let conn = self.conns.get(&key).ok_or(CmError::Unknown)?;
        let rejected = match conn.state {
            State::ReqReceived(_) => Rejected::Req,
            State::RepReceived => Rejected::Rep,
            _ => return Err(CmError::State),
        };
        let rej = Rej {
            private_data: padded(private_data),
            ..Rej::new(key.0, conn.remote_id, rejected, reason)
        };
        let (path, remote) = (conn.path, (conn.remote_guid, conn.remote_id));
        let mad = CmMessage::Rej(rej).emit(conn.tid);
        if rejected == Rejected::Req {
            self.recent.put(now, remote, mad);
        }
        self.transmit(path, mad);
        self.remove(key);
        Ok(())
    }

    /// Refuses a request for packets larger than our way to the peer takes. There
    /// is no agreeing on less: the REQ alone says how large they are.
    ///
    /// # Errors
    /// [`CmError`], as for [`Engine::reject`].
    pub fn refuse_mtu(&mut self, now: Time, key: ConnKey) -> Result<(), CmError> {
        self.counters.mtu_too_large += 1;
        self.reject(now, key, RejReason::INVALID_MTU, &[])
    }

    /// Active side: the queue pair is ready to send. The connection stands.
    ///
    /// # Errors
    /// [`CmError`]: the attempt is over, or no reply has come.
    pub fn ready(&mut self, key: ConnKey) -> Result<(), CmError> {
        let conn = self.conns.get_mut(&key).ok_or(CmError::Unknown)?;
        if conn.state != State::RepReceived {
            return Err(CmError::State);
        }
        conn.state = State::Established;
        conn.sent = CmMessage::Rtu(Rtu::new(key.0, conn.remote_id)).emit(conn.tid);
        let (path, mad) = (conn.path, conn.sent);
        self.transmit(path, mad);
        Ok(())
    }

    /// Passive side: the peer's first packet came, so it has the reply. The RTU
    /// may have got lost.
    pub fn peer_has_sent(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get_mut(&key)
            && conn.state == State::RepSent
        {
            conn.state = State::Established;
            self.disarm(key);
            self.tell(Event::Established { conn: key });
        }
    }

    /// Ends a connection. [`Event::Disconnected`] comes when the peer has
    /// answered, or did not.
    ///
    /// # Errors
    /// [`CmError`]: there is none. One that the peer has ended already is fine.
    pub fn disconnect(&mut self, now: Time, key: ConnKey) -> Result<(), CmError> {
        let tid = self.keys.next_u64();
        let conn = self.conns.get_mut(&key).ok_or(CmError::Unknown)?;
        match conn.state {
            State::Established | State::RepSent => {}
            State::DreqSent | State::Timewait => return Ok(()),
            _ => return Err(CmError::State),
        }
        conn.state = State::DreqSent;
        conn.tid = tid;
        let dreq = Dreq {
            local_comm_id: key.0,
            remote_comm_id: conn.remote_id,
            remote_qpn: conn.remote_qpn,
            private_data: [0; 220],
        };
        self.send_and_repeat(
            now,
            key,
            &CmMessage::Dreq(dreq),
            self.config.disconnect_retries,
        );
        Ok(())
    }

    /// Lets go of a connection or attempt in any state. The peer is told; no
    /// event of it comes any more, and those not yet polled are dropped.
    pub fn destroy(&mut self, now: Time, key: ConnKey) {
        self.events.retain(|event| event.conn() != key);
        self.let_go(now, key, RejReason::CONSUMER_DEFINED);
    }

    /// Tells the peer that it is over, and why if that can be said, and forgets
    /// or orphans the connection.
    pub(super) fn let_go(&mut self, now: Time, key: ConnKey, reason: RejReason) {
        let Some(conn) = self.conns.get(&key) else {
            return;
        };
        let (path, tid, remote_id) = (conn.path, conn.tid, conn.remote_id);
        match conn.state {
            State::ReqSent | State::ReqWaiting => {
                // The passive side may know us by our GUID and id alone.
                let mut rej = Rej::new(key.0, remote_id, Rejected::Req, RejReason::TIMEOUT);
                rej.ari_len = 8;
                rej.ari = padded(&self.config.guid.to_be_bytes());
                self.transmit(path, CmMessage::Rej(rej).emit(tid));
                self.remove(key);
            }
            State::ReqReceived(_) | State::RepReceived => {
                // Cannot fail in these states.
                let _ = self.reject(now, key, reason, &[]);
            }
            State::RepSent => {
                let remote = (conn.remote_guid, remote_id);
                let mad = CmMessage::Rej(Rej::new(key.0, remote_id, Rejected::Other, reason));
                let mad = mad.emit(tid);
                self.recent.put(now, remote, mad);
                self.transmit(path, mad);
                self.remove(key);
            }
            State::Established => {
                // Cannot fail in this state.
                let _ = self.disconnect(now, key);
                self.orphan(key);
            }
            State::DreqSent | State::Timewait => self.orphan(key),
        }
    }

    fn req(&self, key: ConnKey, connect: &Connect) -> Req {
        let cma = CmaHeader {
            src: connect.src,
            dst: connect.dst.ip(),
        };
        let mut private_data = [0; 92];
        private_data[..CmaHeader::LEN].copy_from_slice(&cma.emit());
        private_data[CmaHeader::LEN..].copy_from_slice(&connect.private_data);
        Req {
            local_comm_id: key.0,
            service_id: service_of_port(connect.dst.port()),
            ca_guid: self.config.guid,
            extension: connect.extension.to_bits(),
            qpn: connect.qpn,
            responder_resources: connect.responder_resources,
            initiator_depth: connect.initiator_depth,
            remote_response_timeout: REMOTE_RESPONSE_TIMEOUT,
            flow_control: false,
            starting_psn: connect.psn,
            local_response_timeout: RESPONSE_TIMEOUT,
            retry_count: connect.retry_count,
            pkey: DEFAULT_PKEY,
            mtu: connect.mtu,
            rnr_retry_count: connect.rnr_retry_count,
            max_cm_retries: MAX_CM_RETRIES,
            srq: connect.srq,
            local_gid: Req::gid(connect.src.ip()),
            remote_gid: Req::gid(connect.dst.ip()),
            traffic_class: 0,
            hop_limit: HOP_LIMIT,
            ack_timeout: connect.ack_timeout,
            private_data,
        }
    }

    fn orphan(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get_mut(&key) {
            conn.orphan = true;
        }
    }

    fn fresh_key(&self) -> ConnKey {
        self.a_key_that(|key| !self.conns.contains_key(&key))
    }

    pub(super) fn a_key_that(&self, is_free: impl Fn(ConnKey) -> bool) -> ConnKey {
        loop {
            let key = ConnKey(self.keys.next_u32());
            if key.0 != 0 && is_free(key) {
                return key;
            }
        }
    }

    /// Sends a message of a connection and repeats it until something else
    /// happens there.
    pub(super) fn send_and_repeat(
        &mut self,
        now: Time,
        key: ConnKey,
        message: &CmMessage,
        times: u8,
    ) {
        let retry = Retry::new(&self.config, times);
        let Some(conn) = self.conns.get_mut(&key) else {
            return;
        };
        conn.sent = message.emit(conn.tid);
        conn.retry = retry;
        let (path, mad) = (conn.path, conn.sent);
        self.transmit(path, mad);
        self.arm(key, now + retry.wait());
    }

    pub(super) fn transmit(&mut self, path: Path, mad: MadBytes) {
        self.counters.sent += 1;
        self.out.push_back(Transmit { path, mad });
    }

    /// Sets the timer of a connection.
    pub(super) fn arm(&mut self, key: ConnKey, at: Time) {
        self.disarm(key);
        if let Some(conn) = self.conns.get_mut(&key) {
            conn.deadline = Some(at);
            self.timers.insert((at, key));
        }
    }

    pub(super) fn disarm(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get_mut(&key)
            && let Some(at) = conn.deadline.take()
        {
            self.timers.remove(&(at, key));
        }
    }

    /// Tells the user, unless it has let go.
    pub(super) fn tell(&mut self, event: Event) {
        let orphan = self.conns.get(&event.conn()).is_none_or(|conn| conn.orphan);
        if !orphan {
            self.events.push_back(event);
        }
    }

    /// The connection is over: tells the user and waits out what is on its way.
    pub(super) fn enter_timewait(&mut self, now: Time, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(&key) else {
            return;
        };
        conn.state = State::Timewait;
        let peer_qp = (conn.remote_guid, conn.remote_qpn);
        if self.by_peer_qp.get(&peer_qp) == Some(&key) {
            self.by_peer_qp.remove(&peer_qp);
        }
        self.arm(key, now + self.config.timewait);
        self.tell(Event::Disconnected { conn: key });
    }

    /// Forgets a connection.
    pub(super) fn remove(&mut self, key: ConnKey) {
        self.taken(key);
        self.disarm(key);
        let Some(conn) = self.conns.remove(&key) else {
            return;
        };
        let remote = (conn.remote_guid, conn.remote_id);
        if self.by_remote.get(&remote) == Some(&key) {
            self.by_remote.remove(&remote);
        }
        let peer_qp = (conn.remote_guid, conn.remote_qpn);
        if self.by_peer_qp.get(&peer_qp) == Some(&key) {
            self.by_peer_qp.remove(&peer_qp);
        }
    }
}

impl Event {
    /// The connection it is about.
    #[must_use]
    pub fn conn(&self) -> ConnKey {
        match self {
            Self::ConnectRequest { conn, .. }
            | Self::ConnectResponse { conn, .. }
            | Self::Established { conn }
            | Self::Rejected { conn, .. }
            | Self::Unreachable { conn }
            | Self::Disconnected { conn }
            | Self::TimewaitExit { conn } => *conn,
        }
    }
}
