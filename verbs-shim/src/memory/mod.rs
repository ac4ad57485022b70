//! Protection domains, memory regions and registered buffers.
//!
//! Memory that a NIC touches is owned here: a region maps its own pages and gives them back only
//! after the fabric has let go of them. No Rust reference to such memory is ever handed out while
//! the fabric may write it; [`MemoryRegion::read_at`] and [`MemoryRegion::write_at`] copy, and a
//! [`RegisteredBuffer`] is moved into the shim when it is posted.
//!
//! It does not cache registrations, and knows nothing of credits or message sizes.

mod app;
mod copy;
mod pool;
mod region;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use self::app::{AppMemory, SharedMemory};
pub(crate) use self::copy::{copy_in, copy_out};
pub use self::pool::{BufferPool, RegisteredBuffer};
pub use self::region::{MemoryRegion, RegionSlice};
pub use self::watch::{AtRim, MappingChange, MappingWatch, WatchError};
use crate::backend;
use crate::device::Device;
use crate::error::{Result, VerbsError};
use crate::types::Access;

/// A protection domain: queue pairs use only memory of their own domain. Cheap to clone.
#[derive(Clone)]
pub struct ProtectionDomain {
    shared: Arc<PdShared>,
}

struct PdShared {
    backend: Arc<dyn backend::ProtectionDomain>,
    /// Unique in the process, never used again.
    serial: u64,
    device: Device,
}

impl Device {
    /// A new protection domain.
    ///
    /// # Errors
    /// `ENOMEM`: the device has no more.
    pub fn alloc_pd(&self) -> Result<ProtectionDomain> {
        let pd = self.backend().alloc_pd()?;
        Ok(ProtectionDomain::from_backend(pd, self.clone()))
    }
}

impl ProtectionDomain {
    fn from_backend(backend: Arc<dyn backend::ProtectionDomain>, device: Device) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            shared: Arc::new(PdShared {
                backend,
                serial: NEXT.fetch_add(1, Ordering::Relaxed),
                device,
            }),
        }
    }

    /// The device it belongs to.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.shared.device
    }

    /// Maps and registers `len` bytes (rounded up to whole pages), zeroed.
    ///
    /// # Errors
    /// `EINVAL` for a length of 0; `ENOMEM` when memory, the limit on locked memory
    /// (`ulimit -l`), or the device's regions are used up.
    pub fn region(&self, len: usize, access: Access) -> Result<Arc<MemoryRegion>> {
        MemoryRegion::map(self, len, access).map(Arc::new)
    }

    /// Registers memory of the application's.
    ///
    /// # Errors
    /// `EFAULT`: not mapped, or not writable though `access` asks for writing or windows.
    /// `EINVAL`: of length 0. `ENOMEM` as with [`ProtectionDomain::region`].
    pub fn register(&self, memory: AppMemory, access: Access) -> Result<Arc<MemoryRegion>> {
        self.try_register(memory, access)
            .map_err(|(error, _)| error)
    }

    /// The same, and the memory comes back if it fails, for another try.
    ///
    /// # Errors
    /// As [`ProtectionDomain::register`].
    pub fn try_register(
        &self,
        memory: AppMemory,
        access: Access,
    ) -> std::result::Result<Arc<MemoryRegion>, (VerbsError, AppMemory)> {
        let writable = access.contains(Access::LOCAL_WRITE) || access.contains(Access::WINDOWS);
        let checked = match memory.is_empty() {
            true => Ok(()),
            false => memory.check(writable),
        };
        match checked.and_then(|()| MemoryRegion::of(self, &memory, access)) {
            Ok(region) => Ok(Arc::new(region)),
            Err(error) => Err((error, memory)),
        }
    }

    pub(crate) fn backend(&self) -> Arc<dyn backend::ProtectionDomain> {
        Arc::clone(&self.shared.backend)
    }

    /// Stands for it: unique in the process, never used again.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.shared.serial
    }
}

impl fmt::Debug for ProtectionDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProtectionDomain")
            .field("serial", &self.shared.serial)
            .field("device", &self.shared.device)
            .finish()
    }
}
