//! The queue pair's side: messages out and in, bulk, and what must be fast.

use super::{
    Action, Engine, Failure, Fin, Link, Message, OwnRing, Payloads, Rx, State, Tx, Violation,
};
use crate::event::LEAST_BUFFER;
use crate::message::{Head, Kind, OFFER_HEAD, Ring};
use crate::pull::{Next, OFFER_FROM, RING, Read, USUAL_OFFER};

/// Bytes that may be staged while no carrier takes any.
const HELD: u64 = 64 * 1024;

/// What becomes of a write of the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// To TCP as it is, then [`Event::TcpWritten`](crate::Event::TcpWritten).
    Tcp,
    /// So many bytes of it as one DATA, then [`Engine::message_sent`].
    Message(usize),
    /// So many bytes of it to the staging ring, then [`Engine::staged`].
    Stage {
        /// The position of the first byte; it lies at the rest of the division by [`RING`].
        position: u64,
        /// How many; they may cross the ring's end.
        length: usize,
    },
    /// There is no room now.
    Full,
    /// The stream takes no more bytes: closed or over.
    Closed,
}

/// Where the application's next bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// TCP; [`Engine::tcp_in`] says how many.
    Tcp,
    /// The next message of the queue pair below kind 16.
    Message,
    /// Bytes that have landed.
    Landed {
        /// The position of the first.
        position: u64,
        /// How many there are.
        length: u64,
    },
    /// Something that is under way.
    Nothing,
}

/// What becomes of the bytes of a message that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// They are next for the application.
    Deliver,
    /// They are next after bytes that are still on TCP: kept until
    /// [`Action::TakeAside`](crate::Action::TakeAside).
    Aside,
    /// Nobody needs them: they come again, or the stream is over.
    Drop,
}

/// Bytes in the staging ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagedBytes {
    /// The position of the first; it lies at the rest of the division by [`RING`].
    pub position: u64,
    /// How many; they do not cross the ring's end.
    pub length: usize,
}

/// A message to be posted.
#[derive(Debug)]
pub struct Post {
    /// Its kind.
    pub kind: Kind,
    /// Its own bytes.
    pub head: Head,
    /// The bytes of the stream behind them.
    pub staged: Option<StagedBytes>,
}

impl<P: Payloads> Engine<P> {
    /// What becomes of a write of `length` bytes, at least one. `has_place`: the queue pair takes a
    /// message now.
    #[inline]
    pub fn write(&self, length: usize, has_place: bool) -> Write {
        if self.outgoing.closed || self.is_over() || self.is_tcp_reset {
            return Write::Closed;
        }
        if self.outgoing.unsent() == 0 {
            if self.tx == Tx::San
                && self.link == Link::Up
                && length <= self.config.max_message
                && has_place
                && self.control.is_empty()
                && !self.is_resting()
                && self.retained.offered() == 0
                && self.retained.has_room()
            {
                return Write::Message(length);
            }
            if self.tx == Tx::Raw && self.link != Link::Draining && self.frames.is_empty() {
                return Write::Tcp;
            }
        }
        self.stage(length)
    }

    fn stage(&self, length: usize) -> Write {
        let is_san = self.tx == Tx::San && self.link == Link::Up;
        let used = self.outgoing.accepted - self.retained.ring_low(self.outgoing.sent);
        let held = self.outgoing.unsent();
        // The bound may have been lowered below what is there.
        let room = self.config.send_buffer.saturating_sub(used);
        let room = if is_san {
            room
        } else {
            room.min(HELD.saturating_sub(held))
        };
        match usize::try_from(room).unwrap_or(usize::MAX).min(length) {
            0 => Write::Full,
            length => Write::Stage {
                position: self.outgoing.accepted,
                length,
            },
        }
    }

    /// The DATA that [`write`](Self::write) allowed was posted; `piece` keeps its `length` bytes.
    #[inline]
    pub fn message_sent(&mut self, length: usize, piece: P::Piece) {
        if self.has_tcp() {
            let from = self.outgoing.sent;
            self.retained.kept(from, length as u32, piece);
        } else {
            self.retained.control();
        }
        self.outgoing.sent += length as u64;
        self.outgoing.accepted += length as u64;
        if let Some(boundary) = &mut self.boundary {
            boundary.has_sent = true;
        }
    }

