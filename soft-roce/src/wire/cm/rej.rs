//! REJ: refusal, or the end of an attempt (IBTA 12.6.7).
//!
//! What it does: what is refused and why. Every reason number passes through.
//! What it does not do: read the additional information (ARI); it is carried.

use std::fmt;

use crate::wire::mad::{MadBytes, get16, get32, put, take};

mod at {
    pub(super) const LOCAL_COMM_ID: usize = 24;
    pub(super) const REMOTE_COMM_ID: usize = 28;
    pub(super) const REJECTED: usize = 32;
    pub(super) const ARI_LEN: usize = 33;
    pub(super) const REASON: usize = 34;
    pub(super) const ARI: usize = 36;
    pub(super) const PRIVATE_DATA: usize = 108;
}

/// What a REJ refuses; so does an MRA say what it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejected {
    /// The REQ.
    Req,
    /// The REP.
    Rep,
    /// No message in particular: time-outs, and the end of an attempt. In an
    /// MRA: a LAP.
    Other,
}

/// Why (IBTA table 108). Any number may come; those this crate deals in have a name.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RejReason(pub u16);

#[allow(missing_docs, reason = "the names are those of the specification")]
impl RejReason {
    pub const NO_QP: Self = Self(1);
    pub const NO_RESOURCES: Self = Self(3);
    pub const TIMEOUT: Self = Self(4);
    pub const UNSUPPORTED_REQUEST: Self = Self(5);
    pub const INVALID_COMM_ID: Self = Self(6);
    pub const INVALID_COMM_INSTANCE: Self = Self(7);
    pub const INVALID_SERVICE_ID: Self = Self(8);
    pub const INVALID_TRANSPORT_TYPE: Self = Self(9);
    pub const STALE_CONNECTION: Self = Self(10);
    pub const INVALID_GID: Self = Self(13);
    pub const INVALID_MTU: Self = Self(26);
    pub const INSUFFICIENT_RESPONDER_RESOURCES: Self = Self(27);
    pub const CONSUMER_DEFINED: Self = Self(28);
    pub const INVALID_RNR_RETRY: Self = Self(29);
    pub const DUPLICATE_LOCAL_COMM_ID: Self = Self(30);
    pub const INVALID_CLASS_VERSION: Self = Self(31);
}

impl fmt::Debug for RejReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RejReason({self})")
    }
}

impl fmt::Display for RejReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::NO_QP => "no queue pair",
            Self::NO_RESOURCES => "no resources",
            Self::TIMEOUT => "timeout",
            Self::UNSUPPORTED_REQUEST => "unsupported request",
            Self::INVALID_COMM_ID => "invalid communication id",
            Self::INVALID_COMM_INSTANCE => "invalid communication instance",
            Self::INVALID_SERVICE_ID => "invalid service id",
            Self::INVALID_TRANSPORT_TYPE => "invalid transport type",
            Self::STALE_CONNECTION => "stale connection",
            Self::INVALID_GID => "invalid GID",
            Self::INVALID_MTU => "invalid MTU",
            Self::INSUFFICIENT_RESPONDER_RESOURCES => "insufficient responder resources",
            Self::CONSUMER_DEFINED => "consumer defined",
            Self::INVALID_RNR_RETRY => "invalid RNR retry count",
            Self::DUPLICATE_LOCAL_COMM_ID => "duplicate local communication id",
            Self::INVALID_CLASS_VERSION => "invalid class version",
            Self(other) => return write!(f, "reason {other}"),
        };
        write!(f, "{name} ({})", self.0)
    }
}

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rej {
    /// Number that the sender gave to this communication; 0 if it gave none.
    pub local_comm_id: u32,
    /// Number that the receiver gave to it; 0 if the sender never learnt it.
    pub remote_comm_id: u32,
    /// What is refused.
    pub rejected: Rejected,
    /// Why.
    pub reason: RejReason,
    /// Valid bytes of `ari`.
    pub ari_len: u8,
    /// Additional information; its form depends on the reason.
    pub ari: [u8; 72],
    /// The user's private data.
    pub private_data: [u8; 148],
}

impl Rej {
    /// A refusal without additional information and private data.
    #[must_use]
    pub fn new(local: u32, remote: u32, rejected: Rejected, reason: RejReason) -> Self {
        Self {
            local_comm_id: local,
            remote_comm_id: remote,
            rejected,
            reason,
            ari_len: 0,
            ari: [0; 72],
            private_data: [0; 148],
        }
    }

    /// Reads the message's own fields.
    #[must_use]
    pub fn parse(b: &MadBytes) -> Self {
        Self {
            local_comm_id: get32(b, at::LOCAL_COMM_ID),
            remote_comm_id: get32(b, at::REMOTE_COMM_ID),
            rejected: Rejected::from_bits(b[at::REJECTED] >> 6),
            reason: RejReason(get16(b, at::REASON)),
            ari_len: (b[at::ARI_LEN] >> 1).min(72),
            ari: take(b, at::ARI),
            private_data: take(b, at::PRIVATE_DATA),
        }
    }

    /// Writes the message's own fields.
    pub fn emit(&self, out: &mut MadBytes) {
        put(out, at::LOCAL_COMM_ID, self.local_comm_id.to_be_bytes());
        put(out, at::REMOTE_COMM_ID, self.remote_comm_id.to_be_bytes());
        out[at::REJECTED] = self.rejected.to_bits() << 6;
        out[at::ARI_LEN] = self.ari_len << 1;
        put(out, at::REASON, self.reason.0.to_be_bytes());
        put(out, at::ARI, self.ari);
        put(out, at::PRIVATE_DATA, self.private_data);
    }
}

impl Rejected {
    /// Takes the two bits of a REJ or MRA; the reserved fourth value is `Other`.
    pub(super) fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Req,
            1 => Self::Rep,
            _ => Self::Other,
        }
    }

    /// The two bits.
    pub(super) fn to_bits(self) -> u8 {
        match self {
            Self::Req => 0,
            Self::Rep => 1,
            Self::Other => 2,
        }
    }
}
