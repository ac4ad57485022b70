//! Base Transport Header (IBTA 9.2), 12 bytes in front of every packet.
//!
//! What it does: the fields that every packet has.
//! What it does not do: FECN, BECN and the other reserved bits of byte 4, which
//! the ICRC masks: they are sent as zero and not read.

use super::{
    Aeth, DEFAULT_PKEY, Deth, Ieth, ImmDt, MAX_24, Opcode, ParseError, Reth, get24, head, put24,
};

mod at {
    pub(super) const OPCODE: usize = 0;
    pub(super) const FLAGS: usize = 1;
    pub(super) const PKEY: usize = 2;
    pub(super) const RESERVED: usize = 4;
    pub(super) const DEST_QPN: usize = 5;
    pub(super) const ACK_REQ: usize = 8;
    pub(super) const PSN: usize = 9;
}

const SOLICITED: u8 = 0x80;
const MIG_REQ: u8 = 0x40;
const PAD_SHIFT: u8 = 4;
const VERSION_MASK: u8 = 0x0f;
const ACK_REQ: u8 = 0x80;

/// A base transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bth {
    /// What the packet is.
    pub opcode: Opcode,
    /// Whether the receiver's completion is to raise a solicited event.
    pub solicited: bool,
    /// Zero bytes (0-3) between payload and ICRC.
    pub pad: u8,
    /// Partition key.
    pub pkey: u16,
    /// Destination queue pair, 24 bits.
    pub dest_qpn: u32,
    /// Whether the sender wants an acknowledgement of this packet.
    pub ack_req: bool,
    /// Packet sequence number, 24 bits.
    pub psn: u32,
}

impl Opcode {
    /// Length of the BTH and the extension headers. Atomic headers are not
    /// counted: nothing here reads them.
    #[must_use]
    pub fn header_len(self) -> usize {
        let with = |yes: bool, len: usize| if yes { len } else { 0 };
        Bth::LEN
            + with(self.has_deth(), Deth::LEN)
            + with(self.has_reth(), Reth::LEN)
            + with(self.has_aeth(), Aeth::LEN)
            + with(self.has_imm(), ImmDt::LEN)
            + with(self.has_ieth(), Ieth::LEN)
    }
}

impl Bth {
    /// Length on the wire.
    pub const LEN: usize = 12;

    /// A header without flags and pad, in the default partition.
    #[must_use]
    pub fn new(opcode: Opcode, dest_qpn: u32, psn: u32) -> Self {
        Self {
            opcode,
            solicited: false,
            pad: 0,
            pkey: DEFAULT_PKEY,
            dest_qpn: dest_qpn & MAX_24,
            ack_req: false,
            psn: psn & MAX_24,
        }
    }

    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// Too few bytes, a transport version other than 0, an unknown opcode.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b: &[u8; Self::LEN] = head("BTH", bytes)?;
        let flags = b[at::FLAGS];
        if flags & VERSION_MASK != 0 {
            return Err(ParseError::TransportVersion(flags & VERSION_MASK));
        }
        Ok(Self {
            opcode: Opcode::from_byte(b[at::OPCODE])?,
            solicited: flags & SOLICITED != 0,
            pad: (flags >> PAD_SHIFT) & 3,
            pkey: u16::from_be_bytes([b[at::PKEY], b[at::PKEY + 1]]),
            dest_qpn: dest_qpn(b),
            ack_req: b[at::ACK_REQ] & ACK_REQ != 0,
            psn: get24([b[at::PSN], b[at::PSN + 1], b[at::PSN + 2]]),
        })
    }

    /// Writes the header to the start of `out`.
    ///
    /// # Panics
    /// If `out` is shorter than [`Bth::LEN`].
    pub fn emit(&self, out: &mut [u8]) {
        let out = &mut out[..Self::LEN];
        out[at::OPCODE] = self.opcode as u8;
        // Hardware sends MigReq as 1 ("migrated"), the state of a path that
        // has no alternate.
        let mut flags = MIG_REQ | (self.pad & 3) << PAD_SHIFT;
        if self.solicited {
            flags |= SOLICITED;
        }
        out[at::FLAGS] = flags;
        out[at::PKEY..at::RESERVED].copy_from_slice(&self.pkey.to_be_bytes());
        out[at::RESERVED] = 0;
        out[at::DEST_QPN..at::ACK_REQ].copy_from_slice(&put24(self.dest_qpn));
        out[at::ACK_REQ] = if self.ack_req { ACK_REQ } else { 0 };
        out[at::PSN..].copy_from_slice(&put24(self.psn));
    }

    /// The destination queue pair of the packet in `bytes`, before anything
    /// else of it is looked at.
    ///
    /// # Errors
    /// Too few bytes for a header.
    pub fn peek_dest_qpn(bytes: &[u8]) -> Result<u32, ParseError> {
        head("BTH", bytes).map(dest_qpn)
    }
}

fn dest_qpn(b: &[u8; Bth::LEN]) -> u32 {
    get24([b[at::DEST_QPN], b[at::DEST_QPN + 1], b[at::DEST_QPN + 2]])
}
