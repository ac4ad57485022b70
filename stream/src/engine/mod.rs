//! The machine: what a stream does when something happens.

mod data;
mod down;
mod rest;
mod tcp;
#[cfg(test)]
mod tests;
mod up;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use self::data::{Keep, Post, Source, StagedBytes, Write};
pub use self::rest::{BadRested, Rested};
pub use self::tcp::{TcpIn, TcpOut};
use crate::boundary::Boundary;
use crate::event::{Action, Config, Counts, Event, Failure, Refusal, Route, State, Violation};
use crate::frame::{FRAME, Mac, Role};
use crate::half::{Fin, Incoming, Outgoing};
use crate::message::{Decline, Message, What};
use crate::pull::Landing;
use crate::retained::Retained;
use crate::timers::{Passed, Thresholds, Timer, Timers, Traffic};

/// A dial has its turn in this time, or is given up.
const TURN: Duration = Duration::from_secs(60);

/// A dial is answered in this time, or given up.
const DIAL: Duration = Duration::from_secs(1);

/// A queue pair is in use after this time, or given up.
const CHANGE: Duration = Duration::from_secs(5);

/// The peer says on TCP where it stands in this time, or the stream is broken.
const RESUME: Duration = Duration::from_secs(30);

/// How many times the threshold each dial needs. After the last the accepting end does not dial.
const DIALS: [u32; 3] = [2, 8, 64];

/// As many bytes of a tag are no bytes of the application: the beginning of a frame whose writer died.
pub(crate) const LEAST_FRAME: usize = 8;

/// What the engine keeps for its shell, and does not look into.
pub trait Payloads {
    /// The bytes of one message, for as long as the queue pair may need them again.
    type Piece: AsRef<[u8]>;
    /// The key of one excursion.
    type Key: Mac;
}

/// Which carrier takes the application's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tx {
    /// TCP.
    Raw,
    /// None: a place was asked for, or something else must be heard first.
    Held,
    /// The queue pair.
    San,
    /// None: the peer must say where to go on.
    WaitResume,
}

/// Which carrier brings the peer's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rx {
    /// TCP.
    Raw,
    /// The queue pair: on TCP, nothing but a RESUME can come.
    Framed,
}

/// The queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    None,
    Up,
    /// It ends; what had come is being told.
    Draining,
}

/// A rule that is left out, to see that a test notices.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// Frames are written at places that were not confirmed.
    NoReady,
    /// The position is told before the receive queue is empty.
    Early,
    /// Sending goes on at what was acknowledged, not at what the peer wants.
    FromAcknowledged,
    /// The accepting end sends before it hears GO.
    NoGo,
}

/// One stream. See the crate.
#[derive(Debug)]
pub struct Engine<P: Payloads> {
    config: Config,
    state: State,
    tx: Tx,
    rx: Rx,
    link: Link,
    outgoing: Outgoing,
    incoming: Incoming,
    retained: Retained<P::Piece>,
    landing: Landing,
    /// The excursion that is under way, until no place of it is open.
    boundary: Option<Boundary<P::Key>>,
    /// Frames that stand before the next raw byte on TCP, and how much of the first is out.
    frames: VecDeque<[u8; FRAME]>,
    frame_written: usize,
    /// Messages that stand before the next byte on the queue pair.
    control: VecDeque<Message<'static>>,
    actions: VecDeque<Action>,
    /// Bytes on TCP, frames included.
    counts: Counts,
    /// The peer's RESUME came while the queue pair was there.
    resume: Option<u64>,
    /// FIN came.
    is_tcp_over: bool,
    /// TCP was reset, and what the queue pair had brought is not taken in yet.
    is_tcp_reset: bool,
    /// No queue pair any more.
    stays: bool,
    ring: OwnRing,
    /// One of the ends moves to another process.
    rest: rest::Rest,
    timers: Timers,
    traffic: Traffic,
    dials: usize,
    /// No dial before.
    not_before: Option<Instant>,
    is_old: bool,
    #[cfg(test)]
    pub(crate) mutation: Option<Mutation>,
}

/// The staging ring as the peer knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OwnRing {
    Closed,
    /// The shell was asked to open it.
    Opening,
    Open,
}

impl<P: Payloads> Engine<P> {
    /// A stream that has just been connected.
    pub fn new(config: Config, now: Instant) -> Self {
        let is_direct = config.route == Route::Direct;
        let mut engine = Self {
            config,
            state: if is_direct {
                State::SanOnly
            } else {
                State::Tcp
            },
            tx: if is_direct { Tx::San } else { Tx::Raw },
            rx: if is_direct { Rx::Framed } else { Rx::Raw },
            link: if is_direct { Link::Up } else { Link::None },
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            retained: Retained::default(),
            landing: Landing::default(),
            boundary: None,
            frames: VecDeque::new(),
            frame_written: 0,
            control: VecDeque::new(),
            actions: VecDeque::new(),
            counts: Counts {
                written: 0,
                read: 0,
            },
            resume: None,
            is_tcp_over: false,
            is_tcp_reset: false,
            stays: false,
            ring: OwnRing::Closed,
            rest: rest::Rest::default(),
            timers: Timers::default(),
            traffic: Traffic::default(),
            dials: 0,
            not_before: None,
            is_old: false,
            #[cfg(test)]
            mutation: None,
        };
        // One that lives on a queue pair alone keeps only what it has offered.
        if !is_direct {
            engine.timers.set(Timer::Age, now + config.thresholds.age);
        }
        engine
    }

