//! What the application asks for: reads and writes.

use std::io::{self, IoSliceMut};

use rustix::io::Errno;
use san_stream::{Event, Failure, Keep, Kind, Source, State, TcpIn, TcpOut, Write};

use super::{Around, Mover, Reading, Writing};
use crate::upgrade::queue_pair::QueuePair;
use crate::upgrade::tcp_side::Step;

impl Mover {
    pub(in crate::upgrade) fn has_unread(&self) -> bool {
        !self.kept.is_empty() || !self.aside.is_empty()
    }

    /// Whether the peer has sent bytes that the application has not read, as far as is known.
    pub(in crate::upgrade) fn owes_unread(&self) -> bool {
        let data = Some(Kind::Data.number());
        let waits = |pair: &QueuePair| pair.data.inbox().first == data;
        self.has_unread() || self.engine.has_bulk() || self.pair.as_ref().is_some_and(waits)
    }

    /// The same, where the kernel would not say so to the peer: also bytes on TCP, while the carrier changes.
    fn owes_unread_anywhere(&self, around: &Around) -> bool {
        let waits_on_tcp = || {
            !self.is_plain()
                && self.engine.source() == Source::Tcp
                && matches!(self.engine.tcp_in(), TcpIn::Raw { .. })
                && matches!(around.tcp.peek(&mut [0]), Step::Moved(_))
        };
        self.owes_unread() || waits_on_tcp()
    }

    /// The application has closed the stream. `resets`: it wants the peer to be reset.
    pub(in crate::upgrade) fn close(&mut self, around: &Around, resets: bool) {
        if let Some(pair) = &self.pair {
            // What has come and nobody has looked for is unread, too.
            pair.data.poll();
            self.progress(around);
        }
        let is_reset = resets || self.owes_unread_anywhere(around);
        let event = match is_reset {
            true => Event::Abort,
            false => Event::Close,
        };
        self.tell(around, event);
        self.progress(around);
    }

    /// Goes on with a stream that the application has closed, and so reads nothing more of. The caller keeps
    /// others from reading. As TCP: the peer's end is taken in, and bytes of the peer reset it. They wait only
    /// for what was written before the close to arrive.
    pub(in crate::upgrade) fn see_off(&mut self, around: &Around) {
        self.take_end(around);
        self.progress(around);
        if self.has_arrived() && self.owes_unread_anywhere(around) {
            self.tell(around, Event::Abort);
        }
    }

    /// Whether all that was written has arrived, and the end if the queue pair carries; or the kernel has it.
    fn has_arrived(&self) -> bool {
        let is_open = matches!(self.engine.state(), State::San | State::Leaving) && !self.drains;
        let waits = self.pair.as_ref().is_some_and(QueuePair::has_pending);
        is_open && !waits && !self.engine.has_unsent() && !self.engine.awaits_acknowledgements()
    }

    /// Bytes that were read from TCP and that the application has not read.
    pub(in crate::upgrade) fn ahead(&self) -> u64 {
        self.kept.len() as u64
    }

