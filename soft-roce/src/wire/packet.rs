//! A whole packet: BTH, the extension headers its opcode calls for, payload.
//!
//! What it does: parses what is between the UDP header and the ICRC, and writes
//! headers for a payload that the caller copies in behind them.
//! What it does not do: the ICRC, which covers headers of the layers below, and
//! atomic headers, which stay in the payload.

use super::{Aeth, Bth, Deth, Ieth, ImmDt, ParseError, Reth};

/// The headers of a packet and its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Base transport header.
    pub bth: Bth,
    /// There exactly when the opcode has one; so are the next four.
    pub deth: Option<Deth>,
    /// Remote memory.
    pub reth: Option<Reth>,
    /// Acknowledgement.
    pub aeth: Option<Aeth>,
    /// Immediate data.
    pub imm: Option<ImmDt>,
    /// Key to invalidate.
    pub ieth: Option<Ieth>,
    /// What is behind the headers, without the pad.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// A packet with no extension header and no payload yet.
    #[must_use]
    pub fn new(bth: Bth) -> Self {
        Self {
            bth,
            deth: None,
            reth: None,
            aeth: None,
            imm: None,
            ieth: None,
            payload: &[],
        }
    }

    /// Reads a packet: `bytes` go from the BTH to the pad, without the ICRC.
    ///
    /// # Errors
    /// Whatever a header refuses; a pad longer than what is there; a length
    /// that is no multiple of four.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        if !bytes.len().is_multiple_of(4) {
            return Err(ParseError::Unaligned(bytes.len()));
        }
        let mut packet = Self::new(Bth::parse(bytes)?);
        let op = packet.bth.opcode;
        let mut rest = &bytes[Bth::LEN..];
        // The order of the headers is that of IBTA figure 56.
        if op.has_deth() {
            packet.deth = Some(Deth::parse(rest)?);
            rest = &rest[Deth::LEN..];
        }
        if op.has_reth() {
            packet.reth = Some(Reth::parse(rest)?);
            rest = &rest[Reth::LEN..];
        }
        if op.has_aeth() {
            packet.aeth = Some(Aeth::parse(rest)?);
            rest = &rest[Aeth::LEN..];
        }
        if op.has_imm() {
            packet.imm = Some(ImmDt::parse(rest)?);
            rest = &rest[ImmDt::LEN..];
        }
        if op.has_ieth() {
            packet.ieth = Some(Ieth::parse(rest)?);
            rest = &rest[Ieth::LEN..];
        }
        let pad = packet.bth.pad;
        let Some(len) = rest.len().checked_sub(usize::from(pad)) else {
            return Err(ParseError::Pad {
                pad,
                have: rest.len(),
            });
        };
        packet.payload = &rest[..len];
        Ok(packet)
    }

    /// Length from the BTH to the pad for a payload of `len` bytes under the
    /// opcode of this packet.
    #[must_use]
    pub fn wire_len(&self, len: usize) -> usize {
        self.bth.opcode.header_len() + len + usize::from(pad_of(len))
    }

    /// Writes the headers to the start of `out`, which is as long as
    /// [`Packet::wire_len`] says for a payload of `len` bytes, sets pad count
    /// and pad, and returns the place for the payload. A header that the opcode
    /// calls for and that is `None` is written as zeros; one that it does not
    /// call for is left out.
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn emit_headers<'b>(&self, out: &'b mut [u8], len: usize) -> &'b mut [u8] {
        let op = self.bth.opcode;
        assert_eq!(
            out.len(),
            self.wire_len(len),
            "length of the packet's buffer"
        );
        let pad = pad_of(len);
        Bth { pad, ..self.bth }.emit(out);
        let mut at = Bth::LEN;
        if op.has_deth() {
            let deth = self.deth.unwrap_or(Deth {
                qkey: 0,
                src_qpn: 0,
            });
            deth.emit(&mut out[at..]);
            at += Deth::LEN;
        }
        if op.has_reth() {
            let reth = self.reth.unwrap_or(Reth {
                va: 0,
                rkey: 0,
                len: 0,
            });
            reth.emit(&mut out[at..]);
            at += Reth::LEN;
        }
        if op.has_aeth() {
            let none = Aeth {
                syndrome: super::Syndrome::Ack(0),
                msn: 0,
            };
            self.aeth.unwrap_or(none).emit(&mut out[at..]);
            at += Aeth::LEN;
        }
        if op.has_imm() {
            self.imm.unwrap_or(ImmDt(0)).emit(&mut out[at..]);
            at += ImmDt::LEN;
        }
        if op.has_ieth() {
            self.ieth.unwrap_or(Ieth(0)).emit(&mut out[at..]);
            at += Ieth::LEN;
        }
        let (payload, tail) = out[at..].split_at_mut(len);
        tail.fill(0);
        payload
    }

    /// The packet with its payload as bytes, for tests and rare messages.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let len = self.payload.len();
        let mut out = vec![0; self.wire_len(len)];
        self.emit_headers(&mut out, len)
            .copy_from_slice(self.payload);
        out
    }
}

/// Zero bytes that fill a payload of `len` bytes up to a multiple of four.
#[must_use]
pub fn pad_of(len: usize) -> u8 {
    // Two bits: the conversion loses nothing.
    (len.wrapping_neg() & 3) as u8
}
