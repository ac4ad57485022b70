//! Queue pairs of the rdma backend: posting, and the order of their end.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use super::cq::RdmaCq;
use super::ffi::constants::*;
use super::ffi::types::*;
use super::memory::{RdmaMr, RdmaPd, RdmaSrq};
use super::post::{post_bind, post_receives, post_send, post_sends};
use super::window::RdmaWindow;
use crate::backend::{
    self, PostFailure, PostMessage, PostResult, RawSender, RecvWr, SendWr, same_kind,
};
use crate::error::{Result, VerbsError, check_ibv};
use crate::live::{Alive, Kind};
use crate::types::{Access, QpCaps};

pub(super) struct RdmaQp {
    qp: NonNull<ibv_qp>,
    post_send: PostSend,
    post_recv: PostRecv,
    qp_num: u32,
    caps: QpCaps,
    alive: Mutex<Option<Alive>>,
    // What the device uses as long as the queue pair is there.
    id: Arc<dyn QpOwner>,
    parts: Parts,
}

/// The CM id that a queue pair was made on; it is there as long as the queue pair.
pub(super) trait QpOwner: Send + Sync {
    /// Takes the queue pair off the id, so that the library does not use it any more.
    fn detach_qp(&self);
}

/// The objects of this backend that a queue pair is made with.
pub(super) struct Parts {
    pub(super) pd: Arc<RdmaPd>,
    pub(super) send_cq: Arc<RdmaCq>,
    pub(super) recv_cq: Arc<RdmaCq>,
    pub(super) srq: Option<Arc<RdmaSrq>>,
}

// SAFETY: libibverbs allows any thread to use a queue pair.
unsafe impl Send for RdmaQp {}
// SAFETY: as above.
unsafe impl Sync for RdmaQp {}

impl RdmaQp {
    /// # Safety
    /// `qp` is the queue pair of `id`, made of `parts`, and no other object stands for it.
    pub(super) unsafe fn new(
        qp: NonNull<ibv_qp>,
        caps: QpCaps,
        id: Arc<dyn QpOwner>,
        parts: Parts,
    ) -> Self {
        // SAFETY: the queue pair lives, and its number does not change.
        let qp_num = unsafe { (*qp.as_ptr()).qp_num };
        // SAFETY: the context is open, and its table does not change.
        let ops = unsafe { &(*parts.pd.device.context()).ops };
        Self {
            qp,
            post_send: ops.post_send.unwrap_or(no_post_send),
            post_recv: ops.post_recv.unwrap_or(no_post_recv),
            qp_num,
            caps,
            alive: Mutex::new(Some(Alive::new(Kind::QueuePair))),
            id,
            parts,
        }
    }
}

impl backend::QueuePair for RdmaQp {
    fn qp_num(&self) -> u32 {
        self.qp_num
    }

    fn caps(&self) -> QpCaps {
        self.caps
    }

    fn post_one_send(&self, wr: &SendWr<'_>) -> PostResult {
        post_send(wr, |first, bad| {
            // SAFETY: the queue pair lives, the request and what it points at outlive the call,
            // and posted memory stays in place until it completes or the queue pair is destroyed.
            unsafe { (self.post_send)(self.qp.as_ptr(), first, bad) }
        })
    }

    fn raw_sender(&self) -> Option<RawSender> {
        // SAFETY: both are pointers to what has the same layout, as far as a message with immediate data has
        // fields.
        let post = unsafe { std::mem::transmute::<PostSend, PostMessage>(self.post_send) };
        // SAFETY: libibverbs allows any thread to post while the queue pair lives, which is until `destroy`;
        // inline bytes are copied during the call.
        Some(unsafe { RawSender::new(post, self.qp.as_ptr().cast()) })
    }

