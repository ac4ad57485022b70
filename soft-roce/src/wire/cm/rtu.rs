//! RTU: ready to use (IBTA 12.6.9), and DREP: reply to a request for
//! disconnection (IBTA 12.6.11), which have the same form.
//!
//! What it does: the two communication ids and private data.
//! What it does not do: give the private data to anyone; `rdma_cm` does not either.

use crate::wire::mad::{MadBytes, get32, put, take};

mod at {
    pub(super) const LOCAL_COMM_ID: usize = 24;
    pub(super) const REMOTE_COMM_ID: usize = 28;
    pub(super) const PRIVATE_DATA: usize = 32;
}

/// The active side has seen the REP and may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rtu(pub Ids);

/// The disconnection is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Drep(pub Ids);

/// The form of both messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ids {
    /// Number that the sender gave to this communication.
    pub local_comm_id: u32,
    /// Number that the receiver gave to it.
    pub remote_comm_id: u32,
    /// Private data.
    pub private_data: [u8; 224],
}

impl Rtu {
    /// A message without private data.
    #[must_use]
    pub fn new(local_comm_id: u32, remote_comm_id: u32) -> Self {
        Self(Ids::new(local_comm_id, remote_comm_id))
    }

    /// Reads the message's own fields.
    #[must_use]
    pub fn parse(b: &MadBytes) -> Self {
        Self(Ids::parse(b))
    }

    /// Writes the message's own fields.
    pub fn emit(&self, out: &mut MadBytes) {
        self.0.emit(out);
    }
}

impl Drep {
    /// A message without private data.
    #[must_use]
    pub fn new(local_comm_id: u32, remote_comm_id: u32) -> Self {
        Self(Ids::new(local_comm_id, remote_comm_id))
    }

    /// Reads the message's own fields.
    #[must_use]
    pub fn parse(b: &MadBytes) -> Self {
        Self(Ids::parse(b))
    }

    /// Writes the message's own fields.
    pub fn emit(&self, out: &mut MadBytes) {
        self.0.emit(out);
    }
}

impl Ids {
    fn new(local_comm_id: u32, remote_comm_id: u32) -> Self {
        Self {
            local_comm_id,
            remote_comm_id,
            private_data: [0; 224],
        }
    }

    fn parse(b: &MadBytes) -> Self {
        Self {
            local_comm_id: get32(b, at::LOCAL_COMM_ID),
            remote_comm_id: get32(b, at::REMOTE_COMM_ID),
            private_data: take(b, at::PRIVATE_DATA),
        }
    }

    fn emit(&self, out: &mut MadBytes) {
        put(out, at::LOCAL_COMM_ID, self.local_comm_id.to_be_bytes());
        put(out, at::REMOTE_COMM_ID, self.remote_comm_id.to_be_bytes());
        put(out, at::PRIVATE_DATA, self.private_data);
    }
}
