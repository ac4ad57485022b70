//! What a stream that may move holds under its lock, and how the engine's wishes are carried out.
//!
//! Nothing here waits. Everything that the engine asks for is done by whoever has the lock: the
//! application's threads, and the thread `san-stream` for those that do not come.

mod app;
mod events;
mod pair;
mod tcp;

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use rustix::io::Errno;
use san_provider::DataPath;
use san_stream::{Action, Engine, Event, Failure, Kind, Passed, Payloads, Source, State, TcpOut};

use super::key::ExcursionKey;
use super::queue_pair::{Feed, Left, QueuePair};
use super::request::{Agreed, BEGINNING, Beginnings, Dialled};
use super::service::{Command, Service};
use super::tcp_side::TcpSide;
use crate::carrier::bulk::Bulk;

/// Bytes that are read ahead at a time.
const AHEAD: usize = 64 * 1024;

/// What the engine keeps for the stream: all bytes that may go out again lie in the staging ring.
#[derive(Debug)]
pub(in crate::upgrade) struct Pieces;

impl Payloads for Pieces {
    type Piece = [u8; 0];
    type Key = ExcursionKey;
}

/// What does not change, and whom the stream tells.
#[derive(Debug)]
pub(in crate::upgrade) struct Around {
    pub(in crate::upgrade) token: u64,
    pub(in crate::upgrade) service: std::sync::Arc<Service>,
    pub(in crate::upgrade) feed: std::sync::Arc<Feed>,
    pub(in crate::upgrade) tcp: TcpSide,
}

/// What a read came to.
#[derive(Debug)]
pub(in crate::upgrade) enum Reading {
    Read(usize),
    Failed(io::Error),
    /// The queue pair has the next bytes, so many at most before others: wait there. `is_plain`: nothing but
    /// bytes of the stream is to be expected, until [`News::reader`].
    Receive {
        data: DataPath,
        limit: usize,
        is_plain: bool,
    },
    /// Bytes are under way that were offered: wait there until [`News::reader`].
    AwaitBulk(DataPath),
    /// The queue pair stopped: it must be emptied first.
    Drain,
    /// TCP has the next bytes.
    AwaitTcp,
    /// Something is under way.
    Await,
}

/// What a write came to.
#[derive(Debug)]
pub(in crate::upgrade) enum Writing {
    Wrote(usize),
    Failed(io::Error),
    /// TCP is full.
    AwaitTcp,
    /// Neither carrier takes any.
    Await,
    /// The same, and nobody may tell when that changes.
    AwaitSoon,
    /// The peer has not taken enough. `is_told`: that it has comes as [`News::writer`]; else acknowledgements
    /// are waited for, which nobody announces.
    AwaitRoom {
        data: DataPath,
        is_told: bool,
    },
}

/// Whom something concerns that has happened. They are told without the lock.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::upgrade) struct News {
    /// Who receives has to look at the stream.
    pub(in crate::upgrade) reader: bool,
    /// Who waits for room.
    pub(in crate::upgrade) writer: bool,
    /// The watcher.
    pub(in crate::upgrade) watcher: bool,
    /// There is memory to look after.
    pub(in crate::upgrade) memory: bool,
}

impl std::fmt::Debug for Mover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mover")
            .field("engine", &self.engine)
            .field("tcp_in", &self.engine.tcp_in())
            .field("tcp_out", &self.engine.tcp_out())
            .field("source", &self.engine.source())
            .field("drains", &self.drains)
            .field("kept", &self.kept.len())
            .field("aside", &self.aside.len())
            .field(
                "pair",
                &self.pair.as_ref().map(|p| {
                    (
                        p.unacknowledged(),
                        p.data.is_readable(),
                        p.data.is_writable(),
                    )
                }),
            )
            .finish_non_exhaustive()
    }
}

