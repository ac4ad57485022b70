//! From TCP to the queue pair: connecting, proofs, cuts.
//!
//! S is the accepting end, which dials; C the connecting end. In both rounds S asks first:
//! PREPARE, READY and PREPARE, READY; in the second C then says GO. A frame is written at a place
//! that was confirmed and nowhere else, and who sends bytes over the queue pair knows that the peer
//! can tell its position on TCP.

#[cfg(test)]
use super::Mutation;
use super::{
    Action, Boundary, CHANGE, Counts, DIAL, DIALS, Decline, Engine, Instant, Link, Message,
    Payloads, Refusal, Role, State, TURN, Thresholds, Timer, Tx, Violation, What,
};
use crate::message::Kind;

/// Positions that no stream reaches, and with which nothing overflows.
const IMPOSSIBLE: u64 = 1 << 62;

impl<P: Payloads> Engine<P> {
    /// Looks whether the stream has earned a queue pair.
    pub(super) fn maybe_connect(&mut self, now: Instant) {
        let wanted: Thresholds = self.config.thresholds;
        match self.config.role {
            Role::Connector => {
                if self.traffic.is_enough(&wanted, self.is_old) {
                    self.actions.push_back(Action::Listen);
                    self.set_state(State::Inviting);
                }
            }
            Role::Acceptor => {
                let Some(factor) = DIALS.get(self.dials) else {
                    return;
                };
                // Age counts for the first dial alone: a refused one needs more than time.
                let is_old = self.is_old && self.dials == 0;
                let may_dial = self.pause(now).is_none();
                if may_dial && self.traffic.is_enough(&wanted.times(*factor), is_old) {
                    self.dials += 1;
                    self.timers.set(Timer::Dial, now + TURN);
                    self.actions.push_back(Action::Dial);
                    self.set_state(State::Dialling);
                }
            }
        }
    }

    pub(super) fn dialled(&mut self, now: Instant) {
        if self.state == State::Dialling {
            self.timers.sooner(Timer::Dial, now + DIAL);
        }
    }

    pub(super) fn refused(&mut self, refusal: Refusal, now: Instant) {
        if self.state == State::Dialling {
            self.stop_connecting();
            match refusal {
                Refusal::NotNow => {}
                Refusal::After(pause) => {
                    self.dials = self.dials.saturating_sub(1);
                    self.not_before = Some(now + pause);
                }
                Refusal::Never => self.dials = DIALS.len(),
            }
            self.set_state(State::Tcp);
        }
    }

    pub(super) fn stop_connecting(&mut self) {
        if matches!(self.state, State::Inviting | State::Dialling) {
            self.timers.stop(Timer::Dial);
            self.actions.push_back(Action::StopConnecting);
        }
    }

    pub(super) fn qp_up(
        &mut self,
        mut boundary: Boundary<P::Key>,
        counts: Option<Counts>,
        now: Instant,
    ) {
        if !matches!(self.state, State::Inviting | State::Dialling) {
            // It came too late, or nobody had asked.
            self.actions.push_back(Action::QpUnwanted);
            return;
        }
        self.timers.stop(Timer::Dial);
        if self.config.is_keyed {
            boundary.has_proved = true;
            boundary.has_marked = true;
            boundary.is_verified = true;
            boundary.is_peer_verified = true;
        }
        self.boundary = Some(boundary);
        self.link = Link::Up;
        self.traffic = super::Traffic::default();
        self.retained.start();
        self.timers.set(Timer::Change, now + CHANGE);
        self.set_state(State::Proving);
        if counts.is_some_and(|counts| counts != self.counts) {
            // Somebody else writes or reads there, so no place can be trusted.
            self.stays = true;
            return self.decline(Decline::Counts);
        }
        if self.config.role == Role::Acceptor && !self.config.is_keyed {
            self.ask(What::Proof);
        }
    }

    /// Stops raw writes for a moment and asks for a place where they stand.
    fn ask(&mut self, what: What) {
        if self.outgoing.closed {
            return self.decline(Decline::HalfClosed);
        }
        let place = self.outgoing.sent;
        let Some(boundary) = &mut self.boundary else {
            return;
        };
        boundary.asked = Some(what);
        boundary.place = place;
        self.tx = Tx::Held;
        if what == What::Cut {
            boundary.has_asked_cut = true;
            self.set_state(State::Cutting);
        }
        self.control.push_back(Message::Prepare { what, place });
        #[cfg(test)]
        if self.is_mutated(Mutation::NoReady) && what == What::Proof {
            self.write_proof();
        }
    }

    /// The accepting end asks for the cut when both proofs were read.
    pub(super) fn maybe_cut(&mut self) {
        let Some(boundary) = &self.boundary else {
            return;
        };
        if self.config.role == Role::Acceptor
            && self.link == Link::Up
            && self.tx == Tx::Raw
            && self.frames.is_empty()
            && boundary.is_verified
            && boundary.is_peer_verified
            && !boundary.has_asked_cut
        {
            self.ask(What::Cut);
        }
    }

