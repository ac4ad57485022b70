//! The TCP side: places, what is read ahead, and what the engine has to write.

use std::time::Instant;

use rustix::io::Errno;
use san_stream::{Event, TcpIn, TcpOut};

use super::{AHEAD, Around, Mover};
use crate::upgrade::service::Command;
use crate::upgrade::tcp_side::Step;

/// So often [`AHEAD`] is read at a reset, which is more than a kernel keeps (tcp(7), tcp_rmem). A peer that goes on
/// writing cannot have us read on.
const RAW_READS: usize = 256;

impl Mover {
    /// Looks at what stands on TCP at a place, and reads ahead where that is needed.
    pub(super) fn look(&mut self, around: &Around) {
        loop {
            match self.engine.tcp_in() {
                TcpIn::Peek => {
                    let before = self.engine.received();
                    around.feed.set_tcp_stirs(false);
                    match around.tcp.look() {
                        Ok(seen) => {
                            let event = Event::TcpPeeked {
                                bytes: seen.bytes(),
                                is_end: seen.is_end,
                            };
                            self.tell(around, event);
                        }
                        Err(Step::Reset(errno)) => self.tcp_reset(around, errno),
                        Err(_) => return,
                    }
                    if self.engine.tcp_in() == TcpIn::Peek && self.engine.received() == before {
                        return;
                    }
                }
                TcpIn::Raw { limit } if self.engine.must_read_ahead() => {
                    match self.read_ahead(around, limit) {
                        Step::Moved(n) => self.tell(around, Event::TcpBytes(n)),
                        Step::End => self.tell(around, Event::TcpFin),
                        Step::Reset(errno) => self.tcp_reset(around, errno),
                        Step::WouldBlock => return,
                    }
                }
                TcpIn::Discard => {
                    if around.tcp.discard() && self.is_watched {
                        self.is_watched = false;
                        around.service.command(around.token, Command::Watch(false));
                    }
                    return;
                }
                TcpIn::Raw { .. } | TcpIn::Nothing => return,
            }
        }
    }

    /// Takes bytes from TCP, and keeps them for the application. The engine is to be told of them.
    fn read_ahead(&mut self, around: &Around, limit: u64) -> Step {
        let most = usize::try_from(limit).unwrap_or(AHEAD).min(AHEAD);
        let mut bytes = vec![0; most];
        let step = around.tcp.read(&mut bytes);
        if let Step::Moved(n) = step {
            self.kept.extend(&bytes[..n]);
            self.read.note(&bytes[..n]);
        }
        step
    }

    pub(super) fn tcp_reset(&mut self, around: &Around, errno: Errno) {
        self.error.get_or_insert(errno);
        let _ = self.take_raw(around);
        self.tell(around, Event::TcpReset);
    }

    /// What TCP had brought before the peer reset the stream can be read still. Returns the reset, if the kernel says
    /// it now: it says so once.
    pub(super) fn take_raw(&mut self, around: &Around) -> Option<Errno> {
        for _ in 0..RAW_READS {
            let TcpIn::Raw { limit } = self.engine.tcp_in() else {
                break;
            };
            match self.read_ahead(around, limit) {
                Step::Moved(n) => {
                    self.engine.handle(Event::TcpBytes(n), Instant::now());
                }
                Step::Reset(errno) => return Some(errno),
                Step::WouldBlock | Step::End => break,
            }
        }
        None
    }

    /// Writes to TCP what the engine has for it.
    pub(super) fn flush(&mut self, around: &Around) {
        loop {
            let step = match self.engine.tcp_out() {
                TcpOut::Nothing | TcpOut::Application => return,
                TcpOut::Frame(bytes) | TcpOut::Again(bytes) => around.tcp.write(bytes),
                TcpOut::Staged { position, length } => {
                    let mut bytes = vec![0; (length as usize).min(AHEAD)];
                    self.bulk.take(position, &mut bytes);
                    around.tcp.write(&bytes)
                }
                TcpOut::Fin => {
                    around.tcp.end();
                    self.is_ended = true;
                    self.tell(around, Event::TcpShutDown);
                    continue;
                }
            };
            match step {
                Step::Moved(n) => self.tell(around, Event::TcpWritten(n)),
                Step::WouldBlock | Step::End => return,
                Step::Reset(errno) => return self.tcp_reset(around, errno),
            }
        }
    }
}
