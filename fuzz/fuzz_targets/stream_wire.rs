#![no_main]

#[path = "../entry/stream.rs"]
#[allow(dead_code, reason = "each target runs one entry")]
mod entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| entry::wire(data));
