//! The immediate data of a message.
//!
//! ```text
//! 31..28 type: 1 data, 2 credit, 3 move | 27..16 credits returned | 15..8 kind | 7..0 = 0
//! ```
//! Everything a message says beside its bytes is in these 32 bits, so that a message of one MTU
//! stays one packet. It checks single messages; whether the credits fit is for
//! `transfer/engine/credits.rs`.

/// What a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// Carries data for the layer above; costs a credit.
    Data,
    /// Carries credits only; costs none.
    Credit,
    /// About the moving of one side to another process; its kind says what.
    Move,
}

/// The immediate data of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Immediate {
    /// What the message is for.
    pub message: MessageType,
    /// Credits given to the receiver of the message, at most [`Immediate::MAX_CREDITS`].
    pub credits: u16,
    /// A number of the layer above, opaque here; 0 is plain.
    pub kind: u8,
}

/// How a peer broke the protocol of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A message without immediate data.
    #[error("a message without immediate data")]
    NoImmediate,
    /// A type that is not known.
    #[error("message type {0}")]
    Type(u8),
    /// Bits that must be 0.
    #[error("immediate data {0:#010x} with reserved bits")]
    Reserved(u32),
    /// A credit message with data, a kind, or without a credit.
    #[error("a credit message that carries something else")]
    CreditMessage,
    /// A message about moving that is not like one, or that nothing asked for.
    #[error("a message about moving that does not fit")]
    Move,
    /// A message for which no credit was given.
    #[error("a message without a credit for it")]
    NoCredit,
    /// A credit message before the last one could have been answered.
    #[error("a credit message too early")]
    EarlyCreditMessage,
    /// More credits than anybody can have receives posted for.
    #[error("{0} credits, more than there can be")]
    TooManyCredits(u32),
    /// Longer than what was agreed.
    #[error("a message of {0} bytes")]
    TooLong(u32),
}

impl Immediate {
    /// The most credits that one message can return.
    pub const MAX_CREDITS: u16 = 0xfff;

    /// The kind of a move message: its sender wants to move. It costs a credit, as data does.
    pub const ASK: u8 = 1;
    /// The kind of a move message: the answer, with a [`crate::wire::Resumption`]. It costs none.
    pub const YES: u8 = 2;
    /// The kind of a move message: the answer that it cannot be now. It costs none.
    pub const NO: u8 = 3;

    /// A message about moving.
    #[must_use]
    pub const fn about_moving(kind: u8) -> Self {
        Self {
            message: MessageType::Move,
            credits: 0,
            kind,
        }
    }

    /// Reads the immediate data of a message, in host order.
    ///
    /// # Errors
    /// How it breaks the protocol.
    pub const fn parse(imm: u32) -> Result<Self, Violation> {
        let [top, low, kind, reserved] = imm.to_be_bytes();
        if reserved != 0 {
            return Err(Violation::Reserved(imm));
        }
        let credits = u16::from_be_bytes([top & 0xf, low]);
        let message = match top >> 4 {
            1 => MessageType::Data,
            2 if credits == 0 || kind != 0 => return Err(Violation::CreditMessage),
            2 => MessageType::Credit,
            3 if credits != 0 || !matches!(kind, Self::ASK..=Self::NO) => {
                return Err(Violation::Move);
            }
            3 => MessageType::Move,
            other => return Err(Violation::Type(other)),
        };
        Ok(Self {
            message,
            credits,
            kind,
        })
    }

    /// Credits and kind of a data message, from immediate data in host order: as [`Immediate::parse`], in
    /// fewer steps for what comes most. `None`: it is none, or breaks the protocol.
    #[inline]
    #[must_use]
    pub const fn parse_data(imm: u32) -> Option<(u16, u8)> {
        if imm & 0xf000_00ff != 0x1000_0000 {
            return None;
        }
        Some(((imm >> 16) as u16 & Self::MAX_CREDITS, (imm >> 8) as u8))
    }

    /// The immediate data, in host order.
    #[must_use]
    pub const fn emit(self) -> u32 {
        let message = match self.message {
            MessageType::Data => 1,
            MessageType::Credit => 2,
            MessageType::Move => 3,
        };
        message << 28 | ((self.credits & Self::MAX_CREDITS) as u32) << 16 | (self.kind as u32) << 8
    }
}
