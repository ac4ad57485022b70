//! Protection domains, memory regions and shared receive queues of the soft backend.
//!
//! The one place of the soft backend with `unsafe`: soft-roce asks for bytes by offset, and here
//! they are copied from and to where they lie.

#![allow(unsafe_code)]

use std::any::Any;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use soft_roce::endpoint::QueuePair;
use soft_roce::memory::Memory;
use soft_roce::rc::{self, Pd, RecvRequest, SharedReceiveQueue};

use super::device::SoftDevice;
use super::post::{post_failure, sge};
use crate::backend::{self, PostResult, RecvWr};
use crate::error::{Result, VerbsError};
use crate::live::{Alive, Kind};
use crate::memory::{copy_in, copy_out};
use crate::types::Access;

pub(super) struct SoftPd {
    pub(super) device: Arc<SoftDevice>,
    pub(super) pd: Pd,
    _alive: Alive,
}

impl SoftPd {
    pub(super) fn new(device: Arc<SoftDevice>) -> Self {
        Self {
            pd: device.endpoint.alloc_pd(),
            device,
            _alive: Alive::new(Kind::ProtectionDomain),
        }
    }
}

impl backend::ProtectionDomain for SoftPd {
    unsafe fn register(
        self: Arc<Self>,
        addr: *mut u8,
        len: usize,
        access: Access,
    ) -> Result<Box<dyn backend::MemoryRegion>> {
        const CALL: &str = "ibv_reg_mr";
        let start =
            NonNull::new(addr).ok_or_else(|| VerbsError::invalid(CALL, "no memory at all"))?;
        let memory = Arc::new(RawMemory { start, len });
        let region = self
            .device
            .endpoint
            .register(self.pd, addr as u64, memory, rights(access))
            .map_err(|error| {
                tracing::debug!(%error, len, "a region was not registered");
                VerbsError::from_errno(CALL, libc::ENOMEM)
            })?;
        Ok(Box::new(SoftMr {
            region,
            pd: self,
            alive: Mutex::new(Some(Alive::new(Kind::MemoryRegion))),
        }))
    }

    fn create_srq(
        self: Arc<Self>,
        max_wr: u32,
        max_sge: u32,
    ) -> Result<Arc<dyn backend::SharedReceiveQueue>> {
        let limit = self.device.endpoint.limits().max_srq_wr;
        if max_wr as usize > limit {
            let why = format!("max_wr {max_wr}, at most {limit}");
            return Err(VerbsError::invalid("ibv_create_srq", why));
        }
        let endpoint = &self.device.endpoint;
        Ok(Arc::new(SoftSrq {
            srq: endpoint.create_srq(self.pd, max_wr as usize, max_sge as usize),
            max_wr,
            pd: self,
            alive: Mutex::new(Some(Alive::new(Kind::SharedReceiveQueue))),
        }))
    }
}

/// Where the bytes of a region lie.
struct RawMemory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: all access here is by `copy_in` and `copy_out`, which threads may do at the same time.
unsafe impl Send for RawMemory {}
// SAFETY: as above.
unsafe impl Sync for RawMemory {}

impl RawMemory {
    /// The place of `len` bytes at `offset`. Panics outside: soft-roce has checked the range.
    fn place(&self, offset: u64, len: usize) -> *mut u8 {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(
            inside,
            "{len} bytes at {offset} of a region of {}",
            self.len
        );
        self.start.as_ptr().wrapping_add(at)
    }
}

impl Memory for RawMemory {
    fn len(&self) -> u64 {
        self.len as u64
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        let from = self.place(offset, out.len());
        // SAFETY: inside the region. soft-roce comes here only for what is posted or open to a peer,
        // and not after `deregister`; for so long who registered it (`register`) keeps it mapped,
        // and writes it by atomic operations on single bytes only.
        unsafe { copy_out(from, out) };
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let to = self.place(offset, data.len());
        // SAFETY: as in `read`; what may be written is read, too, by such operations only.
        unsafe { copy_in(to, data) };
    }
}

pub(super) struct SoftMr {
    region: Arc<rc::MemoryRegion>,
    pd: Arc<SoftPd>,
    /// None once it is deregistered.
    alive: Mutex<Option<Alive>>,
}

