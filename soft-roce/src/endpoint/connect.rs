//! Ids that connect, accept, refuse and part.
//!
//! What it does: what the user asks of an id, and the moves of its queue pair
//! that go with it.
//! What it does not do: the messages (the CM engine).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::cm::{CmState, Phase};
use super::config::MAX_READS;
use super::event::{CmEventKind, PrivateData};
use super::id::ConnParams;
use super::inner::{Inner, lock};
use super::qp::{Link, QpShared, QueuePair};
use crate::cm::{Accept, CmError, Connect, Extension, Path, Peer};
use crate::driver::port::Port;
use crate::driver::rendezvous::Entry;
use crate::driver::route::{Route, is_nobody_at};
use crate::rc::{Modify, ModifyError, PathMtu, QpState, RtrAttr, RtsAttr, SendWindow};
use crate::time::Time;
use crate::wire::cm::{RejReason, padded};
use crate::wire::{FlowCrc, MAX_24, ROCE_PORT};

/// Most private data with a request, an acceptance, a refusal.
const REQUEST_DATA: usize = 56;
const ACCEPT_DATA: usize = 196;
const REJECT_DATA: usize = 148;

/// A peer of ours does not count as dead before, in nanoseconds.
const PATIENCE: u64 = 1_800_000_000;

/// Feature of the extension: the two ends are on one host, and packets between
/// them may go in bundles.
const BUNDLES: u16 = 1;

/// What an active id needs again when the answer comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    ready: Ready,
}

/// What the peer does not say of the connection.
#[derive(Clone, Copy, Debug)]
struct Ready {
    /// The PSN we expect first.
    psn: u32,
    mtu: PathMtu,
    responder_resources: u8,
    initiator_depth: u8,
    retry_count: u8,
    ack_timeout: u8,
    /// What we offer; what the peer offers, too, is used.
    features: u16,
}

impl Inner {
    pub(super) fn resolve_addr(
        &self,
        token: u64,
        src: Option<SocketAddr>,
        dst: SocketAddr,
    ) -> io::Result<()> {
        let bound = lock(&self.cm).id(token).ok_or(Errno::INVAL)?.local;
        let src = src.or(bound);
        let source = src
            .map(|src| src.ip())
            .filter(|ip: &IpAddr| !ip.is_unspecified());
        let dst = SocketAddr::new(dst.ip().to_canonical(), dst.port());
        let route = Route::to(dst, source.map(|ip| ip.to_canonical()))?;
        let port = self.port_to_connect(route.source, !route.is_local)?;
        let mut guard = lock(&self.cm);
        let cm = &mut *guard;
        let id = cm.ids.get_mut(&token).ok_or(Errno::INVAL)?;
        if !matches!(id.phase, Phase::Idle) {
            return Err(Errno::INVAL.into());
        }
        let local = match bound {
            Some(local) => local.port(),
            None => {
                let wish = SocketAddr::new(route.source, src.map_or(0, |src| src.port()));
                cm.bindings
                    .bind(token, wish, (id.v6_only, id.reuse_addr), &self.keys)?
            }
        };
        id.local = Some(SocketAddr::new(route.source, local));
        id.peer = Some(dst);
        id.phase = Phase::AddrResolved(route, port);
        cm.tell(token, CmEventKind::AddrResolved);
        Ok(())
    }

    pub(super) fn resolve_route(&self, token: u64) -> io::Result<()> {
        let mut cm = lock(&self.cm);
        let id = cm.id_mut(token)?;
        let Phase::AddrResolved(route, port) = &id.phase else {
            return Err(Errno::INVAL.into());
        };
        id.phase = Phase::RouteResolved(*route, port.clone());
        cm.tell(token, CmEventKind::RouteResolved);
        Ok(())
    }

