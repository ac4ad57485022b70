//! Registered buffers that come into being as they are needed, up to a bound.
//!
//! A pool begins empty and grows by chunks, each twice as long as the one before, so that a
//! process with two connections holds little and one with thousands has few memory regions. Taking
//! a buffer locks nothing. A buffer goes back by being dropped, wherever that happens.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use verbs_shim::{Access, BufferPool, ProtectionDomain, RegisteredBuffer, VerbsError};

use crate::sync::lock;

const FIRST_CHUNK: u32 = 32;
/// 32 * (2^12 - 1) buffers are more than a lane may have.
const CHUNKS: usize = 12;

pub(crate) struct GrowingPool {
    pd: ProtectionDomain,
    slot_size: u32,
    limit: u32,
    chunks: [OnceLock<BufferPool>; CHUNKS],
    slots: AtomicU32,
    growing: Mutex<()>,
}

impl GrowingPool {
    pub(crate) fn new(pd: ProtectionDomain, slot_size: u32, limit: u32) -> Self {
        Self {
            pd,
            slot_size,
            limit,
            chunks: [const { OnceLock::new() }; CHUNKS],
            slots: AtomicU32::new(0),
            growing: Mutex::new(()),
        }
    }

    /// A free buffer, if there is one now.
    pub(crate) fn take(&self) -> Option<RegisteredBuffer> {
        self.chunks
            .iter()
            .map_while(OnceLock::get)
            .find_map(BufferPool::take)
    }

    /// How many buffers are free at this moment, or could be made.
    pub(crate) fn left(&self) -> usize {
        let could_be = self
            .limit
            .saturating_sub(self.slots.load(Ordering::Acquire));
        let free = self.chunks.iter().map_while(OnceLock::get);
        free.map(BufferPool::free).sum::<usize>() + could_be as usize
    }

    /// A free buffer; the pool grows for it if it may.
    pub(crate) fn take_or_grow(&self) -> Result<Option<RegisteredBuffer>, VerbsError> {
        if let Some(buffer) = self.take() {
            return Ok(Some(buffer));
        }
        let slots = self.slots.load(Ordering::Acquire);
        if slots >= self.limit {
            return Ok(None);
        }
        self.grow_to(slots + 1)?;
        Ok(self.take())
    }

    /// Grows until there are at least `slots` buffers, free or not; at most the limit.
    pub(crate) fn grow_to(&self, slots: u32) -> Result<(), VerbsError> {
        let wanted = slots.min(self.limit);
        if self.slots.load(Ordering::Acquire) >= wanted {
            return Ok(());
        }
        let _growing = lock(&self.growing);
        for (nth, chunk) in self.chunks.iter().enumerate() {
            let have = self.slots.load(Ordering::Acquire);
            if have >= wanted {
                break;
            }
            if chunk.get().is_some() {
                continue;
            }
            let length = (FIRST_CHUNK << nth).min(self.limit - have);
            let pool = BufferPool::new(&self.pd, self.slot_size, length, Access::LOCAL_WRITE)?;
            // Nobody else sets it: `growing` is held.
            let _ = chunk.set(pool);
            self.slots.store(have + length, Ordering::Release);
        }
        Ok(())
    }
}
