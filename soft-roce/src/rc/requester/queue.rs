//! The send queue: requests from posting to completion, in order.
//!
//! What it does: a bounded FIFO in which every request keeps its number, and the
//! bytes of inline requests beside it.
//! What it does not do: packets.

use std::collections::VecDeque;

use crate::rc::psn::Seq;
use crate::rc::wr::{Pieces, SendOp, Withdrawn};

/// A posted request.
#[derive(Debug)]
pub(super) struct Wqe {
    pub(super) wr_id: u64,
    pub(super) op: SendOp,
    pub(super) source: Source,
    pub(super) len: u32,
    pub(super) signaled: bool,
    pub(super) fence: bool,
    pub(super) solicited: bool,
    /// Not the user's: its end is nobody's business.
    pub(super) internal: bool,
    /// Its first packet's number, once `sent` is not 0.
    pub(super) first: Seq,
    /// Packets that it takes.
    pub(super) packets: u32,
    /// Packets that were sent at least once.
    pub(super) sent: u32,
}

/// Where a request's bytes are.
#[derive(Debug)]
pub(super) enum Source {
    /// In registered memory.
    Pieces(Pieces),
    /// In the queue, from this position on.
    Inline(u64),
}

impl Wqe {
    pub(super) fn is_read(&self) -> bool {
        matches!(self.op, SendOp::Read(_))
    }

    pub(super) fn is_usable(&self) -> bool {
        match &self.source {
            Source::Pieces(pieces) => pieces.is_usable(),
            Source::Inline(_) => true,
        }
    }
}

#[derive(Debug)]
pub(super) struct SendQueue {
    queue: VecDeque<Wqe>,
    /// Number of the oldest request. Numbers wrap; the queue is far shorter.
    base: u32,
    /// Number of the request that is sent next, or in part.
    cursor: u32,
    inline: VecDeque<u8>,
    /// Position of the oldest byte in `inline`.
    inline_base: u64,
}

impl SendQueue {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            base: 0,
            cursor: 0,
            inline: VecDeque::new(),
            inline_base: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Keeps inline bytes and says where.
    pub(super) fn keep_inline(&mut self, data: &[u8]) -> Source {
        let at = self.inline_base + self.inline.len() as u64;
        self.inline.extend(data);
        Source::Inline(at)
    }

    pub(super) fn push(&mut self, wqe: Wqe) {
        self.queue.push_back(wqe);
    }

    pub(super) fn front(&self) -> Option<&Wqe> {
        self.queue.front()
    }

    /// Number of the oldest request.
    pub(super) fn base(&self) -> u32 {
        self.base
    }

    pub(super) fn pop(&mut self) -> Option<Wqe> {
        let wqe = self.queue.pop_front()?;
        if let Source::Inline(at) = wqe.source {
            let end = at + u64::from(wqe.len);
            // Never more than the queue holds.
            self.inline.drain(..(end - self.inline_base) as usize);
            self.inline_base = end;
        }
        if self.cursor == self.base {
            self.cursor = self.cursor.wrapping_add(1);
        }
        self.base = self.base.wrapping_add(1);
        Some(wqe)
    }

    /// Number of the request that is sent next, or in part.
    pub(super) fn cursor(&self) -> u32 {
        self.cursor
    }

    /// That request, if there is one.
    pub(super) fn current(&self) -> Option<&Wqe> {
        self.get(self.cursor)
    }

    /// `n` packets of the current request are sent, from `seq` on.
    pub(super) fn sent(&mut self, seq: Seq, n: u32) {
        let at = self.cursor.wrapping_sub(self.base) as usize;
        let Some(wqe) = self.queue.get_mut(at) else {
            return;
        };
        if wqe.sent == 0 {
            wqe.first = seq;
        }
        wqe.sent += n;
        if wqe.sent == wqe.packets {
            self.cursor = self.cursor.wrapping_add(1);
        }
    }

    /// Whether fewer than `requests` wait to be sent, all together of less than
    /// `bytes`, none of them begun and none an RDMA READ.
    pub(super) fn is_little(&self, requests: usize, bytes: u32) -> bool {
        let from = self.cursor.wrapping_sub(self.base) as usize;
        let waiting = self.queue.len().saturating_sub(from);
        let mut left = bytes;
        waiting < requests
            && self.queue.range(from.min(self.queue.len())..).all(|wqe| {
                let fits = wqe.len < left && wqe.sent == 0 && !wqe.is_read();
                left = left.saturating_sub(wqe.len);
                fits
            })
    }

    pub(super) fn get(&self, number: u32) -> Option<&Wqe> {
        self.queue.get(number.wrapping_sub(self.base) as usize)
    }

    /// Copies bytes of a request from `offset` on.
    pub(super) fn gather(&self, wqe: &Wqe, offset: u32, out: &mut [u8]) -> Result<(), Withdrawn> {
        match &wqe.source {
            Source::Pieces(pieces) => pieces.gather(offset, out),
            Source::Inline(at) => {
                let from = (at - self.inline_base) as usize + offset as usize;
                let (a, b) = self.inline.as_slices();
                // How much of it is in front of the ring's end.
                let n = a.len().saturating_sub(from).min(out.len());
                let (front, back) = out.split_at_mut(n);
                if n > 0 {
                    front.copy_from_slice(&a[from..from + n]);
                }
                if !back.is_empty() {
                    let from = from + n - a.len();
                    back.copy_from_slice(&b[from..from + back.len()]);
                }
                Ok(())
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }
}
