//! Queue pairs of the rdma backend: posting, and the order of their end.

use std::ffi::{c_int, c_uint};
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use super::cq::RdmaCq;
use super::ffi::constants::*;
use super::ffi::types::*;
use super::id::RdmaCmId;
use super::memory::{RdmaMr, RdmaPd, RdmaSrq};
use super::window::RdmaWindow;
use crate::backend::{self, MAX_CHAIN, PostResult, RecvWr, SendWr, WrData, WrOp, same_kind};
use crate::error::{Result, VerbsError, check_ibv};
use crate::live::{Alive, Kind};
use crate::memory::Access;
use crate::qp::QpCaps;
use crate::work::{MAX_PIECES, RemoteMemory};

pub(super) struct RdmaQp {
    qp: NonNull<ibv_qp>,
    post_send: PostSend,
    post_recv: PostRecv,
    qp_num: u32,
    caps: QpCaps,
    alive: Mutex<Option<Alive>>,
    // What the device uses as long as the queue pair is there.
    id: Arc<RdmaCmId>,
    parts: Parts,
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
        id: Arc<RdmaCmId>,
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

    fn post_sends<const N: usize>(&self, wrs: &[SendWr<'_>]) -> PostResult {
        let mut sges = [[NO_SGE; MAX_PIECES]; N];
        let mut chain = [const { MaybeUninit::<ibv_send_wr>::uninit() }; N];
        let count = wrs.len().min(N);
        let first: *mut ibv_send_wr = chain.as_mut_ptr().cast();
        for (n, (wr, sges)) in wrs.iter().zip(&mut sges).take(count).enumerate() {
            let next = if n + 1 < count {
                first.wrapping_add(n + 1)
            } else {
                std::ptr::null_mut()
            };
            let built = send_wr(wr, sges, next);
            // SAFETY: n < count <= N.
            unsafe { first.wrapping_add(n).write(built) };
        }
        let mut bad = first;
        // SAFETY: the queue pair lives, the chain and what it points at outlive the call, and
        // posted memory stays in place until it completes or the queue pair is destroyed.
        let ret = unsafe { (self.post_send)(self.qp.as_ptr(), first, &raw mut bad) };
        let taken = position(first, bad, count);
        check_ibv("ibv_post_send", ret).map_err(|error| (taken, error))
    }
}

impl backend::QueuePair for RdmaQp {
    fn qp_num(&self) -> u32 {
        self.qp_num
    }

    fn caps(&self) -> QpCaps {
        self.caps
    }