    /// Takes in what happened at `now`. What follows from it is asked for afterwards.
    pub fn handle(&mut self, event: Event<'_, P::Key>, now: Instant) {
        if self.is_over() && !matches!(event, Event::TcpShutDown) {
            return;
        }
        match event {
            Event::TcpBytes(n) => self.tcp_bytes(n),
            Event::TcpPeeked { bytes, is_end } => self.tcp_peeked(bytes, is_end),
            Event::TcpWritten(n) => self.tcp_written(n),
            Event::TcpShutDown => self.outgoing.fin = Fin::Tcp,
            Event::TcpFin => self.tcp_fin(),
            Event::TcpReset => self.tcp_reset(),
            Event::QpUp {
                key,
                generation,
                counts,
            } => {
                self.qp_up(Boundary::new(key, generation), counts, now);
            }
            Event::Dialled => self.dialled(now),
            Event::Refused(refusal) => self.refused(refusal, now),
            Event::QpMessage { kind, bytes } => self.qp_message(kind, bytes),
            Event::QpUnacknowledged(count) => self.retained.unacknowledged(count),
            Event::QpBroken => self.leave(),
            Event::QpDrained => self.drained(),
            Event::ReadDone { position, length } => self.read_done(position, length),
            Event::RingOpened(ring) => self.ring_opened(ring),
            Event::Close => self.close(),
            Event::Abort => self.fail(Failure::Aborted),
            Event::Urgent(byte) => self.urgent(byte),
            Event::WantDown { for_good } => self.want_down(for_good),
            Event::Timer => self.timer(now),
        }
        self.settle(now);
    }

    /// Takes in what went over TCP past the engine. Only a stream that is on TCP, with nothing of a
    /// change under way, may be used in this way.
    pub fn passed(&mut self, passed: Passed, now: Instant) {
        if self.state != State::Tcp || self.is_tcp_over {
            return;
        }
        self.counts.read += passed.read;
        self.counts.written += passed.written;
        self.incoming.position += passed.read;
        self.outgoing.sent += passed.written;
        self.outgoing.accepted = self.outgoing.accepted.max(self.outgoing.sent);
        self.retained.resume(self.outgoing.sent);
        self.traffic
            .passed(passed.read + passed.written, passed.turns);
        self.is_old |= passed.is_old;
        self.settle(now);
    }

    /// What is to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Timer`] is wanted.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Where the stream is.
    #[inline]
    pub fn state(&self) -> State {
        self.state
    }

    /// How often the accepting end has dialled since the stream was made, or was last on the queue pair.
    pub fn dials(&self) -> usize {
        self.dials
    }

    /// How long the host of the peer is left alone, if it is.
    pub fn pause(&self, now: Instant) -> Option<Duration> {
        let until = self.not_before.filter(|until| *until > now)?;
        Some(until - now)
    }

    /// Why the stream broke, if it did.
    pub fn failure(&self) -> Option<Failure> {
        match self.state {
            State::Broken(failure) => Some(failure),
            _ => None,
        }
    }

    /// Whether TCP was reset. The stream breaks when what the queue pair had brought is taken in.
    pub fn is_reset(&self) -> bool {
        self.is_tcp_reset
    }

    /// Bytes of the peer's stream that were taken from carriers, and whether its end was.
    pub fn received(&self) -> (u64, bool) {
        (self.incoming.position, self.incoming.eof)
    }

    /// Bytes that the application has written.
    pub fn accepted(&self) -> u64 {
        self.outgoing.accepted
    }

    fn is_over(&self) -> bool {
        matches!(self.state, State::Ended | State::Broken(_))
    }

    fn has_tcp(&self) -> bool {
        self.config.route == Route::Upgrade
    }

    fn set_state(&mut self, state: State) {
        if self.state != state {
            self.state = state;
            self.actions.push_back(Action::Changed(state));
        }
    }

