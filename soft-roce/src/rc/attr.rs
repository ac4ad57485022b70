//! What a queue pair is made with, and what its changes of state carry.
//!
//! What it does: plain values, the defaults where there are any, and the checks
//! that need no queue pair.
//! What it does not do: negotiate them; the CM does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::cq::CompletionQueue;
use super::mr::{Access, MrTable, Pd};
use super::srq::SharedReceiveQueue;
use super::state::QpState;
use crate::wire::MAX_24;

/// Payload bytes of a full packet. The numbers are those of IBTA 9.7.4 and of
/// the CM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names say it")]
pub enum PathMtu {
    B256 = 1,
    B512 = 2,
    B1024 = 3,
    B2048 = 4,
    B4096 = 5,
    /// 16,256 bytes: between two endpoints of this crate that have agreed on it.
    /// No size of the specification, and not in [`PathMtu::ALL`].
    Own = 6,
}

impl PathMtu {
    /// All of the specification, the smallest first.
    pub const ALL: [Self; 5] = [
        Self::B256,
        Self::B512,
        Self::B1024,
        Self::B2048,
        Self::B4096,
    ];

    /// The code of the CM. [`PathMtu::Own`] has one that no CM knows.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Takes the code of the CM.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.code() == code)
    }

    /// Bytes.
    #[must_use]
    pub fn bytes(self) -> u32 {
        match self {
            // Four of them with their headers fill a datagram.
            Self::Own => 16_256,
            _ => 128 << self.code(),
        }
    }
}

/// What a queue pair is made with.
#[derive(Clone, Copy, Debug)]
pub struct QpConfig {
    /// Its number: 24 bits, unique on the device, not to be guessed.
    pub qpn: u32,
    /// Its protection domain.
    pub pd: Pd,
    /// Requests that the send queue holds.
    pub send_wr: u32,
    /// Requests that the receive queue holds.
    pub recv_wr: u32,
    /// Pieces of a send request, at most [`super::MAX_SGE`].
    pub send_sge: usize,
    /// Pieces of a receive, at most [`super::MAX_SGE`].
    pub recv_sge: usize,
    /// Inline bytes of a send request.
    pub inline: usize,
}

/// What a queue pair works with.
#[derive(Clone, Debug)]
pub struct QpLinks {
    /// The device's memory regions.
    pub regions: Arc<MrTable>,
    /// Where completed sends go.
    pub send_cq: Arc<CompletionQueue>,
    /// Where completed receives go.
    pub recv_cq: Arc<CompletionQueue>,
    /// Where receives come from, if not from a queue of its own.
    pub srq: Option<Arc<SharedReceiveQueue>>,
    /// Memory that all queue pairs of the device may hold back packets in.
    pub reorder: Arc<ReorderBudget>,
}

/// A change of state, with what it carries (IBTA table 96).
#[derive(Clone, Copy, Debug)]
pub enum Modify {
    /// Back to the beginning. Posted work is dropped without completions.
    Reset,
    /// Receives may be posted; says what the peer may do.
    Init {
        /// RDMA rights of the peer, beyond which no region opens.
        access: Access,
    },
    /// The peer is known: ready to receive.
    Rtr(RtrAttr),
    /// Ready to send.
    Rts(RtsAttr),
    /// Drain the send queue.
    Sqd,
    /// Go on sending after [`Modify::Sqd`].
    Resume,
    /// Break off. Posted work completes as flushed.
    Error,
}

/// What it takes to receive.
#[derive(Clone, Copy, Debug)]
pub struct RtrAttr {
    /// The peer's queue pair.
    pub dest_qpn: u32,
    /// PSN of the first packet that the peer sends.
    pub rq_psn: u32,
    /// Payload bytes of a full packet, both ways.
    pub path_mtu: PathMtu,
    /// RDMA READs that the peer may have under way.
    pub responder_resources: u8,
    /// Code of the time that a peer waits when no receive is posted.
    pub min_rnr_timer: u8,
    /// Whether the peer is this crate, too: then losses are repaired packet by
    /// packet and the window is larger.
    pub peer_is_ours: bool,
}

