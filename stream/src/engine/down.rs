//! From the queue pair back to TCP, planned or not: the same.
//!
//! First the queue pair stops, then everything that had come is taken in, and only then is the own
//! position final. It is told in a RESUME, at the place where the raw bytes had ended, and the peer
//! goes on from there.

#[cfg(test)]
use super::Mutation;
use super::{
    Action, Engine, Failure, Instant, Link, Payloads, RESUME, Rx, State, Timer, Tx, Violation,
};
use crate::frame::FrameError;
use crate::half::Fin;

impl<P: Payloads> Engine<P> {
    /// Stops using the queue pair.
    pub(super) fn leave(&mut self) {
        if self.link == Link::Up {
            self.link = Link::Draining;
            self.control.clear();
            self.timers.stop(Timer::Change);
            #[cfg(test)]
            if self.is_mutated(Mutation::Early) && self.has_tcp() {
                self.actions.push_back(Action::QpClose);
                self.set_state(State::Leaving);
                return self.drained();
            }
            self.actions.push_back(Action::QpDisconnect);
            if self.has_tcp() {
                self.set_state(State::Leaving);
            }
        }
    }

    /// Nothing more can come over the queue pair: positions are final.
    pub(super) fn drained(&mut self) {
        if self.link != Link::Draining {
            return;
        }
        self.link = Link::None;
        self.landing.clear();
        self.ring = super::OwnRing::Closed;
        let is_through = self.incoming.eof && self.outgoing.fin == Fin::End;
        if !self.has_tcp() {
            // A peer that is through closes, and what it acknowledged last may not be heard any more.
            if is_through {
                return self.ended();
            }
            return self.fail(Failure::Reset);
        }
        if is_through && self.retained.is_empty() {
            return self.ended();
        }
        if self.is_tcp_reset {
            return self.tcp_reset();
        }
        self.tell_position();
        if let Some(position) = self.resume.take() {
            self.resumed(position);
        }
        if self.is_tcp_over {
            self.tcp_over();
        }
    }

    fn tell_position(&mut self) {
        let Some(boundary) = &self.boundary else {
            return;
        };
        if !boundary.is_enabled {
            self.tx = Tx::Raw;
            return;
        }
        let at = match boundary.bound {
            Some(bound) if self.rx == Rx::Raw => bound,
            _ => self.incoming.position,
        };
        let slot = boundary.resume(self.config.role);
        self.frames
            .push_back(slot.emit(&boundary.key, at + self.incoming.aside));
        self.tx = if boundary.has_sent {
            Tx::WaitResume
        } else {
            Tx::Raw
        };
    }

    /// The peer's RESUME is the next thing on TCP, and must come. While bytes before it wait for the
    /// application no time counts, and a place in doubt may stay as it is for ever.
    pub(super) fn await_resume(&mut self, now: Instant) {
        let is_due = self.state == State::Leaving
            && self.link == Link::None
            && self.rx == Rx::Framed
            && !self.timers.is_set(Timer::Resume);
        if is_due {
            self.timers.set(Timer::Resume, now + RESUME);
        }
    }

    /// A RESUME stands on TCP.
    pub(super) fn on_resume(&mut self, position: u64) {
        if self.link == Link::Up {
            // The peer has gone; what it sent before it went is still here.
            self.resume = Some(position);
            return self.leave();
        }
        self.resumed(position);
    }

    fn resumed(&mut self, position: u64) {
        self.rx = Rx::Raw;
        self.timers.stop(Timer::Resume);
        if let Some(boundary) = &mut self.boundary {
            boundary.bound = None;
        }
        if self.tx != Tx::WaitResume {
            return;
        }
        let safe = self.retained.safe(self.outgoing.sent);
        if position > self.outgoing.sent {
            return self.fail(Failure::Protocol(Violation::ResumeBeyond));
        }
        if position < safe {
            return self.fail(Failure::BytesLost);
        }
        #[cfg(test)]
        let position = if self.is_mutated(Mutation::FromAcknowledged) {
            safe
        } else {
            position
        };
        self.retained.resume(position);
        self.outgoing.sent = position;
        if self.outgoing.fin == Fin::End {
            self.outgoing.fin = Fin::None;
        }
        self.tx = Tx::Raw;
    }

    pub(super) fn tcp_fin(&mut self) {
        if !self.has_tcp() || self.is_tcp_over {
            return;
        }
        self.is_tcp_over = true;
        match self.link {
            // The peer's process is gone, or has gone back to TCP and ended there: either way it
            // has left the queue pair.
            Link::Up => self.leave(),
            Link::Draining => {}
            Link::None => self.tcp_over(),
        }
    }

    /// FIN is the next thing on TCP, and there is no queue pair.
    fn tcp_over(&mut self) {
        if self.rx == Rx::Framed || self.tx == Tx::WaitResume {
            // A peer that goes on says where. This one was through, or died.
            if self.incoming.eof && self.outgoing.fin == Fin::End {
                return self.ended();
            }
            self.incoming.eof = true;
            return self.fail(Failure::PeerGone);
        }
        if let Some(boundary) = &mut self.boundary {
            boundary.mark = None;
            boundary.bound = None;
        }
        self.incoming.eof = true;
    }

    pub(super) fn tcp_reset(&mut self) {
        if !self.has_tcp() {
            return;
        }
        // What the queue pair has brought is read before the reset, as it is where TCP alone carries.
        if self.rx == Rx::Framed && self.link != Link::None {
            self.is_tcp_reset = true;
            return self.leave();
        }
        let is_through = self.incoming.eof && self.outgoing.fin == Fin::End;
        if is_through && self.retained.safe(self.outgoing.sent) == self.outgoing.sent {
            return self.ended();
        }
        self.fail(Failure::Reset);
    }

    /// No RESUME stands where one must.
    pub(super) fn not_resumed(&mut self, why: FrameError) {
        self.fail(Failure::Protocol(Violation::Frame(why)));
    }
}
