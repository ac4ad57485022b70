//! Engines in memory.

use super::Payloads;

/// Payloads of tests: plain memory, and numbers.
#[derive(Debug)]
pub(crate) struct Pieces;

impl Payloads for Pieces {
    type Buffer = Vec<u8>;
    type Rdma = u32;
    type Waker = u32;
}
