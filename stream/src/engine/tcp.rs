//! The TCP side: what may be read and written now, and frames between bytes.

use super::{
    Action, Engine, FRAME, Failure, LEAST_FRAME, Link, Payloads, Role, Rx, State, Tx, Violation,
};
use crate::frame::FrameError;
use crate::half::Fin;
use crate::message::Message;
use crate::pull::RING;
use crate::retained::Again;

/// What may be read from TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpIn {
    /// Nothing now.
    Nothing,
    /// At most so many bytes, for the application.
    Raw {
        /// Bytes up to the next place.
        limit: u64,
    },
    /// Nothing; but look at the next [`FRAME`] bytes
    /// ([`Event::TcpPeeked`](crate::Event::TcpPeeked)). Where fewer came, more are waited for.
    Peek,
    /// Everything, and nobody wants it: so that the peer, which may have written a frame, is not
    /// reset.
    Discard,
}

/// What is to be written to TCP next.
#[derive(Debug, PartialEq, Eq)]
pub enum TcpOut<'a> {
    /// Nothing now.
    Nothing,
    /// A frame, or what is left of it.
    Frame(&'a [u8]),
    /// Bytes that the queue pair had and did not bring.
    Again(&'a [u8]),
    /// Bytes that are staged.
    Staged {
        /// The position of the first. It lies at the rest of the division by [`RING`].
        position: u64,
        /// How many; they do not cross the ring's end.
        length: u64,
    },
    /// Whatever the application writes.
    Application,
    /// FIN ([`Event::TcpShutDown`](crate::Event::TcpShutDown) then).
    Fin,
}

impl<P: Payloads> Engine<P> {
    /// What may be read from TCP now.
    #[inline]
    pub fn tcp_in(&self) -> TcpIn {
        match self.state {
            State::SanOnly | State::Broken(_) => return TcpIn::Nothing,
            State::Ended => {
                return if self.has_tcp() {
                    TcpIn::Discard
                } else {
                    TcpIn::Nothing
                };
            }
            _ => {}
        }
        if self.link == Link::Draining {
            return TcpIn::Nothing;
        }
        if self.rx == Rx::Framed {
            return TcpIn::Peek;
        }
        match self.boundary.as_ref().and_then(super::Boundary::next_place) {
            None => TcpIn::Raw { limit: u64::MAX },
            Some(place) if place > self.incoming.position => TcpIn::Raw {
                limit: place - self.incoming.position,
            },
            Some(_) => TcpIn::Peek,
        }
    }

    /// What is to be written to TCP now.
    #[inline]
    pub fn tcp_out(&self) -> TcpOut<'_> {
        if self.state == State::Ended && self.has_tcp() && self.outgoing.fin != Fin::Tcp {
            return TcpOut::Fin;
        }
        if self.is_over() || self.link == Link::Draining {
            return TcpOut::Nothing;
        }
        if let Some(frame) = self.frames.front() {
            return TcpOut::Frame(frame.get(self.frame_written..).unwrap_or_default());
        }
        if self.tx != Tx::Raw || self.outgoing.fin == Fin::Tcp {
            return TcpOut::Nothing;
        }
        let unsent = self.outgoing.unsent();
        if unsent > 0 {
            let position = self.outgoing.sent;
            let length = match self.retained.again(position) {
                Some(Again::Kept(bytes)) => return TcpOut::Again(bytes),
                Some(Again::Staged(length)) => length,
                None => unsent,
            };
            let length = length.min(RING - position % RING);
            return TcpOut::Staged { position, length };
        }
        if self.outgoing.closed {
            TcpOut::Fin
        } else {
            TcpOut::Application
        }
    }

    /// Whether the shell must read from TCP into its own memory, as far as
    /// [`tcp_in`](Self::tcp_in) allows, though the application does not read. The peer's position is
    /// behind these bytes, and an application that only writes would wait for it for ever. They are
    /// no more than the TCP connection held when the peer left it.
    pub fn must_read_ahead(&self) -> bool {
        self.tx == Tx::WaitResume && self.rx == Rx::Raw
    }

    pub(super) fn tcp_written(&mut self, n: usize) {
        self.counts.written += n as u64;
        if !self.frames.is_empty() {
            self.frame_written += n;
            if self.frame_written >= FRAME {
                self.frame_written = 0;
                self.frames.pop_front();
            }
            return;
        }
        self.traffic.written(n);
        self.outgoing.sent += n as u64;
        self.outgoing.accepted = self.outgoing.accepted.max(self.outgoing.sent);
        self.retained.resume(self.outgoing.sent);
    }

    pub(super) fn tcp_bytes(&mut self, n: usize) {
        self.counts.read += n as u64;
        self.traffic.read(n);
        if n > 0 && self.incoming.eof {
            // The end had come over the queue pair.
            return self.violated(Violation::AfterEnd);
        }
        self.incoming.position += n as u64;
    }

    /// Bytes at a place.
    pub(super) fn tcp_peeked(&mut self, bytes: &[u8], is_end: bool) {
        if self.tcp_in() != TcpIn::Peek {
            return;
        }
        if bytes.is_empty() {
            if is_end {
                self.tcp_fin();
            }
            return;
        }
        let position = self.incoming.position;
        let Some(boundary) = &self.boundary else {
            return;
        };
        let peer: Role = self.config.role.peer();
        let is_at_mark = self.rx == Rx::Raw && boundary.mark == Some(position);
        let slot = if is_at_mark {
            boundary.proof(peer, position)
        } else {
            boundary.resume(peer)
        };
        let seen = match slot.parse(&boundary.key, bytes) {
            Err(FrameError::Incomplete) if !is_end => return,
            // The peer died while it wrote.
            Err(FrameError::Incomplete) if self.rx == Rx::Framed => return self.tcp_fin(),
            Err(FrameError::Incomplete) if bytes.len() >= LEAST_FRAME => {
                // Of a proof or a resume; its writer died, too.
                self.incoming.eof = true;
                return self.fail(Failure::PeerGone);
            }
            Err(FrameError::Incomplete) => Err(FrameError::OtherBytes),
            seen => seen,
        };
        if self.rx == Rx::Framed {
            self.at_resume(seen);
        } else if is_at_mark {
            self.at_mark(seen);
        } else {
            self.at_bound(seen);
        }
    }

    fn skip_frame(&mut self) {
        self.counts.read += FRAME as u64;
        self.actions.push_back(Action::TcpSkip(FRAME));
    }

    /// A PROOF may stand here.
    fn at_mark(&mut self, seen: Result<u64, FrameError>) {
        if seen.is_err() && self.link == Link::Up {
            // The peer has given up and gone on, or somebody lied about who it is. Without the
            // queue pair the bytes will be looked at again.
            return self.leave();
        }
        let Some(boundary) = &mut self.boundary else {
            return;
        };
        boundary.mark = None;
        match seen {
            Ok(_) => {
                if self.link == Link::Up {
                    boundary.is_verified = true;
                    self.control.push_back(Message::Verified);
                }
                self.skip_frame();
            }
            // A forged frame is no frame; but then somebody else knows the key.
            Err(FrameError::WrongCheck) => self.not_resumed(FrameError::WrongCheck),
            Err(_) => {}
        }
    }

    /// A RESUME may stand here, but the peer may also never have heard that we know its place.
    fn at_bound(&mut self, seen: Result<u64, FrameError>) {
        if self.link == Link::Up {
            // Whatever it is, the peer has left the queue pair. GO may be among what is drained.
            return self.leave();
        }
        match seen {
            Ok(_) | Err(FrameError::WrongCheck) => self.rx = Rx::Framed,
            Err(_) => {
                if let Some(boundary) = &mut self.boundary {
                    boundary.bound = None;
                }
            }
        }
    }

    fn at_resume(&mut self, seen: Result<u64, FrameError>) {
        match seen {
            Ok(position) => {
                self.skip_frame();
                self.on_resume(position);
            }
            Err(why) => self.not_resumed(why),
        }
    }

    /// At a place where it is certain that the raw bytes end, nothing has to be seen.
    pub(super) fn pass_bound(&mut self) {
        let Some(boundary) = &self.boundary else {
            return;
        };
        if self.rx == Rx::Raw
            && boundary.is_sure
            && boundary.mark.is_none()
            && boundary.bound == Some(self.incoming.position)
        {
            self.rx = Rx::Framed;
            if self.incoming.aside > 0 {
                self.incoming.position += std::mem::take(&mut self.incoming.aside);
                self.actions.push_back(Action::TakeAside);
            }
            self.incoming.eof |= std::mem::take(&mut self.incoming.aside_end);
        }
    }
}