    /// So many bytes were staged, as [`write`](Self::write) allowed.
    #[inline]
    pub fn staged(&mut self, length: usize) {
        self.outgoing.accepted += length as u64;
    }

    /// The next message to be posted that brings no bytes and goes past those that do, when the queue
    /// pair has a place. It counts as posted.
    pub fn next_control(&mut self) -> Option<Post> {
        if self.link != Link::Up || self.is_over() {
            return None;
        }
        let message = self.control.pop_front()?;
        self.retained.control();
        Some(Post {
            kind: message.kind(),
            head: message.head(),
            staged: None,
        })
    }

    /// The next message to be posted, when the queue pair has a place. It counts as posted.
    pub fn next_message(&mut self) -> Option<Post> {
        if self.link != Link::Up || self.is_over() {
            return None;
        }
        if let Some(control) = self.next_control() {
            return Some(control);
        }
        if self.tx != Tx::San || !self.retained.has_room() || self.is_resting() {
            return None;
        }
        let unsent = self.outgoing.unsent();
        let position = self.outgoing.sent;
        // What follows an offer waits until it is read, or is an offer, too: the receiver may have taken
        // DATA from its queue before it heard of the offer, but knows of one that it has read.
        let is_offering = self.retained.offered() > 0;
        if unsent == 0 {
            return if is_offering {
                None
            } else {
                self.next_end(position)
            };
        }
        let before_urgent = self
            .outgoing
            .urgent
            .map_or(u64::MAX, |urgent| urgent - position);
        let in_ring = RING - position % RING;
        let most = unsent.min(in_ring).min(before_urgent);
        // Nobody announces acknowledgements, but DONE comes by itself: one offer, however small. Until that is read
        // what is written gathers, or small writes would be offered one by one.
        let is_crowded = self.has_tcp() && self.retained.is_crowded();
        let is_bulk = if is_offering {
            // More joins it meanwhile, and the peer has something to read: so it waits until it is a whole
            // offer, or nothing can join it any more, or all before it is read.
            most >= USUAL_OFFER
                || most == in_ring && most < unsent
                || most >= OFFER_FROM && (most < unsent || self.takes_no_more())
        } else {
            most >= OFFER_FROM || is_crowded && self.config.may_offer
        };
        if is_offering && !is_bulk {
            return None;
        }
        if let Some(boundary) = &mut self.boundary {
            boundary.has_sent = true;
        }
        if before_urgent == 0 {
            self.outgoing.urgent = None;
            return Some(self.post(Message::Urgent(0), 1));
        }
        if is_bulk && self.config.may_offer {
            match self.ring {
                OwnRing::Open => {
                    // No crumb is left behind, which would have to wait.
                    let length = if most < USUAL_OFFER + OFFER_FROM {
                        most as u32
                    } else {
                        USUAL_OFFER as u32
                    };
                    return Some(self.post(
                        Message::Offer {
                            position,
                            length,
                            first: &[],
                        },
                        0,
                    ));
                }
                OwnRing::Closed => {
                    self.ring = OwnRing::Opening;
                    self.actions.push_back(Action::OpenRing);
                }
                OwnRing::Opening => {}
            }
        }
        let length = most.min(self.config.max_message as u64);
        Some(self.post(Message::Data(&[]), length as usize))
    }

    /// Whether nothing can join what is staged: the application writes no more, or there is no room.
    fn takes_no_more(&self) -> bool {
        self.outgoing.closed || self.stage(1) == Write::Full
    }

    fn next_end(&mut self, position: u64) -> Option<Post> {
        if !self.outgoing.closed || self.outgoing.fin != Fin::None {
            return None;
        }
        self.outgoing.fin = Fin::End;
        if let Some(boundary) = &mut self.boundary {
            boundary.has_sent = true;
        }
        self.retained.end(position);
        Some(Post {
            kind: Kind::End,
            head: Message::End.head(),
            staged: None,
        })
    }

