//! One queue pair against a peer that sends anything: bytes as they come, and
//! packets that are nearly right, which get further.
//!
//! Promises: no panic; memory that the peer was not given stays as it is; each
//! request completes once at most, and once exactly when the queue pair breaks;
//! what waits to be sent is bounded.

use std::sync::Arc;

use soft_roce::memory::HeapMemory;
use soft_roce::rc::{
    Access, Completion, CompletionQueue, KeySource, Modify, MrTable, PathMtu, Payload, Pd,
    QpConfig, QpLinks, QpState, QueuePair, RecvRequest, Remote, ReorderBudget, RtrAttr, RtsAttr,
    SendOp, SendRequest, Sge, Status, Transmitted,
};
use soft_roce::sink::VecSink;
use soft_roce::time::Time;
use soft_roce::wire::{Aeth, Bth, Ieth, ImmDt, Opcode, Packet, Reth, Syndrome};

use super::input::Input;

const MTU: usize = 256;
const RQ_PSN: u32 = 0xff_fff0;
const SQ_PSN: u32 = 0xff_fff8;
const QPN: u32 = 5;
const REORDER: usize = 16_384;
/// Where the peer may write, receives and READs place, and nobody may.
const OPEN: u64 = 0x1000;
const PRIVATE: u64 = 0x10_0000;
const LEN: usize = 4096;

struct Case {
    qp: QueuePair,
    now: Time,
    regions: [Sge; 2],
    secret: Arc<HeapMemory>,
    steps: [Modify; 3],
    cqs: [Arc<CompletionQueue>; 2],
    reorder: Arc<ReorderBudget>,
    /// Sends and receives: posted, completed.
    posted: [u64; 2],
    completed: [u64; 2],
    /// Of the peer's requests and of ours.
    psns: [u32; 2],
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut case = Case::new(&mut input);
    for _ in 0..512 {
        if input.is_empty() {
            break;
        }
        case.step(&mut input);
        case.check();
        // What is broken has only little to show; a late word now and then.
        if case.qp.state() == QpState::Error && input.below(4) > 0 {
            case.begin_anew();
        }
    }
    // However it stands, breaking off completes everything.
    case.qp.modify(&Modify::Error).expect("always open");
    case.check();
    assert_eq!(case.posted, case.completed, "everything is flushed");
    assert!(case.secret.to_vec().iter().all(|b| *b == 0x5e));
}

impl Case {
    fn new(input: &mut Input<'_>) -> Self {
        let pd = Pd(1);
        let table = Arc::new(MrTable::new(8, KeySource::seeded(3)));
        let all = Access::LOCAL_WRITE | Access::REMOTE_READ | Access::REMOTE_WRITE;
        let open = table
            .register(pd, OPEN, Arc::new(HeapMemory::new(LEN)), all)
            .expect("region");
        let private = table
            .register(
                pd,
                PRIVATE,
                Arc::new(HeapMemory::new(LEN)),
                Access::LOCAL_WRITE,
            )
            .expect("region");
        let secret = Arc::new(HeapMemory::from_vec(vec![0x5e; LEN]));
        table
            .register(Pd(2), OPEN, secret.clone(), all)
            .expect("region");
        let window = table
            .bind(&open, OPEN, 64, Access::REMOTE_WRITE, QPN)
            .expect("window");
        // Known to the peer; a seed makes it the same each time.
        let _ = window.rkey();
        let cqs = [0, 1].map(|_| Arc::new(CompletionQueue::new(4096)));
        let reorder = Arc::new(ReorderBudget::new(REORDER));
        let mut qp = QueuePair::new(
            QpConfig {
                qpn: QPN,
                pd,
                send_wr: 16,
                recv_wr: 16,
                send_sge: 2,
                recv_sge: 2,
                inline: 32,
            },
            QpLinks {
                regions: table,
                send_cq: cqs[0].clone(),
                recv_cq: cqs[1].clone(),
                srq: None,
                reorder: reorder.clone(),
            },
        );
        let ours = input.flag();
        let steps = [
            Modify::Init {
                access: Access::REMOTE_READ | Access::REMOTE_WRITE,
            },
            Modify::Rtr(RtrAttr {
                dest_qpn: 9,
                rq_psn: RQ_PSN,
                path_mtu: PathMtu::B256,
                responder_resources: 2,
                min_rnr_timer: 1,
                peer_is_ours: ours,
            }),
            Modify::Rts(RtsAttr {
                sq_psn: SQ_PSN,
                timeout: 10,
                retry_count: 3,
                rnr_retry: 3,
                initiator_depth: 2,
                on_host: false,
                window: None,
            }),
        ];
        for step in &steps {
            qp.modify(step).expect("the way to RTS");
        }
        let sge = |addr, lkey| Sge {
            addr,
            len: LEN as u32,
            lkey,
        };
        Self {
            qp,
            now: Time(1),
            regions: [sge(OPEN, open.lkey()), sge(PRIVATE, private.lkey())],
            secret,
            steps,
            cqs,
            reorder,
            posted: [0; 2],
            completed: [0; 2],
            psns: [RQ_PSN, SQ_PSN],
        }
    }

