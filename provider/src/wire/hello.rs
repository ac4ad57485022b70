//! Request and reply: the same fields, one from each side.
//!
//! ```text
//!  8 features u32         bit 0 RDMA READ usable, bit 1 SEND with invalidate,
//!                        bit 2 messages about moving; bits 8..16 the layer above's; others ignored
//! 12 receive credits u16  messages that the sender of this can take in at once, at least 1
//! 14 reserved u16 = 0
//! 16 max message size u32 bytes of one message, at least 64
//! 20 max RDMA size u32    bytes of one RDMA transfer; 0 = none
//! 24 session 32 bytes     see `session.rs`
//! ```
//! 56 bytes: all that RDMA CM lets a connecting side send.

use super::head::{self, Malformed, field};
use super::session::{self, Session};

const LENGTH: usize = 56;
const FEATURES: usize = 8;
const CREDITS: usize = 12;
const RESERVED: usize = 14;
const MAX_MESSAGE: usize = 16;
const MAX_RDMA: usize = 20;
const SESSION: usize = session::OFFSET;

/// The smallest message size that a side may offer.
const LEAST_MESSAGE: u32 = 64;

/// Which of the two it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HelloKind {
    /// From the connecting side.
    Request,
    /// From the accepting side.
    Reply,
}

/// What a side can do beyond messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Features {
    /// The side that says so reads by RDMA from the memory that its peer exposes.
    pub rdma_read: bool,
    /// The side that says so takes SEND with invalidate.
    pub send_with_invalidate: bool,
    /// The side that says so takes messages about moving.
    pub moving: bool,
    /// What the layer above says of itself; the provider carries it.
    pub layer: u8,
}

/// A request or a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// What its sender can do.
    pub features: Features,
    /// Messages that its sender can take in at once.
    pub credits: u16,
    /// Bytes of one message that its sender can take in.
    pub max_message_size: u32,
    /// Bytes of one RDMA transfer; 0 is none.
    pub max_rdma_size: u32,
    /// The session that this connection belongs to.
    pub session: Session,
}

impl HelloKind {
    const fn number(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Reply => 2,
        }
    }
}

impl Hello {
    /// How long it is on the wire.
    pub const LENGTH: usize = LENGTH;

    /// Reads private data as it was delivered.
    ///
    /// # Errors
    /// Why it is not such a message.
    pub fn parse(kind: HelloKind, data: &[u8]) -> Result<Self, Malformed> {
        let message = head::parse(data, kind.number(), LENGTH)?;
        let features = u32::from_be_bytes(field(message, FEATURES));
        let hello = Self {
            features: Features {
                rdma_read: features & 1 != 0,
                send_with_invalidate: features & 2 != 0,
                moving: features & 4 != 0,
                layer: (features >> 8 & 0xff) as u8,
            },
            credits: u16::from_be_bytes(field(message, CREDITS)),
            max_message_size: u32::from_be_bytes(field(message, MAX_MESSAGE)),
            max_rdma_size: u32::from_be_bytes(field(message, MAX_RDMA)),
            session: Session::parse(&field(message, SESSION))?,
        };
        if field::<2>(message, RESERVED) != [0; 2] {
            return Err(Malformed::Field("reserved"));
        }
        if hello.credits == 0 {
            return Err(Malformed::Field("receive credits"));
        }
        if hello.max_message_size < LEAST_MESSAGE {
            return Err(Malformed::Field("max message size"));
        }
        Ok(hello)
    }

    /// The message on the wire.
    #[must_use]
    pub fn emit(&self, kind: HelloKind) -> [u8; LENGTH] {
        let features = u32::from(self.features.rdma_read)
            | u32::from(self.features.send_with_invalidate) << 1
            | u32::from(self.features.moving) << 2
            | u32::from(self.features.layer) << 8;
        let mut out = [0; LENGTH];
        head::emit(&mut out, kind.number());
        out[FEATURES..CREDITS].copy_from_slice(&features.to_be_bytes());
        out[CREDITS..RESERVED].copy_from_slice(&self.credits.to_be_bytes());
        out[MAX_MESSAGE..MAX_RDMA].copy_from_slice(&self.max_message_size.to_be_bytes());
        out[MAX_RDMA..SESSION].copy_from_slice(&self.max_rdma_size.to_be_bytes());
        out[SESSION..].copy_from_slice(&self.session.emit());
        out
    }
}
