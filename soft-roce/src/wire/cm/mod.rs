//! Messages of communication management (IBTA 12.6), one a file.
//!
//! What it does: tells the messages apart, reads and writes them.
//! What it does not do: service id resolution (SIDR) and alternate paths (LAP,
//! APR): those are refused as unknown attributes.

mod cma;
mod dreq;
mod mra;
mod rej;
mod rep;
mod req;
mod rtu;

#[cfg(test)]
mod tests;

pub use cma::{CmaHeader, RDMA_PS_TCP, port_of_service, service_of_port};
pub use dreq::Dreq;
pub use mra::Mra;
pub use rej::{Rej, RejReason, Rejected};
pub use rep::Rep;
pub use req::{CMA_AT, Req};
pub use rtu::{Drep, Rtu};

use super::ParseError;
use super::mad::{MAD_LEN, MadBytes, MadHeader};

/// Number of a CM message in the MAD header.
mod attribute {
    pub(super) const REQ: u16 = 0x10;
    pub(super) const MRA: u16 = 0x11;
    pub(super) const REJ: u16 = 0x12;
    pub(super) const REP: u16 = 0x13;
    pub(super) const RTU: u16 = 0x14;
    pub(super) const DREQ: u16 = 0x15;
    pub(super) const DREP: u16 = 0x16;
}

/// A CM message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "all live for one call, on the stack"
)]
pub enum CmMessage {
    /// Request for communication.
    Req(Req),
    /// Message received, the answer takes its time.
    Mra(Mra),
    /// Refusal.
    Rej(Rej),
    /// Reply to a request.
    Rep(Rep),
    /// Ready to use.
    Rtu(Rtu),
    /// Request for disconnection.
    Dreq(Dreq),
    /// Reply to that.
    Drep(Drep),
}

impl CmMessage {
    /// Reads a MAD.
    ///
    /// # Errors
    /// What [`MadHeader::parse`] refuses, an attribute of none of the messages
    /// above, a field that the message cannot have.
    pub fn parse(bytes: &[u8]) -> Result<(MadHeader, Self), ParseError> {
        let header = MadHeader::parse(bytes)?;
        let b: &MadBytes = super::head("MAD", bytes)?;
        let message = match header.attribute {
            attribute::REQ => Self::Req(Req::parse(b)?),
            attribute::MRA => Self::Mra(Mra::parse(b)),
            attribute::REJ => Self::Rej(Rej::parse(b)),
            attribute::REP => Self::Rep(Rep::parse(b)),
            attribute::RTU => Self::Rtu(Rtu::parse(b)),
            attribute::DREQ => Self::Dreq(Dreq::parse(b)),
            attribute::DREP => Self::Drep(Drep::parse(b)),
            other => {
                return Err(ParseError::Field {
                    what: "MAD",
                    field: "attribute",
                    value: u64::from(other),
                });
            }
        };
        Ok((header, message))
    }

    /// Writes the message as a MAD of transaction `tid`, marked as ours.
    #[must_use]
    pub fn emit(&self, tid: u64) -> MadBytes {
        let mut out = [0; MAD_LEN];
        MadHeader {
            tid,
            attribute: self.attribute(),
            own: true,
        }
        .emit(&mut out);
        match self {
            Self::Req(m) => m.emit(&mut out),
            Self::Mra(m) => m.emit(&mut out),
            Self::Rej(m) => m.emit(&mut out),
            Self::Rep(m) => m.emit(&mut out),
            Self::Rtu(m) => m.emit(&mut out),
            Self::Dreq(m) => m.emit(&mut out),
            Self::Drep(m) => m.emit(&mut out),
        }
        out
    }

    fn attribute(&self) -> u16 {
        match self {
            Self::Req(_) => attribute::REQ,
            Self::Mra(_) => attribute::MRA,
            Self::Rej(_) => attribute::REJ,
            Self::Rep(_) => attribute::REP,
            Self::Rtu(_) => attribute::RTU,
            Self::Dreq(_) => attribute::DREQ,
            Self::Drep(_) => attribute::DREP,
        }
    }
}

/// The time that a 5-bit code stands for: 4.096 microseconds times two to the
/// power of the code (IBTA 12.7.34 and others), in nanoseconds.
#[must_use]
pub fn timeout_nanos(code: u8) -> u64 {
    4096 << (code & 0x1f)
}

/// Private data cut or zero-padded to the room a message has.
#[must_use]
pub fn padded<const N: usize>(data: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    let len = data.len().min(N);
    out[..len].copy_from_slice(&data[..len]);
    out
}
