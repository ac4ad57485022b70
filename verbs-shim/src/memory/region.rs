//! Memory regions: registered memory as a whole, and slices of it to post.
//!
//! A region's bytes are reached by copying only, since a peer or a posted request may write them
//! at any moment. Exclusive access without copying is what [`super::RegisteredBuffer`] is for.

#![allow(unsafe_code)]

use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, PoisonError, RwLock};

use super::{Access, AppMemory, ProtectionDomain, SharedMemory, copy_in, copy_out};
use crate::backend::{self, Sge};
use crate::error::{Result, VerbsError};
use crate::types::RemoteMemory;

/// Registered memory.
pub struct MemoryRegion {
    backend: Box<dyn backend::MemoryRegion>,
    addr: NonNull<u8>,
    len: usize,
    lkey: u32,
    rkey: u32,
    access: Access,
    /// Whether it was made with its memory: then it copies in and out.
    own: bool,
    /// Keeps the memory mapped, where it was mapped by this crate.
    owner: Option<SharedMemory>,
    /// Orders copies of this process among each other; what the fabric does is outside of it.
    copies: RwLock<()>,
    pd: ProtectionDomain,
}

// SAFETY: the pointer is to memory that lives as long as the region; threads reach its bytes only
// through `read_at` and `write_at`, which take the lock, or through slots of one owner.
unsafe impl Send for MemoryRegion {}
// SAFETY: as above.
unsafe impl Sync for MemoryRegion {}

impl MemoryRegion {
    pub(super) fn map(pd: &ProtectionDomain, len: usize, access: Access) -> Result<Self> {
        // Nobody else gets the mapping, so copies in and out are the only way to its bytes; but for
        // a pool's region, which stays inside this crate, and whose buffers lend their own slot.
        let memory = SharedMemory::new(len)?;
        let mut region = Self::of(pd, &AppMemory::from(&memory), access)?;
        region.own = true;
        Ok(region)
    }

    pub(super) fn of(pd: &ProtectionDomain, memory: &AppMemory, access: Access) -> Result<Self> {
        let (addr, len) = (memory.addr(), memory.len());
        if len == 0 {
            return Err(VerbsError::invalid("ibv_reg_mr", "memory of length 0"));
        }
        // SAFETY: who made `memory` promised this of it (AppMemory::new). Of shared memory the
        // region holds the mapping, and `drop` never lets go of it if deregistration fails; nobody
        // reaches its bytes but by copies that are atomic for each byte, or as the buffers of a
        // pool, which lend only slots that are not posted.
        let backend = unsafe { pd.backend().register(addr.as_ptr(), len, access) }?;
        Ok(Self {
            lkey: backend.lkey(),
            rkey: backend.rkey(),
            backend,
            addr,
            len,
            access,
            own: false,
            owner: memory.owner(),
            copies: RwLock::new(()),
            pd: pd.clone(),
        })
    }

    /// Its length in bytes, as asked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty region cannot be registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it begins.
    #[must_use]
    pub fn address(&self) -> usize {
        self.addr.as_ptr() as usize
    }

    /// The key for local use.
    #[must_use]
    pub fn lkey(&self) -> u32 {
        self.lkey
    }

    /// The key that a peer needs.
    #[must_use]
    pub fn rkey(&self) -> u32 {
        self.rkey
    }

    /// The rights it was registered with.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// What a peer has to be told to reach the byte at `offset`.
    #[must_use]
    pub fn remote(&self, offset: usize) -> RemoteMemory {
        RemoteMemory {
            addr: (self.addr.as_ptr() as u64).wrapping_add(offset as u64),
            rkey: self.rkey,
        }
    }

    /// A piece of it to post.
    ///
    /// # Errors
    /// `EINVAL`: it does not lie inside.
    pub fn slice(self: &Arc<Self>, offset: usize, len: usize) -> Result<RegionSlice> {
        self.check("slice", offset, len)?;
        let length = u32::try_from(len)
            .map_err(|_| VerbsError::invalid("slice", format!("{len} bytes in one piece")))?;
        Ok(RegionSlice {
            region: Arc::clone(self),
            offset,
            len: length,
            _lease: None,
        })
    }

    /// Copies bytes out. While the fabric writes them, a mixture of old and new comes out.
    ///
    /// # Errors
    /// `EINVAL`: not inside, or memory of the application's, which its owner reads.
    pub fn read_at(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.check_own("read_at", offset, out.len())?;
        let _copies = self.copies.read().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: offset + len <= self.len was checked.
        let from = unsafe { self.addr.as_ptr().add(offset) };
        // SAFETY: inside the region, whose mapping is its own: whoever writes it at this moment is a
        // device, or copies in the same way.
        unsafe { copy_out(from, out) };
        Ok(())
    }

    /// Copies bytes in. A request that is posted on them sends a mixture of old and new.
    ///
    /// # Errors
    /// `EINVAL`: not inside, or memory of the application's, which its owner writes.
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.check_own("write_at", offset, bytes.len())?;
        let _copies = self.copies.write().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: offset + len <= self.len was checked.
        let to = unsafe { self.addr.as_ptr().add(offset) };
        // SAFETY: inside the region, whose mapping is its own: whoever reads or writes it at this
        // moment is a device, or copies in the same way.
        unsafe { copy_in(to, bytes) };
        Ok(())
    }

    fn check(&self, call: &'static str, offset: usize, len: usize) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(VerbsError::invalid(
                call,
                format!("{len} bytes at {offset} of a region of {}", self.len),
            )),
        }
    }

    fn check_own(&self, call: &'static str, offset: usize, len: usize) -> Result<()> {
        if !self.own {
            return Err(VerbsError::invalid(
                call,
                "the region is memory of the caller's",
            ));
        }
        self.check(call, offset, len)
    }

    pub(crate) fn backend(&self) -> &dyn backend::MemoryRegion {
        &*self.backend
    }

    pub(super) fn addr(&self) -> NonNull<u8> {
        self.addr
    }

    pub(crate) fn pd_serial(&self) -> u64 {
        self.pd.serial()
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        if let Err(error) = self.backend.deregister() {
            // The NIC may still write there: the pages stay mapped for ever.
            tracing::error!(%error, len = self.len, "a memory region could not be deregistered");
            std::mem::forget(self.owner.take());
        }
    }
}

impl fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRegion")
            .field("len", &self.len)
            .field("lkey", &self.lkey)
            .field("rkey", &self.rkey)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

/// A piece of a region, to post. It keeps the region alive.
#[derive(Debug, Clone)]
pub struct RegionSlice {
    region: Arc<MemoryRegion>,
    offset: usize,
    len: u32,
    _lease: Option<Arc<()>>,
}

impl RegionSlice {
    /// The region it is part of.
    #[must_use]
    pub fn region(&self) -> &Arc<MemoryRegion> {
        &self.region
    }

    /// The same, holding `lease` for as long as it is there, posted or not: its owner sees by the
    /// count of references whether the fabric still has the memory.
    #[must_use]
    pub fn leased(self, lease: Arc<()>) -> Self {
        Self {
            _lease: Some(lease),
            ..self
        }
    }

    /// Where it begins.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn sge(&self) -> Sge {
        Sge {
            addr: self.region.addr.as_ptr() as u64 + self.offset as u64,
            length: self.len,
            lkey: self.region.lkey,
        }
    }
}
