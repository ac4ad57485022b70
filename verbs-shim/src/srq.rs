//! Shared receive queues: receives that many queue pairs draw from.
//!
//! The buffers belong to the queue from post to [`claim`](SharedReceiveQueue::claim). A receive
//! that a queue pair took and never completed (it was destroyed half-way, or its completions were
//! never polled) keeps its slot until the shared queue itself is destroyed: move a queue pair to
//! the error state and claim what it flushes before dropping it.

use std::collections::HashSet;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use parking_lot::Mutex;

use crate::backend::{self, MAX_CHAIN};
use crate::error::{Result, VerbsError};
use crate::memory::{ProtectionDomain, RegisteredBuffer};
use crate::types::{Completion, Epoch, Generation, Kind, MAX_SLOTS, QueueId};
use crate::work::{BufferPostError, ReadInPlace, ReceiveQueue};

/// A shared receive queue. Cheap to clone; any thread may post and claim.
#[derive(Clone)]
pub struct SharedReceiveQueue {
    shared: Arc<SrqShared>,
}

struct SrqShared {
    backend: Arc<dyn backend::SharedReceiveQueue>,
    /// When it was made.
    epoch: Epoch,
    receives: ReceiveQueue,
    unknown: AtomicU64,
    generation: LiveGeneration,
    _pd: ProtectionDomain,
}

impl ProtectionDomain {
    /// A shared receive queue for up to `max_wr` receives of one buffer each.
    ///
    /// # Errors
    /// `EINVAL`: 0, or more than the device's `max_srq_wr`. `ENOMEM`.
    pub fn create_srq(&self, max_wr: u32) -> Result<SharedReceiveQueue> {
        SharedReceiveQueue::new(self, max_wr)
    }
}

impl SharedReceiveQueue {
    /// A queue for up to `max_wr` receives of one buffer each.
    ///
    /// # Errors
    /// `EINVAL`: 0, or more than the device's `max_srq_wr` or 65,536. `ENOMEM`.
    pub fn new(pd: &ProtectionDomain, max_wr: u32) -> Result<Self> {
        const CALL: &str = "ibv_create_srq";
        if max_wr == 0 || max_wr > MAX_SLOTS {
            return Err(VerbsError::invalid(
                CALL,
                format!("max_wr {max_wr}, 1 to {MAX_SLOTS}"),
            ));
        }
        let generation =
            LiveGeneration::take().ok_or_else(|| VerbsError::from_errno(CALL, libc::ENOSPC))?;
        let id = QueueId::new(Kind::SharedReceive, generation.number);
        let backend = pd.backend().create_srq(max_wr, 1)?;
        Ok(Self {
            shared: Arc::new(SrqShared {
                backend,
                epoch: Epoch::begin(),
                receives: ReceiveQueue::new("ibv_post_srq_recv", id, pd.serial(), max_wr),
                unknown: AtomicU64::new(0),
                generation,
                _pd: pd.clone(),
            }),
        })
    }

    /// Posts a receive of the whole buffer.
    ///
    /// # Errors
    /// Gives the buffer back. `ENOMEM`: the queue is full. `EINVAL`: a buffer of another
    /// protection domain.
    pub fn post(
        &self,
        token: u32,
        buffer: RegisteredBuffer,
    ) -> std::result::Result<(), BufferPostError> {
        let srq = &*self.shared;
        let post = |wrs: &mut [backend::RecvWr]| srq.backend.post_recv(wrs);
        srq.receives.post(token, buffer, post)
    }

    /// Posts receives in order, with one doorbell for up to 16 of them. Those that were posted
    /// are gone from `buffers`.
    ///
    /// # Errors
    /// As [`SharedReceiveQueue::post`], for the first of those that remain.
    pub fn post_batch<const N: usize>(
        &self,
        token: u32,
        buffers: &mut ArrayVec<RegisteredBuffer, N>,
    ) -> Result<()> {
        let srq = &*self.shared;
        while !buffers.is_empty() {
            let post = |wrs: &mut [backend::RecvWr]| srq.backend.post_recv(wrs);
            srq.receives.post_chain(token, buffers, post)?;
        }
        Ok(())
    }

    /// Posts up to `n` receives whose messages were read in their place ([`SharedReceiveQueue::read`]), at
    /// most 16, with one doorbell; how many.
    ///
    /// # Errors
    /// As [`SharedReceiveQueue::post`], with how many were posted before. Those that were not are spent no
    /// more, and their buffers free.
    #[inline]
    pub fn post_spent(&self, token: u32, n: u32) -> std::result::Result<u32, (u32, VerbsError)> {
        let srq = &*self.shared;
        let posted = srq
            .receives
            .post_spent(token, (n as usize).min(MAX_CHAIN), &*srq.backend);
        match posted {
            Ok(posted) => Ok(posted as u32),
            Err(failure) => Err((failure.taken as u32, failure.error)),
        }
    }

