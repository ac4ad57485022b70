//! A queue pair for unit tests, with memory, and the packets of a peer that the
//! test plays itself.

use std::sync::Arc;

use super::*;
use crate::memory::{HeapMemory, Memory};
use crate::sink::VecSink;
use crate::time::Time;
use crate::wire::{Aeth, Bth, ImmDt, NakCode, Opcode, Packet, Reth, Syndrome};

pub(super) const QPN: u32 = 0x11;
pub(super) const PEER: u32 = 0x22;
/// First PSN of each direction: ours, theirs.
pub(super) const SQ_PSN: u32 = 0xff_fffe;
pub(super) const RQ_PSN: u32 = 0x10;
pub(super) const MTU: usize = 256;
/// Address of the first byte of the memory.
pub(super) const VA: u64 = 0x1000;
pub(super) const LEN: usize = 1 << 20;
/// 67 ms.
pub(super) const TIMEOUT: u8 = 14;

pub(super) struct Rig {
    pub(super) qp: QueuePair,
    /// What brought it to RTS.
    pub(super) steps: [Modify; 3],
    pub(super) now: Time,
    pub(super) memory: Arc<HeapMemory>,
    pub(super) region: Arc<MemoryRegion>,
    pub(super) table: Arc<MrTable>,
    pub(super) send_cq: Arc<CompletionQueue>,
    pub(super) recv_cq: Arc<CompletionQueue>,
}

/// What one may want different.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    pub(super) ours: bool,
    pub(super) depth: u8,
    pub(super) access: Access,
}

pub(super) const ANYBODY: Choice = Choice {
    ours: false,
    depth: 2,
    access: ALL,
};

pub(super) const OURS: Choice = Choice {
    ours: true,
    ..ANYBODY
};

const ALL: Access = Access::NONE
    .plus(Access::REMOTE_READ)
    .plus(Access::REMOTE_WRITE);

impl Rig {
    pub(super) fn new(choice: Choice) -> Self {
        let table = Arc::new(MrTable::new(16, KeySource::seeded(1)));
        let bytes = (0..LEN).map(|i| (i / 7) as u8).collect();
        let memory = Arc::new(HeapMemory::from_vec(bytes));
        let region = table
            .register(Pd(1), VA, memory.clone(), ALL | Access::LOCAL_WRITE)
            .unwrap();
        let send_cq = Arc::new(CompletionQueue::new(256));
        let recv_cq = Arc::new(CompletionQueue::new(256));
        let mut qp = QueuePair::new(
            QpConfig {
                qpn: QPN,
                pd: Pd(1),
                send_wr: 200,
                recv_wr: 16,
                send_sge: 4,
                recv_sge: 4,
                inline: 64,
            },
            QpLinks {
                regions: table.clone(),
                send_cq: send_cq.clone(),
                recv_cq: recv_cq.clone(),
                srq: None,
                reorder: Arc::new(ReorderBudget::new(1 << 20)),
            },
        );
        let steps = [
            Modify::Init {
                access: choice.access,
            },
            Modify::Rtr(RtrAttr {
                dest_qpn: PEER,
                rq_psn: RQ_PSN,
                path_mtu: PathMtu::B256,
                responder_resources: choice.depth,
                min_rnr_timer: 14,
                peer_is_ours: choice.ours,
            }),
            Modify::Rts(RtsAttr {
                sq_psn: SQ_PSN,
                timeout: TIMEOUT,
                retry_count: 6,
                rnr_retry: 2,
                initiator_depth: choice.depth,
                on_host: false,
                window: None,
            }),
        ];
        for step in &steps {
            qp.modify(step).unwrap();
        }
        Self {
            qp,
            steps,
            now: Time(1_000_000),
            memory,
            region,
            table,
            send_cq,
            recv_cq,
        }
    }

    pub(super) fn sge(&self, at: u64, len: usize) -> Sge {
        Sge {
            addr: VA + at,
            len: len as u32,
            lkey: self.region.lkey(),
        }
    }

    /// Somewhere in the peer's memory.
    pub(super) fn remote() -> Remote {
        Remote {
            va: 0xabc_0000,
            rkey: 0x77,
        }
    }

    /// Posts `len` bytes from the start of the memory.
    pub(super) fn post(&mut self, wr_id: u64, op: SendOp, len: usize) {
        let sge = self.sge(0, len);
        self.qp
            .post_send(&SendRequest {
                wr_id,
                op,
                payload: Payload::Sges(&[sge]),
                signaled: true,
                fence: false,
                solicited: false,
            })
            .unwrap();
    }

