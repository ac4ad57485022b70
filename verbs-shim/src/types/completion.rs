//! Finished work requests, as a device describes them.
//!
//! An entry has the layout of `struct ibv_wc`, so that a verbs driver writes it where it is read.
//! Nothing is translated before somebody asks. In the places of fields that mean nothing to
//! reliable connections it carries which queue it was polled from, and when.

use std::cell::Cell;
use std::fmt;

use super::{Epoch, Kind, QueueId, WcStatus};

/// How many completions one poll returns at most.
pub const BATCH: usize = 32;

/// In [`Completion::flags`], by verbs' number: there is immediate data.
pub(crate) const WITH_IMM: u32 = 2;
/// The opcode of a receive that an RDMA WRITE with immediate consumed, by verbs' number.
pub(crate) const RECEIVED_BY_WRITE: u32 = 129;

/// The status of what succeeded, by verbs' number.
pub(crate) const SUCCESS: u32 = 0;

/// A finished work request. It comes from [`crate::CompletionQueue::poll`] and from nowhere else,
/// cannot be copied, and gives its buffers back once, by `claim` on the queue it was posted to.
#[repr(C)]
pub struct Completion {
    pub(crate) wr_id: u64,
    /// IBTA's number.
    pub(crate) status: u32,
    /// Of meaning only if it succeeded, as are the other fields without a word of their own.
    pub(crate) opcode: u32,
    /// Of a failure, too.
    pub(crate) vendor_error: u32,
    pub(crate) byte_len: u32,
    /// In network byte order.
    pub(crate) imm: u32,
    /// Of a failure, too.
    pub(crate) qp_num: u32,
    /// The serial number of the completion queue; a driver leaves `src_qp` here.
    pub(crate) cq: u32,
    pub(crate) flags: u32,
    /// When it was polled, [`Epoch::BEFORE_ALL`] once it was claimed; a driver leaves the fields
    /// from `pkey_index` to `dlid_path_bits` here.
    pub(crate) polled: Cell<Epoch>,
}

impl Completion {
    /// Belongs to nobody.
    pub(crate) const fn none() -> Self {
        Self {
            wr_id: u64::MAX,
            status: SUCCESS,
            opcode: 0,
            vendor_error: 0,
            byte_len: 0,
            imm: 0,
            qp_num: 0,
            cq: 0,
            flags: 0,
            polled: Cell::new(Epoch::BEFORE_ALL),
        }
    }

    /// The number that was given with the request.
    #[inline]
    #[must_use]
    pub fn token(&self) -> u32 {
        (self.wr_id >> 32) as u32
    }

    /// The queue pair it happened on.
    #[inline]
    #[must_use]
    pub fn qp_num(&self) -> u32 {
        self.qp_num
    }

    /// How it ended.
    #[inline]
    #[must_use]
    pub fn status(&self) -> WcStatus {
        WcStatus::from_raw(self.status)
    }

    /// Whether its status is [`WcStatus::Success`].
    #[inline]
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.status == SUCCESS
    }

    /// The device's own code for a failure.
    #[must_use]
    pub fn vendor_error(&self) -> u32 {
        self.vendor_error
    }

    /// How many bytes came; of meaning only for receives and RDMA READs that succeeded.
    #[inline]
    #[must_use]
    pub fn byte_len(&self) -> usize {
        match self.is_success() {
            true => self.byte_len as usize,
            false => 0,
        }
    }

    /// The immediate data of a receive, in host byte order.
    #[inline]
    #[must_use]
    pub fn imm(&self) -> Option<u32> {
        (self.is_success() && self.flags & WITH_IMM != 0).then(|| u32::from_be(self.imm))
    }

    /// Whether it is a receive; true to the fact for failed work too.
    #[inline]
    #[must_use]
    pub fn is_recv(&self) -> bool {
        matches!(
            self.queue().kind(),
            Some(Kind::Receive | Kind::SharedReceive)
        )
    }

    /// Whether the buffer came from a shared receive queue.
    #[inline]
    #[must_use]
    pub fn is_shared_recv(&self) -> bool {
        self.queue().kind() == Some(Kind::SharedReceive)
    }

    /// Whether an RDMA WRITE with immediate took the receive: the buffer is then unused, and
    /// [`Completion::byte_len`] counts what was written.
    #[inline]
    #[must_use]
    pub fn is_rdma_write(&self) -> bool {
        self.is_success() && self.opcode == RECEIVED_BY_WRITE
    }

    /// The queue it was posted to.
    #[inline]
    pub(crate) fn queue(&self) -> QueueId {
        QueueId::of(self.wr_id)
    }

    #[inline]
    pub(crate) fn slot(&self) -> u16 {
        self.wr_id as u16
    }

    /// Whether it may be of a queue that was made at `epoch`: not if it was polled before, nor if
    /// it was claimed.
    #[inline]
    pub(crate) fn is_since(&self, epoch: Epoch) -> bool {
        self.polled.get() >= epoch
    }

    #[inline]
    fn stamp(&mut self, cq: u32, polled: Epoch) {
        self.cq = cq;
        self.polled.set(polled);
    }

    #[inline]
    pub(crate) fn set_claimed(&self) {
        self.polled.set(Epoch::BEFORE_ALL);
    }

    /// How many bytes of the receive buffer are filled, if it is a message that has come: as many as the
    /// sender sent.
    #[inline]
    pub(crate) fn received(&self) -> Option<usize> {
        let is_message = self.is_success() && self.opcode != RECEIVED_BY_WRITE;
        is_message.then_some(self.byte_len as usize)
    }

    /// How much of the receive buffer is filled.
    #[inline]
    pub(crate) fn filled(&self, capacity: usize) -> usize {
        match self.is_rdma_write() {
            true => 0,
            false => self.byte_len().min(capacity),
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("token", &self.token())
            .field("qp_num", &self.qp_num())
            .field("status", &self.status())
            .field("recv", &self.is_recv())
            .field("byte_len", &self.byte_len())
            .field("imm", &self.imm())
            .finish()
    }
}

