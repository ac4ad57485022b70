//! What messages from the peer do to connections.
//!
//! What it does: one function a message, one `match` on the state in each; what
//! does not fit the state is counted and dropped, never more.
//! What it does not do: trust. A message that names a connection must come from
//! the connection's peer.

use std::net::{IpAddr, SocketAddr};

use super::conn::{Conn, Retry, State};
use super::engine::Engine;
use super::listen::Admission;
use super::types::{ConnKey, Event, Extension, ListenKey, Path, Peer, Request};
use crate::time::Time;
use crate::wire::ROCE_PORT;
use crate::wire::cm::{
    CMA_AT, CmMessage, CmaHeader, Drep, Dreq, Mra, Rej, RejReason, Rejected, Rep, Req, Rtu,
    port_of_service, timeout_nanos,
};
use crate::wire::mad::{MAD_LEN, MadHeader};

/// Code of the time that an MRA asks for: 4.096 us * 2^20, about 4 s. Then the
/// peer asks again and is told again, so a lost refusal costs no longer.
const SERVICE_TIMEOUT: u8 = 20;

/// A message on its way through the engine.
#[derive(Clone, Copy)]
struct Inbound {
    now: Time,
    /// The socket it came to and where an answer goes.
    path: Path,
    tid: u64,
    own: bool,
}

impl Engine {
    /// Takes in a MAD that came to the socket `path.local` from `path.remote`.
    pub fn handle(&mut self, now: Time, path: Path, mad: &[u8]) {
        let (header, message) = match CmMessage::parse(mad) {
            Ok(parsed) => parsed,
            Err(why) => {
                self.counters.malformed += 1;
                tracing::debug!(%why, from = %path.remote, "CM message dropped");
                return;
            }
        };
        self.counters.received += 1;
        let inbound = Inbound {
            now,
            path: Path {
                remote: answer_to(&header, path.remote),
                ..path
            },
            tid: header.tid,
            own: header.own,
        };
        match message {
            CmMessage::Req(req) => self.on_req(inbound, &req, mad),
            CmMessage::Mra(mra) => self.on_mra(inbound, &mra),
            CmMessage::Rej(rej) => self.on_rej(inbound, &rej),
            CmMessage::Rep(rep) => self.on_rep(inbound, &rep),
            CmMessage::Rtu(rtu) => self.on_rtu(inbound, &rtu),
            CmMessage::Dreq(dreq) => self.on_dreq(inbound, &dreq),
            CmMessage::Drep(drep) => self.on_drep(inbound, &drep),
        }
    }

    fn on_req(&mut self, at: Inbound, req: &Req, mad: &[u8]) {
        let remote = (req.ca_guid, req.local_comm_id);
        if let Some(&key) = self.by_remote.get(&remote) {
            self.on_repeated_req(at, key);
            return;
        }
        if let Some(&mad) = self.recent.get(at.now, remote) {
            self.counters.duplicates += 1;
            self.transmit(at.path, mad);
            return;
        }
        let refuse = |engine: &mut Self, reason| {
            let rej = Rej::new(0, req.local_comm_id, Rejected::Req, reason);
            engine.transmit(at.path, CmMessage::Rej(rej).emit(at.tid));
        };
        let Some(port) = port_of_service(req.service_id) else {
            self.counters.no_listener += 1;
            return refuse(self, RejReason::INVALID_SERVICE_ID);
        };
        let cma = mad[CMA_AT..].first_chunk().map(CmaHeader::parse);
        let Some(Ok(cma)) = cma else {
            self.counters.malformed += 1;
            return refuse(self, RejReason::UNSUPPORTED_REQUEST);
        };
        if let Some(&old) = self.by_peer_qp.get(&(req.ca_guid, req.qpn)) {
            // IBTA 12.9.8.3.1: the peer has lost the old one.
            self.counters.stale += 1;
            self.drop_stale(at.now, old);
            return refuse(self, RejReason::STALE_CONNECTION);
        }
        if self.conns.len() >= self.config.max_connections {
            self.counters.table_full += 1;
            return refuse(self, RejReason::NO_RESOURCES);
        }
        match self.listeners.admit(at.path.local.ip(), port) {
            Admission::Granted(listener) => self.admit(at, req, listener, cma.src, port),
            Admission::Nobody => {
                self.counters.no_listener += 1;
                refuse(self, RejReason::INVALID_SERVICE_ID);
            }
            Admission::Full => {
                self.counters.backlog_full += 1;
                refuse(self, RejReason::NO_RESOURCES);
            }
        }
    }

    fn on_repeated_req(&mut self, at: Inbound, key: ConnKey) {
        self.counters.duplicates += 1;
        let Some(conn) = self.if_from_peer(key, at.path.remote.ip()) else {
            return;
        };
        match conn.state {
            State::ReqReceived(_) => {
                let mra = Mra {
                    local_comm_id: key.0,
                    remote_comm_id: conn.remote_id,
                    message: Rejected::Req,
                    service_timeout: SERVICE_TIMEOUT,
                    private_data: [0; 222],
                };
                self.transmit(at.path, CmMessage::Mra(mra).emit(at.tid));
            }
            State::RepSent => {
                let mad = conn.sent;
                self.transmit(at.path, mad);
            }
            _ => {}
        }
    }