    /// A message with bytes of the ring: `length` of them, or as an offer has it.
    fn post(&mut self, message: Message<'_>, length: usize) -> Post {
        let position = self.outgoing.sent;
        let kind = message.kind();
        let (head, in_message) = match message {
            Message::Offer { length, .. } => {
                self.retained.offer(position, length);
                self.outgoing.sent += u64::from(length);
                let room = self.config.max_message.saturating_sub(OFFER_HEAD);
                // Something is left to be read, or it was no offer.
                (message.head(), room.min(length as usize - 1))
            }
            _ => {
                if self.has_tcp() {
                    self.retained.staged(position, length as u32);
                } else {
                    // It is copied to where it is sent from.
                    self.retained.control();
                }
                self.outgoing.sent += length as u64;
                (Message::Data(&[]).head(), length)
            }
        };
        Post {
            kind,
            head,
            staged: Some(StagedBytes {
                position,
                length: in_message,
            }),
        }
    }

    /// The message that was given out last was not posted after all. It waits, and no other that brings
    /// bytes is asked for; [`posted_late`](Self::posted_late) follows.
    pub fn not_posted(&mut self) {
        self.retained.not_posted();
    }

    /// A message that had waited was posted. `is_control`: it was given out by
    /// [`next_control`](Self::next_control).
    pub fn posted_late(&mut self, is_control: bool) {
        self.retained.posted_late(!is_control);
    }

    /// Whether [`Event::QpUnacknowledged`](crate::Event::QpUnacknowledged) would say anything new.
    #[inline]
    pub fn awaits_acknowledgements(&self) -> bool {
        !self.retained.is_empty()
    }

    /// Whether it is time for that, where the shell has to take trouble for it: soon there is no room for
    /// what is kept, or the stream ends.
    #[inline]
    pub fn needs_acknowledgements(&self) -> bool {
        if !self.retained.waits_for_acknowledgement() {
            return false;
        }
        let used = || self.outgoing.accepted - self.retained.ring_low(self.outgoing.sent);
        self.retained.is_crowded() || self.outgoing.closed || used() * 2 > self.config.send_buffer
    }

    /// Whether bytes may be offered to the peer of the queue pair that comes
    /// ([`Config::may_offer`](crate::Config::may_offer)).
    pub fn set_may_offer(&mut self, may_offer: bool) {
        self.config.may_offer = may_offer;
    }

    /// Bounds what may be staged from now on ([`Config::send_buffer`](crate::Config::send_buffer)), rounded
    /// to what can be. What is staged already stays.
    pub fn set_send_buffer(&mut self, bytes: u64) {
        self.config.send_buffer = bytes.clamp(LEAST_BUFFER, RING);
    }

    /// Bounds what may be held for the application from now on
    /// ([`Config::receive_buffer`](crate::Config::receive_buffer)), rounded to what can be. What is held
    /// already stays.
    pub fn set_receive_buffer(&mut self, bytes: u64) {
        self.config.receive_buffer = bytes.clamp(LEAST_BUFFER, RING);
    }

    /// How many bytes may be staged, and how many held.
    pub fn buffers(&self) -> (u64, u64) {
        (self.config.send_buffer, self.config.receive_buffer)
    }

    /// Bytes that were written and that no carrier has had, or that were offered and not read.
    pub fn unsent(&self) -> u64 {
        self.outgoing.unsent() + self.retained.offered()
    }

    /// Whether bytes wait that were written: to be sent, or, of those that were offered, to be read.
    pub fn has_unsent(&self) -> bool {
        self.outgoing.unsent() > 0 || self.retained.offered() > 0
    }

    /// Bytes that were offered and that the peer has not read.
    pub fn unread(&self) -> u64 {
        self.retained.offered()
    }

    /// The shell takes the staging ring away from the peer, since nothing is in it; another one is asked
    /// for when it is needed. `false`: it is in use.
    pub fn close_ring(&mut self) -> bool {
        let is_kept = self.has_tcp() && !self.retained.is_empty();
        if self.has_unsent() || is_kept || self.ring == OwnRing::Opening {
            return false;
        }
        self.ring = OwnRing::Closed;
        true
    }

    /// A number that grows as bytes that were written leave, and as offered ones are read.
    pub fn progress(&self) -> u64 {
        self.outgoing.sent * 2 - self.retained.offered()
    }

    /// How many bytes may be taken from messages before others that were offered: where
    /// [`source`](Self::source) says so. More may be there, which come after those.
    pub fn message_limit(&self) -> u64 {
        match self.landing.next(self.incoming.position) {
            Next::Message(most) => most,
            Next::Landed(_) => 0,
        }
    }

