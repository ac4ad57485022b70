//! Packet sequence numbers: 24 bits on the wire, 64 inside.
//!
//! What it does: the engines count packets in 64 bits, which never wrap, so that
//! comparing is `<` and distance is `-`. A number from the wire is extended to
//! the one nearest to where the connection stands; half the space lies ahead
//! and half behind (IBTA 9.7.2).
//! What it does not do: windows; the requester's scoreboard and the responder's
//! reorder buffer do that.

use crate::wire::MAX_24;

/// A packet sequence number that does not wrap.
pub(crate) type Seq = u64;

const SPACE: u64 = 1 << 24;
const HALF: u64 = 1 << 23;

/// Where a connection that starts with `psn` begins to count. A whole turn
/// further than the wire's number, so that packets before the first one have
/// numbers too.
pub(crate) fn start(psn: u32) -> Seq {
    SPACE + u64::from(psn & MAX_24)
}

/// The number on the wire.
pub(crate) fn to_wire(seq: Seq) -> u32 {
    // The mask keeps 24 of the 32 bits that the conversion leaves.
    (seq as u32) & MAX_24
}

/// The sequence number nearest to `near` whose low 24 bits are `psn`.
pub(crate) fn extend(psn: u32, near: Seq) -> Seq {
    let ahead = u64::from(psn.wrapping_sub(to_wire(near)) & MAX_24);
    if ahead < HALF {
        near.wrapping_add(ahead)
    } else {
        near.wrapping_add(ahead).wrapping_sub(SPACE)
    }
}

/// Packets that a message of `len` bytes takes; an empty one takes one.
pub(crate) fn packets(len: u32, mtu: u32) -> u32 {
    len.div_ceil(mtu).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_turn_of_24_bits() {
        let near = start(MAX_24);
        assert_eq!(extend(MAX_24, near), near);
        assert_eq!(extend(0, near), near + 1);
        assert_eq!(extend(MAX_24 - 1, near), near - 1);
        assert_eq!(to_wire(near + 1), 0);
        // The last number ahead and the first behind.
        let zero = start(0);
        assert_eq!(extend(0x7f_ffff, zero), zero + 0x7f_ffff);
        assert_eq!(extend(0x80_0000, zero), zero - 0x80_0000);
    }

    #[test]
    fn packets_of_a_message() {
        assert_eq!(packets(0, 256), 1);
        assert_eq!(packets(256, 256), 1);
        assert_eq!(packets(257, 256), 2);
        assert_eq!(packets(u32::MAX, 256), 1 << 24);
    }

    proptest! {
        #[test]
        fn extending_undoes_the_wire(near in SPACE..u64::MAX / 2, off in 0..SPACE) {
            let seq = near - HALF + off;
            prop_assert_eq!(extend(to_wire(seq), near), seq);
        }
    }
}