    /// The queue pair is used for another connection.
    fn begin_anew(&mut self) {
        assert_eq!(self.posted, self.completed, "everything is flushed");
        self.qp.modify(&Modify::Reset).expect("always open");
        for step in &self.steps {
            self.qp.modify(step).expect("the way to RTS");
        }
        self.psns = [RQ_PSN, SQ_PSN];
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 8 {
            0 => {
                let n = 4 * input.below(80) as usize;
                if let Ok(packet) = Packet::parse(input.bytes(n)) {
                    self.qp.handle_packet(self.now, &packet);
                }
            }
            1 => {
                let sges = [self.sge(input)];
                let request = RecvRequest {
                    wr_id: self.posted[1],
                    sges: &sges,
                };
                self.posted[1] += u64::from(self.qp.post_receive(&request).is_ok());
            }
            2 => self.post_send(input),
            3 => {
                let at = self.now.plus_nanos(u64::from(input.u32()) << 4);
                self.now = match self.qp.poll_timeout() {
                    Some(timeout) if input.flag() => timeout.max(self.now),
                    _ => at,
                };
                self.qp.handle_timeout(self.now);
            }
            4 => self.transmit(input),
            5 | 6 => self.request(input),
            _ => self.answer(input),
        }
    }

    fn sge(&self, input: &mut Input<'_>) -> Sge {
        let region = self.regions[usize::from(input.flag())];
        let at = input.below(LEN as u32);
        let len = match input.u8() {
            0 => input.u32(),
            _ => input.below(LEN as u32 + 1 - at),
        };
        Sge {
            addr: region.addr + u64::from(at),
            len,
            lkey: region.lkey,
        }
    }

    fn post_send(&mut self, input: &mut Input<'_>) {
        let sges = [self.sge(input)];
        let remote = Remote {
            va: input.u64(),
            rkey: input.u32(),
        };
        let op = match input.u8() % 6 {
            0 => SendOp::Send,
            1 => SendOp::SendImm(1),
            2 => SendOp::SendInvalidate(2),
            3 => SendOp::Write(remote),
            4 => SendOp::WriteImm(remote, 3),
            _ => SendOp::Read(remote),
        };
        let inline = input.flag();
        let request = SendRequest {
            wr_id: self.posted[0],
            op,
            payload: if inline {
                Payload::Inline(b"inline")
            } else {
                Payload::Sges(&sges)
            },
            // Only then can be counted what has completed.
            signaled: true,
            fence: input.flag(),
            solicited: false,
        };
        self.posted[0] += u64::from(self.qp.post_send(&request).is_ok());
    }