    /// What follows from the whole, whatever happened.
    fn settle(&mut self, now: Instant) {
        if self.is_over() {
            return;
        }
        self.pass_bound();
        self.rest_further();
        self.maybe_cut();
        if self.state == State::Cutting && self.tx == Tx::San {
            self.timers.stop(Timer::Change);
            // Dials that lead nowhere are dialled less and less often, also if they are answered.
            self.dials = 0;
            // Should it come back, its age alone is no reason to go again.
            self.is_old = false;
            self.set_state(State::San);
        }
        if self.state == State::Leaving && self.is_clean() {
            self.boundary = None;
            self.retained.stop();
            self.traffic.came_back();
            self.set_state(State::Tcp);
        }
        self.await_resume(now);
        let has_ended = self.outgoing.closed || self.incoming.eof;
        let is_plain = matches!(self.state, State::Tcp | State::Inviting | State::Dialling);
        if is_plain && (self.stays || has_ended) {
            self.stop_connecting();
            self.set_state(State::TcpForGood);
        }
        let is_on_tcp = self.state == State::TcpForGood;
        if is_on_tcp && self.incoming.eof && self.outgoing.fin == Fin::Tcp {
            self.set_state(State::Ended);
        }
        let is_through = self.tx == Tx::San && self.incoming.eof && self.outgoing.fin == Fin::End;
        if is_through
            && self.link == Link::Up
            && self.retained.is_empty()
            && self.control.is_empty()
            && !self.is_resting()
        {
            self.ended();
        }
        if self.state == State::Tcp {
            self.maybe_connect(now);
        }
    }

    /// Both ends of the stream went over the queue pair.
    fn ended(&mut self) {
        if self.link == Link::Up {
            self.actions.push_back(Action::QpClose);
        }
        self.link = Link::None;
        self.timers = Timers::default();
        self.set_state(State::Ended);
    }

    /// The stream is over.
    fn fail(&mut self, failure: Failure) {
        if self.is_over() {
            return;
        }
        self.stop_connecting();
        match failure {
            // The peer's end of TCP is gone; nothing has to be told.
            Failure::PeerGone => {
                if self.link == Link::Up {
                    self.actions.push_back(Action::QpClose);
                }
            }
            _ => self.actions.push_back(Action::Reset),
        }
        self.link = Link::None;
        self.control.clear();
        self.frames.clear();
        self.timers = Timers::default();
        self.set_state(State::Broken(failure));
    }

    /// The peer broke the protocol. Before both ends have proved who they are it has lost the queue
    /// pair, and it may be somebody who lied about being the peer; later it has lost the stream.
    fn violated(&mut self, violation: Violation) {
        let is_enabled = self
            .boundary
            .as_ref()
            .is_none_or(|boundary| boundary.is_enabled);
        if is_enabled || self.link == Link::None {
            return self.fail(Failure::Protocol(violation));
        }
        self.stays = true;
        if self.link == Link::Up {
            self.decline(Decline::Violation);
        }
    }

    /// No place is open, nothing but raw bytes can come, and what had to be sent again is out: a queue
    /// pair may come, which keeps what it is sent in the place of that.
    fn is_clean(&self) -> bool {
        self.tx == Tx::Raw
            && self.rx == Rx::Raw
            && self.link == Link::None
            && self.frames.is_empty()
            && self.retained.is_empty()
            && self.boundary.as_ref().is_none_or(Boundary::is_settled)
    }

    fn close(&mut self) {
        self.outgoing.closed = true;
        // A FIN and a frame do not go together: who has asked for a proof lets it be. From a cut
        // there is no way back, and the end goes over the queue pair.
        if self.state == State::Proving {
            self.leave();
        }
    }

    fn urgent(&mut self, byte: u8) {
        match self.outgoing.accepted.checked_sub(1) {
            Some(position) if position >= self.outgoing.sent && !self.has_tcp() => {
                self.outgoing.urgent = Some(position);
                self.mark(position, byte);
            }
            // Real TCP has real urgent data.
            _ => self.want_down(true),
        }
    }

    /// Tells the peer now that an urgent byte comes. Of several that wait it is told of the last.
    fn mark(&mut self, position: u64, byte: u8) {
        if !self.config.may_mark || self.is_over() {
            return;
        }
        if self.is_resting() {
            self.rest.mark = Some((position, byte));
            return;
        }
        let mark = Message::Mark { position, byte };
        let waiting = |message: &&mut Message<'_>| matches!(message, Message::Mark { .. });
        match self.control.iter_mut().find(waiting) {
            Some(before) => *before = mark,
            None => self.control.push_back(mark),
        }
    }

    fn want_down(&mut self, for_good: bool) {
        if self.has_tcp() {
            self.stays |= for_good;
            self.leave();
        }
    }

    fn timer(&mut self, now: Instant) {
        while let Some(timer) = self.timers.expired(now) {
            match timer {
                Timer::Dial => self.refused(Refusal::NotNow, now),
                Timer::Change => self.leave(),
                Timer::Resume => self.fail(Failure::TimedOut),
                Timer::Age => self.is_old = true,
            }
        }
    }

    /// Bytes of a frame that are out, while the rest is not.
    #[cfg(test)]
    pub(crate) fn frame_written(&self) -> usize {
        self.frame_written
    }

    #[cfg(test)]
    fn is_mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }
}
