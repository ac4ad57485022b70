//! Which packets behind a missing one have arrived: an addition of this crate
//! to the NAK, sent only to itself.
//!
//! What it does: a NAK for a missing packet (IBTA 9.7.5.2.8) whose payload is a
//! bitmap. The PSN in the BTH is, as ever, the first one missing; bit `i` of the
//! payload (byte `i / 8`, lowest bit first) tells of the packet `i + 1` behind
//! it. The payload is as short as the last packet allows and a multiple of four
//! bytes. An empty one is an ordinary NAK.
//! What it does not do: replace the cumulative ACK. A packet told of here is
//! kept, not carried out.

/// The longest bitmap in bytes.
pub(crate) const MAX_LEN: usize = 512;

/// Bytes that it takes to tell of `packets` behind the missing one.
pub(crate) fn len_for(packets: usize) -> usize {
    packets.div_ceil(32) * 4
}

/// Marks the packet `ahead` (at least 1) behind the missing one.
pub(crate) fn mark(bitmap: &mut [u8], ahead: usize) {
    let bit = ahead - 1;
    if let Some(byte) = bitmap.get_mut(bit / 8) {
        *byte |= 1 << (bit % 8);
    }
}

/// How far behind the missing one each packet told of is.
pub(crate) fn marked(bitmap: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let bitmap = &bitmap[..bitmap.len().min(MAX_LEN)];
    bitmap.iter().enumerate().flat_map(|(at, byte)| {
        (0..8)
            .filter(move |bit| byte >> bit & 1 == 1)
            .map(move |bit| (at * 8 + bit + 1) as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_marked_is_told(set in prop::collection::btree_set(1usize..4096, 0..50)) {
            let mut bitmap = vec![0; len_for(set.last().copied().unwrap_or(0))];
            for ahead in &set {
                mark(&mut bitmap, *ahead);
            }
            prop_assert_eq!(bitmap.len() % 4, 0);
            let told: Vec<u64> = marked(&bitmap).collect();
            let set: Vec<u64> = set.into_iter().map(|a| a as u64).collect();
            prop_assert_eq!(told, set);
        }

        #[test]
        fn any_bytes_are_bounded(bytes: Vec<u8>) {
            prop_assert!(marked(&bytes).all(|a| (1..=4096).contains(&a)));
        }
    }
}
