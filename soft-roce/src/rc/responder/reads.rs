//! The RDMA READs that were carried out last.
//!
//! What it does: tells what a duplicate of one may ask for again (IBTA 9.7.5.1.5:
//! the same, or a part of it), and which sequence numbers an ACK may have: never
//! those of an RDMA READ. A READ is complete when its response has come; who is
//! sent its number in an ACK may take it as complete without its bytes
//! (`rdma_rxe` does).
//!
//! As many are remembered as the peer may have under way, as IBTA 9.7.4.1.9 asks
//! for. What is older the peer has done with.
//!
//! What it does not do: read memory; what a key opens may have changed since.

use std::collections::VecDeque;

use crate::rc::psn::Seq;
use crate::wire::Reth;

#[derive(Debug)]
pub(super) struct Reads {
    recent: VecDeque<Read>,
    most: usize,
    /// From here on it is known which numbers are READs'.
    known: Seq,
}

/// One, or several that follow each other in number and in memory.
#[derive(Debug)]
struct Read {
    first: Seq,
    /// Behind its last packet.
    end: Seq,
    va: u64,
    rkey: u32,
    len: u64,
}

impl Read {
    fn holds(&self, seq: Seq) -> bool {
        (self.first..self.end).contains(&seq)
    }

    /// Whether it asked for all that a request for `packets` from `seq` on asks.
    fn includes(&self, (seq, packets): (Seq, u32), reth: Reth, mtu: u32) -> bool {
        let mtu = u64::from(mtu);
        let (packets, len) = (u64::from(packets), u64::from(reth.len));
        if seq < self.first || seq + packets > self.end {
            return false;
        }
        // No bytes, no key and no address.
        if self.len == 0 || len == 0 {
            return self.len == len;
        }
        let offset = (seq - self.first) * mtu;
        // Each packet is as long as it was the first time.
        let whole = len == packets * mtu || offset + len == self.len;
        whole && reth.rkey == self.rkey && reth.va == self.va.wrapping_add(offset)
    }

    /// Whether a request for what follows it in memory may be taken as its
    /// continuation: a requester may cut one READ in several as it likes.
    fn goes_on_with(&self, first: Seq, reth: Reth, mtu: u32) -> bool {
        let full = self.len == (self.end - self.first) * u64::from(mtu);
        full && first == self.end
            && reth.rkey == self.rkey
            && reth.va == self.va.wrapping_add(self.len)
            && reth.len > 0
    }
}

impl Reads {
    /// Remembers `most`, from a connection's first number on.
    pub(super) fn new(most: usize, start: Seq) -> Self {
        Self {
            recent: VecDeque::new(),
            most: most.max(1),
            known: start,
        }
    }

    /// One is carried out.
    pub(super) fn remember(&mut self, (first, packets): (Seq, u32), reth: Reth, mtu: u32) {
        let end = first + u64::from(packets);
        if let Some(last) = self.recent.back_mut()
            && last.goes_on_with(first, reth, mtu)
        {
            last.end = end;
            last.len += u64::from(reth.len);
            return;
        }
        if self.recent.len() == self.most
            && let Some(oldest) = self.recent.pop_front()
        {
            self.known = oldest.end;
        }
        self.recent.push_back(Read {
            first,
            end,
            va: reth.va,
            rkey: reth.rkey,
            len: reth.len.into(),
        });
    }

    /// Whether a READ of `packets` from `seq` on repeats one, or a part of one.
    pub(super) fn repeats(&self, span: (Seq, u32), reth: Reth, mtu: u32) -> bool {
        self.recent.iter().any(|r| r.includes(span, reth, mtu))
    }

    /// Up to where all may be acknowledged when `seq`, a SEND's or an RDMA
    /// WRITE's before `expected`, came again: not past the next READ, since its
    /// response may be missing as well. None for one that nobody waits for.
    pub(super) fn run_end(&self, seq: Seq, expected: Seq) -> Option<Seq> {
        if seq < self.known || seq >= expected {
            return None;
        }
        match self.recent.iter().find(|r| r.end > seq) {
            Some(read) if read.holds(seq) => None,
            Some(read) => Some(read.first - 1),
            None => Some(expected - 1),
        }
    }

