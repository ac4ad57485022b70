//! The fuzz targets' entry points with random bytes, so that they run without a
//! nightly compiler. What these find, shrunk, belongs into a test of its own.

#![allow(unreachable_pub, reason = "shared with the fuzz targets")]

#[path = "../../fuzz/entry/stream.rs"]
mod entry;

use std::hash::{BuildHasher, Hasher, RandomState};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Bytes of which many are small: choices, not noise.
fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    (any::<u64>(), 0..most).prop_map(|(seed, len)| {
        let mut state = seed;
        (0..len)
            .map(|_| {
                // SplitMix64.
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let byte = (z >> 40) as u8;
                if z >> 63 == 1 { byte } else { byte % 8 }
            })
            .collect()
    })
}

/// `PROPTEST_CASES` asks for more than the usual thousand, `SAN_FUZZ_SEED` for the run that had this seed: a test that
/// fails says which it was.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    let seed = match std::env::var("SAN_FUZZ_SEED") {
        Ok(seed) => seed.parse().expect("SAN_FUZZ_SEED is a number"),
        Err(_) => RandomState::new().build_hasher().finish(),
    };
    println!("SAN_FUZZ_SEED={seed}");
    ProptestConfig {
        cases: config.cases.max(1_000),
        // The failing bytes are printed; what they show gets a test of its own.
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..config
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn wire(data in bytes(120)) {
        entry::wire(&data);
    }

    #[test]
    fn wire_of_a_known_kind(mut data in bytes(60), kind in prop::sample::select(san_stream::Kind::ALL.to_vec())) {
        if let Some(first) = data.first_mut() {
            *first = kind.number();
        }
        entry::wire(&data);
    }

    #[test]
    fn events(data in bytes(1500)) {
        entry::events(&data);
    }
}
