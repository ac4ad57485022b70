//! Urgent data: which byte of the peer's stream is urgent now, and what a read makes of one.
//!
//! The peer says where the byte stands before the bytes before it are read (MARK); the byte itself comes
//! in its place, as a message of its own. The rules are those of Linux: one byte is urgent at most, a read
//! ends before it, the next read leaves it out, and one that a later one took the place of is a byte like
//! others.

use std::io;

use rustix::io::Errno;
use san_provider::Inbox;
use san_stream::Kind;
use serde::{Deserialize, Serialize};

use super::SanCarrier;

const URGENT: Option<u8> = Some(Kind::Urgent.number());

/// What is known of the peer's urgent byte.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Urgent {
    now: Option<Mark>,
    /// The position of a byte that is left out, though another one is urgent.
    left_out: Option<u64>,
    /// The byte stays in the stream (SO_OOBINLINE).
    is_inline: bool,
    /// A byte that is next for the reader.
    in_stream: Option<u8>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Mark {
    position: u64,
    byte: u8,
    is_taken: bool,
}

impl Urgent {
    /// The peer has said which byte is urgent. `read`: where the reader is.
    pub(super) fn mark(&mut self, position: u64, byte: u8, read: u64) {
        if let Some(before) = self.now {
            if position <= before.position {
                return;
            }
            // Who stands at one mark when another comes leaves the byte out, as on Linux.
            if before.position == read && !self.is_inline {
                self.left_out = Some(read);
            }
        }
        self.now = Some(Mark {
            position,
            byte,
            is_taken: false,
        });
    }

    /// The reader has reached a byte that was urgent when it was sent.
    pub(super) fn reached(&mut self, position: u64, byte: u8) {
        let is_left_out = self.left_out == Some(position);
        if is_left_out {
            self.left_out = None;
        }
        match self.now {
            Some(now) if now.position == position => {
                self.now = None;
                self.in_stream = self.is_inline.then_some(byte);
            }
            Some(now) if now.position > position => {
                self.in_stream = (!is_left_out).then_some(byte);
            }
            // The reader is here before the mark is: the byte can be taken still.
            _ if !self.is_inline => {
                self.now = Some(Mark {
                    position,
                    byte,
                    is_taken: false,
                });
            }
            _ => self.in_stream = Some(byte),
        }
    }

    /// A byte for the reader, which is next for it.
    pub(super) fn take_in_stream(&mut self) -> Option<u8> {
        self.in_stream.take()
    }

    /// Whether a byte can be taken.
    pub(super) fn is_here(&self) -> bool {
        self.now.is_some_and(|now| !now.is_taken)
    }

    /// Whether all that waits is a byte that a read leaves out. `read`: where the reader is.
    pub(super) fn is_all(&self, inbox: Inbox, read: u64) -> bool {
        inbox.first == URGENT
            && inbox.last == URGENT
            && !self.is_inline
            && (self.is_at(read) || self.left_out == Some(read) && self.is_at(read + 1))
    }

    fn is_at(&self, read: u64) -> bool {
        self.now.is_some_and(|now| now.position == read)
    }

    fn take(&mut self) -> io::Result<u8> {
        match &mut self.now {
            Some(now) if !now.is_taken && !self.is_inline => {
                now.is_taken = true;
                Ok(now.byte)
            }
            _ => Err(Errno::INVAL.into()),
        }
    }
}

impl SanCarrier {
    /// Writes a byte that is urgent.
    pub(super) fn write_urgent(&self, byte: u8) -> io::Result<()> {
        let deadline = self.timeouts.send.deadline();
        let data = self.data()?;
        loop {
            let (mut state, _) = self.lock();
            let taken = state.write_urgent(data, byte);
            self.unlock(state);
            if taken? {
                return Ok(());
            }
            self.wait_for_room(deadline)?;
        }
    }

    /// Takes the byte that is urgent.
    pub(super) fn take_urgent(&self) -> io::Result<u8> {
        self.data()?.poll();
        let (mut state, _) = self.lock();
        let taken = state.urgent.take();
        self.unlock(state);
        taken
    }

    /// Whether the byte that is urgent, or was until it was taken, is next in the stream.
    pub(super) fn is_at_mark(&self) -> io::Result<bool> {
        self.data()?.poll();
        let peeked = self.peeked.load(std::sync::atomic::Ordering::Acquire);
        let (state, _) = self.lock();
        let is_at = peeked == 0 && state.urgent.is_at(state.read_so_far());
        self.release(state);
        Ok(is_at)
    }

    pub(super) fn set_inline(&self, on: bool) {
        let (mut state, _) = self.lock();
        state.urgent.is_inline = on;
        self.unlock(state);
    }

    pub(super) fn is_inline(&self) -> bool {
        let (state, _) = self.lock();
        let is_inline = state.urgent.is_inline;
        self.release(state);
        is_inline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_taken_once_and_passed() {
        let mut urgent = Urgent::default();
        assert!(urgent.take().is_err());
        urgent.mark(4, b'!', 0);
        assert!(urgent.is_here() && !urgent.is_at(0) && urgent.is_at(4));
        assert_eq!(urgent.take().unwrap(), b'!');
        assert!(urgent.take().is_err() && !urgent.is_here() && urgent.is_at(4));
        urgent.reached(4, b'!');
        assert_eq!(urgent.take_in_stream(), None);
        assert!(!urgent.is_at(4));
    }

    #[test]
    fn a_later_byte_makes_the_one_before_a_byte_like_others() {
        let mut urgent = Urgent::default();
        urgent.mark(4, b'a', 0);
        urgent.mark(9, b'b', 2);
        urgent.reached(4, b'a');
        assert_eq!(urgent.take_in_stream(), Some(b'a'));
        assert_eq!(urgent.take().unwrap(), b'b');
        // But for who stands at it.
        urgent.mark(12, b'c', 9);
        urgent.reached(9, b'b');
        assert_eq!(urgent.take_in_stream(), None);
        assert_eq!(urgent.take().unwrap(), b'c');
    }

    #[test]
    fn inline_it_stays_in_the_stream() {
        let mut urgent = Urgent {
            is_inline: true,
            ..Urgent::default()
        };
        urgent.mark(4, b'a', 0);
        assert!(urgent.take().is_err() && urgent.is_here());
        urgent.reached(4, b'a');
        assert_eq!(urgent.take_in_stream(), Some(b'a'));
        assert!(!urgent.is_here());
    }

    #[test]
    fn a_reader_that_is_there_before_the_mark_loses_nothing() {
        let mut urgent = Urgent::default();
        urgent.reached(4, b'a');
        urgent.mark(4, b'a', 5);
        assert_eq!(urgent.take().unwrap(), b'a');
        assert!(urgent.take().is_err());
    }
}