    /// Posts up to `n` receives with one doorbell for up to 16 of them: in buffers that `own` gives, until
    /// it gives none; then those whose messages were read in their place ([`SharedReceiveQueue::read`]);
    /// then in buffers that `spare` gives. How many were posted goes to `posted`; what was given besides is
    /// freed.
    ///
    /// # Errors
    /// As [`SharedReceiveQueue::post`], for the first that was not posted.
    #[inline]
    pub fn post_from(
        &self,
        token: u32,
        n: u32,
        mut own: impl FnMut() -> Option<RegisteredBuffer>,
        mut spare: impl FnMut() -> Option<RegisteredBuffer>,
        posted: &mut u32,
    ) -> Result<()> {
        let srq = &*self.shared;
        *posted = 0;
        while *posted < n {
            let post = |wrs: &mut [backend::RecvWr]| srq.backend.post_recv(wrs);
            let left = (n - *posted) as usize;
            let result = srq
                .receives
                .post_from(token, left, &mut own, &mut spare, post);
            match result {
                Ok(0) => break,
                Ok(count) => *posted += count as u32,
                Err(failure) => {
                    *posted += failure.taken as u32;
                    return Err(failure.error);
                }
            }
        }
        Ok(())
    }

    /// Takes the buffer of a finished receive back, its length set to what came.
    ///
    /// `None`, and counted: the completion is not of this queue, or was claimed before.
    #[inline]
    pub fn claim(&self, completion: &Completion) -> Option<RegisteredBuffer> {
        let srq = &*self.shared;
        if completion.queue() != srq.receives.id() || !completion.is_since(srq.epoch) {
            return srq.refuse();
        }
        match srq.receives.claim(completion) {
            None => srq.refuse(),
            buffer => {
                completion.set_claimed();
                buffer
            }
        }
    }

    /// Shows `reader` a message of 4,096 bytes at most where it lies. If that does not need it any more, its
    /// buffer stays here, and [`SharedReceiveQueue::post_from`] posts it again: how many bytes it had.
    /// `None`: nothing was done, and [`SharedReceiveQueue::claim`] says more.
    ///
    /// The queue is locked while `reader` reads: it must not post to this queue, nor claim.
    // Always where it is called: a call more would cost a third of it.
    #[inline(always)]
    pub fn read(&self, completion: &Completion, reader: &mut impl ReadInPlace) -> Option<usize> {
        let srq = &*self.shared;
        if completion.queue() != srq.receives.id() || !completion.is_since(srq.epoch) {
            return None;
        }
        let length = srq.receives.read(completion, reader)?;
        completion.set_claimed();
        Some(length)
    }

    /// How many claims were refused.
    #[must_use]
    pub fn unknown_claims(&self) -> u64 {
        self.shared.unknown.load(Ordering::Relaxed)
    }

    /// How many receives it can hold.
    #[must_use]
    pub fn max_wr(&self) -> u32 {
        self.shared.backend.max_wr()
    }

    /// How many receives can be posted now. Slots come back when completions are claimed.
    #[must_use]
    pub fn room(&self) -> usize {
        self.shared.receives.room()
    }

    pub(crate) fn backend(&self) -> Arc<dyn backend::SharedReceiveQueue> {
        Arc::clone(&self.shared.backend)
    }
}

impl SrqShared {
    #[cold]
    fn refuse(&self) -> Option<RegisteredBuffer> {
        self.unknown.fetch_add(1, Ordering::Relaxed);
        None
    }
}

impl Drop for SrqShared {
    fn drop(&mut self) {
        let posted = ManuallyDrop::new(self.receives.take_all());
        if let Err(error) = self.backend.destroy() {
            // The device may still use the posted memory: it stays where it is for ever.
            self.generation.kept = true;
            tracing::error!(%error, "a shared receive queue could not be destroyed");
            return;
        }
        // What was never claimed is freed, now that the device has let go of it.
        drop(ManuallyDrop::into_inner(posted));
    }
}

impl fmt::Debug for SharedReceiveQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedReceiveQueue")
            .field("max_wr", &self.max_wr())
            .field("room", &self.room())
            .finish()
    }
}

/// A generation that no other shared receive queue of the process has at the same time: completions
/// of a shared receive queue name the queue pair they came through, not the queue, so this is what
/// tells queues apart. It comes back after 16,383 others; what was polled before then is told apart
/// by its epoch.
struct LiveGeneration {
    number: Generation,
    /// Not to be given out again.
    kept: bool,
}

struct InUse {
    last: Generation,
    /// None at first.
    all: Option<HashSet<Generation>>,
}

static IN_USE: Mutex<InUse> = Mutex::new(InUse {
    last: Generation::FIRST,
    all: None,
});

impl LiveGeneration {
    /// `None`: all are in use.
    fn take() -> Option<Self> {
        let mut guard = IN_USE.lock();
        let in_use = &mut *guard;
        let all = in_use.all.get_or_insert_default();
        let number = in_use.last.others().find(|number| all.insert(*number))?;
        in_use.last = number;
        Some(Self {
            number,
            kept: false,
        })
    }
}

impl Drop for LiveGeneration {
    fn drop(&mut self) {
        if !self.kept
            && let Some(all) = &mut IN_USE.lock().all
        {
            all.remove(&self.number);
        }
    }
}
