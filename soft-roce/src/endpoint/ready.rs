//! Queue pairs that become ready with what the peer has said.
//!
//! What it does: the moves to RTR and RTS, and what goes with them.
//! What it does not do: the messages (the CM engine).

use rustix::io::Errno;

use super::device::Device;
use super::shared::cm::{CmState, Phase, Ready};
use super::shared::events::{PrivateData, QueuedKind};
use super::shared::qp::{Link, QpShared};
use crate::cm::{Extension, Peer};
use crate::rc::{Modify, ModifyError, PathMtu, RtrAttr, RtsAttr, SendWindow};
use crate::time::Time;
use crate::wire::FlowCrc;
use crate::wire::cm::RejReason;

/// A peer of ours does not count as dead before, in nanoseconds.
const PATIENCE: u64 = 1_800_000_000;

/// Feature of the extension: the two ends are on one host, and packets between
/// them may go in bundles.
pub(super) const BUNDLES: u16 = 1;

impl Device {
    /// The peer accepted: makes the queue pair ready and says so.
    pub(super) fn on_response(
        &self,
        cm: &mut CmState,
        now: Time,
        token: u64,
        peer: &Peer,
        private_data: &[u8],
    ) -> QueuedKind {
        let fail = |cm: &mut CmState| {
            if let Some(id) = cm.ids.get_mut(&token) {
                id.phase = Phase::Ended;
                if let Some(conn) = id.conn.take() {
                    cm.by_conn.remove(&conn);
                    // It was in the state to be refused a moment ago.
                    let _ = cm.engine.reject(now, conn, RejReason::NO_QP, &[]);
                }
            }
            QueuedKind::ConnectError(Errno::INVAL.raw_os_error())
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
        QueuedKind::Established {
            private_data: PrivateData::new(private_data),
        }
    }

    /// Moves a queue pair to RTS.
    pub(super) fn make_ready(
        &self,
        qp: &QpShared,
        peer: &Peer,
        (ready, rnr_retry): (Ready, u8),
    ) -> Result<(), ModifyError> {
        let gone = ModifyError::Attribute { name: "path" };
        let port = self.sockets.port_at(peer.path.local).ok_or(gone)?;
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
            on_host: trusted,
            window: peer.extension.map(|theirs| window(theirs, trusted)),
        };
        let link = Link {
            trusted,
            crc: FlowCrc::new(port.local(), peer.path.remote),
            to: peer.path.remote,
            ours,
            port,
        };
        qp.set_link(link, self.schedule.now());
        qp.modify(&self.schedule, &Modify::Rtr(rtr))?;
        qp.modify(&self.schedule, &Modify::Rts(rts))
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
