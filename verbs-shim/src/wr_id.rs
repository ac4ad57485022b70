//! What the 64 bits of a work request id mean.
//!
//! ```text
//! 63          32 31 30 29      16 15       0
//! | user's token | kind |  life  |   slot   |
//! ```
//!
//! The status of a failed completion says nothing of what it was (IBTA leaves the opcode
//! undefined then), so the kind travels here. `life` tells apart the queues that had the same
//! number one after the other: what an old queue left behind must never free a buffer of a new one.

/// Slots are numbered with 16 bits.
pub(crate) const MAX_SLOTS: u32 = 1 << 16;

const LIFE_BITS: u32 = 14;

/// The table that a work request was posted through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Send,
    Receive,
    SharedReceive,
}

/// 14 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Life(u16);

impl Life {
    pub(crate) fn new(n: u32) -> Self {
        Self((n & ((1 << LIFE_BITS) - 1)) as u16)
    }

    pub(crate) fn next(self) -> Self {
        Self::new(u32::from(self.0) + 1)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WrId {
    pub(crate) token: u32,
    pub(crate) kind: Kind,
    pub(crate) life: Life,
    pub(crate) slot: u16,
}

impl WrId {
    pub(crate) fn pack(self) -> u64 {
        let kind: u64 = match self.kind {
            Kind::Send => 0,
            Kind::Receive => 1,
            Kind::SharedReceive => 2,
        };
        u64::from(self.token) << 32
            | kind << 30
            | u64::from(self.life.0) << 16
            | u64::from(self.slot)
    }

    /// `None`: nothing that this crate posted.
    pub(crate) fn unpack(raw: u64) -> Option<Self> {
        let kind = match raw >> 30 & 3 {
            0 => Kind::Send,
            1 => Kind::Receive,
            2 => Kind::SharedReceive,
            _ => return None,
        };
        Some(Self {
            token: (raw >> 32) as u32,
            kind,
            life: Life::new((raw >> 16) as u32),
            slot: raw as u16,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_survives() {
        for token in [0, 1, u32::MAX] {
            for kind in [Kind::Send, Kind::Receive, Kind::SharedReceive] {
                for life in [0, 1, 0x3fff] {
                    for slot in [0, 1, u16::MAX] {
                        let id = WrId {
                            token,
                            kind,
                            life: Life::new(life),
                            slot,
                        };
                        assert_eq!(WrId::unpack(id.pack()), Some(id));
                    }
                }
            }
        }
    }

    #[test]
    fn a_foreign_kind_is_none() {
        assert_eq!(WrId::unpack(3 << 30), None);
        assert_eq!(WrId::unpack(u64::MAX), None);
    }

    #[test]
    fn lives_wrap() {
        assert_eq!(Life::new(0x3fff).next(), Life::new(0));
        assert_ne!(Life::new(5).next(), Life::new(5));
    }
}
