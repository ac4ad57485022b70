//! Packets that arrived ahead of a missing one, from a peer of our kind.
//!
//! What it does: keeps them until their turn comes, bounded per queue pair and
//! per device, and tells which they are. There is nothing to keep while nothing
//! is missing: then it holds no memory but the empty table of slots.
//! What it does not do: look into them.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::rc::attr::ReorderBudget;
use crate::rc::psn::Seq;
use crate::rc::sack;
use crate::wire::{Bth, Ieth, ImmDt, Packet, Reth};

/// How far ahead of the missing one a packet may be.
const REACH: u64 = 1024;

/// A packet that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    bth: Bth,
    reth: Option<Reth>,
    imm: Option<ImmDt>,
    ieth: Option<Ieth>,
    payload: Vec<u8>,
    /// Sequence numbers that it takes: more than one for an RDMA READ.
    takes: u32,
}

impl Waiting {
    pub(super) fn packet(&self) -> Packet<'_> {
        Packet {
            reth: self.reth,
            imm: self.imm,
            ieth: self.ieth,
            payload: &self.payload,
            ..Packet::new(self.bth)
        }
    }

    /// What it costs while it waits.
    fn cost(&self) -> usize {
        self.payload.len() + size_of::<Self>()
    }
}

#[derive(Debug)]
pub(super) struct Reorder {
    /// From the one behind the missing one on. Empty while nothing waits.
    slots: VecDeque<Option<Waiting>>,
    budget: Arc<ReorderBudget>,
    used: usize,
    /// The missing one.
    base: Seq,
}

