//! Queue pairs of the soft backend.

use std::sync::{Arc, Mutex};

use arrayvec::ArrayVec;
use soft_roce::endpoint::{QpInit, QueuePair};
use soft_roce::rc::{Payload, PostError, RecvRequest, Remote, SendOp, SendRequest, Sge};

use super::cm::SoftCmId;
use super::cq::SoftCq;
use super::memory::{SoftMr, SoftPd, SoftSrq, SoftWindow, all_rights, max_pieces, take};
use crate::backend::{self, MAX_CHAIN, PostResult, RecvWr, SendWr, WrData, WrOp, same_kind};
use crate::error::{Result, VerbsError};
use crate::live::{Alive, Kind};
use crate::memory::Access;
use crate::qp::QpCaps;
use crate::work::{MAX_PIECES, RemoteMemory};

pub(super) struct SoftQp {
    pub(super) qp: QueuePair,
    caps: QpCaps,
    alive: Mutex<Option<Alive>>,
    // What it uses as long as it is there.
    _id: Arc<SoftCmId>,
    _parts: Parts,
}

/// The objects of this backend that a queue pair is made with.
pub(super) struct Parts {
    pub(super) pd: Arc<SoftPd>,
    pub(super) send_cq: Arc<SoftCq>,
    pub(super) recv_cq: Arc<SoftCq>,
    pub(super) srq: Option<Arc<SoftSrq>>,
}

impl SoftQp {
    pub(super) fn new(id: Arc<SoftCmId>, caps: QpCaps, parts: Parts) -> Result<Self> {
        let device = &parts.pd.device;
        let limits = device.endpoint.limits();
        let caps = QpCaps {
            inline: caps.inline.min(super::device::narrow(limits.max_inline)),
            sge: caps.sge.min(max_pieces(device)),
            ..caps
        };
        let qp = device
            .endpoint
            .create_qp(&QpInit {
                pd: parts.pd.pd,
                send_cq: &parts.send_cq.cq,
                recv_cq: &parts.recv_cq.cq,
                srq: parts.srq.as_ref().map(|srq| &srq.srq),
                send_wr: caps.send_wr,
                recv_wr: caps.recv_wr,
                send_sge: caps.sge as usize,
                recv_sge: 1,
                inline: caps.inline as usize,
                access: all_rights(),
            })
            .map_err(|error| {
                tracing::debug!(%error, "a queue pair was not made");
                VerbsError::from_errno("rdma_create_qp", libc::ENOMEM)
            })?;
        Ok(Self {
            qp,
            caps,
            alive: Mutex::new(Some(Alive::new(Kind::QueuePair))),
            _id: id,
            _parts: parts,
        })
    }
}

impl backend::QueuePair for SoftQp {
    fn qp_num(&self) -> u32 {
        self.qp.qpn()
    }

    fn caps(&self) -> QpCaps {
        self.caps
    }

    fn post_send(&self, wrs: &[SendWr<'_>]) -> PostResult {
        let mut pieces = [[Sge::default(); MAX_PIECES]; MAX_CHAIN];
        for (pieces, wr) in pieces.iter_mut().zip(wrs) {
            if let WrData::Sges(sges) = wr.data {
                for (to, from) in pieces.iter_mut().zip(sges) {
                    *to = sge(*from);
                }
            }
        }
        let requests: ArrayVec<SendRequest<'_>, MAX_CHAIN> = wrs
            .iter()
            .zip(&pieces)
            .map(|(wr, pieces)| SendRequest {
                wr_id: wr.wr_id,
                op: operation(wr.op),
                payload: match wr.data {
                    WrData::Inline(bytes) => Payload::Inline(bytes),
                    WrData::Sges(sges) => Payload::Sges(&pieces[..sges.len()]),
                },
                signaled: wr.signaled,
                fence: wr.fence,
                solicited: wr.solicited,
            })
            .collect();
        let posted = match &requests[..] {
            [one] => self.qp.post_send(one).map_err(|error| (0, error)),
            all => self.qp.post_sends(all),
        };
        posted.map_err(|(taken, error)| (taken, post_error("ibv_post_send", error)))
    }

    fn post_recv(&self, wrs: &[RecvWr]) -> PostResult {
        for (done, wr) in wrs.iter().enumerate() {
            let request = RecvRequest {
                wr_id: wr.wr_id,
                sges: &[sge(wr.sge)],
            };
            self.qp
                .post_receive(&request)
                .map_err(|error| (done, post_error("ibv_post_recv", error)))?;
        }
        Ok(())
    }

    fn window(
        &self,
        region: &dyn backend::MemoryRegion,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Result<Box<dyn backend::MemoryWindow>> {
        let region: &SoftMr = same_kind("ibv_alloc_mw", region.as_any())?;
        let window = SoftWindow::open(&self.qp, region, (addr, len), access)?;
        Ok(Box::new(window))
    }

    fn post_bind(&self, _: &dyn backend::MemoryWindow, _: u64) -> Result<()> {
        // Windows of this fabric are open when they are made.
        Ok(())
    }

    fn to_error(&self) -> Result<()> {
        self.qp.set_error();
        Ok(())
    }

    fn destroy(&self) -> Result<()> {
        self.qp.destroy();
        take(&self.alive);
        Ok(())
    }
}

pub(super) fn sge(sge: backend::Sge) -> Sge {
    Sge {
        addr: sge.addr,
        len: sge.length,
        lkey: sge.lkey,
    }
}

/// The errno that a verbs provider would give.
pub(super) fn post_error(call: &'static str, error: PostError) -> VerbsError {
    match error {
        PostError::QueueFull => VerbsError::from_errno(call, libc::ENOMEM),
        other => VerbsError::invalid(call, other.to_string()),
    }
}

fn operation(op: WrOp) -> SendOp {
    let remote = |memory: RemoteMemory| Remote {
        va: memory.addr,
        rkey: memory.rkey,
    };
    match op {
        WrOp::Send => SendOp::Send,
        WrOp::SendWithImm(imm) => SendOp::SendImm(imm),
        WrOp::SendWithInvalidate(rkey) => SendOp::SendInvalidate(rkey),
        WrOp::Write(to) => SendOp::Write(remote(to)),
        WrOp::WriteWithImm(to, imm) => SendOp::WriteImm(remote(to), imm),
        WrOp::Read(from) => SendOp::Read(remote(from)),
    }
}