    fn post_send(&self, wrs: &[SendWr<'_>]) -> PostResult {
        match wrs.len() {
            0 => Ok(()),
            1 => self.post_sends::<1>(wrs),
            _ => self.post_sends::<MAX_CHAIN>(wrs),
        }
    }

    fn post_recv(&self, wrs: &[RecvWr]) -> PostResult {
        post_recv_chain("ibv_post_recv", wrs, |first, bad| {
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

    fn post_bind(&self, window: &dyn backend::MemoryWindow, wr_id: u64) -> Result<()> {
        const CALL: &str = "ibv_post_send";
        let window: &RdmaWindow = same_kind(CALL, window.as_any())?;
        if !window.belongs_to(&self.parts.pd) {
            return Err(wrong_device());
        }
        let mut wr = ibv_send_wr {
            opcode: IBV_WR_BIND_MW,
            bind_mw: ibv_send_wr_bind_mw {
                mw: window.as_ptr(),
                rkey: backend::MemoryWindow::rkey(window),
                bind_info: window.info,
            },
            ..empty_wr(wr_id, IBV_SEND_SIGNALED)
        };
        let mut bad = &raw mut wr;
        // SAFETY: the queue pair lives, and so do the request, its window and its region, which
        // the caller holds until the window is withdrawn.
        let ret = unsafe { (self.post_send)(self.qp.as_ptr(), &raw mut wr, &raw mut bad) };
        check_ibv(CALL, ret)
    }

    fn to_error(&self) -> Result<()> {
        // SAFETY: zeros are valid in every field.
        let mut attr: ibv_qp_attr = unsafe { MaybeUninit::zeroed().assume_init() };
        attr.qp_state = IBV_QPS_ERR;
        let modify = self.id.api.ibv_modify_qp;
        // SAFETY: the queue pair lives; the mask says that only the state is read.
        let ret = unsafe { modify(self.qp.as_ptr(), &raw mut attr, IBV_QP_STATE) };
        check_ibv("ibv_modify_qp", ret)
    }

    fn destroy(&self) -> Result<()> {
        self.id.detach_qp();
        // SAFETY: called once (the trait's rule); the id does not know it any more, so the
        // library does not use it while reading events.
        let ret = unsafe { (self.id.api.ibv_destroy_qp)(self.qp.as_ptr()) };
        check_ibv("ibv_destroy_qp", ret)?;
        self.alive
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Ok(())
    }
}

const NO_SGE: ibv_sge = ibv_sge {
    addr: 0,
    length: 0,
    lkey: 0,
};

fn send_wr(
    wr: &SendWr<'_>,
    sges: &mut [ibv_sge; MAX_PIECES],
    next: *mut ibv_send_wr,
) -> ibv_send_wr {
    let mut flags: c_uint = 0;
    for (on, flag) in [
        (wr.signaled, IBV_SEND_SIGNALED),
        (wr.solicited, IBV_SEND_SOLICITED),
        (wr.fence, IBV_SEND_FENCE),
        (matches!(wr.data, WrData::Inline(_)), IBV_SEND_INLINE),
    ] {
        if on {
            flags |= flag;
        }
    }
    let num_sge = match wr.data {
        WrData::Inline([]) => 0,
        WrData::Inline(bytes) => {
            sges[0] = ibv_sge {
                addr: bytes.as_ptr() as u64,
                // No more than the inline size that was granted.
                length: bytes.len() as u32,
                lkey: 0,
            };
            1
        }
        WrData::Sges(pieces) => {
            for (sge, piece) in sges.iter_mut().zip(pieces) {
                *sge = ibv_sge {
                    addr: piece.addr,
                    length: piece.length,
                    lkey: piece.lkey,
                };
            }
            pieces.len().min(MAX_PIECES)
        }
    };
    const NOWHERE: RemoteMemory = RemoteMemory { addr: 0, rkey: 0 };
    let (opcode, imm_data, remote) = match wr.op {
        WrOp::Send => (IBV_WR_SEND, 0, NOWHERE),
        WrOp::SendWithImm(imm) => (IBV_WR_SEND_WITH_IMM, imm.to_be(), NOWHERE),
        WrOp::SendWithInvalidate(rkey) => (IBV_WR_SEND_WITH_INV, rkey, NOWHERE),
        WrOp::Write(remote) => (IBV_WR_RDMA_WRITE, 0, remote),
        WrOp::WriteWithImm(remote, imm) => (IBV_WR_RDMA_WRITE_WITH_IMM, imm.to_be(), remote),
        WrOp::Read(remote) => (IBV_WR_RDMA_READ, 0, remote),
    };
    ibv_send_wr {
        next,
        sg_list: sges.as_mut_ptr(),
        num_sge: num_sge as c_int,
        opcode,
        imm_data,
        wr: ibv_send_wr_rdma {
            remote_addr: remote.addr,
            rkey: remote.rkey,
            rest_of_union: [0; 2],
        },
        ..empty_wr(wr.wr_id, flags)
    }
}

fn empty_wr(wr_id: u64, send_flags: c_uint) -> ibv_send_wr {
    ibv_send_wr {
        wr_id,
        next: std::ptr::null_mut(),
        sg_list: std::ptr::null_mut(),
        num_sge: 0,
        opcode: 0,
        send_flags,
        imm_data: 0,
        wr: ibv_send_wr_rdma {
            remote_addr: 0,
            rkey: 0,
            rest_of_union: [0; 2],
        },
        qp_type: 0,
        bind_mw: ibv_send_wr_bind_mw {
            mw: std::ptr::null_mut(),
            rkey: 0,
            bind_info: ibv_mw_bind_info {
                mr: std::ptr::null_mut(),
                addr: 0,
                length: 0,
                mw_access_flags: 0,
            },
        },
    }
}

/// Posts a chain of receives by `post`.
pub(super) fn post_recv_chain(
    call: &'static str,
    wrs: &[RecvWr],
    post: impl FnOnce(*mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int,
) -> PostResult {
    if wrs.is_empty() {
        return Ok(());
    }
    let mut sges = [NO_SGE; MAX_CHAIN];
    let mut chain = [const { MaybeUninit::<ibv_recv_wr>::uninit() }; MAX_CHAIN];
    let count = wrs.len().min(MAX_CHAIN);
    let first: *mut ibv_recv_wr = chain.as_mut_ptr().cast();
    for (n, (wr, sge)) in wrs.iter().zip(&mut sges).take(count).enumerate() {
        *sge = ibv_sge {
            addr: wr.sge.addr,
            length: wr.sge.length,
            lkey: wr.sge.lkey,
        };
        let next = if n + 1 < count {
            first.wrapping_add(n + 1)
        } else {
            std::ptr::null_mut()
        };
        let built = ibv_recv_wr {
            wr_id: wr.wr_id,
            next,
            sg_list: sge,
            num_sge: 1,
        };
        // SAFETY: n < count <= MAX_CHAIN.
        unsafe { first.wrapping_add(n).write(built) };
    }
    let mut bad = first;
    let ret = post(first, &raw mut bad);
    let taken = position(first, bad, count);
    check_ibv(call, ret).map_err(|error| (taken, error))
}

/// Where in the chain `bad` is: so many were taken before it. What points elsewhere counts as the
/// first, since a buffer that was posted after all is lost to nobody: it is the caller's error
/// path that must not free what the device has, and drivers that fail set the pointer.
fn position<T>(first: *mut T, bad: *mut T, count: usize) -> usize {
    (0..count)
        .find(|&n| first.wrapping_add(n) == bad)
        .unwrap_or(0)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Sge;

    fn wr<'a>(op: WrOp, data: WrData<'a>) -> SendWr<'a> {
        SendWr {
            wr_id: 5,
            op,
            data,
            signaled: true,
            solicited: false,
            fence: false,
        }
    }

    #[test]
    fn immediate_data_goes_out_in_network_order_and_keys_do_not() {
        let mut sges = [NO_SGE; MAX_PIECES];
        let imm = send_wr(
            &wr(WrOp::SendWithImm(0x0102_0304), WrData::Inline(b"x")),
            &mut sges,
            std::ptr::null_mut(),
        );
        assert_eq!(imm.imm_data.to_ne_bytes(), [1, 2, 3, 4]);
        assert_eq!((imm.opcode, imm.send_flags, imm.num_sge), (3, 2 | 8, 1));
        let inv = send_wr(
            &wr(WrOp::SendWithInvalidate(0x0102_0304), WrData::Sges(&[])),
            &mut sges,
            std::ptr::null_mut(),
        );
        assert_eq!(
            (inv.imm_data, inv.opcode, inv.send_flags, inv.num_sge),
            (0x0102_0304, 9, 2, 0)
        );
    }

    #[test]
    fn pieces_and_places_go_where_they_belong() {
        let mut sges = [NO_SGE; MAX_PIECES];
        let pieces = [
            Sge {
                addr: 1,
                length: 2,
                lkey: 3,
            },
            Sge {
                addr: 4,
                length: 5,
                lkey: 6,
            },
        ];
        let remote = RemoteMemory { addr: 7, rkey: 8 };
        let read = send_wr(
            &wr(WrOp::Read(remote), WrData::Sges(&pieces)),
            &mut sges,
            std::ptr::null_mut(),
        );
        assert_eq!(
            (read.wr.remote_addr, read.wr.rkey, read.num_sge, read.opcode),
            (7, 8, 2, 4)
        );
        assert_eq!((sges[1].addr, sges[1].length, sges[1].lkey), (4, 5, 6));
    }

    #[test]
    fn a_chain_is_linked_in_order_and_a_failure_says_where() {
        let recv = |n| RecvWr {
            wr_id: n,
            sge: Sge {
                addr: n,
                length: 1,
                lkey: 2,
            },
        };
        let wrs: Vec<RecvWr> = (0..3).map(recv).collect();
        let mut seen = Vec::new();
        let result = post_recv_chain("x", &wrs, |first, bad| {
            let mut at = first;
            while !at.is_null() {
                // SAFETY: the chain is built and ends with NULL.
                let wr = unsafe { *at };
                // SAFETY: every link has one piece.
                let sge = unsafe { *wr.sg_list };
                seen.push((wr.wr_id, sge.addr));
                if wr.wr_id == 2 {
                    // SAFETY: the caller's pointer.
                    unsafe { *bad = at };
                }
                at = wr.next;
            }
            libc::ENOMEM
        });
        assert_eq!(seen, [(0, 0), (1, 1), (2, 2)]);
        let (taken, error) = result.unwrap_err();
        assert_eq!((taken, error.errno()), (2, libc::ENOMEM));
    }
}