    /// The last number below `seq` that is no READ's, if it is known.
    pub(super) fn last_before(&self, seq: Seq) -> Option<Seq> {
        let mut last = seq - 1;
        for read in self.recent.iter().rev() {
            if read.holds(last) {
                last = read.first - 1;
            }
        }
        (last >= self.known).then_some(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: u32 = 256;

    fn reth(va: u64, len: u32) -> Reth {
        Reth { va, rkey: 7, len }
    }

    /// 10 and 11 are WRITEs, 12 to 14 a READ, 15 a SEND, 16 a READ, 17 a SEND.
    fn some(most: usize) -> Reads {
        let mut reads = Reads::new(most, 10);
        reads.remember((12, 3), reth(0x1000, 700), MTU);
        reads.remember((16, 1), reth(0x9000, 0), MTU);
        reads
    }

    #[test]
    fn what_may_be_asked_again() {
        let reads = some(2);
        let again = |seq, va, len: u32| {
            let packets = len.div_ceil(MTU).max(1);
            reads.repeats((seq, packets), reth(va, len), MTU)
        };
        assert!(again(12, 0x1000, 700), "all of it");
        assert!(again(13, 0x1100, 444), "from its middle to its end");
        assert!(again(13, 0x1100, 256), "its middle");
        assert!(again(14, 0x1200, 188), "its end");
        assert!(again(16, 0, 0), "nothing");
        assert!(!again(12, 0x1100, 256), "another place");
        assert!(!again(13, 0x1100, 200), "a middle that is shorter");
        assert!(!again(14, 0x1200, 189), "more than there was");
        assert!(!again(12, 0x1000, 0), "nothing of something");
        assert!(!again(16, 0x9000, 1), "something of nothing");
        assert!(!again(11, 0x0f00, 512), "a WRITE before it");
        assert!(!again(14, 0x1200, 512), "a SEND behind it");
        assert!(!again(15, 0x1300, 4), "a SEND");
        let mut other = reth(0x1000, 700);
        other.rkey = 8;
        assert!(!reads.repeats((12, 3), other, MTU), "with another key");
    }

    /// A lost request may come in parts, and a part of the answer may be lost
    /// where they meet.
    #[test]
    fn parts_of_one() {
        let mut reads = Reads::new(1, 10);
        reads.remember((10, 2), reth(0x1000, 512), MTU);
        reads.remember((12, 2), reth(0x1200, 300), MTU);
        assert!(reads.repeats((11, 2), reth(0x1100, 512), MTU));
        assert_eq!(reads.last_before(14), None);
        reads.remember((14, 1), reth(0x132c, 10), MTU);
        assert!(!reads.repeats((11, 2), reth(0x1100, 512), MTU), "forgotten");
    }

    #[test]
    fn numbers_for_an_ack() {
        let reads = some(2);
        let ends: Vec<Option<Seq>> = (9..19).map(|seq| reads.run_end(seq, 18)).collect();
        let (a, b, c) = (Some(11), Some(15), Some(17));
        assert_eq!(
            ends,
            [None, a, a, None, None, None, b, None, c, None],
            "9 was never, 18 is to come"
        );
        let before: Vec<Option<Seq>> = (10..19).map(|seq| reads.last_before(seq)).collect();
        let first = Some(10);
        assert_eq!(before, [None, first, a, a, a, a, b, b, c]);
    }

    #[test]
    fn what_is_forgotten_is_not_answered() {
        let reads = some(1);
        assert_eq!(reads.run_end(11, 18), None);
        assert_eq!(reads.run_end(15, 18), Some(15));
        assert_eq!(reads.last_before(15), None);
        assert!(!reads.repeats((12, 3), reth(0x1000, 700), MTU));
    }
}
