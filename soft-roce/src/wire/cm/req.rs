//! REQ: request for communication (IBTA 12.6.5).
//!
//! What it does: the fields of a reliable connection over IP.
//! What it does not do: alternate paths, end-to-end contexts and LIDs, which are
//! sent empty and not read.

use std::net::{IpAddr, Ipv6Addr};

use super::cma::to_v6;
use crate::wire::mad::{MadBytes, get16, get24, get32, get64, put, take};
use crate::wire::{ParseError, put24};

/// Where the private data, and with it the CMA header, begins.
pub const CMA_AT: usize = at::PRIVATE_DATA;

mod at {
    pub(super) const LOCAL_COMM_ID: usize = 24;
    pub(super) const SERVICE_ID: usize = 32;
    pub(super) const CA_GUID: usize = 40;
    pub(super) const EXTENSION: usize = 48;
    pub(super) const QPN: usize = 56;
    pub(super) const RESPONDER_RESOURCES: usize = 59;
    pub(super) const INITIATOR_DEPTH: usize = 63;
    pub(super) const REMOTE_TIMEOUT_TRANSPORT: usize = 67;
    pub(super) const STARTING_PSN: usize = 68;
    pub(super) const LOCAL_TIMEOUT_RETRY: usize = 71;
    pub(super) const PKEY: usize = 72;
    pub(super) const MTU_RNR: usize = 74;
    pub(super) const CM_RETRIES_SRQ: usize = 75;
    pub(super) const LOCAL_LID: usize = 76;
    pub(super) const REMOTE_LID: usize = 78;
    pub(super) const LOCAL_GID: usize = 80;
    pub(super) const REMOTE_GID: usize = 96;
    pub(super) const FLOW_RATE: usize = 112;
    pub(super) const TRAFFIC_CLASS: usize = 116;
    pub(super) const HOP_LIMIT: usize = 117;
    pub(super) const SL_SUBNET_LOCAL: usize = 118;
    pub(super) const ACK_TIMEOUT: usize = 119;
    pub(super) const PRIVATE_DATA: usize = 164;
}

const TRANSPORT_RC: u8 = 0;
/// Over Ethernet there are no LIDs; all ones is the permissive one.
const LID_PERMISSIVE: u16 = 0xffff;

/// A request for communication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Req {
    /// Number that the sender gave to this communication.
    pub local_comm_id: u32,
    /// The service asked for, see [`super::service_of_port`].
    pub service_id: u64,
    /// GUID of the sender's adapter.
    pub ca_guid: u64,
    /// What an endpoint of this crate tells another, in reserved bytes; of
    /// meaning only if the MAD header says [`own`](crate::wire::mad::MadHeader::own).
    pub extension: u32,
    /// The sender's queue pair.
    pub qpn: u32,
    /// READs that the sender serves at a time.
    pub responder_resources: u8,
    /// READs that the sender wants to have under way at a time.
    pub initiator_depth: u8,
    /// Code of the time that the sender expects the receiver to take to answer.
    pub remote_response_timeout: u8,
    /// Whether end-to-end credits are offered.
    pub flow_control: bool,
    /// PSN of the first request packet that the *receiver* of this REQ sends.
    pub starting_psn: u32,
    /// Code of the time that the receiver may expect the sender to take.
    pub local_response_timeout: u8,
    /// How often the receiver's queue pair is to send again.
    pub retry_count: u8,
    /// Partition key.
    pub pkey: u16,
    /// Path MTU, 1 (256 bytes) to 5 (4,096 bytes).
    pub mtu: u8,
    /// How often the receiver's queue pair is to send again after RNR; 7 is always.
    pub rnr_retry_count: u8,
    /// How often either side may repeat a CM message.
    pub max_cm_retries: u8,
    /// Whether the sender's queue pair uses an SRQ.
    pub srq: bool,
    /// GID of the sender: its address, IPv4 mapped.
    pub local_gid: Ipv6Addr,
    /// GID of the receiver.
    pub remote_gid: Ipv6Addr,
    /// Traffic class.
    pub traffic_class: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Code of the receiver's acknowledgement timeout.
    pub ack_timeout: u8,
    /// The CMA header, then the user's private data.
    pub private_data: [u8; 92],
}

impl Req {
    /// Room for the user's private data behind the CMA header.
    pub const USER_DATA: usize = 92 - super::CmaHeader::LEN;

