//! The stream rests while one of its ends moves to another process (`docs/protocol.md`, 'A stream that
//! moves to another process'). Only a stream without TCP underneath does: another one goes down first.
//!
//! The end that moves asks (SUSPEND), the other one answers (SUSPENDED). Each has its READs done before,
//! and takes back what it has offered and the other has not read. From its question, or its answer, on
//! an end sends nothing more, until whoever has asked says RESUMED: from the new process, or from the
//! old one, where the move came to nothing.

use std::fmt;
use std::time::Instant;

use super::{Action, Config, Engine, Fin, Message, OwnRing, Payloads, State, Violation};
use crate::message::Kind;
use crate::pull::RING;

/// How this end's wish to move stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Own {
    #[default]
    None,
    /// It asks when its READs are done.
    Wanted,
    Asked,
    Granted,
    /// It has asked, and does not move; the answer is still to come.
    Withdrawn,
}

/// How the peer's wish to move stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Peer {
    #[default]
    None,
    /// It is answered when our READs are done.
    Asked,
    /// The same, and it has taken the question back.
    Withdrawn,
    /// It was answered.
    Rests,
}

/// Of both.
#[derive(Debug, Default)]
pub(super) struct Rest {
    own: Own,
    peer: Peer,
    /// An urgent byte that the peer is told of when the stream goes on.
    pub(super) mark: Option<(u64, u8)>,
}

/// Where a stream stands that another process takes up. The bytes that belong to it go beside it: those
/// that have landed, and those that are staged from `sent` to `accepted`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rested {
    /// Bytes of the peer's stream that were taken from carriers.
    pub received: u64,
    /// The end of the peer's stream was taken, too.
    pub eof: bool,
    /// Pieces of the peer's stream that have landed and were not taken: first and end of each, in order.
    pub landed: Vec<(u64, u64)>,
    /// Bytes of our stream that the queue pair has had.
    pub sent: u64,
    /// Bytes that the application has written.
    pub accepted: u64,
    /// The application writes no more.
    pub closed: bool,
    /// END was sent.
    pub has_sent_end: bool,
    /// The position of the urgent byte, while it waits to be sent.
    pub urgent: Option<u64>,
    /// The position and the byte, while the peer was not told of it.
    pub mark: Option<(u64, u8)>,
}

/// What cannot be of a stream that another process is to take up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadRested(pub &'static str);

impl fmt::Display for BadRested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be", self.0)
    }
}

impl std::error::Error for BadRested {}

/// No stream gets there.
const MOST: u64 = 1 << 62;

/// So far behind what was read no piece ends: before it there may be a window of messages, and what was
/// held; and the piece itself may be the beginning of an offer that was not read.
const FARTHEST: u64 = 8 * RING;

impl Rested {
    /// Whether it is of a stream that can be.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), BadRested> {
        let bad = |what| Err(BadRested(what));
        if self.received > MOST || self.accepted > MOST || self.sent > self.accepted {
            return bad("a position");
        }
        if self.accepted - self.sent > RING {
            return bad("what is staged");
        }
        if self.has_sent_end && !(self.closed && self.sent == self.accepted) {
            return bad("an end that was sent");
        }
        let mut end = self.received;
        for (from, to) in &self.landed {
            if *from < end || to <= from || to - self.received > FARTHEST || self.eof {
                return bad("what has landed");
            }
            end = *to;
        }
        let is_staged = |position: u64| position >= self.sent && position < self.accepted;
        if !self.urgent.is_none_or(is_staged) {
            return bad("an urgent byte");
        }
        match self.mark {
            Some((position, _)) if position >= self.accepted => bad("a mark"),
            _ => Ok(()),
        }
    }
}

impl<P: Payloads> Engine<P> {
    /// Whether one of the ends moves, and nothing is sent meanwhile.
    #[inline]
    pub fn is_resting(&self) -> bool {
        self.rest.own != Own::None || self.rest.peer != Peer::None
    }

    /// Whether it is the peer that moves.
    pub fn peer_moves(&self) -> bool {
        self.rest.peer != Peer::None
    }

    /// Whether this end has asked: what the peer offers from then on it takes back.
    pub fn has_asked_for_rest(&self) -> bool {
        matches!(self.rest.own, Own::Asked | Own::Withdrawn)
    }

    /// Whether both ends are ready for this one to move: [`Engine::rested`] says where it stands.
    pub fn may_move(&self) -> bool {
        self.rest.own == Own::Granted
    }

    /// This end is to move. Then [`Action::MayMove`] or [`Action::MayNotMove`]. `false`: it cannot now, since
    /// the peer moves, or it does already, or the stream is over.
    pub fn suspend(&mut self, now: Instant) -> bool {
        if self.state != State::SanOnly || self.is_resting() {
            return false;
        }
        self.rest.own = Own::Wanted;
        self.settle(now);
        true
    }