    pub(super) fn connect(
        &self,
        token: u64,
        qp: &QueuePair,
        params: &ConnParams<'_>,
    ) -> io::Result<()> {
        check(params, REQUEST_DATA)?;
        let mut guard = lock(&self.cm);
        let cm = &mut *guard;
        let id = cm.ids.get_mut(&token).ok_or(Errno::INVAL)?;
        let (Phase::RouteResolved(route, port), Some(src), Some(dst)) =
            (&id.phase, id.local, id.peer)
        else {
            return Err(Errno::INVAL.into());
        };
        if qp.state() != QpState::Init {
            return Err(Errno::INVAL.into());
        }
        let found = self.udp_port_of(dst, route);
        let remote = SocketAddr::new(dst.ip(), found.unwrap_or(ROCE_PORT));
        let is_nobody = found.is_none()
            && route.is_local
            && self.port_at(remote).is_none()
            && is_nobody_at(remote);
        let ready = Ready {
            psn: self.keys.next_u32() & MAX_24,
            mtu: route.mtu,
            responder_resources: params.responder_resources.min(MAX_READS),
            initiator_depth: params.initiator_depth.min(MAX_READS),
            retry_count: params.retry_count,
            ack_timeout: id.ack_timeout,
            features: self.features(route.takes_bundles),
        };
        let connect = Connect {
            path: Path {
                local: port.local(),
                remote,
            },
            src,
            dst,
            qpn: qp.qpn(),
            psn: ready.psn,
            mtu: route.mtu.code(),
            responder_resources: ready.responder_resources,
            initiator_depth: ready.initiator_depth,
            retry_count: params.retry_count,
            rnr_retry_count: params.rnr_retry_count,
            ack_timeout: id.ack_timeout,
            srq: qp.shared.has_srq,
            extension: extension(port, ready.features),
            private_data: padded(params.private_data),
        };
        let now = self.now();
        let conn = cm.engine.connect(now, &connect).map_err(errno)?;
        id.phase = Phase::Connecting(Attempt { ready });
        id.conn = Some(conn);
        id.qp = Some(qp.shared.clone());
        qp.shared.conn.store(conn.0, Ordering::Release);
        cm.by_conn.insert(conn, token);
        self.watch(cm, now);
        if is_nobody {
            cm.engine.nobody_there(conn);
        }
        self.pump(cm, now);
        Ok(())
    }

    /// The peer accepted: makes the queue pair ready and says so.
    pub(super) fn on_response(
        &self,
        cm: &mut CmState,
        now: Time,
        token: u64,
        peer: &Peer,
        private_data: &[u8],
    ) -> CmEventKind {
        let fail = |cm: &mut CmState| {
            if let Some(id) = cm.ids.get_mut(&token) {
                id.phase = Phase::Ended;
                if let Some(conn) = id.conn.take() {
                    cm.by_conn.remove(&conn);
                    // It was in the state to be refused a moment ago.
                    let _ = cm.engine.reject(now, conn, RejReason::NO_QP, &[]);
                }
            }
            CmEventKind::ConnectError(Errno::INVAL.raw_os_error())
        };
        let Some(id) = cm.ids.get(&token) else {
            return fail(cm);
        };
        let (Phase::Connecting(attempt), Some(qp), Some(conn)) = (&id.phase, &id.qp, id.conn)
        else {
            return fail(cm);
        };
        let retry = (attempt.ready, peer.rnr_retry_count);
        if let Err(why) = self.make_ready(qp, peer, retry) {
            tracing::debug!(%why, "queue pair not ready to connect");
            return fail(cm);
        }
        // Same: the engine has just told of the response.
        let _ = cm.engine.ready(conn);
        if let Some(id) = cm.ids.get_mut(&token) {
            id.phase = Phase::Connected;
        }
        CmEventKind::Established {
            private_data: PrivateData::new(private_data),
        }
    }

