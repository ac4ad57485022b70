//! Peers of which the host says that they are gone.
//!
//! What it does: ends what there was with them, as their own messages would.
//! What it does not do: find out; the endpoint asks the host.

use std::net::SocketAddr;

use super::conn::{Conn, State};
use super::engine::Engine;
use super::types::{ConnKey, Event};
use crate::time::Time;
use crate::wire::cm::RejReason;

impl Engine {
    /// Puts the sockets of peers into `out`, each once; connections in timewait do not count.
    pub fn peers(&self, out: &mut Vec<SocketAddr>) {
        let lives = |conn: &&Conn| conn.state != State::Timewait;
        let conns = self.conns.values().filter(lives);
        out.clear();
        out.extend(conns.map(|conn| conn.path.remote));
        out.sort_unstable();
        out.dedup();
    }

    /// There is no socket at `peer` any more: every attempt and connection with it
    /// is over, as if it had said so itself before it died.
    pub fn peer_died(&mut self, now: Time, peer: SocketAddr) {
        let with_it = |conn: &Conn| conn.path.remote == peer && conn.state != State::Timewait;
        let mut dead: Vec<_> = self.conns.iter().filter(|(_, c)| with_it(c)).collect();
        dead.sort_unstable_by_key(|(key, _)| **key);
        let dead: Vec<_> = dead.into_iter().map(|(key, c)| (*key, c.state)).collect();
        for (key, state) in dead {
            match state {
                State::Established | State::DreqSent => self.enter_timewait(now, key),
                _ => self.refused_for_peer(key, RejReason::CONSUMER_DEFINED),
            }
        }
    }

    /// Nobody has the socket that the request goes to: it is refused as a CM there
    /// would refuse it.
    pub fn nobody_there(&mut self, key: ConnKey) {
        let asked = |conn: &&Conn| conn.state == State::ReqSent;
        if let Some(conn) = self.conns.get(&key).filter(asked) {
            // Who comes to be there before it goes out must not accept it.
            let request = conn.sent;
            let before = self.out.len();
            self.out.retain(|one| one.mad != request);
            self.counters.sent -= (before - self.out.len()) as u64;
            self.counters.nobody += 1;
            self.refused_for_peer(key, RejReason::INVALID_SERVICE_ID);
        }
    }

    fn refused_for_peer(&mut self, key: ConnKey, reason: RejReason) {
        self.tell(Event::Rejected {
            conn: key,
            reason,
            private_data: [0; 148],
        });
        self.remove(key);
    }
}
