//! Protection domains, memory regions and shared receive queues of the rdma backend.

use std::any::Any;
use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use super::device::RdmaDevice;
use super::ffi::constants::*;
use super::ffi::types::*;
use super::post::{post_linked, post_receives};
use crate::backend::{self, PostResult, RecvWr};
use crate::error::{Result, VerbsError, check_ibv, check_ptr};
use crate::live::{Alive, Kind};
use crate::types::Access;

pub(super) struct RdmaPd {
    pub(super) device: Arc<RdmaDevice>,
    pd: NonNull<ibv_pd>,
    _alive: Alive,
}

// SAFETY: libibverbs allows any thread to use a protection domain.
unsafe impl Send for RdmaPd {}
// SAFETY: as above.
unsafe impl Sync for RdmaPd {}

impl RdmaPd {
    pub(super) fn new(device: Arc<RdmaDevice>) -> Result<Self> {
        // SAFETY: the device's context is open.
        let pd = unsafe { (device.api.ibv_alloc_pd)(device.context()) };
        let pd = check_ptr("ibv_alloc_pd", pd)?;
        Ok(Self {
            device,
            pd,
            _alive: Alive::new(Kind::ProtectionDomain),
        })
    }

    pub(super) fn as_ptr(&self) -> *mut ibv_pd {
        self.pd.as_ptr()
    }
}

impl backend::ProtectionDomain for RdmaPd {
    unsafe fn register(
        self: Arc<Self>,
        addr: *mut u8,
        len: usize,
        access: Access,
    ) -> Result<Box<dyn backend::MemoryRegion>> {
        let register = self.device.api.ibv_reg_mr;
        let access = access_flags(access);
        // SAFETY: the domain lives; the caller answers for the memory.
        let mr = unsafe { register(self.as_ptr(), addr.cast::<c_void>(), len, access) };
        let mr = check_ptr("ibv_reg_mr", mr)?;
        // SAFETY: the region was made above, and the library has filled it in.
        let &ibv_mr { lkey, rkey, .. } = unsafe { mr.as_ref() };
        Ok(Box::new(RdmaMr {
            pd: self,
            mr,
            lkey,
            rkey,
            alive: Mutex::new(Some(Alive::new(Kind::MemoryRegion))),
        }))
    }

    fn create_srq(
        self: Arc<Self>,
        max_wr: u32,
        max_sge: u32,
    ) -> Result<Arc<dyn backend::SharedReceiveQueue>> {
        Ok(Arc::new(RdmaSrq::new(self, max_wr, max_sge)?))
    }
}

impl Drop for RdmaPd {
    fn drop(&mut self) {
        // SAFETY: all that was made of it holds it, so nothing is left.
        let ret = unsafe { (self.device.api.ibv_dealloc_pd)(self.as_ptr()) };
        if let Err(error) = check_ibv("ibv_dealloc_pd", ret) {
            tracing::error!(%error, "a protection domain is lost");
        }
    }
}

pub(super) struct RdmaMr {
    pub(super) pd: Arc<RdmaPd>,
    mr: NonNull<ibv_mr>,
    lkey: u32,
    rkey: u32,
    /// None once it is deregistered.
    alive: Mutex<Option<Alive>>,
}

// SAFETY: libibverbs allows any thread to use a memory region.
unsafe impl Send for RdmaMr {}
// SAFETY: as above.
unsafe impl Sync for RdmaMr {}

impl backend::MemoryRegion for RdmaMr {
    fn lkey(&self) -> u32 {
        self.lkey
    }

    fn rkey(&self) -> u32 {
        self.rkey
    }