    pub(super) fn accept(
        &self,
        token: u64,
        qp: &QueuePair,
        params: &ConnParams<'_>,
    ) -> io::Result<()> {
        check(params, ACCEPT_DATA)?;
        // A peer that has withdrawn is not accepted.
        let peer = match lock(&self.cm).id(token).map(|id| &id.phase) {
            Some(Phase::Requested(peer, ..)) => Some(peer.path.local),
            _ => None,
        };
        if let Some(local) = peer {
            self.catch_up(local);
        }
        let mut guard = lock(&self.cm);
        let cm = &mut *guard;
        let id = cm.ids.get_mut(&token).ok_or(Errno::INVAL)?;
        let (peer, request, route) = match &id.phase {
            Phase::Requested(peer, request, route) => (*peer, *request, *route),
            Phase::Ended => return Err(Errno::NOTCONN.into()),
            _ => return Err(Errno::INVAL.into()),
        };
        let conn = id.conn.ok_or(Errno::NOTCONN)?;
        if qp.state() != QpState::Init {
            return Err(Errno::INVAL.into());
        }
        let ready = Ready {
            psn: self.keys.next_u32() & MAX_24,
            // Checked when the request was parsed.
            mtu: PathMtu::from_code(request.mtu).ok_or(Errno::INVAL)?,
            responder_resources: params.responder_resources.min(MAX_READS),
            initiator_depth: params.initiator_depth.min(MAX_READS),
            retry_count: request.retry_count,
            ack_timeout: request.ack_timeout,
            features: match peer.extension {
                Some(theirs) if theirs.features & BUNDLES != 0 => {
                    self.features(route.is_some_and(|route| route.takes_bundles))
                }
                _ => 0,
            },
        };
        self.make_ready(&qp.shared, &peer, (ready, peer.rnr_retry_count))
            .map_err(|_| Errno::INVAL)?;
        let port = self.port_at(peer.path.local).ok_or(Errno::NODEV)?;
        let accept = Accept {
            qpn: qp.qpn(),
            psn: ready.psn,
            responder_resources: ready.responder_resources,
            initiator_depth: ready.initiator_depth.min(peer.responder_resources),
            rnr_retry_count: params.rnr_retry_count,
            srq: qp.shared.has_srq,
            extension: extension(&port, ready.features),
            private_data: padded(params.private_data),
        };
        let now = self.now();
        qp.shared.set_awaiting(conn.0);
        cm.engine.accept(now, conn, &accept).map_err(errno)?;
        id.phase = Phase::Accepted;
        id.qp = Some(qp.shared.clone());
        qp.shared.conn.store(conn.0, Ordering::Release);
        self.pump(cm, now);
        Ok(())
    }

    pub(super) fn reject(
        &self,
        token: u64,
        reason: RejReason,
        private_data: &[u8],
    ) -> io::Result<()> {
        if private_data.len() > REJECT_DATA {
            return Err(Errno::INVAL.into());
        }
        let mut guard = lock(&self.cm);
        let cm = &mut *guard;
        let id = cm.ids.get_mut(&token).ok_or(Errno::INVAL)?;
        let (Phase::Requested(..), Some(conn)) = (&id.phase, id.conn) else {
            return Err(Errno::INVAL.into());
        };
        id.phase = Phase::Ended;
        id.conn = None;
        cm.by_conn.remove(&conn);
        let now = self.now();
        let result = cm
            .engine
            .reject(now, conn, reason, private_data)
            .map_err(errno);
        self.pump(cm, now);
        result
    }

    pub(super) fn disconnect(&self, token: u64) -> io::Result<()> {
        let mut guard = lock(&self.cm);
        let cm = &mut *guard;
        let id = cm.ids.get_mut(&token).ok_or(Errno::INVAL)?;
        if let Some(qp) = &id.qp {
            // There is a way from every state.
            let _ = qp.modify(self, &Modify::Error);
        }
        let result = match (&id.phase, id.conn) {
            (Phase::Accepted | Phase::Connected, Some(conn)) => {
                let now = self.now();
                let result = cm.engine.disconnect(now, conn).map_err(errno);
                self.pump(cm, now);
                result
            }
            // The peer was faster.
            (Phase::Ended, _) => Ok(()),
            _ => Err(Errno::INVAL.into()),
        };
        drop(guard);
        result
    }

