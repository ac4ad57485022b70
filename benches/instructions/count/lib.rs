//! What is counted, and how it is read: callgrind's output by crate and by library, and the checked-in ceilings. Runs nothing; `main.rs` does.

#![forbid(unsafe_code)]

pub mod callgrind;
pub mod ceiling;
pub mod component;
