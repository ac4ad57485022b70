#![no_main]

// The same runs as a proptest: provider/src/transfer/engine/sim.
libfuzzer_sys::fuzz_target!(|data: &[u8]| san_provider::fuzzing::engine_calls(data));
