//! What the fuzz targets and `soft-roce/tests/fuzz.rs` both run: each function
//! takes any bytes, makes what it can of them and panics if a promise is broken.

pub mod cm_calls;
pub mod input;
pub mod rc_calls;
pub mod rc_packets;
pub mod wire;
