//! Queue pairs of the soft backend.

use std::sync::{Arc, Mutex};

use arrayvec::ArrayVec;
use soft_roce::endpoint::{QpInit, QueuePair};
use soft_roce::rc::{Payload, RecvRequest, Remote, SendOp, SendRequest, Sge};

use super::cq::SoftCq;
use super::device::{max_pieces, narrow};
use super::memory::{SoftMr, SoftPd, SoftSrq, SoftWindow, all_rights, take};
use super::post::{post_failure, sge};
use crate::backend::{self, MAX_CHAIN, PostResult, RecvWr, SendWr, WrData, same_kind};
use crate::error::{Result, VerbsError};
use crate::live::{Alive, Kind};
use crate::types::{Access, MAX_PIECES, QpCaps, RemoteMemory, SendFlags, Verb};

const POST_SEND: &str = "ibv_post_send";

pub(super) struct SoftQp {
    pub(super) qp: QueuePair,
    caps: QpCaps,
    alive: Mutex<Option<Alive>>,
    // What it uses as long as it is there.
    _id: Arc<dyn backend::CmId>,
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
    pub(super) fn new(id: Arc<dyn backend::CmId>, caps: QpCaps, parts: Parts) -> Result<Self> {
        let device = &parts.pd.device;
        let limits = device.endpoint.limits();
        let caps = QpCaps {
            inline: caps.inline.min(narrow(limits.max_inline)),
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

impl backend::QueuePair for Arc<SoftQp> {
    fn qp_num(&self) -> u32 {
        self.qp.qpn()
    }

    fn caps(&self) -> QpCaps {
        self.caps
    }

    fn post_one_send(&self, wr: &SendWr<'_>) -> PostResult {
        let (request, mut sges) = (request(wr), [Sge::default(); MAX_PIECES]);
        let posted = match wr.data {
            WrData::Inline(_) => self.qp.post_send(&request),
            WrData::Sges(pieces) => self.qp.post_send(&SendRequest {
                payload: Payload::Sges(translated(pieces, &mut sges)),
                ..request
            }),
        };
        posted.map_err(|error| post_failure(0, POST_SEND, error))
    }

    fn post_send(&self, wrs: &[SendWr<'_>]) -> PostResult {
        let mut sges = [[Sge::default(); MAX_PIECES]; MAX_CHAIN];
        let mut requests = ArrayVec::<SendRequest<'_>, MAX_CHAIN>::new();
        for (wr, sges) in wrs.iter().zip(&mut sges) {
            requests.push(match wr.data {
                WrData::Inline(_) => request(wr),
                WrData::Sges(pieces) => SendRequest {
                    payload: Payload::Sges(translated(pieces, sges)),
                    ..request(wr)
                },
            });
        }
        let posted = self.qp.post_sends(&requests);
        posted.map_err(|(taken, error)| post_failure(taken, POST_SEND, error))
    }

    fn post_recv(&self, wrs: &mut [RecvWr]) -> PostResult {
        for (taken, wr) in wrs.iter().enumerate() {
            let request = RecvRequest {
                wr_id: wr.wr_id,
                sges: &[sge(wr.sge)],
            };
            let posted = self.qp.post_receive(&request);
            posted.map_err(|error| post_failure(taken, "ibv_post_recv", error))?;
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

    fn post_bind(&self, _: &dyn backend::MemoryWindow, _: u64) -> PostResult {
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

/// The request with its inline bytes, or else none yet.
fn request<'a>(wr: &SendWr<'a>) -> SendRequest<'a> {
    SendRequest {
        wr_id: wr.wr_id,
        op: send_op(wr.operation),
        payload: match wr.data {
            WrData::Inline(bytes) => Payload::Inline(bytes),
            WrData::Sges(_) => Payload::Sges(&[]),
        },
        signaled: wr.flags.contains(SendFlags::SIGNALED),
        fence: wr.flags.contains(SendFlags::FENCED),
        solicited: wr.flags.contains(SendFlags::SOLICITED),
    }
}

fn translated<'a>(pieces: &[backend::Sge], room: &'a mut [Sge; MAX_PIECES]) -> &'a [Sge] {
    for (to, from) in room.iter_mut().zip(pieces) {
        *to = sge(*from);
    }
    &room[..pieces.len().min(MAX_PIECES)]
}

fn send_op(operation: Verb) -> SendOp {
    let remote = |memory: RemoteMemory| Remote {
        va: memory.addr,
        rkey: memory.rkey,
    };
    match operation {
        Verb::Send => SendOp::Send,
        Verb::SendWithImm(imm) => SendOp::SendImm(imm),
        Verb::SendWithInvalidate(rkey) => SendOp::SendInvalidate(rkey),
        Verb::Write(to) => SendOp::Write(remote(to)),
        Verb::WriteWithImm(to, imm) => SendOp::WriteImm(remote(to), imm),
        Verb::Read(from) => SendOp::Read(remote(from)),
    }
}
