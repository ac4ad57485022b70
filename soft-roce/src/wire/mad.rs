//! Management datagram (IBTA 13.4), the 256 bytes that CM messages travel in.
//!
//! What it does: the common header of a communication management MAD, and the
//! packet (UD, queue pair 1) around it.
//! What it does not do: other management classes, RMPP and directed routes.

use super::{Bth, Deth, MAX_24, Opcode, Packet, ParseError, deth, head};

/// Length of every MAD.
pub const MAD_LEN: usize = 256;

/// Length of a packet that carries a MAD, without ICRC.
pub const MAD_PACKET_LEN: usize = Bth::LEN + Deth::LEN + MAD_LEN;

const BASE_VERSION: u8 = 1;
const CLASS_CM: u8 = 7;
const CM_CLASS_VERSION: u8 = 2;
const METHOD_SEND: u8 = 3;

mod at {
    pub(super) const BASE_VERSION: usize = 0;
    pub(super) const CLASS: usize = 1;
    pub(super) const CLASS_VERSION: usize = 2;
    pub(super) const METHOD: usize = 3;
    pub(super) const TID: usize = 8;
    pub(super) const ATTRIBUTE: usize = 16;
    pub(super) const MARK: usize = 18;
}

/// What this crate writes into two reserved bytes of its MADs, which every other
/// CM sends as zero and does not read.
const OWN_MARK: [u8; 2] = *b"SD";

/// The bytes of one MAD.
pub type MadBytes = [u8; MAD_LEN];

/// The common header of a CM MAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MadHeader {
    /// Transaction: a repeated message and the answer to it carry the same.
    pub tid: u64,
    /// Which message the rest is.
    pub attribute: u16,
    /// Whether the sender is an endpoint of this crate. Then answers go to the
    /// UDP port it was sent from, and the message's extension field counts.
    pub own: bool,
}

impl MadHeader {
    /// Length on the wire; the message's own fields follow.
    pub const LEN: usize = 24;

    /// Reads the header of a MAD.
    ///
    /// # Errors
    /// Too few bytes for a MAD, or another version, class or method than those
    /// of communication management.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b: &MadBytes = head("MAD", bytes)?;
        for (field, at, want) in [
            ("base version", at::BASE_VERSION, BASE_VERSION),
            ("class", at::CLASS, CLASS_CM),
            ("class version", at::CLASS_VERSION, CM_CLASS_VERSION),
            ("method", at::METHOD, METHOD_SEND),
        ] {
            if b[at] != want {
                return Err(ParseError::Field {
                    what: "MAD",
                    field,
                    value: u64::from(b[at]),
                });
            }
        }
        Ok(Self {
            tid: get64(b, at::TID),
            attribute: get16(b, at::ATTRIBUTE),
            own: take(b, at::MARK) == OWN_MARK,
        })
    }

    /// Writes the header; status, modifier and what else is reserved are zero.
    pub fn emit(&self, out: &mut MadBytes) {
        out[..Self::LEN].fill(0);
        out[at::BASE_VERSION] = BASE_VERSION;
        out[at::CLASS] = CLASS_CM;
        out[at::CLASS_VERSION] = CM_CLASS_VERSION;
        out[at::METHOD] = METHOD_SEND;
        put(out, at::TID, self.tid.to_be_bytes());
        put(out, at::ATTRIBUTE, self.attribute.to_be_bytes());
        if self.own {
            put(out, at::MARK, OWN_MARK);
        }
    }
}

/// Writes the packet that carries `mad` between the queue pairs 1, without
/// ICRC, to `out`.
///
/// # Panics
/// If `out` is not [`MAD_PACKET_LEN`] long.
pub fn emit_packet(psn: u32, mad: &MadBytes, out: &mut [u8]) {
    let packet = Packet {
        deth: Some(Deth {
            qkey: deth::GSI_QKEY,
            src_qpn: deth::GSI_QPN,
        }),
        ..Packet::new(Bth::new(Opcode::UdSendOnly, deth::GSI_QPN, psn & MAX_24))
    };
    packet.emit_headers(out, MAD_LEN).copy_from_slice(mad);
}

pub(super) fn get16(b: &MadBytes, at: usize) -> u16 {
    u16::from_be_bytes(take(b, at))
}

pub(super) fn get24(b: &MadBytes, at: usize) -> u32 {
    super::get24(take(b, at))
}

pub(super) fn get32(b: &MadBytes, at: usize) -> u32 {
    u32::from_be_bytes(take(b, at))
}

pub(super) fn get64(b: &MadBytes, at: usize) -> u64 {
    u64::from_be_bytes(take(b, at))
}

/// `N` bytes at an offset that the callers' tables of fields fix.
pub(super) fn take<const N: usize>(b: &MadBytes, at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&b[at..at + N]);
    out
}

pub(super) fn put<const N: usize>(out: &mut MadBytes, at: usize, value: [u8; N]) {
    out[at..at + N].copy_from_slice(&value);
}
