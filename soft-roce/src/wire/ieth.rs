//! Invalidate Extended Transport Header (IBTA 9.3.7), 4 bytes at the end of a
//! SEND with invalidate.
//!
//! What it does: the key that the responder is to invalidate.
//! What it does not do: invalidate it.

use super::{ParseError, head};

/// A key to invalidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ieth(pub u32);

impl Ieth {
    /// Length on the wire.
    pub const LEN: usize = 4;

    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// Too few bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b: &[u8; Self::LEN] = head("IETH", bytes)?;
        Ok(Self(u32::from_be_bytes(*b)))
    }

    /// Writes the header to the start of `out`.
    ///
    /// # Panics
    /// If `out` is shorter than [`Ieth::LEN`].
    pub fn emit(&self, out: &mut [u8]) {
        out[..Self::LEN].copy_from_slice(&self.0.to_be_bytes());
    }
}
