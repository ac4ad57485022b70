//! A refusal: private data of a CM reject, which says why.
//!
//! ```text
//!  8 reason u16 | 10 lowest version u8 | 11 highest version u8 | 12 backlog u32
//! 16 reserved 8 = 0
//! ```
//! It may come from a listener of any version, so its head's version is not held against it: what
//! is read here stays at its place in every version.

use super::head::{self, Malformed, VERSION, field};

const LENGTH: usize = 24;
const KIND: u8 = 3;
const REASON: usize = 8;
const LOWEST: usize = 10;
const HIGHEST: usize = 11;
const BACKLOG: usize = 12;

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusalReason {
    /// 1: as many requests wait as the listener's backlog allows.
    BacklogFull,
    /// 2: the condition function said no.
    Condition,
    /// 3: the request is not one of this protocol.
    NotOurProtocol,
    /// 4: the request's version is not spoken here.
    Version,
    /// 5: the listener is being closed.
    Closing,
    /// 6: no socket, queue pair or memory is left.
    NoResources,
    /// 7: as many connections wait in the switch as the application's backlog allows. To the peer
    /// the same as 1.
    ReadyQueueFull,
    /// 8: the condition function cannot have the connection now; it may later.
    NotNow,
    /// 9: the condition function knows no connection like the one that the request is about.
    NoSuchConnection,
    /// 10: the path's packets are larger than the listener's port can take.
    PathMtu,
    /// A number that this version does not know.
    Unknown(u16),
}

/// A refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: RefusalReason,
    /// The lowest version that the listener speaks.
    pub lowest_version: u8,
    /// The highest version that the listener speaks.
    pub highest_version: u8,
    /// The listener's backlog; 0 if it has nothing to do with the reason.
    pub backlog: u32,
}

impl RefusalReason {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::BacklogFull => 1,
            Self::Condition => 2,
            Self::NotOurProtocol => 3,
            Self::Version => 4,
            Self::Closing => 5,
            Self::NoResources => 6,
            Self::ReadyQueueFull => 7,
            Self::NotNow => 8,
            Self::NoSuchConnection => 9,
            Self::PathMtu => 10,
            Self::Unknown(n) => n,
        }
    }

    const fn from_number(number: u16) -> Self {
        match number {
            1 => Self::BacklogFull,
            2 => Self::Condition,
            3 => Self::NotOurProtocol,
            4 => Self::Version,
            5 => Self::Closing,
            6 => Self::NoResources,
            7 => Self::ReadyQueueFull,
            8 => Self::NotNow,
            9 => Self::NoSuchConnection,
            10 => Self::PathMtu,
            n => Self::Unknown(n),
        }
    }
}

impl Refusal {
    /// How long it is on the wire.
    pub const LENGTH: usize = LENGTH;

    /// A refusal of this version's speaker.
    #[must_use]
    pub const fn new(reason: RefusalReason, backlog: u32) -> Self {
        Self {
            reason,
            lowest_version: VERSION,
            highest_version: VERSION,
            backlog,
        }
    }

    /// Reads private data as it was delivered.
    ///
    /// # Errors
    /// Why it is not a refusal: then the reject came from somebody else.
    pub fn parse(data: &[u8]) -> Result<Self, Malformed> {
        let mut own = [0; LENGTH];
        let Some(delivered) = data.get(..LENGTH) else {
            return Err(Malformed::TooShort(data.len()));
        };
        own.copy_from_slice(delivered);
        own[4] = VERSION;
        let message = head::parse(&own, KIND, LENGTH)?;
        Ok(Self {
            reason: RefusalReason::from_number(u16::from_be_bytes(field(message, REASON))),
            lowest_version: message[LOWEST],
            highest_version: message[HIGHEST],
            backlog: u32::from_be_bytes(field(message, BACKLOG)),
        })
    }

    /// The message on the wire.
    #[must_use]
    pub fn emit(&self) -> [u8; LENGTH] {
        let mut out = [0; LENGTH];
        head::emit(&mut out, KIND);
        out[REASON..LOWEST].copy_from_slice(&self.reason.number().to_be_bytes());
        out[LOWEST] = self.lowest_version;
        out[HIGHEST] = self.highest_version;
        out[BACKLOG..BACKLOG + 4].copy_from_slice(&self.backlog.to_be_bytes());
        out
    }
}