impl backend::MemoryRegion for SoftMr {
    fn lkey(&self) -> u32 {
        self.region.lkey()
    }

    fn rkey(&self) -> u32 {
        self.region.rkey()
    }

    fn deregister(&self) -> Result<()> {
        // Waits for the copies under way.
        self.pd
            .device
            .endpoint
            .deregister(self.region.lkey())
            .map_err(|error| {
                tracing::debug!(%error, "a region was not deregistered");
                VerbsError::from_errno("ibv_dereg_mr", libc::EBUSY)
            })?;
        take(&self.alive);
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A window, open from the start.
pub(super) struct SoftWindow {
    key: u32,
    pd: Arc<SoftPd>,
    alive: Mutex<Option<Alive>>,
}

impl SoftWindow {
    pub(super) fn open(
        qp: &QueuePair,
        region: &SoftMr,
        (addr, len): (u64, u64),
        access: Access,
    ) -> Result<Self> {
        let remote = [
            (Access::REMOTE_WRITE, rc::Access::REMOTE_WRITE),
            (Access::REMOTE_READ, rc::Access::REMOTE_READ),
        ]
        .into_iter()
        .filter(|(right, _)| access.contains(*right))
        .fold(rc::Access::NONE, |all, (_, right)| all.plus(right));
        let window = region
            .pd
            .device
            .endpoint
            .bind_window(&region.region, addr, len, remote, qp)
            .map_err(|error| {
                tracing::debug!(%error, len, "a window was not opened");
                let errno = match error {
                    rc::RegisterError::Full(_) => libc::ENOMEM,
                    _ => libc::EINVAL,
                };
                VerbsError::from_errno("ibv_alloc_mw", errno)
            })?;
        Ok(Self {
            key: window.rkey(),
            pd: Arc::clone(&region.pd),
            alive: Mutex::new(Some(Alive::new(Kind::MemoryWindow))),
        })
    }
}

impl backend::MemoryWindow for SoftWindow {
    fn rkey(&self) -> u32 {
        self.key
    }

    fn needs_request(&self) -> bool {
        false
    }

    fn withdraw(&self) -> Result<()> {
        // Waits for the copies under way. The peer may have been faster.
        let _ = self.pd.device.endpoint.invalidate_window(self.key);
        take(&self.alive);
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

pub(super) struct SoftSrq {
    pub(super) srq: Arc<SharedReceiveQueue>,
    max_wr: u32,
    pd: Arc<SoftPd>,
    alive: Mutex<Option<Alive>>,
}

impl SoftSrq {
    pub(super) fn device(&self) -> &Arc<SoftDevice> {
        &self.pd.device
    }
}

impl backend::SharedReceiveQueue for SoftSrq {
    fn max_wr(&self) -> u32 {
        self.max_wr
    }

    fn post_recv(&self, wrs: &mut [RecvWr]) -> PostResult {
        for (taken, wr) in wrs.iter().enumerate() {
            let request = RecvRequest {
                wr_id: wr.wr_id,
                sges: &[sge(wr.sge)],
            };
            let posted = self.srq.post(&request);
            posted.map_err(|error| post_failure(taken, "ibv_post_srq_recv", error))?;
        }
        Ok(())
    }

    fn destroy(&self) -> Result<()> {
        // Only queue pairs take receives out of it, and none is left: nothing is written any more.
        take(&self.alive);
        Ok(())
    }
}

pub(super) fn take(alive: &Mutex<Option<Alive>>) {
    alive.lock().unwrap_or_else(PoisonError::into_inner).take();
}

fn rights(access: Access) -> rc::Access {
    [
        (Access::LOCAL_WRITE, rc::Access::LOCAL_WRITE),
        (Access::REMOTE_WRITE, rc::Access::REMOTE_WRITE),
        (Access::REMOTE_READ, rc::Access::REMOTE_READ),
    ]
    .into_iter()
    .filter(|(right, _)| access.contains(*right))
    .fold(rc::Access::NONE, |all, (_, right)| all.plus(right))
}

/// What a queue pair lets its peer do: what its regions allow.
pub(super) fn all_rights() -> rc::Access {
    rc::Access::LOCAL_WRITE
        .plus(rc::Access::REMOTE_WRITE)
        .plus(rc::Access::REMOTE_READ)
}