    /// Reads the message's own fields.
    ///
    /// # Errors
    /// [`ParseError::Field`] for a transport that is not the reliable connection
    /// and for an MTU that is none.
    pub fn parse(b: &MadBytes) -> Result<Self, ParseError> {
        let refuse = |field, value: u8| {
            Err(ParseError::Field {
                what: "REQ",
                field,
                value: u64::from(value),
            })
        };
        let transport = b[at::REMOTE_TIMEOUT_TRANSPORT] >> 1 & 3;
        if transport != TRANSPORT_RC {
            return refuse("transport", transport);
        }
        let mtu = b[at::MTU_RNR] >> 4;
        if !(1..=5).contains(&mtu) {
            return refuse("MTU", mtu);
        }
        Ok(Self {
            local_comm_id: get32(b, at::LOCAL_COMM_ID),
            service_id: get64(b, at::SERVICE_ID),
            ca_guid: get64(b, at::CA_GUID),
            extension: get32(b, at::EXTENSION),
            qpn: get24(b, at::QPN),
            responder_resources: b[at::RESPONDER_RESOURCES],
            initiator_depth: b[at::INITIATOR_DEPTH],
            remote_response_timeout: b[at::REMOTE_TIMEOUT_TRANSPORT] >> 3,
            flow_control: b[at::REMOTE_TIMEOUT_TRANSPORT] & 1 != 0,
            starting_psn: get24(b, at::STARTING_PSN),
            local_response_timeout: b[at::LOCAL_TIMEOUT_RETRY] >> 3,
            retry_count: b[at::LOCAL_TIMEOUT_RETRY] & 7,
            pkey: get16(b, at::PKEY),
            mtu,
            rnr_retry_count: b[at::MTU_RNR] & 7,
            max_cm_retries: b[at::CM_RETRIES_SRQ] >> 4,
            srq: b[at::CM_RETRIES_SRQ] & 8 != 0,
            local_gid: take::<16>(b, at::LOCAL_GID).into(),
            remote_gid: take::<16>(b, at::REMOTE_GID).into(),
            traffic_class: b[at::TRAFFIC_CLASS],
            hop_limit: b[at::HOP_LIMIT],
            ack_timeout: b[at::ACK_TIMEOUT] >> 3,
            private_data: take(b, at::PRIVATE_DATA),
        })
    }

    /// Writes the message's own fields.
    pub fn emit(&self, out: &mut MadBytes) {
        put(out, at::LOCAL_COMM_ID, self.local_comm_id.to_be_bytes());
        put(out, at::SERVICE_ID, self.service_id.to_be_bytes());
        put(out, at::CA_GUID, self.ca_guid.to_be_bytes());
        put(out, at::EXTENSION, self.extension.to_be_bytes());
        put(out, at::QPN, put24(self.qpn));
        out[at::RESPONDER_RESOURCES] = self.responder_resources;
        out[at::INITIATOR_DEPTH] = self.initiator_depth;
        out[at::REMOTE_TIMEOUT_TRANSPORT] =
            self.remote_response_timeout << 3 | TRANSPORT_RC << 1 | u8::from(self.flow_control);
        put(out, at::STARTING_PSN, put24(self.starting_psn));
        out[at::LOCAL_TIMEOUT_RETRY] = self.local_response_timeout << 3 | self.retry_count & 7;
        put(out, at::PKEY, self.pkey.to_be_bytes());
        out[at::MTU_RNR] = self.mtu << 4 | self.rnr_retry_count & 7;
        out[at::CM_RETRIES_SRQ] = self.max_cm_retries << 4 | u8::from(self.srq) << 3;
        put(out, at::LOCAL_LID, LID_PERMISSIVE.to_be_bytes());
        put(out, at::REMOTE_LID, LID_PERMISSIVE.to_be_bytes());
        put(out, at::LOCAL_GID, self.local_gid.octets());
        put(out, at::REMOTE_GID, self.remote_gid.octets());
        // Flow label and rate: none.
        put(out, at::FLOW_RATE, [0; 4]);
        out[at::TRAFFIC_CLASS] = self.traffic_class;
        out[at::HOP_LIMIT] = self.hop_limit;
        out[at::SL_SUBNET_LOCAL] = 0;
        out[at::ACK_TIMEOUT] = self.ack_timeout << 3;
        put(out, at::PRIVATE_DATA, self.private_data);
    }

    /// The GID of an IP address.
    #[must_use]
    pub fn gid(ip: IpAddr) -> Ipv6Addr {
        to_v6(ip)
    }
}
