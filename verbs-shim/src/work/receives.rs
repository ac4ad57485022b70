//! The receives of one queue, a queue pair's or a shared one: who owns which buffer between post
//! and completion, and the posting. A shared receive queue does not complete in order, so the table
//! is a slab.
//!
//! It is allocated once, and knows nothing of the fabric but how to say what to post.

use arrayvec::ArrayVec;
use parking_lot::Mutex;

use crate::backend::{MAX_CHAIN, PostFailure, PostResult, RecvWr};
use crate::error::{Result, VerbsError};
use crate::memory::RegisteredBuffer;
use crate::types::{Access, Completion, QueueId};
use crate::work::BufferPostError;

/// The receives that are posted to one queue.
pub(crate) struct ReceiveQueue {
    id: QueueId,
    /// The protection domain whose buffers it takes.
    pd: u64,
    call: &'static str,
    /// Held while the device is told, so that a post takes one lock.
    table: Mutex<RecvTable>,
}

impl ReceiveQueue {
    /// `call`: what posting is called in errors.
    pub(crate) fn new(call: &'static str, id: QueueId, pd: u64, capacity: u32) -> Self {
        Self {
            id,
            pd,
            call,
            table: Mutex::new(RecvTable::new(capacity)),
        }
    }

    pub(crate) fn id(&self) -> QueueId {
        self.id
    }

    pub(crate) fn room(&self) -> usize {
        self.table.lock().room()
    }

    /// Posts one by `post`.
    pub(crate) fn post(
        &self,
        token: u32,
        buffer: RegisteredBuffer,
        post: impl FnOnce(&[RecvWr]) -> PostResult,
    ) -> std::result::Result<(), BufferPostError> {
        let mut one = ArrayVec::<_, 1>::new();
        one.push(buffer);
        self.post_chain(token, &mut one, post)
            .map_err(|error| BufferPostError {
                buffer: one.pop(),
                error,
            })
    }

    /// Posts up to [`MAX_CHAIN`] buffers from the front by `post`, and removes those that were
    /// posted. An error is about the first that remains.
    pub(crate) fn post_chain<const N: usize>(
        &self,
        token: u32,
        buffers: &mut ArrayVec<RegisteredBuffer, N>,
        post: impl FnOnce(&[RecvWr]) -> PostResult,
    ) -> Result<()> {
        let fitting = self.fitting(buffers);
        let mut table = self.table.lock();
        let count = fitting.min(table.room());
        if count > 0 {
            let mut wrs = ArrayVec::<RecvWr, MAX_CHAIN>::new();
            for buffer in buffers.drain(..count) {
                let sge = buffer.receive_sge();
                let Ok(slot) = table.push(buffer) else { break };
                let wr_id = self.id.wr_id(token, slot);
                wrs.push(RecvWr { wr_id, sge });
            }
            if let Err(failure) = post(&wrs) {
                let PostFailure { taken, error } = *failure;
                for wr in wrs.iter().skip(taken).rev() {
                    if let Some(buffer) = table.take(wr.wr_id as u16) {
                        buffers.insert(0, buffer);
                    }
                }
                return Err(error);
            }
        }
        match buffers.first() {
            Some(first) if count < MAX_CHAIN => Err(self.refusal(first)),
            _ => Ok(()),
        }
    }

    /// Posts up to `n` receives, [`MAX_CHAIN`] at most, in buffers that `next` gives, by `post`; how
    /// many. Fewer than that: `next` gave no more. What it gave and was not posted is freed.
    #[inline]
    pub(crate) fn post_from(
        &self,
        token: u32,
        n: usize,
        mut next: impl FnMut() -> Option<RegisteredBuffer>,
        post: impl FnOnce(&[RecvWr]) -> PostResult,
    ) -> std::result::Result<usize, Box<PostFailure>> {
        let mut wrs = ArrayVec::<RecvWr, MAX_CHAIN>::new();
        let mut refused = None;
        let mut known = std::ptr::null();
        let mut table = self.table.lock();
        for _ in 0..n.min(MAX_CHAIN) {
            let Some(buffer) = next() else { break };
            let region = std::sync::Arc::as_ptr(buffer.region());
            // Buffers of a chain mostly are of one pool.
            if region != known && self.check(&buffer).is_some() {
                refused = Some(buffer);
                break;
            }
            known = region;
            let sge = buffer.receive_sge();
            match table.push(buffer) {
                Ok(slot) => wrs.push(RecvWr {
                    wr_id: self.id.wr_id(token, slot),
                    sge,
                }),
                Err(buffer) => {
                    refused = Some(buffer);
                    break;
                }
            }
        }
        let posted = match wrs.is_empty() {
            true => Ok(()),
            false => post(&wrs),
        };
        match (posted, refused) {
            (Ok(()), None) => Ok(wrs.len()),
            (Ok(()), Some(buffer)) => Err(PostFailure::new(wrs.len(), self.refusal(&buffer))),
            (Err(failure), _) => Err(free_rest(&mut table, &wrs, failure)),
        }
    }

