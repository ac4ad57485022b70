//! Two engines in a pretended world. Its TCP cuts bytes as it likes and has little room. Its queue
//! pairs come, and break at any point: some messages have arrived and were never acknowledged, and one
//! end notices later than the other. Every byte is checked at its position, so a frame that an
//! application sees is a wrong byte.
//!
//! A run is a seed. `SAN_STREAM_SEED` runs one, `SAN_STREAM_SEEDS` says how many,
//! `SAN_STREAM_TRACE` prints events.

mod end;
mod network;
mod tests;
mod world;

/// SplitMix64.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// So many times in a thousand.
    pub(crate) fn per_mille(&mut self, n: usize) -> bool {
        self.below(1000) < n
    }
}

/// The byte at a position of the stream of one of the ends.
pub(crate) fn byte(writer: usize, position: u64) -> u8 {
    let x = (position >> 3)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(writer as u64)
        .rotate_left(23)
        ^ 0x1234_5678_9abc;
    (x >> ((position & 7) * 8)) as u8
}
