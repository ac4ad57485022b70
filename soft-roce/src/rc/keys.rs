//! Numbers that a peer cannot guess: keys of memory, numbers of queue pairs,
//! starting PSNs.
//!
//! What it does: a keyed hash (SipHash, keyed by the operating system's random
//! numbers) over a counter. Who knows some of the numbers cannot tell the next.
//! With a seed instead, the same numbers come each time: for simulations.
//! What it does not do: uniqueness; whoever takes a number checks that it is free.

use std::collections::hash_map::{DefaultHasher, RandomState};
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

/// A source of numbers that cannot be guessed.
#[derive(Debug)]
pub struct KeySource {
    counter: AtomicU64,
    secret: Secret,
}

#[derive(Debug)]
enum Secret {
    Random(RandomState),
    Seed(u64),
}

impl KeySource {
    /// A source keyed by the operating system.
    #[must_use]
    pub fn random() -> Self {
        Self::with(Secret::Random(RandomState::new()))
    }

    /// A source that anyone can foretell, for tests and simulations only.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self::with(Secret::Seed(seed))
    }

    /// The next number.
    #[must_use]
    pub fn next_u64(&self) -> u64 {
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        match &self.secret {
            Secret::Random(state) => state.hash_one(count),
            Secret::Seed(seed) => {
                let mut hasher = DefaultHasher::new();
                (seed, count).hash(&mut hasher);
                hasher.finish()
            }
        }
    }

    /// The next number, 32 bits of it.
    #[must_use]
    pub fn next_u32(&self) -> u32 {
        // The upper half of a hash is as good as the whole.
        (self.next_u64() >> 32) as u32
    }

    fn with(secret: Secret) -> Self {
        Self {
            counter: AtomicU64::new(0),
            secret,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_seed_repeats_and_the_system_does_not() {
        let take = |source: KeySource| -> Vec<u64> { (0..8).map(|_| source.next_u64()).collect() };
        assert_eq!(take(KeySource::seeded(3)), take(KeySource::seeded(3)));
        assert_ne!(take(KeySource::seeded(3)), take(KeySource::seeded(4)));
        assert_ne!(take(KeySource::random()), take(KeySource::random()));
    }

    #[test]
    fn no_number_twice_in_many() {
        let source = KeySource::random();
        let seen: HashSet<u64> = (0..10_000).map(|_| source.next_u64()).collect();
        assert_eq!(seen.len(), 10_000);
    }
}
