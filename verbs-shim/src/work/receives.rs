//! The receives of one queue, a queue pair's or a shared one: who owns which buffer between post
//! and completion, and the posting. A shared receive queue does not complete in order, so the table
//! is a slab. A short message can be read in its place; then its receive is *spent*: its buffer stays
//! where it is, and is the next to be posted again.
//!
//! It is allocated once, and knows nothing of the fabric but how to say what to post.

use arrayvec::ArrayVec;
use parking_lot::Mutex;

use crate::backend::{MAX_CHAIN, PostFailure, PostResult, RecvWr, Sge, SharedReceiveQueue};
use crate::error::{Result, VerbsError};
use crate::memory::RegisteredBuffer;
use crate::types::{Access, Completion, QueueId};
use crate::work::BufferPostError;

/// Messages up to this length are read in their place: the table is locked meanwhile.
const MOST_IN_PLACE: usize = 4096;

/// Who may read a message where it lies.
pub trait ReadInPlace {
    /// Looks at the bytes of a message. `true`: it is not needed any more.
    fn read(&mut self, bytes: &[u8]) -> bool;
}

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
        post: impl FnOnce(&mut [RecvWr]) -> PostResult,
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
        post: impl FnOnce(&mut [RecvWr]) -> PostResult,
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
                wrs.push(RecvWr::new(wr_id, sge));
            }
            if let Err(failure) = post(&mut wrs) {
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

    /// Posts up to `n` receives that are spent, [`MAX_CHAIN`] at most, to `queue`; how many. What was not
    /// posted is freed.
    #[inline]
    #[allow(unsafe_code)]
    pub(crate) fn post_spent(
        &self,
        token: u32,
        n: usize,
        queue: &dyn SharedReceiveQueue,
    ) -> std::result::Result<usize, Box<PostFailure>> {
        let mut table = self.table.lock();
        let last = table.spent;
        let (first, count) = table.link_spent(self.id.wr_id(token, 0), n);
        if count == 0 {
            return Ok(0);
        }
        // SAFETY: `link_spent` has linked them, and the table is locked.
        match unsafe { queue.post_linked(first, count) } {
            Ok(()) => Ok(count),
            Err(failure) => Err(table.free_last(last, count, failure)),
        }
    }

    /// Posts up to `n` receives, [`MAX_CHAIN`] at most, by `post`: in buffers that `own` gives, then those
    /// that are spent, then in buffers that `spare` gives; how many. Fewer than that: there were no more.
    /// What was not posted is freed.
    #[inline]
    pub(crate) fn post_from(
        &self,
        token: u32,
        n: usize,
        own: &mut impl FnMut() -> Option<RegisteredBuffer>,
        spare: &mut impl FnMut() -> Option<RegisteredBuffer>,
        post: impl FnOnce(&mut [RecvWr]) -> PostResult,
    ) -> std::result::Result<usize, Box<PostFailure>> {
        let mut wrs = ArrayVec::<RecvWr, MAX_CHAIN>::new();
        let mut table = self.table.lock();
        let n = n.min(MAX_CHAIN);
        let mut refused = self.post_given(&mut table, token, n, own, &mut wrs);
        while wrs.len() < n
            && let Some((slot, sge)) = table.post_spent()
        {
            let wr_id = self.id.wr_id(token, slot);
            wrs.push(RecvWr::new(wr_id, sge));
        }
        if wrs.len() < n && refused.is_none() {
            refused = self.post_given(&mut table, token, n, spare, &mut wrs);
        }
        let posted = match wrs.is_empty() {
            true => Ok(()),
            false => post(&mut wrs),
        };
        match (posted, refused) {
            (Ok(()), None) => Ok(wrs.len()),
            (Ok(()), Some(buffer)) => Err(PostFailure::new(wrs.len(), self.refusal(&buffer))),
            (Err(failure), _) => Err(free_rest(&mut table, &wrs, failure)),
        }
    }

    /// Notes buffers that `next` gives until `wrs` has `n`; the first that cannot be posted.
    #[inline]
    fn post_given(
        &self,
        table: &mut RecvTable,
        token: u32,
        n: usize,
        next: &mut impl FnMut() -> Option<RegisteredBuffer>,
        wrs: &mut ArrayVec<RecvWr, MAX_CHAIN>,
    ) -> Option<RegisteredBuffer> {
        let mut known = std::ptr::null();
        while wrs.len() < n
            && let Some(buffer) = next()
        {
            let region = std::sync::Arc::as_ptr(buffer.region());
            // Buffers of a chain mostly are of one pool.
            if region != known && self.check(&buffer).is_some() {
                return Some(buffer);
            }
            known = region;
            let sge = buffer.receive_sge();
            match table.push(buffer) {
                Ok(slot) => wrs.push(RecvWr::new(self.id.wr_id(token, slot), sge)),
                Err(buffer) => return Some(buffer),
            }
        }
        None
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
        let filled = completion.filled(buffer.capacity());
        buffer.set_filled(filled);
        Some(buffer)
    }

    /// Shows `reader` the message of such a completion in its place, if it is short: how many bytes it had.
    /// `None`: it is not short, or `reader` still needs it.
    #[inline(always)]
    pub(crate) fn read(
        &self,
        completion: &Completion,
        reader: &mut impl ReadInPlace,
    ) -> Option<usize> {
        let length = completion.received()?;
        if length > MOST_IN_PLACE {
            return None;
        }
        let slot = completion.slot();
        let mut table = self.table.lock();
        let RecvTable {
            slots,
            spent,
            count_spent,
            ..
        } = &mut *table;
        let place = slots.get_mut(usize::from(slot))?;
        if !place.is_posted {
            return None;
        }
        let buffer = place.buffer.as_mut()?;
        if !buffer.set_filled(length) || !reader.read(buffer) {
            return None;
        }
        place.spend(slot, spent, count_spent);
        Some(length)
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
    free: u32,
    room: usize,
    /// The first spent one, if there is one.
    spent: u32,
    count_spent: usize,
}

struct Slot {
    /// None: it is free.
    buffer: Option<RegisteredBuffer>,
    /// Of the buffer, if there is one. What else is in it counts while a chain is posted.
    wr: RecvWr,
    /// The next free or the next spent one, if this is not the last.
    next: u32,
    is_posted: bool,
}

impl Slot {
    /// This one, of the number `slot`, is posted no more, and keeps its buffer.
    #[inline]
    fn spend(&mut self, slot: u16, spent: &mut u32, count: &mut usize) {
        self.is_posted = false;
        self.next = std::mem::replace(spent, u32::from(slot));
        *count += 1;
    }
}

/// No slot.
const NONE: u32 = u32::MAX;

impl RecvTable {
    /// Up to 65,536.
    pub(crate) fn new(capacity: u32) -> Self {
        let free = |next| Slot {
            buffer: None,
            wr: RecvWr::new(0, Sge::default()),
            next,
            is_posted: false,
        };
        Self {
            slots: (1..=capacity).map(free).collect(),
            free: 0,
            room: capacity as usize,
            spent: NONE,
            count_spent: 0,
        }
    }

    /// How many more can be posted.
    pub(crate) fn room(&self) -> usize {
        self.room + self.count_spent
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
        match self.slots.get_mut(slot as usize) {
            Some(place) if self.room > 0 && place.buffer.is_none() => {
                place.wr.sge = buffer.receive_sge();
                place.buffer = Some(buffer);
                place.is_posted = true;
                self.free = place.next;
                self.room -= 1;
                Ok(slot as u16)
            }
            _ => Err(buffer),
        }
    }

    /// The buffer of a receive that has completed, or was not posted after all.
    #[inline]
    pub(crate) fn take(&mut self, slot: u16) -> Option<RegisteredBuffer> {
        let place = self.slots.get_mut(usize::from(slot))?;
        if !place.is_posted {
            return None;
        }
        let taken = place.buffer.take();
        place.is_posted = false;
        place.next = self.free;
        self.free = u32::from(slot);
        self.room += 1;
        taken
    }

    /// As [`ReceiveQueue::read`] spends one; whether it was posted.
    #[cfg(test)]
    pub(crate) fn spend(&mut self, slot: u16) -> bool {
        let place = self.slots.get_mut(usize::from(slot));
        let Some(place) = place.filter(|place| place.is_posted) else {
            return false;
        };
        place.spend(slot, &mut self.spent, &mut self.count_spent);
        true
    }

    /// Notes that a spent one is posted again: the one that was spent last.
    #[inline]
    pub(crate) fn post_spent(&mut self) -> Option<(u16, Sge)> {
        let slot = self.spent;
        let place = self.slots.get_mut(slot as usize)?;
        place.is_posted = true;
        self.spent = place.next;
        self.count_spent -= 1;
        Some((slot as u16, place.wr.sge))
    }

    /// The same for up to `n` of them, which it links where they lie: the first of the chain, and how many
    /// there are. The one that was spent last is the last of them. `wr_id` is that of the first slot.
    #[inline]
    fn link_spent(&mut self, wr_id: u64, n: usize) -> (*mut RecvWr, usize) {
        let (mut first, mut count, mut slot) = (std::ptr::null_mut(), 0, self.spent);
        while count < n
            && let Some(place) = self.slots.get_mut(slot as usize)
        {
            place.is_posted = true;
            place.wr.wr_id = wr_id | u64::from(slot);
            place.wr.next = first;
            place.wr.pieces = &raw mut place.wr.sge;
            first = &raw mut place.wr;
            slot = place.next;
            count += 1;
        }
        self.spent = slot;
        self.count_spent -= count;
        (first, count)
    }

    /// Frees the buffers of such a chain of `count` that the device did not take; `last` is the slot of its
    /// last one.
    #[cold]
    #[inline(never)]
    fn free_last(
        &mut self,
        last: u32,
        count: usize,
        mut failure: Box<PostFailure>,
    ) -> Box<PostFailure> {
        failure.taken = failure.taken.min(count);
        let mut slot = last;
        for _ in failure.taken..count {
            let Some(place) = self.slots.get(slot as usize) else {
                break;
            };
            let next = place.next;
            drop(self.take(slot as u16));
            slot = next;
        }
        failure
    }
}
