//! Datagram Extended Transport Header (IBTA 9.3.2), 8 bytes, in front of MADs.
//!
//! What it does: the Q_Key and the queue pair that sent.
//! What it does not do: decide which Q_Key is right.

use super::{MAX_24, ParseError, get24, head, put24};

/// The Q_Key of queue pair 1, the CM's (IBTA 10.2.5).
pub const GSI_QKEY: u32 = 0x8001_0000;

/// The number of the queue pair that speaks CM (IBTA 9.6.2.1).
pub const GSI_QPN: u32 = 1;

/// A datagram header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Deth {
    /// Key that the receiving queue pair compares.
    pub qkey: u32,
    /// Queue pair that sent, 24 bits.
    pub src_qpn: u32,
}

impl Deth {
    /// Length on the wire.
    pub const LEN: usize = 8;

    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// Too few bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b: &[u8; Self::LEN] = head("DETH", bytes)?;
        Ok(Self {
            qkey: u32::from_be_bytes([b[0], b[1], b[2], b[3]]),
            src_qpn: get24([b[5], b[6], b[7]]),
        })
    }

    /// Writes the header to the start of `out`.
    ///
    /// # Panics
    /// If `out` is shorter than [`Deth::LEN`].
    pub fn emit(&self, out: &mut [u8]) {
        let out = &mut out[..Self::LEN];
        out[..4].copy_from_slice(&self.qkey.to_be_bytes());
        out[4] = 0;
        out[5..].copy_from_slice(&put24(self.src_qpn & MAX_24));
    }
}