    fn admit(&mut self, at: Inbound, req: &Req, listener: ListenKey, src: SocketAddr, port: u16) {
        let key = self.a_key_that(|key| !self.conns.contains_key(&key));
        let conn = Conn {
            state: State::ReqReceived(Some(listener)),
            path: at.path,
            tid: at.tid,
            remote_id: req.local_comm_id,
            remote_guid: req.ca_guid,
            qpn: 0,
            remote_qpn: req.qpn,
            sent: [0; MAD_LEN],
            retry: Retry::new(&self.config, 0),
            deadline: None,
            orphan: false,
        };
        self.conns.insert(key, conn);
        self.by_remote.insert((req.ca_guid, req.local_comm_id), key);
        self.by_peer_qp.insert((req.ca_guid, req.qpn), key);
        let mut private_data = [0; Req::USER_DATA];
        private_data.copy_from_slice(&req.private_data[CmaHeader::LEN..]);
        self.tell(Event::ConnectRequest {
            listener,
            conn: key,
            peer: Peer {
                path: at.path,
                qpn: req.qpn,
                psn: req.starting_psn,
                responder_resources: req.responder_resources,
                initiator_depth: req.initiator_depth,
                rnr_retry_count: req.rnr_retry_count,
                extension: at.own.then(|| Extension::from_bits(req.extension)),
            },
            request: Request {
                // Its address as the network shows it; the port only it knows.
                src: SocketAddr::new(at.path.remote.ip(), src.port()),
                dst: SocketAddr::new(at.path.local.ip(), port),
                mtu: req.mtu,
                retry_count: req.retry_count,
                ack_timeout: req.ack_timeout,
                private_data,
            },
        });
    }

    fn on_rep(&mut self, at: Inbound, rep: &Rep) {
        let key = ConnKey(rep.remote_comm_id);
        let Some(conn) = self.known(key, at.path.remote.ip()) else {
            // So that the passive side need not wait for its time-out.
            let reason = RejReason::INVALID_COMM_ID;
            let rej = Rej::new(rep.remote_comm_id, rep.local_comm_id, Rejected::Rep, reason);
            self.transmit(at.path, CmMessage::Rej(rej).emit(at.tid));
            return;
        };
        match conn.state {
            State::ReqSent | State::ReqWaiting => {
                conn.state = State::RepReceived;
                conn.path = at.path;
                conn.remote_id = rep.local_comm_id;
                conn.remote_guid = rep.ca_guid;
                conn.remote_qpn = rep.qpn;
                self.disarm(key);
                self.by_remote.insert((rep.ca_guid, rep.local_comm_id), key);
                if let Some(old) = self.by_peer_qp.insert((rep.ca_guid, rep.qpn), key) {
                    self.counters.stale += 1;
                    self.drop_stale(at.now, old);
                }
                self.tell(Event::ConnectResponse {
                    conn: key,
                    peer: Peer {
                        path: at.path,
                        qpn: rep.qpn,
                        psn: rep.starting_psn,
                        responder_resources: rep.responder_resources,
                        initiator_depth: rep.initiator_depth,
                        rnr_retry_count: rep.rnr_retry_count,
                        extension: at.own.then(|| Extension::from_bits(rep.extension)),
                    },
                    private_data: rep.private_data,
                });
            }
            State::Established if conn.remote_id == rep.local_comm_id => {
                // The RTU got lost.
                let mad = conn.sent;
                self.counters.duplicates += 1;
                self.transmit(at.path, mad);
            }
            _ => self.counters.duplicates += 1,
        }
    }

    fn on_rtu(&mut self, at: Inbound, rtu: &Rtu) {
        let key = ConnKey(rtu.0.remote_comm_id);
        let Some(conn) = self.known(key, at.path.remote.ip()) else {
            // The peer believes in a connection that is not.
            let (local, remote) = (rtu.0.remote_comm_id, rtu.0.local_comm_id);
            let rej = Rej::new(local, remote, Rejected::Other, RejReason::INVALID_COMM_ID);
            self.transmit(at.path, CmMessage::Rej(rej).emit(at.tid));
            return;
        };
        match conn.state {
            State::RepSent => {
                conn.state = State::Established;
                self.disarm(key);
                self.tell(Event::Established { conn: key });
            }
            _ => self.counters.duplicates += 1,
        }
    }