    /// Where on this host the listener of an address and port is, if one of the
    /// host's endpoints says so.
    fn udp_port_of(&self, dst: SocketAddr, route: &Route) -> Option<u16> {
        let entry = Entry::Service(dst);
        route
            .is_local
            .then(|| self.rendezvous.find(entry))
            .flatten()
    }

    fn features(&self, takes_bundles: bool) -> u16 {
        if takes_bundles && self.config.bundles {
            BUNDLES
        } else {
            0
        }
    }

    /// Moves a queue pair to RTS.
    fn make_ready(
        &self,
        qp: &QpShared,
        peer: &Peer,
        (ready, rnr_retry): (Ready, u8),
    ) -> Result<(), ModifyError> {
        let gone = ModifyError::Attribute { name: "path" };
        let port = self.port_at(peer.path.local).ok_or(gone)?;
        let ours = peer.extension.is_some();
        let common = ready.features & peer.extension.map_or(0, |theirs| theirs.features);
        let trusted = common & BUNDLES != 0;
        let rtr = RtrAttr {
            dest_qpn: peer.qpn,
            rq_psn: ready.psn,
            path_mtu: if trusted { PathMtu::Own } else { ready.mtu },
            responder_resources: ready.responder_resources,
            min_rnr_timer: self.config.min_rnr_timer,
            peer_is_ours: ours,
        };
        let rts = RtsAttr {
            sq_psn: peer.psn,
            // 0 would be forever, and so would 7.
            timeout: timeout(ready, ours),
            retry_count: ready.retry_count.min(6),
            rnr_retry: rnr_retry.min(7),
            initiator_depth: ready.initiator_depth.min(peer.responder_resources),
            window: peer.extension.map(|theirs| window(theirs, trusted)),
        };
        let link = Link {
            trusted,
            crc: FlowCrc::new(port.local(), peer.path.remote),
            to: peer.path.remote,
            ours,
            port,
        };
        qp.set_link(link, self.now());
        qp.modify(self, &Modify::Rtr(rtr))?;
        qp.modify(self, &Modify::Rts(rts))
    }
}

fn extension(port: &Arc<Port>, features: u16) -> Extension {
    Extension {
        window: port.window(),
        features,
    }
}

/// The code of the ACK timeout. An adapter answers whatever its host does; one of
/// ours is a process, and may not get a processor for a while: it is waited for.
fn timeout(ready: Ready, ours: bool) -> u8 {
    let code = ready.ack_timeout.clamp(1, 31);
    let patience = |code: u8| (4096 << code) * (u64::from(ready.retry_count) + 1);
    if !ours {
        return code;
    }
    (code..31)
        .find(|code| patience(*code) >= PATIENCE)
        .unwrap_or(31)
}

/// As much under way as the peer's receive buffer holds, within the usual.
fn window(theirs: Extension, trusted: bool) -> SendWindow {
    let mut packets = SendWindow::OURS.packets.min(theirs.window.into());
    if trusted {
        packets = packets * PathMtu::B4096.bytes() / PathMtu::Own.bytes();
    }
    let packets = packets.max(8);
    SendWindow {
        psns: packets,
        packets,
    }
}

fn check(params: &ConnParams<'_>, most: usize) -> io::Result<()> {
    let fits =
        params.private_data.len() <= most && params.retry_count <= 6 && params.rnr_retry_count <= 7;
    if fits {
        Ok(())
    } else {
        Err(Errno::INVAL.into())
    }
}

fn errno(why: CmError) -> io::Error {
    match why {
        CmError::Unknown => Errno::NOTCONN,
        CmError::State => Errno::INVAL,
        CmError::Full => Errno::NOMEM,
        CmError::InUse => Errno::ADDRINUSE,
    }
    .into()
}
