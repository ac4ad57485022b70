//! The fuzz targets' entry points with random bytes, so that they run without a
//! nightly compiler. What these find, shrunk, belongs into a test of its own.

#![allow(unreachable_pub, reason = "shared with the fuzz targets")]

#[path = "../../fuzz/entry/mod.rs"]
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
    fn packet(data in bytes(400)) {
        entry::wire::packet(&data);
    }

    #[test]
    fn packet_of_a_known_opcode(mut data in bytes(400), opcode in 0..=0x17u8) {
        if let Some(first) = data.first_mut() {
            *first = opcode;
        }
        let whole = data.len() / 4 * 4;
        entry::wire::packet(&data[..whole]);
    }

    #[test]
    fn mad(mut data in prop::collection::vec(any::<u8>(), 250..260), attribute in 0x0f..0x18u8) {
        entry::wire::mad(&data);
        data[..4].copy_from_slice(&[1, 7, 2, 3]);
        data[16..18].copy_from_slice(&[0, attribute]);
        entry::wire::mad(&data);
    }

    #[test]
    fn icrc(data in bytes(400)) {
        entry::wire::icrc(&data);
    }

    #[test]
    fn rc_packets(data in bytes(3_000)) {
        entry::rc_packets::run(&data);
    }

    #[test]
    fn rc_calls(data in bytes(3_000)) {
        entry::rc_calls::run(&data);
    }

    #[test]
    fn cm_calls(data in bytes(3_000)) {
        entry::cm_calls::run(&data);
    }
}