    fn post_send(&self, wrs: &[SendWr<'_>]) -> PostResult {
        post_sends(wrs, |first, bad| {
            // SAFETY: as with one.
            unsafe { (self.post_send)(self.qp.as_ptr(), first, bad) }
        })
    }

    fn post_recv(&self, wrs: &mut [RecvWr]) -> PostResult {
        post_receives("ibv_post_recv", wrs, |first, bad| {
            // SAFETY: the queue pair lives, the chain outlives the call, and its buffers stay in
            // place until they complete or the queue pair is destroyed.
            unsafe { (self.post_recv)(self.qp.as_ptr(), first, bad) }
        })
    }

    fn window(
        &self,
        region: &dyn backend::MemoryRegion,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Result<Box<dyn backend::MemoryWindow>> {
        let region: &RdmaMr = same_kind("ibv_alloc_mw", region.as_any())?;
        if !Arc::ptr_eq(&region.pd, &self.parts.pd) {
            return Err(wrong_device());
        }
        let window = RdmaWindow::new(&self.parts.pd, region.as_ptr(), (addr, len), access)?;
        Ok(Box::new(window))
    }

    fn post_bind(&self, window: &dyn backend::MemoryWindow, wr_id: u64) -> PostResult {
        let window: &RdmaWindow = same_kind("ibv_post_send", window.as_any())
            .map_err(|error| PostFailure::new(0, error))?;
        if !window.belongs_to(&self.parts.pd) {
            return Err(PostFailure::new(0, wrong_device()));
        }
        let bind = ibv_send_wr_bind_mw {
            mw: window.as_ptr(),
            rkey: backend::MemoryWindow::rkey(window),
            bind_info: window.info,
        };
        post_bind(wr_id, bind, |first, bad| {
            // SAFETY: the queue pair lives, and so do the request, its window and its region, which
            // the caller holds until the window is withdrawn.
            unsafe { (self.post_send)(self.qp.as_ptr(), first, bad) }
        })
    }

    fn to_error(&self) -> Result<()> {
        // SAFETY: zeros are valid in every field.
        let mut attr: ibv_qp_attr = unsafe { MaybeUninit::zeroed().assume_init() };
        attr.qp_state = IBV_QPS_ERR;
        let modify = self.parts.pd.device.api.ibv_modify_qp;
        // SAFETY: the queue pair lives; the mask says that only the state is read.
        let ret = unsafe { modify(self.qp.as_ptr(), &raw mut attr, IBV_QP_STATE) };
        check_ibv("ibv_modify_qp", ret)
    }

    /// With a shared receive queue a device may still hold receives that it took before the error
    /// state. It touches no memory of them once this returned, and their buffers stay with the
    /// shared queue until that is destroyed, so they need not be waited for; but their completions
    /// may come late, or not at all, so what was received is not final when a flushed send is
    /// seen. IBTA has `LAST_WQE_REACHED` for that (11.6.3.2). It is not awaited: nothing tells
    /// which drivers raise it (mlx5, hns, mthca and bnxt do; rxe of 6.1 does not), so a driver that
    /// does not would cost the whole bound with every close.
    fn destroy(&self) -> Result<()> {
        self.id.detach_qp();
        // SAFETY: called once (the trait's rule); the id does not know it any more, so the
        // library does not use it while reading events.
        let ret = unsafe { (self.parts.pd.device.api.ibv_destroy_qp)(self.qp.as_ptr()) };
        check_ibv("ibv_destroy_qp", ret)?;
        self.alive
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Ok(())
    }
}

unsafe extern "C" fn no_post_send(
    _: *mut ibv_qp,
    _: *mut ibv_send_wr,
    _: *mut *mut ibv_send_wr,
) -> c_int {
    libc::EOPNOTSUPP
}

unsafe extern "C" fn no_post_recv(
    _: *mut ibv_qp,
    _: *mut ibv_recv_wr,
    _: *mut *mut ibv_recv_wr,
) -> c_int {
    libc::EOPNOTSUPP
}

/// The error for parts that are not of the id's device.
pub(super) fn wrong_device() -> VerbsError {
    VerbsError::invalid("rdma_create_qp", "an argument is of another device")
}
