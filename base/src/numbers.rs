//! Tables by numbers that we choose ourselves, like those of queue pairs.
//!
//! What it does: a hash of one multiplication. No peer chooses the numbers, so they need no hash that
//! withstands one.
//! What it does not do: withstand a peer that chooses them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A table by numbers that no peer chooses.
pub type ByNumber<V> = HashMap<u32, V, BuildHasherDefault<NumberHasher>>;

/// Spreads a number over the bits that a table uses.
#[derive(Debug, Default)]
pub struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        // By Knuth's multiplicative method: 2^64 divided by the golden ratio.
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    #[inline]
    fn finish(&self) -> u64 {
        // The table takes its place from the low bits, and the product has its best ones on top.
        self.0.rotate_left(32)
    }
}
