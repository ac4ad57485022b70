//! Registered buffers: slots of one region, each with one owner at a time.
//!
//! The free list is lock-free and bounded; a slot goes back to it when its buffer is dropped,
//! wherever that happens. A pool does not grow: who needs more makes another one.
//!
//! A buffer hands out slices of its bytes, so nothing else may reach them: a pool's region stays
//! inside this crate, and it has no rights by which a peer could be let in.
//!
//! ```compile_fail,E0624
//! # use verbs_shim::RegisteredBuffer;
//! fn behind_its_back(buffer: &RegisteredBuffer) -> &[u8] {
//!     let bytes: &[u8] = buffer;
//!     buffer.region().write_at(0, &[2; 8]).unwrap();
//!     bytes
//! }
//! ```

#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;

use super::{Access, MemoryRegion, ProtectionDomain};
use crate::backend::Sge;
use crate::error::{Result, VerbsError};

/// A pool of buffers of equal size in one registered region. Cheap to clone.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<PoolShared>,
}

struct PoolShared {
    region: Arc<MemoryRegion>,
    slot_size: u32,
    slots: u32,
    free: ArrayQueue<u32>,
}

impl BufferPool {
    /// Maps and registers `slots` buffers of `slot_size` bytes each.
    ///
    /// # Errors
    /// `EINVAL`: a size or count of 0, or rights in `access` other than `LOCAL_WRITE` (by remote
    /// rights, or windows, a peer could read or write behind the owner's back: use a
    /// [`MemoryRegion`]). `ENOMEM` as with [`ProtectionDomain::region`].
    pub fn new(pd: &ProtectionDomain, slot_size: u32, slots: u32, access: Access) -> Result<Self> {
        const CALL: &str = "BufferPool::new";
        if slot_size == 0 || slots == 0 {
            return Err(VerbsError::invalid(CALL, "a slot size or count of 0"));
        }
        if !Access::LOCAL_WRITE.contains(access) {
            return Err(VerbsError::invalid(
                CALL,
                "buffers of one owner cannot be open to a peer",
            ));
        }
        let len = (slot_size as usize)
            .checked_mul(slots as usize)
            .ok_or_else(|| {
                VerbsError::invalid(CALL, format!("{slots} slots of {slot_size} bytes"))
            })?;
        let region = pd.region(len, access)?;
        let free = ArrayQueue::new(slots as usize);
        for slot in 0..slots {
            // The queue has room for every slot.
            let _ = free.push(slot);
        }
        Ok(Self {
            shared: Arc::new(PoolShared {
                region,
                slot_size,
                slots,
                free,
            }),
        })
    }

    /// A free buffer, with a length of 0, if there is one. Its bytes are whatever the slot's last
    /// owner left there.
    #[must_use]
    pub fn take(&self) -> Option<RegisteredBuffer> {
        let slot = self.shared.free.pop()?;
        Some(RegisteredBuffer {
            pool: Arc::clone(&self.shared),
            slot,
            len: 0,
        })
    }

    /// How many buffers are free at this moment.
    #[must_use]
    pub fn free(&self) -> usize {
        self.shared.free.len()
    }

    /// How many buffers there are.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.shared.slots
    }

    /// The size of each.
    #[must_use]
    pub fn slot_size(&self) -> u32 {
        self.shared.slot_size
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("slot_size", &self.slot_size())
            .field("slots", &self.slots())
            .field("free", &self.free())
            .finish()
    }
}

/// A registered buffer: the one owner of a slot of a [`BufferPool`], to which the slot returns on
/// drop. It reads and writes as a slice of its [`len`](RegisteredBuffer::set_len).
pub struct RegisteredBuffer {
    pool: Arc<PoolShared>,
    slot: u32,
    len: u32,
}

impl RegisteredBuffer {
    /// How many bytes fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.pool.slot_size as usize
    }

    /// Sets its length. Bytes that come into view are what was left there before.
    ///
    /// # Panics
    /// When `len` is more than the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity(),
            "{len} bytes in a slot of {}",
            self.capacity()
        );
        self.len = len as u32;
    }

    /// As [`RegisteredBuffer::set_len`], if that fits; else nothing is changed. Whether it does.
    #[inline]
    pub(crate) fn set_filled(&mut self, len: usize) -> bool {
        let fits = len <= self.capacity();
        if fits {
            self.len = len as u32;
        }
        fits
    }

    /// Makes `bytes` its content.
    ///
    /// # Panics
    /// When `bytes` is more than the capacity.
    pub fn fill(&mut self, bytes: &[u8]) {
        self.set_len(bytes.len());
        self.copy_from_slice(bytes);
    }

    /// Turns it into `Bytes` without copying; the slot returns when the last of them is dropped.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// The region it lies in. Never given to safe code outside: a region copies into its bytes, and
    /// slices of it can be posted, while this buffer lends the same bytes as `&[u8]`.
    pub(crate) fn region(&self) -> &Arc<MemoryRegion> {
        &self.pool.region
    }

    fn offset(&self) -> usize {
        self.slot as usize * self.pool.slot_size as usize
    }

    fn ptr(&self) -> *mut u8 {
        // SAFETY: slot < slots, so the offset lies inside the region.
        unsafe { self.pool.region.addr().as_ptr().add(self.offset()) }
    }

    /// Its content, to send.
    pub(crate) fn sge(&self) -> Sge {
        Sge {
            addr: self.ptr() as u64,
            length: self.len,
            lkey: self.pool.region.lkey(),
        }
    }

    /// All of it, to receive into.
    pub(crate) fn receive_sge(&self) -> Sge {
        Sge {
            length: self.pool.slot_size,
            ..self.sge()
        }
    }
}

impl Deref for RegisteredBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the slot is ours alone, mapped and initialised as long as the pool's region
        // lives; the fabric writes it only while the buffer is moved away, posted, since the region
        // has no right but LOCAL_WRITE and stays inside this crate.
        unsafe { std::slice::from_raw_parts(self.ptr(), self.len as usize) }
    }
}

impl DerefMut for RegisteredBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(), self.len as usize) }
    }
}

impl AsRef<[u8]> for RegisteredBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for RegisteredBuffer {
    fn drop(&mut self) {
        // The queue has room for every slot, and this one is in it nowhere else.
        let _ = self.pool.free.push(self.slot);
    }
}

impl fmt::Debug for RegisteredBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisteredBuffer")
            .field("slot", &self.slot)
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .finish()
    }
}
