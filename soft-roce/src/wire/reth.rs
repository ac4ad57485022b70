//! RDMA Extended Transport Header (IBTA 9.3.3), 16 bytes, in the first packet of
//! an RDMA WRITE and in the request of an RDMA READ.
//!
//! What it does: address, key and length of the remote memory.
//! What it does not do: check them; the responder does, against its regions.

use super::{ParseError, head};

/// Where in the responder's memory an operation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reth {
    /// Virtual address as the responder counts.
    pub va: u64,
    /// Key of the responder's region.
    pub rkey: u32,
    /// Length of the whole message in bytes.
    pub len: u32,
}

impl Reth {
    /// Length on the wire.
    pub const LEN: usize = 16;

    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// Too few bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b: &[u8; Self::LEN] = head("RETH", bytes)?;
        Ok(Self {
            va: u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            rkey: u32::from_be_bytes([b[8], b[9], b[10], b[11]]),
            len: u32::from_be_bytes([b[12], b[13], b[14], b[15]]),
        })
    }

    /// Writes the header to the start of `out`.
    ///
    /// # Panics
    /// If `out` is shorter than [`Reth::LEN`].
    pub fn emit(&self, out: &mut [u8]) {
        let out = &mut out[..Self::LEN];
        out[..8].copy_from_slice(&self.va.to_be_bytes());
        out[8..12].copy_from_slice(&self.rkey.to_be_bytes());
        out[12..].copy_from_slice(&self.len.to_be_bytes());
    }
}