    /// Whether the peer has offered bytes that were not taken yet.
    pub fn has_bulk(&self) -> bool {
        !self.landing.is_empty()
    }

    /// Where the application's next bytes come from.
    #[inline]
    pub fn source(&self) -> Source {
        if self.rx == Rx::Raw {
            return if self.link == Link::Draining {
                Source::Message
            } else {
                Source::Tcp
            };
        }
        if self.landing.is_empty() {
            return if self.link == Link::None {
                Source::Nothing
            } else {
                Source::Message
            };
        }
        let position = self.incoming.position;
        match self.landing.next(position) {
            Next::Message(_) => Source::Message,
            Next::Landed(0) => Source::Nothing,
            Next::Landed(length) => Source::Landed { position, length },
        }
    }

    /// DATA of `length` bytes is taken from the queue pair: when [`source`](Self::source) says so,
    /// and while it is drained.
    #[inline]
    pub fn data(&mut self, length: usize) -> Keep {
        let is_plain = self.rx == Rx::Framed && self.landing.is_empty() && !self.incoming.eof;
        if is_plain && length > 0 && !self.is_over() {
            self.incoming.position += length as u64;
            return Keep::Deliver;
        }
        self.data_slowly(length)
    }

    fn data_slowly(&mut self, length: usize) -> Keep {
        let n = length as u64;
        if self.is_over() {
            return Keep::Drop;
        }
        if length == 0 {
            let why = crate::message::MessageError::Length {
                kind: Kind::Data,
                len: 0,
            };
            self.violated(Violation::Message(why));
            return Keep::Drop;
        }
        if self.incoming.eof || self.incoming.aside_end {
            self.violated(Violation::AfterEnd);
            return Keep::Drop;
        }
        if self.rx == Rx::Raw {
            return self.data_aside(n);
        }
        match self.landing.next(self.incoming.position) {
            Next::Message(most) if n <= most => {
                self.incoming.position += n;
                Keep::Deliver
            }
            // The peer has everything from the offer on, and sends it again.
            Next::Landed(_) if self.link == Link::Draining => Keep::Drop,
            _ => {
                self.violated(Violation::Pull(crate::PullError::DataInOffer));
                Keep::Drop
            }
        }
    }

    /// DATA of an ended queue pair, while bytes before it are still on TCP.
    fn data_aside(&mut self, n: u64) -> Keep {
        let bound = match &self.boundary {
            Some(boundary) if boundary.is_sure && self.link == Link::Draining => boundary.bound,
            _ => None,
        };
        let Some(bound) = bound else {
            self.violated(Violation::DataBeforeGo);
            return Keep::Drop;
        };
        match self.landing.next(bound + self.incoming.aside) {
            Next::Message(most) if n <= most => {
                self.incoming.aside += n;
                Keep::Aside
            }
            _ => Keep::Drop,
        }
    }

    /// The application, or the shell for it, took so many bytes that had landed.
    pub fn landed_taken(&mut self, length: u64) {
        self.incoming.position += length;
        self.landing.taken(self.incoming.position);
    }

    /// The next READ to be posted.
    pub fn next_read(&mut self) -> Option<Read> {
        let is_none = self.landing.is_empty() || self.is_resting();
        if self.rx == Rx::Raw || self.link != Link::Up || is_none {
            return None;
        }
        self.landing
            .read(self.incoming.position, self.config.receive_buffer)
    }

    pub(super) fn read_done(&mut self, position: u64, length: u32) {
        if let Some(length) = self.landing.landed(position, length)
            && self.link == Link::Up
        {
            // One DONE for many READs, where the queue pair is slow.
            if let Some(Message::Done { length: before }) = self.control.back_mut() {
                *before += length;
            } else {
                self.control.push_back(Message::Done { length });
            }
        }
    }

    pub(super) fn ring_opened(&mut self, ring: Ring) {
        if self.ring == OwnRing::Opening {
            self.ring = OwnRing::Open;
            self.control.push_back(Message::Ring(ring));
        } else {
            self.actions.push_back(Action::CloseRing);
        }
    }