    fn on_mra(&mut self, at: Inbound, mra: &Mra) {
        let key = ConnKey(mra.remote_comm_id);
        // A peer that asks for patience is there: the repetitions start afresh.
        let retry = Retry::new(&self.config, self.config.retries);
        let Some(conn) = self.known(key, at.path.remote.ip()) else {
            return;
        };
        match (conn.state, mra.message) {
            (State::ReqSent | State::ReqWaiting, Rejected::Req) => {
                conn.state = State::ReqWaiting;
            }
            (State::RepSent, Rejected::Rep) => {}
            _ => {
                self.counters.duplicates += 1;
                return;
            }
        }
        let patience = timeout_nanos(mra.service_timeout);
        let wait = retry.wait();
        conn.retry = retry;
        self.arm(key, at.now.plus_nanos(patience) + wait);
    }

    fn on_rej(&mut self, at: Inbound, rej: &Rej) {
        let mut key = ConnKey(rej.remote_comm_id);
        if key.0 == 0 && rej.reason == RejReason::TIMEOUT {
            // Of a sender that never learnt our id: its GUID is in the ARI.
            let guid = rej.ari.first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
            let Some(&found) = self.by_remote.get(&(guid, rej.local_comm_id)) else {
                self.counters.unknown += 1;
                return;
            };
            key = found;
        }
        let Some(conn) = self.known(key, at.path.remote.ip()) else {
            return;
        };
        if conn.remote_id != 0 && rej.local_comm_id != 0 && conn.remote_id != rej.local_comm_id {
            self.counters.unknown += 1;
            return;
        }
        match conn.state {
            State::ReqSent
            | State::ReqWaiting
            | State::RepReceived
            | State::ReqReceived(_)
            | State::RepSent => {
                self.tell(Event::Rejected {
                    conn: key,
                    reason: rej.reason,
                    private_data: rej.private_data,
                });
                self.remove(key);
            }
            // A peer that was killed, or never took the connection for made.
            State::Established | State::DreqSent => self.enter_timewait(at.now, key),
            State::Timewait => self.counters.duplicates += 1,
        }
    }

    fn on_dreq(&mut self, at: Inbound, dreq: &Dreq) {
        let key = ConnKey(dreq.remote_comm_id);
        // Whether or not the connection is known, it is over.
        let drep = CmMessage::Drep(Drep::new(dreq.remote_comm_id, dreq.local_comm_id));
        let drep = drep.emit(at.tid);
        let Some(conn) = self.known(key, at.path.remote.ip()) else {
            self.transmit(at.path, drep);
            return;
        };
        if conn.remote_id != dreq.local_comm_id && conn.remote_id != 0 {
            self.counters.forged += 1;
            return;
        }
        match conn.state {
            State::Established | State::RepSent | State::DreqSent => {
                self.transmit(at.path, drep);
                self.enter_timewait(at.now, key);
            }
            State::Timewait => {
                self.counters.duplicates += 1;
                self.transmit(at.path, drep);
            }
            State::ReqSent | State::ReqWaiting | State::RepReceived => {
                // Accepted and ended before the reply came here.
                self.transmit(at.path, drep);
                self.tell(Event::Rejected {
                    conn: key,
                    reason: RejReason::CONSUMER_DEFINED,
                    private_data: [0; 148],
                });
                self.remove(key);
            }
            State::ReqReceived(_) => self.counters.forged += 1,
        }
    }

    fn on_drep(&mut self, at: Inbound, drep: &Drep) {
        let key = ConnKey(drep.0.remote_comm_id);
        match self.known(key, at.path.remote.ip()).map(|conn| conn.state) {
            Some(State::DreqSent) => self.enter_timewait(at.now, key),
            Some(_) => self.counters.duplicates += 1,
            None => {}
        }
    }

    /// Ends a connection whose queue pair the peer uses for another.
    fn drop_stale(&mut self, now: Time, key: ConnKey) {
        match self.conns.get(&key).map(|conn| conn.state) {
            Some(State::Established) => {
                // Tells the peer; then nobody waits for an answer.
                let _ = self.disconnect(now, key);
                self.enter_timewait(now, key);
            }
            Some(State::RepSent | State::ReqReceived(_) | State::RepReceived) => {
                self.tell(Event::Rejected {
                    conn: key,
                    reason: RejReason::STALE_CONNECTION,
                    private_data: [0; 148],
                });
                self.remove(key);
            }
            _ => {}
        }
    }

    /// The connection that a message names, if the message comes from its peer.
    fn known(&mut self, key: ConnKey, from: IpAddr) -> Option<&mut Conn> {
        if !self.conns.contains_key(&key) {
            self.counters.unknown += 1;
            return None;
        }
        self.if_from_peer(key, from)
    }

    fn if_from_peer(&mut self, key: ConnKey, from: IpAddr) -> Option<&mut Conn> {
        let conn = self.conns.get_mut(&key)?;
        if conn.path.remote.ip().to_canonical() != from.to_canonical() {
            self.counters.forged += 1;
            return None;
        }
        Some(conn)
    }
}

/// Where an answer goes: port 4791, except to one of our own.
fn answer_to(header: &MadHeader, from: SocketAddr) -> SocketAddr {
    let mut to = from;
    if !header.own {
        to.set_port(ROCE_PORT);
    }
    to
}
