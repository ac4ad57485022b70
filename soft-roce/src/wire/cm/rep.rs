//! REP: reply to a request for communication (IBTA 12.6.8).
//!
//! What it does: the passive side's half of what both sides need to know.
//! What it does not do: fail-over, which is never accepted.

use crate::wire::mad::{MadBytes, get24, get32, get64, put, take};
use crate::wire::put24;

mod at {
    pub(super) const LOCAL_COMM_ID: usize = 24;
    pub(super) const REMOTE_COMM_ID: usize = 28;
    pub(super) const QPN: usize = 36;
    pub(super) const EXTENSION: usize = 40;
    pub(super) const STARTING_PSN: usize = 44;
    pub(super) const RESPONDER_RESOURCES: usize = 48;
    pub(super) const INITIATOR_DEPTH: usize = 49;
    pub(super) const ACK_DELAY_FAILOVER: usize = 50;
    pub(super) const RNR_SRQ: usize = 51;
    pub(super) const CA_GUID: usize = 52;
    pub(super) const PRIVATE_DATA: usize = 60;
}

/// A fail-over code: alternate paths are not supported.
const FAILOVER_UNSUPPORTED: u8 = 1;

/// A reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rep {
    /// Number that the sender gave to this communication.
    pub local_comm_id: u32,
    /// Number that the requester gave to it.
    pub remote_comm_id: u32,
    /// The sender's queue pair.
    pub qpn: u32,
    /// As in the REQ, in the bytes of an end-to-end context that a reliable
    /// connection has none of.
    pub extension: u32,
    /// PSN of the first request packet that the *receiver* of this REP sends.
    pub starting_psn: u32,
    /// READs that the sender serves at a time.
    pub responder_resources: u8,
    /// READs that the sender wants to have under way at a time.
    pub initiator_depth: u8,
    /// Code of the longest time that the sender takes to acknowledge.
    pub target_ack_delay: u8,
    /// Whether end-to-end credits are accepted.
    pub flow_control: bool,
    /// How often the receiver's queue pair is to send again after RNR; 7 is always.
    pub rnr_retry_count: u8,
    /// Whether the sender's queue pair uses an SRQ.
    pub srq: bool,
    /// GUID of the sender's adapter.
    pub ca_guid: u64,
    /// The user's private data.
    pub private_data: [u8; 196],
}

impl Rep {
    /// Reads the message's own fields.
    #[must_use]
    pub fn parse(b: &MadBytes) -> Self {
        Self {
            local_comm_id: get32(b, at::LOCAL_COMM_ID),
            remote_comm_id: get32(b, at::REMOTE_COMM_ID),
            qpn: get24(b, at::QPN),
            extension: get32(b, at::EXTENSION),
            starting_psn: get24(b, at::STARTING_PSN),
            responder_resources: b[at::RESPONDER_RESOURCES],
            initiator_depth: b[at::INITIATOR_DEPTH],
            target_ack_delay: b[at::ACK_DELAY_FAILOVER] >> 3,
            flow_control: b[at::ACK_DELAY_FAILOVER] & 1 != 0,
            rnr_retry_count: b[at::RNR_SRQ] >> 5,
            srq: b[at::RNR_SRQ] & 0x10 != 0,
            ca_guid: get64(b, at::CA_GUID),
            private_data: take(b, at::PRIVATE_DATA),
        }
    }

    /// Writes the message's own fields.
    pub fn emit(&self, out: &mut MadBytes) {
        put(out, at::LOCAL_COMM_ID, self.local_comm_id.to_be_bytes());
        put(out, at::REMOTE_COMM_ID, self.remote_comm_id.to_be_bytes());
        put(out, at::QPN, put24(self.qpn));
        put(out, at::EXTENSION, self.extension.to_be_bytes());
        put(out, at::STARTING_PSN, put24(self.starting_psn));
        out[at::RESPONDER_RESOURCES] = self.responder_resources;
        out[at::INITIATOR_DEPTH] = self.initiator_depth;
        out[at::ACK_DELAY_FAILOVER] =
            self.target_ack_delay << 3 | FAILOVER_UNSUPPORTED << 1 | u8::from(self.flow_control);
        out[at::RNR_SRQ] = self.rnr_retry_count << 5 | u8::from(self.srq) << 4;
        put(out, at::CA_GUID, self.ca_guid.to_be_bytes());
        put(out, at::PRIVATE_DATA, self.private_data);
    }
}
