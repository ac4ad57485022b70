//! What time does to connections.
//!
//! What it does: repeats, gives up, ends timewait.
//! What it does not do: read a clock.

use super::conn::State;
use super::engine::Engine;
use super::types::{ConnKey, Event};
use crate::time::Time;
use crate::wire::cm::RejReason;

impl Engine {
    /// Does what was due at or before `now`.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(&(at, key)) = self.timers.first()
            && at <= now
        {
            self.disarm(key);
            self.expire(now, key);
        }
    }

    fn expire(&mut self, now: Time, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(&key) else {
            return;
        };
        match conn.state {
            State::Timewait => {
                self.tell(Event::TimewaitExit { conn: key });
                self.remove(key);
            }
            State::ReqSent | State::ReqWaiting | State::RepSent | State::DreqSent => {
                if conn.retry.again(&self.config) {
                    if conn.state == State::ReqWaiting {
                        conn.state = State::ReqSent;
                    }
                    let (path, mad, wait) = (conn.path, conn.sent, conn.retry.wait());
                    self.counters.retries += 1;
                    self.transmit(path, mad);
                    self.arm(key, now + wait);
                } else {
                    self.give_up(now, key);
                }
            }
            // These wait for the user and have no timer.
            State::RepReceived | State::ReqReceived(_) | State::Established => {}
        }
    }

    fn give_up(&mut self, now: Time, key: ConnKey) {
        self.counters.timeouts += 1;
        let Some(conn) = self.conns.get(&key) else {
            return;
        };
        if conn.state == State::DreqSent {
            self.enter_timewait(now, key);
            return;
        }
        self.tell(Event::Unreachable { conn: key });
        // The peer may be alive and merely unheard: the courtesy of a REJ.
        self.let_go(now, key, RejReason::TIMEOUT);
    }
}