    pub(super) fn qp_message(&mut self, kind: u8, bytes: &[u8]) {
        if self.link == Link::None {
            return;
        }
        let message = match Message::parse(kind, bytes) {
            Ok(message) => message,
            Err(why) => return self.violated(Violation::Message(why)),
        };
        match message {
            // The shell gives the bytes to nobody; `data` is the way.
            Message::Data(bytes) => drop(self.data(bytes.len())),
            Message::End => self.on_end(),
            Message::Urgent(byte) => self.on_urgent(byte),
            // Who has proved nothing yet can end nothing: a reset of TCP will say the same.
            Message::Abort if !self.may_carry() => {
                self.violated(Violation::Unexpected(Kind::Abort));
            }
            Message::Abort => self.fail(Failure::Reset),
            Message::Prepare { what, place } => self.on_prepare(what, place),
            Message::Ready { what, read } => self.on_ready(what, read),
            Message::Verified => self.on_verified(),
            Message::Go => self.on_go(),
            Message::No(reason) => self.on_no(reason),
            Message::Ring(ring) => self.on_ring(ring),
            Message::Offer {
                position,
                length,
                first,
            } => {
                self.on_offer(position, length, first.len());
            }
            Message::Done { length } => {
                if !self.retained.done(length) {
                    self.violated(Violation::DoneForNothing);
                }
            }
            Message::Mark { position, byte } => self.on_mark(position, byte),
            Message::Suspend { reached } => self.on_suspend(reached),
            Message::Suspended { reached } => self.on_suspended(reached),
            Message::Resumed => self.on_resumed(),
        }
    }

    fn on_end(&mut self) {
        if self.incoming.eof || self.incoming.aside_end {
            return self.violated(Violation::AfterEnd);
        }
        if self.rx == Rx::Framed {
            match self.landing.next(self.incoming.position) {
                Next::Message(u64::MAX) => self.incoming.eof = true,
                _ if self.link == Link::Draining => {}
                _ => self.violated(Violation::Pull(crate::PullError::DataInOffer)),
            }
            return;
        }
        let is_sure = self
            .boundary
            .as_ref()
            .is_some_and(|boundary| boundary.is_sure);
        if !is_sure || self.link != Link::Draining {
            return self.violated(Violation::DataBeforeGo);
        }
        // Behind a gap it comes again.
        self.incoming.aside_end = self.landing.is_empty();
    }

    fn on_urgent(&mut self, byte: u8) {
        if self.state != State::SanOnly {
            return self.violated(Violation::UrgentBesideTcp);
        }
        if self.data(1) == Keep::Deliver {
            self.actions.push_back(Action::Urgent(byte));
        }
    }

    fn on_mark(&mut self, position: u64, byte: u8) {
        if self.state != State::SanOnly {
            return self.violated(Violation::UrgentBesideTcp);
        }
        if self.incoming.eof {
            return self.violated(Violation::AfterEnd);
        }
        // It may be told of a byte that was read already: others than those who read may hear it.
        if position >= self.incoming.position {
            self.actions.push_back(Action::Mark { position, byte });
        }
    }

    /// Whether messages about bulk may come: only where DATA may.
    fn may_carry(&self) -> bool {
        self.rx == Rx::Framed
            || self
                .boundary
                .as_ref()
                .is_some_and(|boundary| boundary.is_sure)
    }

    fn on_ring(&mut self, ring: Ring) {
        if !self.may_carry() {
            return self.violated(Violation::DataBeforeGo);
        }
        if self.has_asked_for_rest() {
            return;
        }
        match self.landing.ring(ring.length()) {
            Ok(()) => self.actions.push_back(Action::PeerRing(ring)),
            Err(why) => self.violated(Violation::Pull(why)),
        }
    }

    fn on_offer(&mut self, position: u64, length: u32, first: usize) {
        if !self.may_carry() {
            return self.violated(Violation::DataBeforeGo);
        }
        if self.incoming.eof {
            return self.violated(Violation::AfterEnd);
        }
        // It crossed the question, and its sender withdraws it.
        if self.has_asked_for_rest() {
            return;
        }
        let read = match &self.boundary {
            Some(boundary) if self.rx == Rx::Raw => boundary.bound.unwrap_or(position),
            _ => self.incoming.position,
        };
        if let Err(why) = self.landing.offer(read, position, length, first) {
            self.violated(Violation::Pull(why));
        }
    }
}