    /// Tells the peer that the queue pair is not wanted, and goes.
    pub(super) fn decline(&mut self, reason: Decline) {
        self.actions.push_back(Action::Decline(reason));
        self.leave();
    }

    pub(super) fn on_prepare(&mut self, what: What, place: u64) {
        if self.link != Link::Up {
            // Our answer would not reach the peer, so it writes no frame.
            return;
        }
        let is_connector = self.config.role == Role::Connector;
        let Some(boundary) = &mut self.boundary else {
            return self.violated(Violation::Unexpected(Kind::Prepare));
        };
        // The accepting end asks first.
        let is_wrong = match what {
            What::Proof => boundary.has_marked,
            What::Cut => boundary.has_bound || !is_connector && !boundary.has_asked_cut,
        };
        if is_wrong {
            return self.violated(Violation::Unexpected(Kind::Prepare));
        }
        // Our proof was read before the peer asked, so it was written.
        let is_proved = boundary.is_verified && boundary.has_proved && self.frames.is_empty();
        if what == What::Cut && !is_proved {
            return self.violated(Violation::CutUnproven);
        }
        if place >= IMPOSSIBLE {
            return self.violated(Violation::ImpossiblePlace);
        }
        if place < self.incoming.position {
            return self.decline(Decline::PastPlace);
        }
        if self.outgoing.closed || self.incoming.eof || self.is_tcp_over {
            return self.decline(Decline::HalfClosed);
        }
        match what {
            What::Proof => {
                boundary.mark = Some(place);
                boundary.has_marked = true;
            }
            What::Cut => {
                boundary.bound = Some(place);
                boundary.has_bound = true;
            }
        }
        self.control.push_back(Message::Ready {
            what,
            read: self.counts.read,
        });
        if is_connector {
            self.ask(what);
        }
    }

    pub(super) fn on_ready(&mut self, what: What, read: u64) {
        let is_connector = self.config.role == Role::Connector;
        let written = self.counts.written;
        let is_draining = self.link == Link::Draining;
        let Some(boundary) = &mut self.boundary else {
            return self.violated(Violation::Unexpected(Kind::Ready));
        };
        #[cfg(test)]
        let is_lenient = self.mutation == Some(Mutation::NoReady);
        #[cfg(not(test))]
        let is_lenient = false;
        if boundary.asked != Some(what) {
            if is_lenient {
                return;
            }
            return self.violated(Violation::Unexpected(Kind::Ready));
        }
        if read > written {
            return self.violated(Violation::ReadTooMuch);
        }
        boundary.asked = None;
        match what {
            What::Proof => self.write_proof(),
            What::Cut => {
                boundary.is_enabled = true;
                // The accepting end has heard our READY before it sent its own.
                boundary.is_sure |= is_connector;
                if is_connector && !is_draining {
                    self.control.push_back(Message::Go);
                    self.tx = Tx::San;
                }
                #[cfg(test)]
                if self.mutation == Some(Mutation::NoGo) && !is_draining {
                    self.tx = Tx::San;
                }
            }
        }
    }

    fn write_proof(&mut self) {
        let Some(boundary) = &mut self.boundary else {
            return;
        };
        boundary.asked = None;
        boundary.has_proved = true;
        let slot = boundary.proof(self.config.role, boundary.place);
        self.frames
            .push_back(slot.emit(&boundary.key, boundary.place));
        self.tx = Tx::Raw;
    }

    pub(super) fn on_go(&mut self) {
        let is_draining = self.link == Link::Draining;
        match &mut self.boundary {
            Some(boundary)
                if self.config.role == Role::Acceptor
                    && boundary.is_enabled
                    && !boundary.is_sure
                    && boundary.has_bound =>
            {
                boundary.is_sure = true;
                if !is_draining {
                    self.tx = Tx::San;
                }
            }
            // What is drained may be the end of a talk whose beginning was not answered.
            Some(_) if is_draining => {}
            _ => self.violated(Violation::Unexpected(Kind::Go)),
        }
    }

    pub(super) fn on_verified(&mut self) {
        match &mut self.boundary {
            Some(boundary) if boundary.has_proved && !boundary.is_peer_verified => {
                boundary.is_peer_verified = true;
            }
            _ => self.violated(Violation::Unexpected(Kind::Verified)),
        }
    }

    pub(super) fn on_no(&mut self, reason: Decline) {
        if !matches!(self.state, State::Proving | State::Cutting | State::Leaving) {
            return self.violated(Violation::Unexpected(Kind::No));
        }
        self.actions.push_back(Action::Declined(reason));
        self.stays |= matches!(reason, Decline::Counts | Decline::Violation);
        self.leave();
    }
}
