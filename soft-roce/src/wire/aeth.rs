//! ACK Extended Transport Header (IBTA 9.3.5), 4 bytes, in acknowledgements and
//! in the first and last packet of a READ response.
//!
//! What it does: the syndrome (ACK, RNR NAK, NAK) and the message sequence number.
//! What it does not do: end-to-end credits. They are sent as "no credits" (0x1f)
//! and read only as a number.

use super::{MAX_24, ParseError, get24, head, put24};

/// An acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Aeth {
    /// What became of the packet.
    pub syndrome: Syndrome,
    /// Messages that the responder has completed, modulo 2^24.
    pub msn: u32,
}

/// What became of a packet (IBTA table 44).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Syndrome {
    /// Arrived; five bits of credit count, [`Syndrome::NO_CREDITS`] where none
    /// are kept.
    Ack(u8),
    /// Receiver not ready: try again after the time that this code (0-31)
    /// stands for, see [`rnr_nanos`].
    Rnr(u8),
    /// Not carried out.
    Nak(NakCode),
}

/// Why the responder did not carry out a request (IBTA table 45).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NakCode {
    /// A packet is missing: send again from the PSN in the BTH.
    SequenceError,
    /// The request breaks the rules.
    InvalidRequest,
    /// Key, range or access right is wrong.
    RemoteAccess,
    /// The responder failed.
    RemoteOperation,
    /// Reliable datagram only; carried so that nothing is lost.
    InvalidRdRequest,
}

impl Syndrome {
    /// The credit count of a responder that keeps none.
    pub const NO_CREDITS: u8 = 0x1f;

    /// The byte of the AETH.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Ack(credits) => credits & 0x1f,
            Self::Rnr(timer) => 0x20 | (timer & 0x1f),
            Self::Nak(code) => 0x60 | code as u8,
        }
    }

    /// Takes the byte of an AETH.
    ///
    /// # Errors
    /// [`ParseError::Syndrome`] for a reserved one.
    pub fn from_byte(byte: u8) -> Result<Self, ParseError> {
        let low = byte & 0x1f;
        match byte >> 5 {
            0 => Ok(Self::Ack(low)),
            1 => Ok(Self::Rnr(low)),
            3 => Ok(Self::Nak(match low {
                0 => NakCode::SequenceError,
                1 => NakCode::InvalidRequest,
                2 => NakCode::RemoteAccess,
                3 => NakCode::RemoteOperation,
                4 => NakCode::InvalidRdRequest,
                _ => return Err(ParseError::Syndrome(byte)),
            })),
            _ => Err(ParseError::Syndrome(byte)),
        }
    }
}

/// The time that an RNR NAK's code stands for (IBTA table 46), in nanoseconds.
/// Only the low five bits count.
#[must_use]
pub fn rnr_nanos(code: u8) -> u64 {
    // In units of 10 microseconds; code 0 is the longest.
    const UNITS: [u64; 32] = [
        65_536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024,
        1536, 2048, 3072, 4096, 6144, 8192, 12_288, 16_384, 24_576, 32_768, 49_152,
    ];
    UNITS[usize::from(code & 0x1f)] * 10_000
}

impl Aeth {
    /// Length on the wire.
    pub const LEN: usize = 4;

    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// Too few bytes, or a reserved syndrome.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b: &[u8; Self::LEN] = head("AETH", bytes)?;
        Ok(Self {
            syndrome: Syndrome::from_byte(b[0])?,
            msn: get24([b[1], b[2], b[3]]),
        })
    }

    /// Writes the header to the start of `out`.
    ///
    /// # Panics
    /// If `out` is shorter than [`Aeth::LEN`].
    pub fn emit(&self, out: &mut [u8]) {
        let out = &mut out[..Self::LEN];
        out[0] = self.syndrome.to_byte();
        out[1..].copy_from_slice(&put24(self.msn & MAX_24));
    }
}