    pub(super) fn post_receive(&mut self, wr_id: u64, at: u64, len: usize) {
        let sges = [self.sge(at, len)];
        self.qp
            .post_receive(&RecvRequest { wr_id, sges: &sges })
            .unwrap();
    }

    /// What the queue pair sends now.
    pub(super) fn sent(&mut self) -> Vec<Vec<u8>> {
        let mut sink = VecSink::default();
        assert_eq!(self.qp.transmit(self.now, &mut sink), Transmitted::All);
        sink.packets
    }

    /// The same in short: opcode, PSN, whether it asks for an ACK.
    pub(super) fn sent_brief(&mut self) -> Vec<(Opcode, u32, bool)> {
        let brief = |bytes: &Vec<u8>| {
            let bth = Packet::parse(bytes).unwrap().bth;
            assert_eq!(bth.dest_qpn, PEER);
            (bth.opcode, bth.psn, bth.ack_req)
        };
        self.sent().iter().map(brief).collect()
    }

    /// The ACKs and NAKs that the queue pair sends now: PSN and syndrome.
    pub(super) fn answers(&mut self) -> Vec<(u32, Syndrome)> {
        let brief = |bytes: &Vec<u8>| {
            let packet = Packet::parse(bytes).unwrap();
            assert_eq!(packet.bth.opcode, Opcode::Ack);
            (packet.bth.psn, packet.aeth.unwrap().syndrome)
        };
        self.sent().iter().map(brief).collect()
    }

    pub(super) fn take(&mut self, packet: &Packet<'_>) {
        self.qp.handle_packet(self.now, packet);
    }

    /// The peer acknowledges, or not.
    pub(super) fn answer(&mut self, psn: u32, syndrome: Syndrome) {
        self.take(&Packet {
            aeth: Some(Aeth { syndrome, msn: 0 }),
            ..Packet::new(Bth::new(Opcode::Ack, QPN, psn))
        });
    }

    pub(super) fn ack(&mut self, psn: u32) {
        self.answer(psn, Syndrome::Ack(Syndrome::NO_CREDITS));
    }

    /// The peer sends a packet of a request that asks for an ACK. `n` counts
    /// from its first PSN.
    pub(super) fn request(&mut self, opcode: Opcode, n: u32, payload: &[u8]) {
        let mut packet = request(opcode, n, payload);
        if let Some(reth) = &mut packet.reth {
            reth.rkey = self.region.rkey();
        }
        self.take(&packet);
    }

    /// The peer sends one with a RETH.
    pub(super) fn rdma(&mut self, opcode: Opcode, n: u32, (at, len): (u64, u32), payload: &[u8]) {
        let rkey = self.region.rkey();
        let va = VA + at;
        self.take(&Packet {
            reth: Some(Reth { va, rkey, len }),
            ..request(opcode, n, payload)
        });
    }

    pub(super) fn send_done(&self) -> Vec<(u64, Status)> {
        done(&self.send_cq)
    }

    pub(super) fn recv_done(&self) -> Vec<(u64, Status)> {
        done(&self.recv_cq)
    }

    pub(super) fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.memory.read(at as u64, &mut out);
        out
    }

    /// Lets time pass until the queue pair wants to be woken, and wakes it.
    pub(super) fn sleep(&mut self) -> u64 {
        let at = self.qp.poll_timeout().expect("a timer");
        let nanos = at.nanos_since(self.now);
        self.now = at;
        self.qp.handle_timeout(at);
        nanos
    }
}

/// A packet of a request by the peer.
pub(super) fn request(opcode: Opcode, n: u32, payload: &[u8]) -> Packet<'_> {
    let mut bth = Bth::new(opcode, QPN, RQ_PSN + n);
    bth.ack_req = true;
    Packet {
        payload,
        imm: opcode.has_imm().then_some(ImmDt(5)),
        reth: opcode.has_reth().then_some(Reth {
            va: VA,
            rkey: 0,
            len: payload.len() as u32,
        }),
        ..Packet::new(bth)
    }
}

pub(super) fn nak(code: NakCode) -> Syndrome {
    Syndrome::Nak(code)
}

pub(super) const ACK: Syndrome = Syndrome::Ack(Syndrome::NO_CREDITS);

pub(super) fn done(cq: &CompletionQueue) -> Vec<(u64, Status)> {
    let mut out = [Completion::default(); 256];
    let n = cq.poll(&mut out).unwrap();
    out[..n].iter().map(|c| (c.wr_id, c.status)).collect()
}
