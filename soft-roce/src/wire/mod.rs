//! Headers and messages of RoCEv2, one a file: where the fields are, a plain
//! representation, `parse` with a reason for refusal, `emit`.
//!
//! What it does: turns bytes into checked values and back. Nothing here
//! panics on bytes from the network.
//! What it does not do: state. Whether a packet fits a connection is for the
//! engines.
//!
//! Everything is big-endian except the ICRC. Numbers of queue pairs and packet
//! sequence numbers are the low 24 bits of a `u32`.

pub mod aeth;
pub mod bth;
pub mod cm;
pub mod deth;
pub mod icrc;
pub mod ieth;
pub mod immdt;
pub mod mad;
mod opcode;
mod packet;
pub mod reth;

pub use aeth::{Aeth, NakCode, Syndrome};
pub use bth::Bth;
pub use deth::Deth;
pub use icrc::FlowCrc;
pub use ieth::Ieth;
pub use immdt::ImmDt;
pub use opcode::{Opcode, PacketKind, Position};
pub use packet::{Packet, pad_of};
pub use reth::Reth;

#[cfg(test)]
mod captured;
#[cfg(test)]
mod tests;

/// The UDP port of RoCEv2 (IBTA annex A17.3.1.1).
pub const ROCE_PORT: u16 = 4791;

/// The largest number that fits in 24 bits: of queue pairs and of packets.
pub const MAX_24: u32 = 0x00ff_ffff;

/// The only partition this crate speaks in: the default one, full member.
pub const DEFAULT_PKEY: u16 = 0xffff;

/// Length of the ICRC behind each packet.
pub const ICRC_LEN: usize = 4;

/// Why bytes are not the header or message they were taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// Fewer bytes than the header needs.
    #[error("{what}: {have} bytes, at least {need} needed")]
    Truncated {
        /// The header or message.
        what: &'static str,
        /// Bytes that it takes.
        need: usize,
        /// Bytes there were.
        have: usize,
    },
    /// The transport version in the BTH is not 0.
    #[error("transport version {0}")]
    TransportVersion(u8),
    /// An opcode that this crate has no use for.
    #[error("opcode {0:#04x}")]
    Opcode(u8),
    /// More pad than there are bytes behind the headers.
    #[error("pad of {pad} behind {have} bytes")]
    Pad {
        /// Pad count in the BTH.
        pad: u8,
        /// Bytes behind the headers.
        have: usize,
    },
    /// Headers, payload and pad together are no multiple of four bytes.
    #[error("packet of {0} bytes, no multiple of 4")]
    Unaligned(usize),
    /// A syndrome that the specification reserves.
    #[error("syndrome {0:#04x}")]
    Syndrome(u8),
    /// A field holds a value that the message cannot have.
    #[error("{what}: {field} is {value:#x}")]
    Field {
        /// The header or message.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// What it held.
        value: u64,
    },
}

/// The first `N` bytes of `bytes`, or why there are not as many.
fn head<'a, const N: usize>(
    what: &'static str,
    bytes: &'a [u8],
) -> Result<&'a [u8; N], ParseError> {
    bytes.first_chunk().ok_or(ParseError::Truncated {
        what,
        need: N,
        have: bytes.len(),
    })
}

/// Reads 24 bits.
fn get24(b: [u8; 3]) -> u32 {
    u32::from_be_bytes([0, b[0], b[1], b[2]])
}

/// The three bytes of a 24-bit number; higher bits are dropped.
fn put24(v: u32) -> [u8; 3] {
    let [_, a, b, c] = v.to_be_bytes();
    [a, b, c]
}
