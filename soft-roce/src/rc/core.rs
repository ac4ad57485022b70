//! What both halves of a queue pair, requester and responder, work with.
//!
//! What it does: configuration, the peer, counters, and the ways in which a
//! half can fail the whole.
//! What it does not do: change the state; `qp` does.

use super::attr::{QpConfig, QpLinks};
use super::cq::{Completion, Overrun, Status};
use super::mr::Access;
use crate::wire::NakCode;

/// The part of a queue pair that is neither requester nor responder.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: QpConfig,
    pub(crate) links: QpLinks,
    pub(crate) peer: Peer,
    /// What the peer may do.
    pub(crate) access: Access,
    pub(crate) counters: Counters,
}

/// The other end, as told at RTR.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) qpn: u32,
    pub(crate) mtu: u32,
    pub(crate) ours: bool,
}

/// What breaks a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A send request; all before it are flushed, too.
    Request {
        /// Its number in the send queue.
        wqe: u32,
        status: Status,
    },
    /// The peer's request; it was told so.
    Responder(NakCode),
    /// A completion found no place.
    Overrun,
}

impl From<Overrun> for Failure {
    fn from(_: Overrun) -> Self {
        Self::Overrun
    }
}

impl Core {
    pub(crate) fn complete_send(&self, completion: Completion) -> Result<(), Overrun> {
        let completion = Completion {
            qpn: self.config.qpn,
            ..completion
        };
        self.links.send_cq.push(completion, false)
    }

    pub(crate) fn complete_receive(
        &self,
        completion: Completion,
        solicited: bool,
    ) -> Result<(), Overrun> {
        let completion = Completion {
            qpn: self.config.qpn,
            ..completion
        };
        self.links.recv_cq.push(completion, solicited)
    }
}

/// What a queue pair has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets of requests sent for the first time.
    pub requests_sent: u64,
    /// Packets of requests sent again.
    pub retransmitted: u64,
    /// Times that nothing was heard in time.
    pub timeouts: u64,
    /// ACKs and NAKs sent.
    pub acks_sent: u64,
    /// ACKs and NAKs taken.
    pub acks_received: u64,
    /// NAKs for a missing packet taken.
    pub sequence_naks: u64,
    /// NAKs for a missing receive taken.
    pub rnr_naks: u64,
    /// NAKs for a missing packet sent.
    pub sequence_naks_sent: u64,
    /// NAKs for a missing receive sent.
    pub rnr_naks_sent: u64,
    /// Packets of requests carried out.
    pub requests_received: u64,
    /// Packets of requests that had been carried out before.
    pub duplicates: u64,
    /// Packets of requests ahead of a missing one that were dropped.
    pub out_of_order: u64,
    /// Packets of requests ahead of a missing one that were kept.
    pub reordered: u64,
    /// Packets of RDMA READ responses sent.
    pub responses_sent: u64,
    /// Packets of RDMA READ responses taken.
    pub responses_received: u64,
    /// Answers to nothing that is under way.
    pub stale_answers: u64,
    /// Packets that the state does not take.
    pub wrong_state: u64,
    /// Packets that belong to no reliable connection.
    pub wrong_opcode: u64,
    /// Requests refused for a wrong key, range or right.
    pub access_denied: u64,
    /// Requests refused because they break the rules.
    pub invalid_requests: u64,
}