    /// Reads for the application.
    pub(in crate::upgrade) fn read(&mut self, around: &Around, bytes: &mut [u8]) -> Reading {
        loop {
            if !self.kept.is_empty() {
                // One read takes what lies in one piece of the ring.
                let first = io::Read::read(&mut self.kept, bytes).unwrap_or(0);
                let second = io::Read::read(&mut self.kept, &mut bytes[first..]).unwrap_or(0);
                return Reading::Read(first + second);
            }
            if self.engine.received().1 {
                return Reading::Read(0);
            }
            match self.engine.failure() {
                None => {}
                Some(Failure::PeerGone) => return Reading::Read(0),
                Some(_) => {
                    return match self.take_error() {
                        Some(error) => Reading::Failed(error),
                        None => Reading::Read(0),
                    };
                }
            }
            if self.drains {
                return Reading::Drain;
            }
            match self.engine.source() {
                Source::Message => {
                    let limit = usize::try_from(self.engine.message_limit());
                    return match &self.pair {
                        Some(pair) => Reading::Receive {
                            data: pair.data.clone(),
                            limit: limit.unwrap_or(usize::MAX),
                            is_plain: self.is_on_san() && !self.engine.has_bulk(),
                        },
                        None => Reading::Await,
                    };
                }
                Source::Landed { position, length } => {
                    let at = (position, length);
                    let taken = self.bulk.deliver(at, &mut [IoSliceMut::new(bytes)]);
                    self.engine.landed_taken(taken as u64);
                    self.act(around);
                    self.post_reads(around);
                    self.post(around);
                    return Reading::Read(taken);
                }
                Source::Nothing => {
                    return match &self.pair {
                        Some(pair) if self.is_on_san() => Reading::AwaitBulk(pair.data.clone()),
                        _ => Reading::Await,
                    };
                }
                Source::Tcp => {}
            }
            let limit = match self.engine.tcp_in() {
                TcpIn::Raw { limit } => limit,
                TcpIn::Peek => {
                    let before = (self.engine.tcp_in(), self.engine.source());
                    self.look(around);
                    self.flush(around);
                    self.post(around);
                    let is_same = before == (self.engine.tcp_in(), self.engine.source());
                    if is_same && !self.drains && self.kept.is_empty() {
                        return Reading::Await;
                    }
                    continue;
                }
                TcpIn::Nothing | TcpIn::Discard => return Reading::Await,
            };
            let most = bytes
                .len()
                .min(usize::try_from(limit).unwrap_or(usize::MAX));
            match around.tcp.read(&mut bytes[..most]) {
                Step::Moved(n) => {
                    self.read.note(&bytes[..n]);
                    self.tell(around, Event::TcpBytes(n));
                    return Reading::Read(n);
                }
                Step::WouldBlock => return Reading::AwaitTcp,
                Step::End => self.tell(around, Event::TcpFin),
                Step::Reset(errno) => {
                    self.tcp_reset(around, errno);
                    self.has_told = true;
                    return Reading::Failed(errno.into());
                }
            }
        }
    }

    /// Bytes came from the queue pair straight into the application's buffer: how many of them are
    /// the application's now.
    pub(in crate::upgrade) fn received(
        &mut self,
        around: &Around,
        kind: u8,
        bytes: &[u8],
    ) -> usize {
        if kind != Kind::Data.number() {
            self.no_data(around, kind, bytes);
            return 0;
        }
        match self.engine.data(bytes.len()) {
            Keep::Deliver if self.kept.is_empty() => bytes.len(),
            Keep::Deliver => {
                self.kept.extend(bytes);
                0
            }
            Keep::Aside => {
                self.aside.extend(bytes);
                self.act(around);
                0
            }
            Keep::Drop => {
                self.act(around);
                0
            }
        }
    }

    /// Writes for the application.
    pub(in crate::upgrade) fn write(&mut self, around: &Around, bytes: &[u8]) -> Writing {
        let mut wrote = 0;
        let mut looked = false;
        while wrote < bytes.len() {
            let rest = &bytes[wrote..];
            match self.engine.write(rest.len(), false) {
                Write::Tcp if wrote > 0 => break,
                Write::Tcp => {
                    let step = around.tcp.write(rest);
                    return self.wrote_to_tcp(around, rest, step);
                }
                Write::Message(length) | Write::Stage { length, .. } => {
                    match self.stage(&rest[..length]) {
                        Ok(()) => wrote += length,
                        Err(_) if wrote > 0 => break,
                        Err(error) => return Writing::Failed(error),
                    }
                    self.post_until(around, true);
                    self.flush(around);
                    if self.opens_ring {
                        // The caller opens it now, and comes again.
                        break;
                    }
                }
                Write::Full if looked => break,
                Write::Full => {
                    looked = true;
                    self.progress(around);
                }
                Write::Closed => {
                    return match wrote {
                        0 => Writing::Failed(self.closed()),
                        _ => Writing::Wrote(wrote),
                    };
                }
            }
        }
        match (wrote, &self.pair) {
            (0, Some(pair)) if self.is_on_san() => Writing::AwaitRoom {
                data: pair.data.clone(),
                is_told: pair.has_pending() || self.engine.unread() > 0,
            },
            (0, Some(_)) => Writing::AwaitSoon,
            // What comes before these bytes is not on TCP yet. The thread that sees to that may have ended.
            (0, None) if self.has_output() => Writing::AwaitTcp,
            (0, None) => Writing::Await,
            _ => Writing::Wrote(wrote),
        }
    }

    /// Whether the stream itself has something to write to TCP.
    fn has_output(&self) -> bool {
        let out = self.engine.tcp_out();
        !matches!(out, TcpOut::Nothing | TcpOut::Application)
    }

