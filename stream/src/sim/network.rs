//! What lies between the ends.

use std::collections::VecDeque;

use super::Random;
use crate::pull::{RING, Read};

/// One direction of a TCP connection.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    pub(super) sending: VecDeque<u8>,
    pub(super) arrived: VecDeque<u8>,
    pub(super) send_room: usize,
    pub(super) receive_room: usize,
    pub(super) fin: bool,
    pub(super) fin_arrived: bool,
    /// All bytes that were written and read, as the kernel counts them.
    pub(super) written: u64,
    pub(super) read: u64,
}

impl Pipe {
    pub(super) fn room(&self) -> usize {
        self.send_room.saturating_sub(self.sending.len())
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.written += bytes.len() as u64;
        self.sending.extend(bytes);
    }

    pub(super) fn take(&mut self, n: usize) -> Vec<u8> {
        self.read += n as u64;
        self.arrived.drain(..n).collect()
    }

    /// Moves some bytes, as the network does.
    pub(super) fn carry(&mut self, random: &mut Random) -> bool {
        let most = self
            .sending
            .len()
            .min(self.receive_room.saturating_sub(self.arrived.len()));
        if most > 0 {
            let n = 1 + random.below(most);
            self.arrived.extend(self.sending.drain(..n));
            return true;
        }
        if self.fin && self.sending.is_empty() && !self.fin_arrived {
            self.fin_arrived = true;
            return true;
        }
        false
    }

    pub(super) fn is_over(&self) -> bool {
        self.fin_arrived && self.arrived.is_empty()
    }
}

/// A message under way.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) kind: u8,
    pub(super) bytes: Vec<u8>,
}

/// What a completion queue has for an end.
#[derive(Debug)]
pub(super) enum Completed {
    Message(Sent),
    Read { read: Read, bytes: Vec<u8> },
}

/// One end of a queue pair.
#[derive(Debug, Default)]
pub(super) struct QpEnd {
    /// Posted, and not at the peer.
    pub(super) wire: VecDeque<Sent>,
    /// Messages posted, delivered to the peer, acknowledged.
    pub(super) posted: u64,
    pub(super) delivered: u64,
    pub(super) acknowledged: u64,
    /// READs posted and not executed.
    pub(super) reads: VecDeque<Read>,
    /// Completed and not polled.
    pub(super) queue: VecDeque<Completed>,
}

/// A queue pair.
#[derive(Debug, Default)]
pub(super) struct Qp {
    pub(super) ends: [QpEnd; 2],
    pub(super) is_broken: bool,
    pub(super) generation: u16,
}

impl Qp {
    pub(super) fn deliver(&mut self, from: usize) -> bool {
        if self.is_broken {
            return false;
        }
        let Some(sent) = self.ends[from].wire.pop_front() else {
            return false;
        };
        self.ends[from].delivered += 1;
        self.ends[1 - from]
            .queue
            .push_back(Completed::Message(sent));
        true
    }

    pub(super) fn acknowledge(&mut self, from: usize) -> bool {
        let end = &mut self.ends[from];
        let is_due = !self.is_broken && end.acknowledged < end.delivered;
        end.acknowledged += u64::from(is_due);
        is_due
    }

    /// Executes a READ of `reader` in the memory of its peer.
    pub(super) fn read(&mut self, reader: usize, ring: &[u8]) -> bool {
        if self.is_broken {
            return false;
        }
        let Some(read) = self.ends[reader].reads.pop_front() else {
            return false;
        };
        let from = read.place as usize;
        assert!(
            from + read.length as usize <= RING as usize,
            "READ beyond the ring"
        );
        let bytes = ring[from..from + read.length as usize].to_vec();
        self.ends[reader]
            .queue
            .push_back(Completed::Read { read, bytes });
        true
    }
}
