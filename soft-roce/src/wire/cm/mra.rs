//! MRA: message receipt acknowledgement (IBTA 12.6.6).
//!
//! What it does: tells the other side that its REQ or REP arrived and how long
//! the answer may take.
//! What it does not do: more.

use super::Rejected;
use crate::wire::mad::{MadBytes, get32, put, take};

mod at {
    pub(super) const LOCAL_COMM_ID: usize = 24;
    pub(super) const REMOTE_COMM_ID: usize = 28;
    pub(super) const MESSAGE: usize = 32;
    pub(super) const SERVICE_TIMEOUT: usize = 33;
    pub(super) const PRIVATE_DATA: usize = 34;
}

/// Received; patience.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mra {
    /// Number that the sender gave to this communication.
    pub local_comm_id: u32,
    /// Number that the receiver gave to it.
    pub remote_comm_id: u32,
    /// What was received.
    pub message: Rejected,
    /// Code of the time that the answer may take from now on.
    pub service_timeout: u8,
    /// Private data.
    pub private_data: [u8; 222],
}

impl Mra {
    /// Reads the message's own fields.
    #[must_use]
    pub fn parse(b: &MadBytes) -> Self {
        Self {
            local_comm_id: get32(b, at::LOCAL_COMM_ID),
            remote_comm_id: get32(b, at::REMOTE_COMM_ID),
            message: Rejected::from_bits(b[at::MESSAGE] >> 6),
            service_timeout: b[at::SERVICE_TIMEOUT] >> 3,
            private_data: take(b, at::PRIVATE_DATA),
        }
    }

    /// Writes the message's own fields.
    pub fn emit(&self, out: &mut MadBytes) {
        put(out, at::LOCAL_COMM_ID, self.local_comm_id.to_be_bytes());
        put(out, at::REMOTE_COMM_ID, self.remote_comm_id.to_be_bytes());
        out[at::MESSAGE] = self.message.to_bits() << 6;
        out[at::SERVICE_TIMEOUT] = self.service_timeout << 3;
        put(out, at::PRIVATE_DATA, self.private_data);
    }
}