    /// How many buffers from the front are of a kind that can be posted, up to [`MAX_CHAIN`].
    fn fitting(&self, buffers: &[RegisteredBuffer]) -> usize {
        let mut known = std::ptr::null();
        let fits = |buffer: &&RegisteredBuffer| {
            let region = std::sync::Arc::as_ptr(buffer.region());
            // Buffers of a chain mostly are of one pool.
            let fits = region == known || self.check(buffer).is_none();
            known = region;
            fits
        };
        buffers.iter().take(MAX_CHAIN).take_while(fits).count()
    }

    /// Why the buffer cannot be posted to receive.
    #[inline]
    fn check(&self, buffer: &RegisteredBuffer) -> Option<&'static str> {
        let region = buffer.region();
        if region.pd_serial() != self.pd {
            return Some("a buffer of another protection domain");
        }
        if !region.access().contains(Access::LOCAL_WRITE) {
            return Some("a buffer without LOCAL_WRITE");
        }
        None
    }

    /// Why a buffer was not posted.
    #[cold]
    fn refusal(&self, buffer: &RegisteredBuffer) -> VerbsError {
        match self.check(buffer) {
            Some(why) => VerbsError::invalid(self.call, why),
            None => VerbsError::from_errno(self.call, libc::ENOMEM),
        }
    }

    /// The buffer of a completion that is known to be of this queue, its length set to what came.
    #[inline]
    pub(crate) fn claim(&self, completion: &Completion) -> Option<RegisteredBuffer> {
        let mut buffer = self.table.lock().take(completion.slot())?;
        buffer.set_len(completion.filled(buffer.capacity()));
        Some(buffer)
    }

    /// Takes all that is posted, for the end: to be dropped when the device has let go of it, to be
    /// forgotten if it has not.
    pub(crate) fn take_all(&mut self) -> RecvTable {
        std::mem::replace(self.table.get_mut(), RecvTable::new(0))
    }
}

/// Frees the buffers that the device did not take.
#[cold]
#[inline(never)]
fn free_rest(
    table: &mut RecvTable,
    wrs: &[RecvWr],
    mut failure: Box<PostFailure>,
) -> Box<PostFailure> {
    failure.taken = failure.taken.min(wrs.len());
    for wr in wrs.iter().skip(failure.taken).rev() {
        drop(table.take(wr.wr_id as u16));
    }
    failure
}

/// Buffers by slot.
pub(crate) struct RecvTable {
    slots: Box<[Slot]>,
    /// The first free one, if there is room.
    free: u16,
    room: usize,
}

enum Slot {
    Posted(RegisteredBuffer),
    /// The next free one, if this is not the last.
    Free(u16),
}

impl RecvTable {
    /// Up to 65,536.
    pub(crate) fn new(capacity: u32) -> Self {
        Self {
            slots: (1..=capacity).map(|next| Slot::Free(next as u16)).collect(),
            free: 0,
            room: capacity as usize,
        }
    }

    pub(crate) fn room(&self) -> usize {
        self.room
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.room == self.slots.len()
    }

    /// Notes a receive; `Err` gives the buffer back: no room.
    #[inline]
    pub(crate) fn push(
        &mut self,
        buffer: RegisteredBuffer,
    ) -> std::result::Result<u16, RegisteredBuffer> {
        let slot = self.free;
        match self.slots.get_mut(usize::from(slot)) {
            Some(place @ &mut Slot::Free(next)) if self.room > 0 => {
                *place = Slot::Posted(buffer);
                self.free = next;
                self.room -= 1;
                Ok(slot)
            }
            _ => Err(buffer),
        }
    }

    /// The buffer of a receive that has completed, or was not posted after all.
    #[inline]
    pub(crate) fn take(&mut self, slot: u16) -> Option<RegisteredBuffer> {
        let place = self.slots.get_mut(usize::from(slot))?;
        if matches!(place, Slot::Free(_)) {
            return None;
        }
        let taken = std::mem::replace(place, Slot::Free(self.free));
        self.free = slot;
        self.room += 1;
        match taken {
            Slot::Posted(buffer) => Some(buffer),
            Slot::Free(_) => None,
        }
    }
}
