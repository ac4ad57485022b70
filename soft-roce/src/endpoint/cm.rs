//! The CM engine at work.
//!
//! What it does: hands the engine's events to the ids and its messages to the
//! sockets.
//! What it does not do: what users ask of ids (`listen`, `connect`).

use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::device::Device;
use super::shared::cm::{CmState, Id, Phase, Requested};
use super::shared::events::{PrivateData, Queued, QueuedKind, Unclaimed};
use super::shared::schedule::NEVER;
use crate::cm::{ConnKey, Event, ListenKey, Peer, Request, Transmit};
use crate::time::Time;
use crate::wire::cm::RejReason;
use crate::wire::mad::{MAD_PACKET_LEN, emit_packet};
use crate::wire::{FlowCrc, ICRC_LEN};

impl Device {
    /// Frees a request's place in its backlog: the user has it in hand.
    pub(super) fn taken(&self, conn: ConnKey) {
        self.lock_cm().engine.taken(conn);
    }

    /// Lets go of an id, and of the requests of a listener that nobody has read.
    pub(super) fn destroy_id(&self, token: u64) {
        let mut guard = self.lock_cm();
        let now = self.schedule.now();
        let mut doomed = vec![token];
        while let Some(token) = doomed.pop() {
            let cm = &mut *guard;
            let Some(id) = cm.ids.remove(&token) else {
                continue;
            };
            for event in id.queue.take_all_of(token) {
                if let QueuedKind::ConnectRequest { id, .. } = event.kind {
                    doomed.push(id.token);
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
        self.schedule.cm_deadline.store(deadline, Ordering::Release);
        self.schedule.thread_by(deadline);
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
                QueuedKind::Established {
                    private_data: PrivateData::EMPTY,
                }
            }
            Event::Rejected {
                reason,
                private_data,
                ..
            } => {
                self.end(cm, token, conn);
                if *reason == RejReason::INVALID_MTU {
                    // The way back takes less than the way there did when it was asked for.
                    self.routes.forget();
                }
                let private_data = PrivateData::new(private_data);
                QueuedKind::Rejected {
                    reason: *reason,
                    private_data,
                }
            }
            Event::Unreachable { .. } => {
                self.end(cm, token, conn);
                QueuedKind::Unreachable(Errno::TIMEDOUT.raw_os_error())
            }
            Event::Disconnected { .. } => {
                self.set_phase(cm, token, Phase::Ended);
                QueuedKind::Disconnected
            }
            Event::TimewaitExit { .. } => {
                self.end(cm, token, conn);
                QueuedKind::TimewaitExit
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
        let found = listening.and_then(|token| Some((*token, cm.ids.get(token)?.queue.clone())));
        let Some((listener, queue)) = found else {
            cm.engine.destroy(now, conn);
            return;
        };
        let source = Some(peer.path.local.ip());
        let route = self.routes.to(peer.path.remote, source).ok();
        if route.is_some_and(|route| request.mtu > route.mtu.code()) {
            tracing::info!(peer = %request.src, mtu = request.mtu, "request for too large packets");
            // The engine has just told of the request.
            let _ = cm.engine.refuse_mtu(now, conn);
            return;
        }
        let token = cm.new_id(queue.clone());
        if let Some(id) = cm.ids.get_mut(&token) {
            id.phase = Phase::Requested(Box::new(Requested {
                peer: *peer,
                request: *request,
                route,
            }));
            id.local = Some(request.dst);
            id.peer = Some(request.src);
            id.conn = Some(conn);
        }
        cm.by_conn.insert(conn, token);
        self.watch(cm, now);
        let kind = QueuedKind::ConnectRequest {
            id: Unclaimed { token, conn },
            private_data: PrivateData::new(&request.private_data),
            responder_resources: peer.responder_resources,
            initiator_depth: peer.initiator_depth,
            src: request.src,
            dst: request.dst,
        };
        cm.push(&queue, Queued { id: listener, kind });
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
        let Some(port) = self.sockets.port_at(path.local) else {
            return;
        };
        let mut packet = [0; MAD_PACKET_LEN + ICRC_LEN];
        let psn = self.mad_psn.fetch_add(1, Ordering::Relaxed);
        emit_packet(psn, &transmit.mad, &mut packet[..MAD_PACKET_LEN]);
        FlowCrc::new(path.local, path.remote).seal(0, &mut packet);
        port.send(path.remote, &packet, packet.len());
    }
}
