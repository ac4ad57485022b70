//! DREQ: request for disconnection (IBTA 12.6.10).
//!
//! What it does: names the connection by ids and by the receiver's queue pair.
//! What it does not do: more.

use crate::wire::mad::{MadBytes, get24, get32, put, take};
use crate::wire::put24;

mod at {
    pub(super) const LOCAL_COMM_ID: usize = 24;
    pub(super) const REMOTE_COMM_ID: usize = 28;
    pub(super) const REMOTE_QPN: usize = 32;
    pub(super) const PRIVATE_DATA: usize = 36;
}

/// A request for disconnection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dreq {
    /// Number that the sender gave to this communication.
    pub local_comm_id: u32,
    /// Number that the receiver gave to it.
    pub remote_comm_id: u32,
    /// The receiver's queue pair.
    pub remote_qpn: u32,
    /// Private data.
    pub private_data: [u8; 220],
}

impl Dreq {
    /// Reads the message's own fields.
    #[must_use]
    pub fn parse(b: &MadBytes) -> Self {
        Self {
            local_comm_id: get32(b, at::LOCAL_COMM_ID),
            remote_comm_id: get32(b, at::REMOTE_COMM_ID),
            remote_qpn: get24(b, at::REMOTE_QPN),
            private_data: take(b, at::PRIVATE_DATA),
        }
    }

    /// Writes the message's own fields.
    pub fn emit(&self, out: &mut MadBytes) {
        put(out, at::LOCAL_COMM_ID, self.local_comm_id.to_be_bytes());
        put(out, at::REMOTE_COMM_ID, self.remote_comm_id.to_be_bytes());
        put(out, at::REMOTE_QPN, put24(self.remote_qpn));
        put(out, at::PRIVATE_DATA, self.private_data);
    }
}