    /// This end does not move after all.
    pub fn resume(&mut self, now: Instant) {
        let own = match self.rest.own {
            Own::Wanted => Own::None,
            Own::Asked => {
                self.control.push_back(Message::Resumed);
                Own::Withdrawn
            }
            Own::Granted => {
                self.control.push_back(Message::Resumed);
                Own::None
            }
            own @ (Own::None | Own::Withdrawn) => own,
        };
        self.rest.own = own;
        self.go_on();
        self.settle(now);
    }

    /// Where the stream stands, while [`Engine::may_move`] holds.
    pub fn rested(&self) -> Option<Rested> {
        let landed = self.landing.pieces(self.incoming.position).collect();
        self.may_move().then_some(Rested {
            received: self.incoming.position,
            eof: self.incoming.eof,
            landed,
            sent: self.outgoing.sent,
            accepted: self.outgoing.accepted,
            closed: self.outgoing.closed,
            has_sent_end: self.outgoing.fin == Fin::End,
            urgent: self.outgoing.urgent,
            mark: self.rest.mark,
        })
    }

    /// A stream on a queue pair that another process had: the peer is told first that it goes on.
    ///
    /// # Errors
    /// [`BadRested`].
    pub fn taken_up(config: Config, rested: &Rested, now: Instant) -> Result<Self, BadRested> {
        rested.check()?;
        let mut engine = Self::new(config, now);
        engine.incoming.position = rested.received;
        engine.incoming.eof = rested.eof;
        for piece in &rested.landed {
            engine.landing.brought(*piece);
        }
        engine.outgoing.sent = rested.sent;
        engine.outgoing.accepted = rested.accepted;
        engine.outgoing.closed = rested.closed;
        engine.outgoing.urgent = rested.urgent;
        if rested.has_sent_end {
            engine.outgoing.fin = Fin::End;
        }
        engine.control.push_back(Message::Resumed);
        engine.rest.mark = rested.mark;
        engine.go_on();
        Ok(engine)
    }

    /// Asks, or answers, if it is time.
    pub(super) fn rest_further(&mut self) {
        let is_due =
            self.rest.own == Own::Wanted || matches!(self.rest.peer, Peer::Asked | Peer::Withdrawn);
        if !is_due || self.landing.is_reading() {
            return;
        }
        let position = self.incoming.position;
        let reached = self.landing.reached(position);
        self.landing.rest(position);
        if self.rest.own == Own::Wanted {
            self.control.push_back(Message::Suspend { reached });
            self.rest.own = Own::Asked;
        }
        match self.rest.peer {
            Peer::Asked => self.rest.peer = Peer::Rests,
            Peer::Withdrawn => self.rest.peer = Peer::None,
            Peer::None | Peer::Rests => return,
        }
        self.control.push_back(Message::Suspended { reached });
        self.go_on();
    }

    pub(super) fn on_suspend(&mut self, reached: u64) {
        if self.state != State::SanOnly || self.rest.peer != Peer::None {
            return self.violated(Violation::Unexpected(Kind::Suspend));
        }
        match self.rest.own {
            Own::None | Own::Withdrawn => {}
            // Both ends would move, which cannot be.
            Own::Wanted => {
                self.rest.own = Own::None;
                self.actions.push_back(Action::MayNotMove);
            }
            Own::Asked => {
                self.rest.own = Own::Withdrawn;
                self.control.push_back(Message::Resumed);
                self.actions.push_back(Action::MayNotMove);
            }
            Own::Granted => return self.violated(Violation::Unexpected(Kind::Suspend)),
        }
        self.rest.peer = Peer::Asked;
        self.take_back(reached);
    }

    pub(super) fn on_suspended(&mut self, reached: u64) {
        match self.rest.own {
            Own::Asked => {
                self.rest.own = Own::Granted;
                self.actions.push_back(Action::MayMove);
            }
            Own::Withdrawn => self.rest.own = Own::None,
            _ => return self.violated(Violation::Unexpected(Kind::Suspended)),
        }
        self.take_back(reached);
        self.go_on();
    }

    pub(super) fn on_resumed(&mut self) {
        self.rest.peer = match self.rest.peer {
            Peer::Asked => Peer::Withdrawn,
            Peer::Rests => Peer::None,
            _ => return self.violated(Violation::Unexpected(Kind::Resumed)),
        };
        self.go_on();
    }

    /// What was offered and not read is sent again, from another ring: the peer has it up to `reached`, or
    /// has not heard of it.
    fn take_back(&mut self, reached: u64) {
        self.ring = OwnRing::Closed;
        self.actions.push_back(Action::CloseRing);
        if self.retained.offered() == 0 {
            return;
        }
        let to = reached.max(self.retained.ring_low(self.outgoing.sent));
        if to > self.outgoing.sent {
            return self.violated(Violation::ResumeBeyond);
        }
        self.retained.withdraw();
        self.outgoing.sent = to;
    }

    /// Says what had to wait, if nothing rests any more.
    fn go_on(&mut self) {
        if self.is_resting() {
            return;
        }
        if let Some((position, byte)) = self.rest.mark.take() {
            self.mark(position, byte);
        }
    }
}
