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
pub(crate) struct QpContext {
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

impl QpContext {
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

san_base::counters! {
    /// What a queue pair has counted since it was made.
    pub struct Counters {
        /// Packets of requests sent for the first time.
        requests_sent,
        /// Packets of requests sent again.
        retransmitted,
        /// Times that nothing was heard in time.
        timeouts,
        /// ACKs and NAKs sent.
        acks_sent,
        /// ACKs and NAKs taken.
        acks_received,
        /// NAKs for a missing packet taken.
        sequence_naks,
        /// NAKs for a missing receive taken.
        rnr_naks,
        /// NAKs for a missing packet sent.
        sequence_naks_sent,
        /// NAKs for a missing receive sent.
        rnr_naks_sent,
        /// Packets of requests carried out.
        requests_received,
        /// Packets of requests that had been carried out before.
        duplicates,
        /// Packets of requests ahead of a missing one that were dropped.
        out_of_order,
        /// Packets of requests ahead of a missing one that were kept.
        reordered,
        /// Packets of RDMA READ responses sent.
        responses_sent,
        /// Packets of RDMA READ responses taken.
        responses_received,
        /// Answers to nothing that is under way.
        stale_answers,
        /// Packets that the state does not take.
        wrong_state,
        /// Packets that belong to no reliable connection.
        wrong_opcode,
        /// Requests refused for a wrong key, range or right.
        access_denied,
        /// Requests refused because they break the rules.
        invalid_requests,
    }
}
