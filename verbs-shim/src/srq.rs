//! Shared receive queues: receives that many queue pairs draw from.
//!
//! The buffers belong to the queue from post to [`claim`](SharedReceiveQueue::claim). A receive
//! that a queue pair took and never completed (it was destroyed half-way, or its completions were
//! never polled) keeps its slot until the shared queue itself is destroyed: move a queue pair to
//! the error state and claim what it flushes before dropping it.

use std::collections::HashSet;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrayvec::ArrayVec;

use crate::backend::{self, MAX_CHAIN, RecvWr};
use crate::completion::Completion;
use crate::error::{Result, VerbsError};
use crate::memory::{ProtectionDomain, RegisteredBuffer};
use crate::qp::check_recv;
use crate::work::{RecvPostError, RecvTable};
use crate::wr_id::{Kind, Life, MAX_SLOTS, WrId};

/// A shared receive queue. Cheap to clone; any thread may post and claim.
#[derive(Clone)]
pub struct SharedReceiveQueue {
    shared: Arc<SrqShared>,
}

struct SrqShared {
    backend: Arc<dyn backend::SharedReceiveQueue>,
    life: LiveLife,
    table: ManuallyDrop<Mutex<RecvTable>>,
    unknown: AtomicU64,
    pd: ProtectionDomain,
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
        let life = LiveLife::take().ok_or_else(|| VerbsError::from_errno(CALL, libc::ENOSPC))?;
        let backend = pd.backend().create_srq(max_wr, 1)?;
        Ok(Self {
            shared: Arc::new(SrqShared {
                backend,
                life,
                table: ManuallyDrop::new(Mutex::new(RecvTable::new(max_wr))),
                unknown: AtomicU64::new(0),
                pd: pd.clone(),
            }),
        })
    }

    /// Posts a receive of the whole buffer.
    ///
    /// # Errors
    /// Gives the buffer back. `ENOMEM`: the queue is full. `EINVAL`: a buffer of another
    /// protection domain.
    #[allow(clippy::result_large_err)]
    pub fn post(
        &self,
        token: u32,
        buffer: RegisteredBuffer,
    ) -> std::result::Result<(), RecvPostError> {
        let mut one = ArrayVec::<_, 1>::new();
        one.push(buffer);
        self.post_chain(token, &mut one)
            .map_err(|error| RecvPostError {
                buffer: one.remove(0),
                error,
            })
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
        while !buffers.is_empty() {
            self.post_chain(token, buffers)?;
        }
        Ok(())
    }

    /// Takes the buffer of a finished receive back, its length set to what came.
    ///
    /// `None`, and counted: the completion is not of this queue, or was claimed before.
    pub fn claim(&self, completion: &Completion) -> Option<RegisteredBuffer> {
        let buffer = self.try_claim(completion);
        match buffer {
            Some(_) => completion.set_claimed(),
            None => {
                self.shared.unknown.fetch_add(1, Ordering::Relaxed);
            }
        }
        buffer
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
        self.table().room()
    }

    pub(crate) fn backend(&self) -> Arc<dyn backend::SharedReceiveQueue> {
        Arc::clone(&self.shared.backend)
    }

    fn table(&self) -> MutexGuard<'_, RecvTable> {
        self.shared
            .table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn try_claim(&self, completion: &Completion) -> Option<RegisteredBuffer> {
        let wr = completion.wr()?;
        let ours = wr.kind == Kind::SharedReceive
            && wr.life == self.shared.life.life
            && !completion.is_claimed();
        if !ours {
            return None;
        }
        let mut buffer = self.table().take(wr.slot)?;
        let filled = completion.filled(buffer.capacity());
        buffer.set_len(filled);
        Some(buffer)
    }

    /// Posts up to `MAX_CHAIN` buffers from the front, and removes those that were posted.
    fn post_chain<const N: usize>(
        &self,
        token: u32,
        buffers: &mut ArrayVec<RegisteredBuffer, N>,
    ) -> Result<()> {
        const CALL: &str = "ibv_post_srq_recv";
        let mut refused = None;
        let mut slots = ArrayVec::<u16, MAX_CHAIN>::new();
        let mut wrs = ArrayVec::<RecvWr, MAX_CHAIN>::new();
        {
            let mut table = self.table();
            while slots.len() < MAX_CHAIN && !buffers.is_empty() {
                if let Err(error) = check_recv(CALL, &buffers[0], &self.shared.pd) {
                    refused = Some(error);
                    break;
                }
                let sge = buffers[0].receive_sge();
                match table.push(buffers.remove(0)) {
                    Ok(slot) => {
                        let (kind, life) = (Kind::SharedReceive, self.shared.life.life);
                        let wr_id = WrId {
                            token,
                            kind,
                            life,
                            slot,
                        }
                        .pack();
                        slots.push(slot);
                        wrs.push(RecvWr { wr_id, sge });
                    }
                    Err(buffer) => {
                        buffers.insert(0, buffer);
                        refused = Some(VerbsError::from_errno(CALL, libc::ENOMEM));
                        break;
                    }
                }
            }
        }
        let posted = match wrs.is_empty() {
            true => Ok(()),
            false => self.shared.backend.post_recv(&wrs),
        };
        if let Err((taken, error)) = posted {
            let mut table = self.table();
            for &slot in slots.iter().skip(taken).rev() {
                if let Some(buffer) = table.take(slot) {
                    buffers.insert(0, buffer);
                }
            }
            return Err(error);
        }
        refused.map_or(Ok(()), Err)
    }
}

impl Drop for SrqShared {
    fn drop(&mut self) {
        if let Err(error) = self.backend.destroy() {
            // The device may still use the posted memory: it stays where it is for ever.
            tracing::error!(%error, "a shared receive queue could not be destroyed");
            self.life.kept = true;
            return;
        }
        drop_table(self);
    }
}

/// Frees what was never claimed, now that the queue is destroyed.
#[allow(unsafe_code)]
fn drop_table(srq: &mut SrqShared) {
    // SAFETY: called once, at the end of drop; the table is not used after.
    unsafe { ManuallyDrop::drop(&mut srq.table) };
}

impl fmt::Debug for SharedReceiveQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedReceiveQueue")
            .field("max_wr", &self.max_wr())
            .field("room", &self.room())
            .finish()
    }
}

/// A life that no other shared receive queue of the process has at the same time, handed out in
/// turn, so that one comes back only after 16,383 others: completions of a shared receive queue
/// name the queue pair they came through, not the queue, so this is what tells queues apart.
struct LiveLife {
    life: Life,
    /// Not to be given out again.
    kept: bool,
}

static IN_USE: Mutex<Option<(Life, HashSet<Life>)>> = Mutex::new(None);

impl LiveLife {
    /// `None`: all are in use.
    fn take() -> Option<Self> {
        let mut guard = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, used) = guard.get_or_insert_with(|| (Life::default(), HashSet::new()));
        for _ in 0..1 << 14 {
            *last = last.next();
            if used.insert(*last) {
                return Some(Self {
                    life: *last,
                    kept: false,
                });
            }
        }
        None
    }
}

impl Drop for LiveLife {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let mut guard = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, used)) = guard.as_mut() {
            used.remove(&self.life);
        }
    }
}
