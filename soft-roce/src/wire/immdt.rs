//! Immediate data (IBTA 9.3.6), 4 bytes at the end of a SEND or an RDMA WRITE.
//!
//! What it does: one number, in network order on the wire.
//! What it does not do: give it a meaning.

use super::{ParseError, head};

/// Immediate data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImmDt(pub u32);

impl ImmDt {
    /// Length on the wire.
    pub const LEN: usize = 4;

    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// Too few bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b: &[u8; Self::LEN] = head("ImmDt", bytes)?;
        Ok(Self(u32::from_be_bytes(*b)))
    }

    /// Writes the header to the start of `out`.
    ///
    /// # Panics
    /// If `out` is shorter than [`ImmDt::LEN`].
    pub fn emit(&self, out: &mut [u8]) {
        out[..Self::LEN].copy_from_slice(&self.0.to_be_bytes());
    }
}
