//! Places: where in the streams on TCP a frame stands or may stand.
//!
//! One value for one excursion to a queue pair. It outlives the queue pair: a place that was
//! confirmed to a peer which may not have heard of it is in doubt, and only the bytes at that place
//! tell whether a frame stands there.

use crate::frame::{FrameKind, Role, Slot};
use crate::message::What;

/// What the two ends have told each other.
#[derive(Debug)]
pub(crate) struct Boundary<K> {
    pub(crate) key: K,
    pub(crate) generation: u16,
    /// This end asked for a place and has no answer.
    pub(crate) asked: Option<What>,
    /// The place in the own stream that was asked for last.
    pub(crate) place: u64,
    pub(crate) has_asked_cut: bool,
    /// The own PROOF is out.
    pub(crate) has_proved: bool,
    /// The peer's PROOF was right; the peer says the same of ours.
    pub(crate) is_verified: bool,
    pub(crate) is_peer_verified: bool,
    /// The peer asked for a place for its PROOF, and for its cut.
    pub(crate) has_marked: bool,
    pub(crate) has_bound: bool,
    /// The peer knows our cut, so we may, and after a break must, write a RESUME there.
    pub(crate) is_enabled: bool,
    /// The peer knows that we know its cut: what stands there is a RESUME.
    pub(crate) is_sure: bool,
    /// Bytes of the stream went over the queue pair.
    pub(crate) has_sent: bool,
    /// Where the peer's PROOF may stand, until it was looked at.
    pub(crate) mark: Option<u64>,
    /// Where the peer's raw bytes may end, until it is past.
    pub(crate) bound: Option<u64>,
}

impl<K> Boundary<K> {
    pub(crate) fn new(key: K, generation: u16) -> Self {
        Self {
            key,
            generation,
            asked: None,
            place: 0,
            has_asked_cut: false,
            has_proved: false,
            is_verified: false,
            is_peer_verified: false,
            has_marked: false,
            has_bound: false,
            is_enabled: false,
            is_sure: false,
            has_sent: false,
            mark: None,
            bound: None,
        }
    }

    /// The slot of a PROOF that `writer` puts at `place`.
    pub(crate) fn proof(&self, writer: Role, place: u64) -> Slot {
        Slot {
            kind: FrameKind::Proof,
            writer,
            generation: self.generation,
            place,
        }
    }

    /// The slot of the RESUME of `writer`.
    pub(crate) fn resume(&self, writer: Role) -> Slot {
        Slot {
            kind: FrameKind::Resume,
            writer,
            generation: self.generation,
            place: 0,
        }
    }

    /// The next position at which more than the application's bytes may stand.
    pub(crate) fn next_place(&self) -> Option<u64> {
        match (self.mark, self.bound) {
            (Some(mark), Some(bound)) => Some(mark.min(bound)),
            (place, None) | (None, place) => place,
        }
    }

    /// No place is open.
    pub(crate) fn is_settled(&self) -> bool {
        self.mark.is_none() && self.bound.is_none()
    }
}