    /// What a write of these bytes to TCP has come to.
    fn wrote_to_tcp(&mut self, around: &Around, bytes: &[u8], step: Step) -> Writing {
        match step {
            Step::Moved(n) => {
                self.written.note(&bytes[..n]);
                self.tell(around, Event::TcpWritten(n));
                Writing::Wrote(n)
            }
            Step::WouldBlock | Step::End => Writing::AwaitTcp,
            Step::Reset(errno) => {
                self.tcp_reset(around, errno);
                self.has_told = true;
                Writing::Failed(errno.into())
            }
        }
    }

    /// Writes a byte that is urgent, on TCP, where the stream stays then.
    pub(in crate::upgrade) fn write_urgent(&mut self, around: &Around, byte: u8) -> Writing {
        self.tell(around, Event::WantDown { for_good: true });
        self.progress(around);
        let is_on_tcp = self.engine.state() == State::TcpForGood;
        match self.engine.write(1, false) {
            Write::Tcp if is_on_tcp => {
                let step = around.tcp.write_urgent(byte);
                self.wrote_to_tcp(around, &[byte], step)
            }
            Write::Closed => Writing::Failed(self.closed()),
            _ => Writing::Await,
        }
    }

    /// Bytes go to the ring, at their position.
    fn stage(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bulk.put(self.engine.accepted(), bytes)?;
        self.note_use();
        self.written.note(bytes);
        self.engine.staged(bytes.len());
        Ok(())
    }

    /// Copies bytes for the application, and they stay. `None`: see [`Mover::read`].
    pub(in crate::upgrade) fn peek(&mut self, around: &Around, bytes: &mut [u8]) -> Option<usize> {
        if self.kept.is_empty()
            && self.engine.source() == Source::Tcp
            && let TcpIn::Raw { limit } = self.engine.tcp_in()
        {
            let most = bytes
                .len()
                .min(usize::try_from(limit).unwrap_or(usize::MAX));
            match around.tcp.peek(&mut bytes[..most]) {
                Step::Moved(n) => return Some(n),
                // The kernel says it once.
                Step::Reset(errno) => self.tcp_reset(around, errno),
                Step::WouldBlock | Step::End => {}
            }
        }
        if self.kept.is_empty() {
            return None;
        }
        for (place, byte) in bytes.iter_mut().zip(&self.kept) {
            *place = *byte;
        }
        Some(bytes.len().min(self.kept.len()))
    }

    /// The error of a stream that broke: told once.
    pub(in crate::upgrade) fn take_error(&mut self) -> Option<io::Error> {
        let is_broken = match self.engine.failure() {
            None => self.engine.is_reset(),
            Some(failure) => failure != Failure::PeerGone,
        };
        let is_first = is_broken && !std::mem::replace(&mut self.has_told, true);
        is_first.then(|| self.failure())
    }

    /// The error was not told after all: the next call does it.
    pub(in crate::upgrade) fn untell(&mut self) {
        self.has_told = false;
    }

    /// The application writes no more, or cannot.
    pub(in crate::upgrade) fn is_closed(&self) -> bool {
        matches!(self.engine.write(1, false), Write::Closed)
    }

    /// What a write of no bytes says.
    pub(in crate::upgrade) fn check_open(&mut self) -> io::Result<()> {
        match self.engine.write(1, false) {
            Write::Closed => Err(self.closed()),
            _ => Ok(()),
        }
    }

    /// What a write says that cannot be: how the stream broke, once.
    fn closed(&mut self) -> io::Error {
        self.take_error().unwrap_or_else(|| Errno::PIPE.into())
    }

    /// Gives bytes back that were read to be peeked at.
    pub(in crate::upgrade) fn unread(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().rev() {
            self.kept.push_front(*byte);
        }
    }

    /// How the stream ended.
    pub(in crate::upgrade) fn failure(&self) -> io::Error {
        let errno = self.error.unwrap_or_else(|| match self.engine.failure() {
            Some(Failure::TimedOut) => Errno::TIMEDOUT,
            Some(Failure::PeerGone) | None => Errno::PIPE,
            Some(failure) => {
                tracing::debug!(%failure, "a stream is over");
                Errno::CONNRESET
            }
        });
        match errno {
            // As TCP: who has the peer's end can only fail to write.
            Errno::CONNRESET if self.engine.received().1 => Errno::PIPE.into(),
            errno => errno.into(),
        }
    }
}