impl Reorder {
    pub(super) fn new(budget: Arc<ReorderBudget>) -> Self {
        Self {
            slots: VecDeque::new(),
            budget,
            used: 0,
            base: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Keeps a packet that is `seq` while `expected` is missing. Says whether it
    /// is kept now.
    pub(super) fn keep(
        &mut self,
        expected: Seq,
        seq: Seq,
        takes: u32,
        packet: &Packet<'_>,
    ) -> bool {
        self.move_to(expected);
        let at = seq - expected - 1;
        if at >= REACH {
            return false;
        }
        let at = at as usize;
        if self.slots.get(at).is_some_and(Option::is_some) {
            return true;
        }
        let waiting = Waiting {
            bth: packet.bth,
            reth: packet.reth,
            imm: packet.imm,
            ieth: packet.ieth,
            payload: packet.payload.to_vec(),
            takes,
        };
        let cost = waiting.cost();
        if !self.budget.take(cost) {
            return false;
        }
        self.used += cost;
        if at >= self.slots.len() {
            self.slots.resize_with(at + 1, || None);
        }
        self.slots[at] = Some(waiting);
        true
    }

    /// The packet `expected`, if it waits. Those before it are dropped.
    pub(super) fn take(&mut self, expected: Seq) -> Option<Waiting> {
        if self.slots.is_empty() || expected <= self.base {
            return None;
        }
        // The one expected becomes the first slot.
        self.move_to(expected - 1);
        let waiting = self.slots.pop_front().flatten();
        self.base = expected;
        if let Some(waiting) = &waiting {
            self.release(waiting.cost());
        }
        self.trim();
        waiting
    }

    /// Length of the bitmap that tells what waits, at most `room` bytes.
    pub(super) fn bitmap_len(&self, expected: Seq, room: usize) -> usize {
        let ahead = self
            .slots
            .iter()
            .enumerate()
            .filter_map(|(i, w)| Some((i as u64, w.as_ref()?.takes)))
            .map(|(i, takes)| (self.base + 1 + i + u64::from(takes)).saturating_sub(expected + 1))
            .max()
            .unwrap_or(0);
        let most = room.min(sack::MAX_LEN) / 4 * 4;
        // The bound first: an RDMA READ may take millions of numbers.
        sack::len_for(ahead.min(8 * most as u64) as usize).min(most)
    }

    /// Writes the bitmap into `out`, which is as long as was said.
    pub(super) fn write_bitmap(&self, expected: Seq, out: &mut [u8]) {
        out.fill(0);
        let bits = 8 * out.len() as u64;
        for (i, waiting) in self.slots.iter().enumerate() {
            let Some(waiting) = waiting else { continue };
            let first = self.base + 1 + i as u64;
            for seq in first..first + u64::from(waiting.takes) {
                match seq.checked_sub(expected) {
                    Some(ahead @ 1..) if ahead <= bits => sack::mark(out, ahead as usize),
                    Some(1..) => break,
                    _ => {}
                }
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.slots = VecDeque::new();
        self.budget.give(std::mem::take(&mut self.used));
    }

    /// Makes `expected` the missing one and drops what is no longer ahead.
    fn move_to(&mut self, expected: Seq) {
        if self.slots.is_empty() {
            self.base = expected;
        }
        while self.base < expected && !self.slots.is_empty() {
            if let Some(waiting) = self.slots.pop_front().flatten() {
                self.release(waiting.cost());
            }
            self.base += 1;
        }
        self.trim();
        if self.slots.is_empty() {
            self.base = expected;
        }
    }

    fn release(&mut self, cost: usize) {
        self.used -= cost;
        self.budget.give(cost);
    }

    /// Drops empty slots at the end, and the table with the last packet.
    fn trim(&mut self) {
        if self.used == 0 && !self.slots.is_empty() {
            self.slots = VecDeque::new();
        }
    }
}

impl Drop for Reorder {
    fn drop(&mut self) {
        self.budget.give(self.used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Opcode;
    use proptest::prelude::*;

    fn packet(payload: &[u8]) -> Packet<'_> {
        Packet {
            payload,
            ..Packet::new(Bth::new(Opcode::SendOnly, 1, 0))
        }
    }

    #[test]
    fn the_missing_one_then_the_others() {
        let budget = Arc::new(ReorderBudget::new(10_000));
        let mut r = Reorder::new(budget.clone());
        assert!(r.keep(10, 12, 1, &packet(b"12")));
        assert!(r.keep(10, 11, 1, &packet(b"11")));
        assert!(r.keep(10, 14, 1, &packet(b"14")));
        assert!(r.keep(10, 12, 1, &packet(b"xx")), "a copy changes nothing");
        assert_eq!(r.bitmap_len(10, 256), 4);
        let mut bits = [9; 4];
        r.write_bitmap(10, &mut bits);
        assert_eq!(bits, [0b1011, 0, 0, 0]);
        assert_eq!(r.take(11).map(|w| w.payload), Some(b"11".to_vec()));
        assert_eq!(r.take(12).map(|w| w.payload), Some(b"12".to_vec()));
        assert!(r.take(13).is_none());
        r.write_bitmap(13, &mut bits);
        assert_eq!(bits, [1, 0, 0, 0]);
        assert_eq!(r.take(14).map(|w| w.payload), Some(b"14".to_vec()));
        assert!(r.is_empty());
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn bounded_by_reach_and_by_budget() {
        let budget = Arc::new(ReorderBudget::new(1000));
        let mut r = Reorder::new(budget.clone());
        assert!(!r.keep(10, 11 + REACH, 1, &packet(&[])));
        assert!(!r.keep(10, 11, 1, &packet(&[0; 1000])));
        assert!(r.keep(10, 11, 1, &packet(&[0; 100])));
        assert!(budget.used() > 100);
        drop(r);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_read_takes_many_numbers() {
        let mut r = Reorder::new(Arc::new(ReorderBudget::new(100_000)));
        assert!(r.keep(10, 12, 1 << 23, &packet(&[])));
        assert_eq!(r.bitmap_len(10, 256), 256);
        let mut bits = [0; 256];
        r.write_bitmap(10, &mut bits);
        assert_eq!(bits[0], 0b1111_1110);
        assert!(bits[1..].iter().all(|b| *b == 0xff));
        // Its turn passes; what lay inside is dropped.
        assert!(r.keep(10, 15, 1, &packet(&[])));
        assert!(r.take(12).is_some());
        assert!(r.take(12 + (1 << 23)).is_none());
        assert!(r.is_empty());
    }

    proptest! {
        /// Against the plainest thing that can do it: a map.
        #[test]
        fn as_a_map_does_it(steps in prop::collection::vec((0u64..40, any::<bool>()), 1..200)) {
            let budget = Arc::new(ReorderBudget::new(usize::MAX));
            let mut r = Reorder::new(budget.clone());
            let mut map = std::collections::BTreeMap::new();
            let mut expected = 100;
            for (n, keep) in steps {
                if keep {
                    let seq = expected + 1 + n;
                    prop_assert!(r.keep(expected, seq, 1, &packet(&seq.to_be_bytes())));
                    map.insert(seq, seq.to_be_bytes().to_vec());
                } else {
                    expected += 1;
                    map = map.split_off(&expected);
                    prop_assert_eq!(r.take(expected).map(|w| w.payload), map.remove(&expected));
                }
                let mut bits = vec![0; r.bitmap_len(expected, 256)];
                r.write_bitmap(expected, &mut bits);
                let told: Vec<u64> = sack::marked(&bits).map(|a| expected + a).collect();
                let known: Vec<u64> = map.keys().copied().filter(|s| *s > expected).collect();
                prop_assert_eq!(told, known);
            }
            drop(r);
            prop_assert_eq!(budget.used(), 0);
        }
    }
}
