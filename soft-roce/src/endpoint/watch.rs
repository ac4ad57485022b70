//! Processes of this host that end without a word.
//!
//! What it does: while there are connections with other processes of this host,
//! asks the host once in a while whether their sockets are still there. A process
//! that was killed is noticed within that time, as the kernel's RDMA notices it.
//! What it does not do: other hosts; for them there are time-outs and keepalive.

use std::net::SocketAddr;
use std::time::Duration;

use super::cm::CmState;
use super::inner::{Inner, lock};
use crate::driver::route::{is_local, is_nobody_at};
use crate::time::Time;

/// How often it asks.
const EVERY: Duration = Duration::from_millis(500);

impl Inner {
    /// There is a new connection: it is to be looked after.
    pub(super) fn watch(&self, cm: &mut CmState, now: Time) {
        cm.watch_at.get_or_insert(now + EVERY);
    }

    /// Asks, if it is time to.
    pub(super) fn look_after_peers(&self, now: Time) {
        let mut cm = lock(&self.cm);
        if cm.watch_at.is_none_or(|at| at > now) {
            return;
        }
        let peers = cm.engine.peers();
        drop(cm);
        let elsewhere = |peer: &SocketAddr| self.port_at(*peer).is_none() && is_local(peer.ip());
        let watched: Vec<_> = peers.into_iter().filter(elsewhere).collect();
        let dead: Vec<_> = watched.iter().filter(|at| is_nobody_at(**at)).collect();
        cm = lock(&self.cm);
        for peer in dead {
            tracing::debug!(%peer, "a process of this host has ended");
            cm.engine.peer_died(now, *peer);
        }
        cm.watch_at = (!watched.is_empty()).then(|| now + EVERY);
        self.pump(&mut cm, now);
    }
}