/// What it takes to send.
#[derive(Clone, Copy, Debug)]
pub struct RtsAttr {
    /// PSN of the first packet that goes out.
    pub sq_psn: u32,
    /// Code of the ACK timeout, 1 to 31: 4.096 us * 2^code. Together with
    /// `retry_count` it says how long a silent peer is waited for:
    /// timeout * (`retry_count` + 1). Packets are repeated earlier than that,
    /// by the measured round trip.
    pub timeout: u8,
    /// Retries, 0 to 6.
    pub retry_count: u8,
    /// Retries while the peer has no receive posted, 0 to 6; 7 is forever.
    pub rnr_retry: u8,
    /// RDMA READs that may be under way. 0: none may be posted.
    pub initiator_depth: u8,
    /// Whether the peer is a process of this host, and nothing is lost on the way to
    /// it: then silence is not taken for a loss so soon.
    pub on_host: bool,
    /// How much may be under way; `None` is the default for the kind of peer.
    pub window: Option<SendWindow>,
}

/// How much may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendWindow {
    /// Sequence numbers not acknowledged, 8 to 4096.
    pub psns: u32,
    /// Packets under way, of requests and of responses to RDMA READs, 1 to
    /// `psns`. Receive buffers on both sides must hold as many.
    pub packets: u32,
}

impl SendWindow {
    /// Towards this crate. Twice as many numbers as packets, so that one packet
    /// missing does not stop the others.
    pub const OURS: Self = Self {
        psns: 256,
        packets: 128,
    };

    /// Towards anybody else: what the kernel's `rdma_rxe` keeps to itself.
    pub const OTHERS: Self = Self {
        psns: 128,
        packets: 64,
    };
}

/// Why a state was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModifyError {
    /// There is no such way.
    #[error("no way from {from:?} to {to:?}")]
    Transition {
        /// The state it is in.
        from: QpState,
        /// The state asked for.
        to: QpState,
    },
    /// An attribute is out of range.
    #[error("{name} is out of range")]
    Attribute {
        /// Which one.
        name: &'static str,
    },
}

impl Modify {
    /// The state it asks for.
    #[must_use]
    pub fn target(&self) -> QpState {
        match self {
            Self::Reset => QpState::Reset,
            Self::Init { .. } => QpState::Init,
            Self::Rtr(_) => QpState::Rtr,
            Self::Rts(_) | Self::Resume => QpState::Rts,
            Self::Sqd => QpState::Sqd,
            Self::Error => QpState::Error,
        }
    }

    pub(crate) fn check(&self) -> Result<(), ModifyError> {
        let rules: &[(&'static str, bool)] = match self {
            Self::Rtr(a) => &[
                ("dest_qpn", (1..=MAX_24).contains(&a.dest_qpn)),
                ("rq_psn", a.rq_psn <= MAX_24),
                ("min_rnr_timer", a.min_rnr_timer < 32),
            ],
            Self::Rts(a) => &[
                ("sq_psn", a.sq_psn <= MAX_24),
                ("timeout", (1..32).contains(&a.timeout)),
                // 7 is forever for some peers; nothing here waits forever.
                ("retry_count", a.retry_count <= 6),
                ("rnr_retry", a.rnr_retry <= 7),
                (
                    "window",
                    a.window.is_none_or(|w| {
                        (8..=4096).contains(&w.psns) && (1..=w.psns).contains(&w.packets)
                    }),
                ),
            ],
            _ => &[],
        };
        match rules.iter().find(|(_, holds)| !holds) {
            Some((name, _)) => Err(ModifyError::Attribute { name }),
            None => Ok(()),
        }
    }
}

/// Bytes of packets that arrived ahead of a missing one, over all queue pairs
/// of a device: the bound that a peer who leaves gaps runs into.
#[derive(Debug)]
pub struct ReorderBudget {
    limit: usize,
    used: AtomicUsize,
}

impl ReorderBudget {
    /// At most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
        }
    }

    /// Bytes held now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn take(&self, bytes: usize) -> bool {
        let after = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if after > self.limit {
            self.give(bytes);
            return false;
        }
        true
    }

    pub(crate) fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}