    fn deregister(&self) -> Result<()> {
        once(&self.alive, || {
            // SAFETY: it was not deregistered yet, so the library has it still.
            let ret = unsafe { (self.pd.device.api.ibv_dereg_mr)(self.mr.as_ptr()) };
            check_ibv("ibv_dereg_mr", ret)
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl RdmaMr {
    pub(super) fn as_ptr(&self) -> *mut ibv_mr {
        self.mr.as_ptr()
    }
}

/// Ends an object of the library's, unless it has ended: after the first success there is nothing
/// behind the pointer. The lock makes a second thread wait for the outcome.
pub(super) fn once(alive: &Mutex<Option<Alive>>, end: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut alive = alive.lock().unwrap_or_else(PoisonError::into_inner);
    if alive.is_some() {
        end()?;
        *alive = None;
    }
    Ok(())
}

fn access_flags(access: Access) -> c_int {
    let mut flags = 0;
    for (right, flag) in [
        (Access::LOCAL_WRITE, IBV_ACCESS_LOCAL_WRITE),
        (Access::REMOTE_WRITE, IBV_ACCESS_REMOTE_WRITE),
        (Access::REMOTE_READ, IBV_ACCESS_REMOTE_READ),
        (Access::WINDOWS, IBV_ACCESS_MW_BIND),
    ] {
        if access.contains(right) {
            flags |= flag;
        }
    }
    flags as c_int
}

pub(super) struct RdmaSrq {
    pub(super) pd: Arc<RdmaPd>,
    srq: NonNull<ibv_srq>,
    post: PostSrqRecv,
    max_wr: u32,
    alive: Mutex<Option<Alive>>,
}

// SAFETY: libibverbs allows any thread to use a shared receive queue.
unsafe impl Send for RdmaSrq {}
// SAFETY: as above.
unsafe impl Sync for RdmaSrq {}

impl RdmaSrq {
    fn new(pd: Arc<RdmaPd>, max_wr: u32, max_sge: u32) -> Result<Self> {
        const CALL: &str = "ibv_create_srq";
        // SAFETY: the context is open, and its table does not change.
        let post = unsafe { (*pd.device.context()).ops.post_srq_recv };
        let post = post.ok_or_else(|| VerbsError::from_errno(CALL, libc::EOPNOTSUPP))?;
        let mut init = ibv_srq_init_attr {
            srq_context: std::ptr::null_mut(),
            attr: ibv_srq_attr {
                max_wr,
                max_sge,
                srq_limit: 0,
            },
        };
        // SAFETY: the domain lives, and the structure is the library's.
        let srq = unsafe { (pd.device.api.ibv_create_srq)(pd.as_ptr(), &raw mut init) };
        let srq = check_ptr(CALL, srq)?;
        Ok(Self {
            pd,
            srq,
            post,
            max_wr,
            alive: Mutex::new(Some(Alive::new(Kind::SharedReceiveQueue))),
        })
    }

    pub(super) fn as_ptr(&self) -> *mut ibv_srq {
        self.srq.as_ptr()
    }
}

impl backend::SharedReceiveQueue for RdmaSrq {
    fn max_wr(&self) -> u32 {
        self.max_wr
    }

    fn post_recv(&self, wrs: &mut [RecvWr]) -> PostResult {
        post_receives("ibv_post_srq_recv", wrs, |first, bad| {
            // SAFETY: the queue lives, the chain outlives the call, and its buffers stay in place
            // until they complete or the queue is destroyed.
            unsafe { (self.post)(self.srq.as_ptr(), first, bad) }
        })
    }

    unsafe fn post_linked(&self, first: *mut RecvWr, count: usize) -> PostResult {
        let post = |first, bad| {
            // SAFETY: as above.
            unsafe { (self.post)(self.srq.as_ptr(), first, bad) }
        };
        // SAFETY: as the caller promises.
        unsafe { post_linked("ibv_post_srq_recv", first, count, post) }
    }

    fn destroy(&self) -> Result<()> {
        once(&self.alive, || {
            // SAFETY: it was not destroyed yet. The public queue calls this with its last handle, and
            // the queue pairs that use it have one each; the device refuses while one is left that
            // could not be destroyed.
            let ret = unsafe { (self.pd.device.api.ibv_destroy_srq)(self.srq.as_ptr()) };
            check_ibv("ibv_destroy_srq", ret)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_is_not_ended_again() {
        let alive = Mutex::new(Some(Alive::new(Kind::MemoryRegion)));
        let mut calls = 0;
        let refused = once(&alive, || {
            calls += 1;
            Err(VerbsError::from_errno("ibv_dereg_mr", libc::EBUSY))
        });
        assert_eq!(refused.unwrap_err().errno(), libc::EBUSY);
        for _ in 0..3 {
            let ended = once(&alive, || {
                calls += 1;
                Ok(())
            });
            ended.unwrap();
        }
        assert_eq!(calls, 2, "once more after the failure, and then never");
    }

    #[test]
    fn rights_as_verbs_numbers_them() {
        assert_eq!(access_flags(Access::READ_ONLY), 0);
        assert_eq!(access_flags(Access::LOCAL_WRITE), 1);
        assert_eq!(access_flags(Access::REMOTE_WRITE), 3);
        assert_eq!(access_flags(Access::REMOTE_READ), 4);
        assert_eq!(access_flags(Access::WINDOWS), 16);
        assert_eq!(access_flags(Access::REMOTE_READ | Access::REMOTE_WRITE), 7);
    }
}
