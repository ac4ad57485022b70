//! Processes of this host that end without a word.
//!
//! What it does: while there are connections with other processes of this host,
//! asks the host once in a while whether their sockets are still there. A process
//! that was killed is noticed within that time, as the kernel's RDMA notices it.
//! What it does not do: other hosts; for them there are time-outs and keepalive.

use std::time::Duration;

use super::device::Device;
use super::shared::cm::CmState;
use crate::driver::route::{is_local, is_nobody_at};
use crate::time::Time;

/// How often it asks.
const EVERY: Duration = Duration::from_millis(500);

impl Device {
    /// There is a new connection: it is to be looked after.
    pub(super) fn watch(&self, cm: &mut CmState, now: Time) {
        cm.watch_at.get_or_insert(now + EVERY);
    }

    /// Asks, if it is time to.
    pub(super) fn look_after_peers(&self, now: Time) {
        let mut cm = self.lock_cm();
        if cm.watch_at.is_none_or(|at| at > now) {
            return;
        }
        // For this time it is our turn; a connection that is new meanwhile sets it anew.
        cm.watch_at = None;
        let mut peers = std::mem::take(&mut cm.peers);
        cm.engine.peers(&mut peers);
        drop(cm);
        peers.retain(|peer| self.sockets.port_at(*peer).is_none() && is_local(peer.ip()));
        let dead: Vec<_> = peers.iter().filter(|at| is_nobody_at(**at)).collect();
        cm = self.lock_cm();
        for peer in dead {
            tracing::debug!(%peer, "a process of this host has ended");
            cm.engine.peer_died(now, *peer);
        }
        if !peers.is_empty() {
            self.watch(&mut cm, now);
        }
        cm.peers = peers;
        self.pump(&mut cm, now);
    }
}
