//! Opcodes of the BTH (IBTA 9.2.1, table 38): the reliable connection's and the
//! one that carries the CM.
//!
//! What it does: tells from an opcode which operation a packet belongs to, where
//! in the message it stands and which headers follow.
//! What it does not do: other transports (UC, RD, XRC) and immediate data on UD.

use super::ParseError;

/// An opcode that this crate knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are those of the specification")]
pub enum Opcode {
    SendFirst = 0x00,
    SendMiddle = 0x01,
    SendLast = 0x02,
    SendLastImm = 0x03,
    SendOnly = 0x04,
    SendOnlyImm = 0x05,
    WriteFirst = 0x06,
    WriteMiddle = 0x07,
    WriteLast = 0x08,
    WriteLastImm = 0x09,
    WriteOnly = 0x0a,
    WriteOnlyImm = 0x0b,
    ReadRequest = 0x0c,
    ReadResponseFirst = 0x0d,
    ReadResponseMiddle = 0x0e,
    ReadResponseLast = 0x0f,
    ReadResponseOnly = 0x10,
    Ack = 0x11,
    AtomicAck = 0x12,
    CompareSwap = 0x13,
    FetchAdd = 0x14,
    SendLastInvalidate = 0x16,
    SendOnlyInvalidate = 0x17,
    UdSendOnly = 0x64,
}

/// What a packet is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PacketKind {
    /// SEND, with or without immediate data or invalidation.
    Send,
    /// RDMA WRITE, with or without immediate data.
    Write,
    /// Request of an RDMA READ.
    ReadRequest,
    /// Response to an RDMA READ.
    ReadResponse,
    /// ACK or NAK.
    Ack,
    /// Request or response of an atomic operation, which this crate refuses.
    Atomic,
    /// Datagram: the CM.
    Datagram,
}

/// Where in its message a packet stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Position {
    /// The first of several.
    First,
    /// Neither first nor last.
    Middle,
    /// The last of several.
    Last,
    /// The only one.
    Only,
}

impl Position {
    /// Whether a message begins here.
    #[must_use]
    pub fn starts(self) -> bool {
        matches!(self, Self::First | Self::Only)
    }

    /// Whether a message ends here.
    #[must_use]
    pub fn ends(self) -> bool {
        matches!(self, Self::Last | Self::Only)
    }
}

impl Opcode {
    /// Every opcode known.
    pub const ALL: [Self; 24] = [
        Self::SendFirst,
        Self::SendMiddle,
        Self::SendLast,
        Self::SendLastImm,
        Self::SendOnly,
        Self::SendOnlyImm,
        Self::WriteFirst,
        Self::WriteMiddle,
        Self::WriteLast,
        Self::WriteLastImm,
        Self::WriteOnly,
        Self::WriteOnlyImm,
        Self::ReadRequest,
        Self::ReadResponseFirst,
        Self::ReadResponseMiddle,
        Self::ReadResponseLast,
        Self::ReadResponseOnly,
        Self::Ack,
        Self::AtomicAck,
        Self::CompareSwap,
        Self::FetchAdd,
        Self::SendLastInvalidate,
        Self::SendOnlyInvalidate,
        Self::UdSendOnly,
    ];

    /// Takes the byte of a BTH.
    ///
    /// # Errors
    /// [`ParseError::Opcode`] for one that is not in [`Opcode::ALL`].
    pub fn from_byte(byte: u8) -> Result<Self, ParseError> {
        let found = match byte {
            0x00..=0x14 => Some(Self::ALL[usize::from(byte)]),
            0x16 => Some(Self::SendLastInvalidate),
            0x17 => Some(Self::SendOnlyInvalidate),
            0x64 => Some(Self::UdSendOnly),
            _ => None,
        };
        found.ok_or(ParseError::Opcode(byte))
    }

    /// The operation it is part of.
    #[must_use]
    pub fn packet_kind(self) -> PacketKind {
        match self as u8 {
            0x00..=0x05 | 0x16 | 0x17 => PacketKind::Send,
            0x06..=0x0b => PacketKind::Write,
            0x0c => PacketKind::ReadRequest,
            0x0d..=0x10 => PacketKind::ReadResponse,
            0x11 => PacketKind::Ack,
            0x12..=0x14 => PacketKind::Atomic,
            _ => PacketKind::Datagram,
        }
    }

    /// Its place in the message. Whatever has one packet only is `Only`.
    #[must_use]
    pub fn position(self) -> Position {
        match self {
            Self::SendFirst | Self::WriteFirst | Self::ReadResponseFirst => Position::First,
            Self::SendMiddle | Self::WriteMiddle | Self::ReadResponseMiddle => Position::Middle,
            Self::SendLast
            | Self::SendLastImm
            | Self::SendLastInvalidate
            | Self::WriteLast
            | Self::WriteLastImm
            | Self::ReadResponseLast => Position::Last,
            _ => Position::Only,
        }
    }

    /// Whether a RETH follows.
    #[must_use]
    pub fn has_reth(self) -> bool {
        matches!(
            self,
            Self::WriteFirst | Self::WriteOnly | Self::WriteOnlyImm | Self::ReadRequest
        )
    }

    /// Whether an AETH follows.
    #[must_use]
    pub fn has_aeth(self) -> bool {
        matches!(
            self,
            Self::ReadResponseFirst
                | Self::ReadResponseLast
                | Self::ReadResponseOnly
                | Self::Ack
                | Self::AtomicAck
        )
    }

    /// Whether immediate data follows.
    #[must_use]
    pub fn has_imm(self) -> bool {
        matches!(
            self,
            Self::SendLastImm | Self::SendOnlyImm | Self::WriteLastImm | Self::WriteOnlyImm
        )
    }

    /// Whether an IETH follows.
    #[must_use]
    pub fn has_ieth(self) -> bool {
        matches!(self, Self::SendLastInvalidate | Self::SendOnlyInvalidate)
    }

    /// Whether a DETH follows.
    #[must_use]
    pub fn has_deth(self) -> bool {
        self == Self::UdSendOnly
    }
}