/// Room for the completions of one poll, 1.5 KiB. To be kept and used again: a poll writes no more
/// of it than what it found.
pub struct CompletionBatch {
    entries: [Completion; BATCH],
    len: usize,
}

impl CompletionBatch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self {
            entries: [const { Completion::none() }; BATCH],
            len: 0,
        }
    }

    /// The completions of the last poll, oldest first.
    #[inline]
    pub fn iter(&self) -> std::slice::Iter<'_, Completion> {
        self.filled().iter()
    }

    /// Takes them out, to hand them to somebody else.
    pub fn drain(&mut self) -> impl Iterator<Item = Completion> + '_ {
        let len = std::mem::take(&mut self.len).min(BATCH);
        let taken = self.entries[..len].iter_mut();
        taken.map(|entry| std::mem::replace(entry, Completion::none()))
    }

    /// How many there are.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn filled(&self) -> &[Completion] {
        &self.entries[..self.len.min(BATCH)]
    }

    /// What a backend writes its completions to.
    #[inline]
    pub(crate) fn entries(&mut self) -> &mut [Completion; BATCH] {
        &mut self.entries
    }

    /// So many entries have just been polled from the completion queue with this serial number, at
    /// least one; how many there are. To call it twice for what was polled once would make what is claimed
    /// look as if it were not.
    #[inline]
    pub(crate) fn open(&mut self, polled: usize, cq: u32) -> usize {
        // One is what a poll finds mostly, and then no loop is needed.
        if polled == 1 {
            self.len = 1;
            self.entries[0].stamp(cq, Epoch::now());
            return 1;
        }
        self.open_more(polled, cq)
    }

    #[inline(never)]
    fn open_more(&mut self, polled: usize, cq: u32) -> usize {
        let now = Epoch::now();
        self.len = polled.min(BATCH);
        for entry in self.entries.iter_mut().take(self.len) {
            entry.stamp(cq, now);
        }
        self.len
    }

    #[inline]
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }
}

impl Default for CompletionBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for CompletionBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for &'a CompletionBatch {
    type Item = &'a Completion;
    type IntoIter = std::slice::Iter<'a, Completion>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received() -> Completion {
        Completion {
            wr_id: 7,
            opcode: 128,
            vendor_error: 9,
            byte_len: 10,
            imm: 0x0102_0304_u32.to_be(),
            qp_num: 11,
            flags: WITH_IMM,
            ..Completion::none()
        }
    }

    #[test]
    fn immediate_data_is_in_host_order() {
        let c = received();
        assert_eq!(
            (c.imm(), c.byte_len(), c.is_rdma_write()),
            (Some(0x0102_0304), 10, false)
        );
    }

    #[test]
    fn no_flag_no_immediate_data() {
        // An invalidated key lies in the same place.
        let invalidated = Completion {
            flags: 8,
            ..received()
        };
        assert_eq!(invalidated.imm(), None);
    }

    #[test]
    fn of_a_failure_the_undefined_fields_are_not_read() {
        let c = Completion {
            status: 5,
            opcode: RECEIVED_BY_WRITE,
            ..received()
        };
        assert_eq!(
            (c.wr_id, c.status(), c.qp_num(), c.vendor_error()),
            (7, WcStatus::WrFlushed, 11, 9)
        );
        assert_eq!((c.imm(), c.byte_len(), c.is_rdma_write()), (None, 0, false));
        assert_eq!(c.filled(100), 0);
    }

    #[test]
    fn unknown_numbers_are_numbers() {
        let c = Completion {
            status: 77,
            opcode: 4000,
            ..received()
        };
        assert_eq!(
            (c.status(), c.is_rdma_write()),
            (WcStatus::Unknown(77), false)
        );
    }
}