pub(in crate::upgrade) struct Mover {
    pub(in crate::upgrade) engine: Engine<Pieces>,
    pub(in crate::upgrade) pair: Option<QueuePair>,
    /// How many there were.
    pairs: u64,
    /// Those that the stream has left and that nobody has closed. The thread `san-stream` does: whoever has
    /// the lock may be called by one of them.
    pub(in crate::upgrade) left: Vec<Left>,
    /// Staged bytes, all of them by their positions, and bulk of the peer.
    bulk: Bulk,
    idle: Idle,
    /// The engine asks for the ring to be opened, which may take time.
    opens_ring: bool,
    /// Bytes that were read past the lock and that the engine knows of.
    counted: u64,
    /// Who reads may do so past the lock.
    reads_plain: bool,
    pub(in crate::upgrade) news: News,
    /// The queue pair was told to stop; what had come is to be taken in.
    pub(in crate::upgrade) drains: bool,
    /// Bytes for the application that the engine has counted.
    kept: VecDeque<u8>,
    /// Bytes that come after those which are still on TCP.
    aside: VecDeque<u8>,
    written: Beginning,
    read: Beginning,
    pub(in crate::upgrade) dialled: Option<Dialled>,
    /// What a request that was answered has come to.
    pub(in crate::upgrade) agreed: Option<Agreed>,
    is_watched: bool,
    /// Bytes wait for room on the queue pair.
    pub(in crate::upgrade) is_stalled: bool,
    /// FIN was sent, or RST: nothing more goes out.
    is_ended: bool,
    /// How TCP failed.
    error: Option<Errno>,
    /// A call has told the application.
    has_told: bool,
    timeout: Option<Instant>,
    /// The last change of the carrier.
    pub(in crate::upgrade) changed: Option<State>,
    /// The application uses the socket itself, and nothing is done here.
    is_released: bool,
    /// The queue pair is there, and is not used yet.
    is_held: bool,
}

/// Who serves the application's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// The kernel could: the stream is on TCP, and no change is under way.
    Kernel,
    /// The stream, by what the kernel's socket is ready for.
    Connecting,
    /// The stream; what the kernel's socket is ready for says nothing.
    Away,
}

/// What an application has read and written by itself; or all that it has.
#[derive(Debug, Default)]
pub(crate) struct Past {
    pub(crate) passed: Passed,
    /// The first bytes of each direction, if they were among these; at most 64 are of use.
    pub(crate) written: Vec<u8>,
    pub(crate) read: Vec<u8>,
}

/// What a stream had carried when it last was seen to be in use, and when that was.
#[derive(Debug)]
struct Idle {
    carried: u64,
    since: Instant,
}

/// The first bytes of a direction.
#[derive(Debug, Default)]
struct Beginning {
    bytes: Vec<u8>,
}

impl Beginning {
    #[inline]
    fn note(&mut self, bytes: &[u8]) {
        if self.bytes.len() < BEGINNING {
            let most = bytes.len().min(BEGINNING - self.bytes.len());
            self.bytes.extend_from_slice(&bytes[..most]);
        }
    }
}

impl Mover {
    pub(in crate::upgrade) fn new(engine: Engine<Pieces>) -> Self {
        Self {
            engine,
            pair: None,
            pairs: 0,
            left: Vec::new(),
            bulk: Bulk::default(),
            idle: Idle {
                carried: 0,
                since: Instant::now(),
            },
            opens_ring: false,
            counted: 0,
            reads_plain: false,
            news: News::default(),
            drains: false,
            kept: VecDeque::new(),
            aside: VecDeque::new(),
            written: Beginning::default(),
            read: Beginning::default(),
            dialled: None,
            agreed: None,
            is_watched: false,
            is_stalled: false,
            is_ended: false,
            error: None,
            has_told: false,
            timeout: None,
            changed: None,
            is_released: false,
            is_held: false,
        }
    }

    pub(in crate::upgrade) fn phase(&self) -> Phase {
        let has_own = self.pair.is_some() || self.drains || self.has_unread();
        if has_own || !self.is_plain() {
            return Phase::Away;
        }
        match self.engine.state() {
            State::Tcp | State::TcpForGood => Phase::Kernel,
            _ => Phase::Connecting,
        }
    }

    /// Leaves the socket to the application if `taken` says so; whether that is so now.
    pub(in crate::upgrade) fn release(&mut self, taken: impl FnOnce(Past) -> bool) -> bool {
        if !self.is_released && self.phase() == Phase::Kernel {
            let all = Past {
                passed: Passed {
                    read: self.engine.received().0,
                    written: self.engine.accepted(),
                    ..Passed::default()
                },
                written: self.written.bytes.clone(),
                read: self.read.bytes.clone(),
            };
            self.is_released = taken(all);
        }
        self.is_released
    }

