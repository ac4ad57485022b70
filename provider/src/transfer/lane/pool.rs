//! Registered buffers that come into being as they are needed, up to a bound.
//!
//! A pool begins empty and grows by chunks, each an eighth of what there is: on a device whose
//! driver pins memory every buffer is resident, so that what is too many costs, and a process with
//! thousands of connections still has few memory regions. Taking a buffer locks nothing. A buffer goes back by being dropped, wherever that happens.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use verbs_shim::{Access, BufferPool, ProtectionDomain, RegisteredBuffer, VerbsError};

use crate::sync::lock;

/// Buffers of the least chunk.
const LEAST_CHUNK: u32 = 32;
/// A chunk has so manieth part of what there is.
const PART: u32 = 8;
/// With so many chunks there are more buffers than a lane may have.
const CHUNKS: usize = 64;

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
        for chunk in &self.chunks {
            let have = self.slots.load(Ordering::Acquire);
            if have >= wanted {
                break;
            }
            if chunk.get().is_some() {
                continue;
            }
            let length = next_chunk(have).min(self.limit - have);
            let pool = BufferPool::new(&self.pd, self.slot_size, length, Access::LOCAL_WRITE)?;
            // Nobody else sets it: `growing` is held.
            let _ = chunk.set(pool);
            self.slots.store(have + length, Ordering::Release);
        }
        Ok(())
    }
}

/// How long the chunk after so many buffers is.
fn next_chunk(have: u32) -> u32 {
    LEAST_CHUNK.max(have / PART)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_enough_for_the_largest_lane() {
        // As many again may be held of connections that are gone.
        let most = 2 * 65_536;
        let all = (0..CHUNKS).fold(0, |have: u32, _| have + next_chunk(have));
        assert!(all >= most, "{all}");
        // And no pool has much more than was asked for.
        assert!(next_chunk(768) < 100);
    }
}
