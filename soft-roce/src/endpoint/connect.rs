//! Ids that connect, accept, refuse and part.
//!
//! What it does: what the user asks of an id.
//! What it does not do: the messages (the CM engine).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::config::MAX_READS;
use super::device::Device;
use super::ready::BUNDLES;
use super::shared::cm::{Attempt, ConnParams, Phase, Ready};
use super::shared::events::QueuedKind;
use super::shared::qp::QpShared;
use crate::cm::{Accept, CmError, Connect, Extension, Path};
use crate::driver::port::Port;
use crate::driver::rendezvous::Entry;
use crate::driver::route::{Route, is_nobody_at};
use crate::rc::{Modify, PathMtu, QpState};
use crate::wire::cm::{RejReason, padded};
use crate::wire::{MAX_24, ROCE_PORT};

/// Most private data with a request, an acceptance, a refusal.
const REQUEST_DATA: usize = 56;
const ACCEPT_DATA: usize = 196;
const REJECT_DATA: usize = 148;

impl Device {
    pub(super) fn resolve_addr(
        &self,
        token: u64,
        src: Option<SocketAddr>,
        dst: SocketAddr,
    ) -> io::Result<()> {
        let bound = self.lock_cm().id(token).ok_or(Errno::INVAL)?.local;
        let src = src.or(bound);
        let source = src
            .map(|src| src.ip())
            .filter(|ip: &IpAddr| !ip.is_unspecified());
        let dst = SocketAddr::new(dst.ip().to_canonical(), dst.port());
        let route = self.routes.to(dst, source.map(|ip| ip.to_canonical()))?;
        let port = self
            .sockets
            .port_to_connect(route.source, !route.is_local)?;
        let mut guard = self.lock_cm();
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
        cm.tell(token, QueuedKind::AddrResolved);
        Ok(())
    }

    pub(super) fn resolve_route(&self, token: u64) -> io::Result<()> {
        let mut cm = self.lock_cm();
        let id = cm.id_mut(token)?;
        let Phase::AddrResolved(route, port) = &id.phase else {
            return Err(Errno::INVAL.into());
        };
        id.phase = Phase::RouteResolved(*route, port.clone());
        cm.tell(token, QueuedKind::RouteResolved);
        Ok(())
    }

    pub(super) fn connect(
        &self,
        token: u64,
        qp: &Arc<QpShared>,
        params: &ConnParams<'_>,
    ) -> io::Result<()> {
        check(params, REQUEST_DATA)?;
        let mut guard = self.lock_cm();
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
            && self.sockets.port_at(remote).is_none()
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
            srq: qp.has_srq,
            extension: extension(port, ready.features),
            private_data: padded(params.private_data),
        };
        let now = self.schedule.now();
        let conn = cm.engine.connect(now, &connect).map_err(errno)?;
        id.phase = Phase::Connecting(Attempt { ready });
        id.conn = Some(conn);
        id.qp = Some(qp.clone());
        qp.conn.store(conn.0, Ordering::Release);
        cm.by_conn.insert(conn, token);
        self.watch(cm, now);
        if is_nobody {
            cm.engine.nobody_there(conn);
        }
        self.pump(cm, now);
        Ok(())
    }

    pub(super) fn accept(
        &self,
        token: u64,
        qp: &Arc<QpShared>,
        params: &ConnParams<'_>,
    ) -> io::Result<()> {
        check(params, ACCEPT_DATA)?;
        // A peer that has withdrawn is not accepted.
        let peer = match self.lock_cm().id(token).map(|id| &id.phase) {
            Some(Phase::Requested(asked)) => Some(asked.peer.path.local),
            _ => None,
        };
        if let Some(local) = peer {
            self.catch_up(local);
        }
        let mut guard = self.lock_cm();
        let cm = &mut *guard;
        let id = cm.ids.get_mut(&token).ok_or(Errno::INVAL)?;
        let (peer, request, route) = match &id.phase {
            Phase::Requested(asked) => (asked.peer, asked.request, asked.route),
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
        self.make_ready(qp, &peer, (ready, peer.rnr_retry_count))
            .map_err(|_| Errno::INVAL)?;
        let port = self.sockets.port_at(peer.path.local).ok_or(Errno::NODEV)?;
        let accept = Accept {
            qpn: qp.qpn(),
            psn: ready.psn,
            responder_resources: ready.responder_resources,
            initiator_depth: ready.initiator_depth.min(peer.responder_resources),
            rnr_retry_count: params.rnr_retry_count,
            srq: qp.has_srq,
            extension: extension(&port, ready.features),
            private_data: padded(params.private_data),
        };
        let now = self.schedule.now();
        qp.set_awaiting(conn.0);
        cm.engine.accept(now, conn, &accept).map_err(errno)?;
        id.phase = Phase::Accepted;
        id.qp = Some(qp.clone());
        qp.conn.store(conn.0, Ordering::Release);
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
        let mut guard = self.lock_cm();
        let cm = &mut *guard;
        let id = cm.ids.get_mut(&token).ok_or(Errno::INVAL)?;
        let (Phase::Requested(..), Some(conn)) = (&id.phase, id.conn) else {
            return Err(Errno::INVAL.into());
        };
        id.phase = Phase::Ended;
        id.conn = None;
        cm.by_conn.remove(&conn);
        let now = self.schedule.now();
        let result = cm
            .engine
            .reject(now, conn, reason, private_data)
            .map_err(errno);
        self.pump(cm, now);
        result
    }

    pub(super) fn disconnect(&self, token: u64) -> io::Result<()> {
        let mut guard = self.lock_cm();
        let cm = &mut *guard;
        let id = cm.ids.get_mut(&token).ok_or(Errno::INVAL)?;
        if let Some(qp) = &id.qp {
            // What was posted goes out before.
            qp.catch_up(&self.schedule);
            // There is a way from every state.
            let _ = qp.modify(&self.schedule, &Modify::Error);
        }
        let result = match (&id.phase, id.conn) {
            (Phase::Accepted | Phase::Connected, Some(conn)) => {
                let now = self.schedule.now();
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
            .then(|| self.sockets.rendezvous.find(entry))
            .flatten()
    }

    fn features(&self, takes_bundles: bool) -> u16 {
        if takes_bundles && self.config.bundles {
            BUNDLES
        } else {
            0
        }
    }
}

fn extension(port: &Arc<Port>, features: u16) -> Extension {
    Extension {
        window: port.window(),
        features,
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
