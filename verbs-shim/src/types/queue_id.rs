//! What the 64 bits of a work request id mean.
//!
//! ```text
//! 63          32 31 30 29        16 15       0
//! | user's token | kind | generation |  slot  |
//!               |     queue id       |
//! ```
//!
//! The status of a failed completion says nothing of what it was (IBTA leaves the opcode
//! undefined then), so the kind travels here. The generation tells apart the queues that had the
//! same number one after the other: what an old queue left behind must never free a buffer of a new
//! one.

/// Slots are numbered with 16 bits.
pub(crate) const MAX_SLOTS: u32 = 1 << 16;

const GENERATION_BITS: u32 = 14;
/// Generations there are.
const GENERATIONS: u32 = 1 << GENERATION_BITS;

/// The table that a work request was posted through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Send,
    Receive,
    SharedReceive,
}

/// 14 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Generation(u16);

impl Generation {
    pub(crate) const FIRST: Self = Self(0);

    pub(crate) fn new(n: u32) -> Self {
        Self((n & (GENERATIONS - 1)) as u16)
    }

    pub(crate) fn next(self) -> Self {
        Self::new(u32::from(self.0) + 1)
    }

    /// All there are, from the next one on.
    pub(crate) fn others(self) -> impl Iterator<Item = Self> {
        (1..=GENERATIONS).map(move |n| Self::new(u32::from(self.0) + n))
    }
}

/// Kind and generation: which of a process's queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueId(u16);

impl QueueId {
    pub(crate) fn new(kind: Kind, generation: Generation) -> Self {
        let kind: u16 = match kind {
            Kind::Send => 0,
            Kind::Receive => 1,
            Kind::SharedReceive => 2,
        };
        Self(kind << GENERATION_BITS | generation.0)
    }

    /// That of the queue that a work request was posted to.
    #[inline]
    pub(crate) fn of(wr_id: u64) -> Self {
        Self((wr_id >> 16) as u16)
    }

    /// `None`: nothing that this crate posted.
    #[inline]
    pub(crate) fn kind(self) -> Option<Kind> {
        match self.0 >> GENERATION_BITS {
            0 => Some(Kind::Send),
            1 => Some(Kind::Receive),
            2 => Some(Kind::SharedReceive),
            _ => None,
        }
    }

    /// The id of a work request.
    #[inline]
    pub(crate) fn wr_id(self, token: u32, slot: u16) -> u64 {
        u64::from(token) << 32 | u64::from(self.0) << 16 | u64::from(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_survives() {
        for token in [0, 1, u32::MAX] {
            for kind in [Kind::Send, Kind::Receive, Kind::SharedReceive] {
                for generation in [0, 1, 0x3fff] {
                    for slot in [0, 1, u16::MAX] {
                        let queue = QueueId::new(kind, Generation::new(generation));
                        let wr_id = queue.wr_id(token, slot);
                        assert_eq!(QueueId::of(wr_id), queue);
                        assert_eq!(queue.kind(), Some(kind));
                        assert_eq!((wr_id as u16, (wr_id >> 32) as u32), (slot, token));
                    }
                }
            }
        }
    }

    #[test]
    fn a_foreign_kind_is_none() {
        assert_eq!(QueueId::of(3 << 30).kind(), None);
        assert_eq!(QueueId::of(u64::MAX).kind(), None);
    }

    #[test]
    fn generations_wrap() {
        assert_eq!(Generation::new(0x3fff).next(), Generation::new(0));
        assert_ne!(Generation::new(5).next(), Generation::new(5));
        let all: std::collections::HashSet<_> = Generation::new(7).others().collect();
        assert_eq!(all.len(), 1 << 14);
    }
}