    /// Leaves the socket to another process, with the bytes that come before those on it, if nothing else of
    /// a change is left.
    pub(in crate::upgrade) fn leave(&mut self) -> Option<Vec<u8>> {
        let has_own = self.pair.is_some() || self.drains || !self.aside.is_empty();
        let is_on_tcp = matches!(self.engine.state(), State::Tcp | State::TcpForGood);
        if has_own || !is_on_tcp || !self.is_plain() {
            return None;
        }
        self.is_released = true;
        Some(self.kept.drain(..).collect())
    }

    /// The application uses the stream again, after this went over the socket.
    pub(in crate::upgrade) fn passed(&mut self, around: &Around, past: &Past) {
        self.is_released = false;
        self.written.note(&past.written);
        self.read.note(&past.read);
        self.engine.passed(past.passed, Instant::now());
        self.act(around);
        self.progress(around);
    }

    /// Whether there has been a queue pair.
    pub(in crate::upgrade) fn was_answered(&self) -> bool {
        self.pairs > 0
    }

    pub(in crate::upgrade) fn beginnings(&self) -> Beginnings<'_> {
        Beginnings {
            written: &self.written.bytes,
            read: &self.read.bytes,
        }
    }

    /// Whether the stream is on TCP, with nothing of a change left.
    pub(in crate::upgrade) fn is_plain(&self) -> bool {
        matches!(
            self.engine.state(),
            State::Tcp | State::Inviting | State::Dialling | State::TcpForGood
        ) && matches!(
            self.engine.tcp_out(),
            TcpOut::Application | TcpOut::Nothing | TcpOut::Fin
        )
    }

    /// Tells the engine, and does what it asks for.
    pub(in crate::upgrade) fn tell(&mut self, around: &Around, event: Event<'_, ExcursionKey>) {
        self.engine.handle(event, Instant::now());
        self.act(around);
    }

    fn act(&mut self, around: &Around) {
        while let Some(action) = self.engine.poll_action() {
            self.do_it(around, action);
        }
        self.watch(around);
        let state = self.engine.state();
        // On TCP the application's own calls look at the clock.
        let timeout = self.engine.next_timeout();
        if timeout != self.timeout {
            self.timeout = timeout;
            if state != State::Tcp && timeout.is_some() {
                around.service.attend(around.token);
            }
        }
    }

    /// Has the TCP socket watched while the application does not hear of it from the kernel.
    pub(in crate::upgrade) fn watch(&mut self, around: &Around) {
        let watch = match self.engine.state() {
            State::Proving | State::Cutting | State::San | State::Leaving => true,
            State::Ended => self.is_watched,
            // It has come back, and bytes that came over the queue pair are not read yet.
            State::Tcp | State::TcpForGood => self.pairs > 0 && self.phase() == Phase::Away,
            _ => false,
        };
        if watch != self.is_watched {
            self.is_watched = watch;
            around.service.command(around.token, Command::Watch(watch));
        }
    }

    fn do_it(&mut self, around: &Around, action: Action) {
        let command = |command| around.service.command(around.token, command);
        match action {
            Action::Listen => self.connect(around, Command::Listen),
            Action::Dial => self.connect(around, Command::Dial),
            Action::StopConnecting => {
                self.dialled = None;
                command(Command::StopConnecting);
            }
            Action::QpDisconnect => match &self.pair {
                Some(pair) => {
                    pair.disconnect();
                    self.drains = true;
                    command(Command::Attend);
                }
                None => self.engine.handle(Event::QpDrained, Instant::now()),
            },
            Action::QpClose => self.forget_pair(around),
            // The one that has just come is dropped by who brought it.
            Action::QpUnwanted => {}
            Action::TcpSkip(n) => around.tcp.skip(n),
            Action::TakeAside => {
                let mut aside = std::mem::take(&mut self.aside);
                self.kept.append(&mut aside);
            }
            Action::OpenRing => self.opens_ring = true,
            Action::PeerRing(ring) => self.bulk.peer_opened(ring),
            Action::Urgent(byte) => self.kept.push_back(byte),
            // Only where there is no TCP, as resting.
            Action::Mark { .. } | Action::CloseRing | Action::MayMove | Action::MayNotMove => {}
            Action::Reset => {
                if let Some(pair) = &self.pair {
                    pair.say(Kind::Abort.number(), &[]);
                }
                self.forget_pair(around);
                self.is_ended = true;
                around.tcp.reset();
            }
            Action::Changed(state) => {
                if state == State::San {
                    // Whether it is idle is looked at from now on.
                    self.note_use();
                }
                if let State::Broken(Failure::Protocol(violation)) = state {
                    // Under the lock: whoever sees the stream broken finds it counted.
                    around.service.counters.count_violation(violation);
                }
                self.changed = Some(state);
            }
            Action::Decline(reason) => {
                tracing::debug!(?reason, "a second carrier is declined");
                if let Some(pair) = &self.pair {
                    pair.say(Kind::No.number(), &[reason.number()]);
                }
            }
            Action::Declined(reason) => {
                tracing::debug!(?reason, "the peer declines the second carrier");
            }
        }
    }

    fn connect(&mut self, around: &Around, command: Command) {
        match around.service.ensure_thread() {
            Ok(()) => around.service.command(around.token, command),
            Err(error) => tracing::warn!(%error, "no thread to move streams: they stay on TCP"),
        }
    }

    /// Takes in what came out of turn, and does everything that can be done now.
    pub(in crate::upgrade) fn progress(&mut self, around: &Around) {
        if self.is_released || self.is_held {
            return;
        }
        if let Some(data) = self.changing() {
            data.poll();
        }
        self.take_mail(around);
        if self.pair.is_some() && !self.drains && around.feed.is_over() {
            self.tell(around, Event::QpBroken);
        }
        if self
            .engine
            .next_timeout()
            .is_some_and(|at| at <= Instant::now())
        {
            self.tell(around, Event::Timer);
        }
        // While the queue pair carries, TCP is silent, and the thread that watches it tells when it is not.
        let is_silent = self.engine.state() == State::San && !around.feed.tcp_stirs();
        if self.is_watched && !is_silent {
            self.look(around);
        }
        self.flush(around);
        self.post_reads(around);
        self.post(around);
    }

    /// Tells the engine what was read past the lock, before anything else is done with it. `read`: all
    /// that was.
    pub(in crate::upgrade) fn catch_up(&mut self, read: u64) {
        let more = read.saturating_sub(self.counted);
        if more > 0 {
            self.counted += more;
            // It was the application's before the engine knew.
            let _ = self
                .engine
                .data(usize::try_from(more).unwrap_or(usize::MAX));
        }
    }

    /// Whether the queue pair carries, with nothing of a change under way.
    pub(in crate::upgrade) fn is_on_san(&self) -> bool {
        self.engine.state() == State::San && !self.drains && self.pair.is_some()
    }

    /// The queue pair that is there and does not carry yet.
    pub(in crate::upgrade) fn changing(&self) -> Option<DataPath> {
        let is_changing = matches!(self.engine.state(), State::Proving | State::Cutting);
        let pair = self.pair.as_ref().filter(|_| is_changing && !self.drains)?;
        Some(pair.data.clone())
    }

    /// Before the lock is let go: what is to be told then.
    pub(in crate::upgrade) fn settle(&mut self) -> News {
        let plain = self.is_on_san()
            && self.engine.source() == Source::Message
            && !self.engine.has_bulk()
            && !self.has_unread();
        if std::mem::replace(&mut self.reads_plain, plain) && !plain {
            self.news.reader = true;
        }
        std::mem::take(&mut self.news)
    }

    /// Whether nothing is left to be sent, or can be.
    pub(in crate::upgrade) fn is_through(&self) -> bool {
        match self.engine.state() {
            State::Broken(_) => true,
            State::Ended => self.is_ended && !self.is_watched,
            State::TcpForGood => self.is_ended,
            _ => false,
        }
    }

    /// Whether it is on TCP, and the kernel has all that it was given to send.
    pub(in crate::upgrade) fn has_left(&self) -> bool {
        let is_there = match self.engine.state() {
            State::Broken(_) | State::Ended => true,
            State::Tcp | State::TcpForGood => !self.is_owed(),
            _ => false,
        };
        is_there && self.pair.is_none() && !self.drains
    }

    /// What was sent over the queue pair and may not have arrived, or has not left. The transport is asked for the
    /// arrival of the last messages, of which nobody would hear for long.
    pub(in crate::upgrade) fn is_owed(&self) -> bool {
        match &self.pair {
            Some(pair) => {
                pair.data.poll();
                if pair.unacknowledged() > 0 && !self.engine.has_unsent() {
                    pair.data.ask_for_arrival();
                }
                self.drains || pair.unacknowledged() > 0 || self.engine.has_unsent()
            }
            None => !matches!(self.engine.tcp_out(), TcpOut::Application | TcpOut::Nothing),
        }
    }
}