    fn transmit(&mut self, input: &mut Input<'_>) {
        let room = usize::from(input.u8());
        let mut sink = VecSink {
            packets: Vec::new(),
            room: Some(room),
        };
        if self.qp.transmit(self.now, &mut sink) == Transmitted::All {
            assert!(sink.packets.len() <= room);
        }
        for bytes in &sink.packets {
            let packet = Packet::parse(bytes).expect("own packet");
            let op = packet.bth.opcode;
            let is_request = !matches!(
                op.packet_kind(),
                soft_roce::wire::PacketKind::Ack | soft_roce::wire::PacketKind::ReadResponse
            );
            if is_request {
                self.psns[1] = packet.bth.psn;
            }
            assert!(packet.payload.len() <= MTU);
        }
    }

    /// A packet of a request, near to what is expected.
    fn request(&mut self, input: &mut Input<'_>) {
        let opcode = input.pick(&Opcode::ALL);
        let psn = self.psns[0].wrapping_add(input.pick(&[0u32, 1, 2, 3, 40, u32::MAX]));
        let len = match input.u8() % 3 {
            0 => MTU,
            _ => input.below(MTU as u32 + 8) as usize,
        };
        let payload = vec![0xda; len];
        let mut packet = Packet {
            reth: opcode.has_reth().then(|| Reth {
                va: OPEN + u64::from(input.below(LEN as u32 + 2)),
                rkey: match input.u8() % 4 {
                    0 => input.u32(),
                    1 => self.regions[1].lkey,
                    _ => self.regions[0].lkey,
                },
                len: match input.u8() % 4 {
                    0 => len as u32,
                    1 => 2 * MTU as u32,
                    2 => input.u32(),
                    _ => input.below(LEN as u32),
                },
            }),
            imm: opcode.has_imm().then_some(ImmDt(1)),
            ieth: opcode.has_ieth().then(|| Ieth(input.u32())),
            aeth: None,
            payload: if opcode == Opcode::ReadRequest && input.flag() {
                &[]
            } else {
                &payload
            },
            ..Packet::new(Bth::new(opcode, QPN, psn))
        };
        packet.bth.ack_req = input.flag();
        let before = *self.qp.counters();
        self.qp.handle_packet(self.now, &packet);
        // The peer's own idea of where it stands.
        if self.qp.counters().requests_received > before.requests_received {
            self.psns[0] = psn.wrapping_add(1);
        }
    }

    /// An ACK, a NAK or a response, near to what was sent.
    fn answer(&mut self, input: &mut Input<'_>) {
        let opcode = input.pick(&[
            Opcode::Ack,
            Opcode::Ack,
            Opcode::ReadResponseFirst,
            Opcode::ReadResponseMiddle,
            Opcode::ReadResponseLast,
            Opcode::ReadResponseOnly,
            Opcode::AtomicAck,
        ]);
        let psn = self.psns[1].wrapping_sub(u32::from(input.u8() % 32));
        let syndrome = match input.u8() {
            0..150 => Syndrome::Ack(31),
            150..200 => Syndrome::Nak(soft_roce::wire::NakCode::SequenceError),
            byte => Syndrome::from_byte(byte).unwrap_or(Syndrome::Rnr(1)),
        };
        let len = match input.u8() % 3 {
            0 => MTU,
            _ => input.below(MTU as u32) as usize,
        };
        let packet = Packet {
            aeth: opcode.has_aeth().then_some(Aeth { syndrome, msn: 0 }),
            payload: input.bytes(len),
            ..Packet::new(Bth::new(opcode, QPN, psn))
        };
        self.qp.handle_packet(self.now, &packet);
    }

    fn check(&mut self) {
        let mut out = [Completion::default(); 64];
        for (which, cq) in self.cqs.iter().enumerate() {
            loop {
                let n = cq.poll(&mut out).expect("no overrun");
                for completion in &out[..n] {
                    assert_eq!(completion.wr_id, self.completed[which], "in order");
                    self.completed[which] += 1;
                    if completion.status != Status::Success {
                        assert_eq!(self.qp.state(), QpState::Error);
                    }
                }
                if n == 0 {
                    break;
                }
            }
            assert!(self.completed[which] <= self.posted[which]);
        }
        assert!(self.reorder.used() <= REORDER);
        if let Some(at) = self.qp.poll_timeout() {
            assert!(at.0 < u64::MAX);
        }
    }
}
