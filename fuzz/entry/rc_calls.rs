//! Two queue pairs and any sequence of calls on them, with a network that
//! delivers, drops, doubles and reorders as the bytes say.
//!
//! Promises: no panic; messages arrive in order, each once, whole; each request
//! completes once at most, in order.

use std::collections::VecDeque;
use std::sync::Arc;

use soft_roce::memory::{HeapMemory, Memory};
use soft_roce::rc::{
    Access, Completion, CompletionQueue, KeySource, Modify, MrTable, PathMtu, Payload, Pd,
    QpConfig, QpLinks, QpState, QueuePair, RecvRequest, ReorderBudget, RtrAttr, RtsAttr, SendOp,
    SendRequest, Sge, Status, WorkKind,
};
use soft_roce::sink::VecSink;
use soft_roce::time::Time;
use soft_roce::wire::Packet;

use super::input::Input;

const BUFFER: usize = 1024;
const BUFFERS: usize = 16;

struct End {
    qp: QueuePair,
    send_cq: Arc<CompletionQueue>,
    recv_cq: Arc<CompletionQueue>,
    memory: Arc<HeapMemory>,
    lkey: u32,
    outbox: VecDeque<Vec<u8>>,
    sent: u64,
    send_done: u64,
    receives: u64,
    receive_done: u64,
    /// Messages that arrived.
    messages: u64,
    /// Lengths of the messages posted, in order.
    lens: Vec<usize>,
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let ours = input.flag();
    let psns = [input.u32() & 0xff_ffff, input.u32() & 0xff_ffff];
    let mut ends = [
        End::new(2, 3, ours, psns[1], psns[0]),
        End::new(3, 2, ours, psns[0], psns[1]),
    ];
    let mut now = Time(1);
    for _ in 0..1024 {
        if input.is_empty() {
            break;
        }
        let at = usize::from(input.flag());
        step(&mut ends, at, &mut now, &mut input);
        let [a, b] = &mut ends;
        a.check(&b.lens);
        b.check(&a.lens);
    }
}

fn step(ends: &mut [End; 2], at: usize, now: &mut Time, input: &mut Input<'_>) {
    match input.u8() % 16 {
        0..=2 => {
            let len = input.below(BUFFER as u32 + 1) as usize;
            ends[at].send(len);
        }
        3..=5 => ends[at].receive(),
        6..=8 => {
            let mut sink = VecSink {
                packets: Vec::new(),
                room: Some(usize::from(input.u8())),
            };
            ends[at].qp.transmit(*now, &mut sink);
            ends[at].outbox.extend(sink.packets);
            assert!(ends[at].outbox.len() < 100_000);
        }
        9..=12 => {
            let n = input.u8();
            for _ in 0..n {
                let Some(bytes) = ends[at].outbox.pop_front() else {
                    break;
                };
                deliver(ends, at, *now, &bytes);
            }
        }
        13 => match input.u8() % 3 {
            0 => drop(ends[at].outbox.pop_front()),
            1 => {
                if let Some(bytes) = ends[at].outbox.front().cloned() {
                    deliver(ends, at, *now, &bytes);
                }
            }
            _ => {
                if let Some(bytes) = ends[at].outbox.pop_front() {
                    ends[at].outbox.push_back(bytes);
                }
            }
        },
        14 => {
            let timeout = ends[at].qp.poll_timeout();
            *now = timeout
                .unwrap_or(*now)
                .max(now.plus_nanos(input.u8().into()));
            ends[at].qp.handle_timeout(*now);
        }
        _ => match input.u8() {
            0 => {
                let _ = ends[at].qp.modify(&Modify::Error);
            }
            1..=9 => {
                let _ = ends[at].qp.modify(&Modify::Sqd);
            }
            10..=40 => {
                let _ = ends[at].qp.modify(&Modify::Resume);
            }
            _ => ends[at].qp.probe(),
        },
    }
}

fn deliver(ends: &mut [End; 2], from: usize, now: Time, bytes: &[u8]) {
    let packet = Packet::parse(bytes).expect("own packet");
    let to = &mut ends[1 - from];
    if packet.bth.dest_qpn == to.qp.qpn() {
        to.qp.handle_packet(now, &packet);
    }
}

impl End {
    fn new(qpn: u32, peer: u32, ours: bool, rq_psn: u32, sq_psn: u32) -> Self {
        let table = Arc::new(MrTable::new(1, KeySource::seeded(1)));
        let memory = Arc::new(HeapMemory::new(BUFFER * BUFFERS));
        let region = table
            .register(Pd(0), 0, memory.clone(), Access::LOCAL_WRITE)
            .expect("region");
        let send_cq = Arc::new(CompletionQueue::new(4096));
        let recv_cq = Arc::new(CompletionQueue::new(4096));
        let mut qp = QueuePair::new(
            QpConfig {
                qpn,
                pd: Pd(0),
                send_wr: 32,
                recv_wr: BUFFERS as u32,
                send_sge: 1,
                recv_sge: 1,
                inline: BUFFER,
            },
            QpLinks {
                regions: table,
                send_cq: send_cq.clone(),
                recv_cq: recv_cq.clone(),
                srq: None,
                reorder: Arc::new(ReorderBudget::new(1 << 16)),
            },
        );
        let steps = [
            Modify::Init {
                access: Access::REMOTE_WRITE,
            },
            Modify::Rtr(RtrAttr {
                dest_qpn: peer,
                rq_psn,
                path_mtu: PathMtu::B256,
                responder_resources: 1,
                min_rnr_timer: 1,
                peer_is_ours: ours,
            }),
            Modify::Rts(RtsAttr {
                sq_psn,
                timeout: 14,
                retry_count: 6,
                rnr_retry: 7,
                initiator_depth: 1,
                on_host: false,
                window: None,
            }),
        ];
        for step in &steps {
            qp.modify(step).expect("the way to RTS");
        }
        Self {
            qp,
            send_cq,
            recv_cq,
            memory,
            lkey: region.lkey(),
            outbox: VecDeque::new(),
            sent: 0,
            send_done: 0,
            receives: 0,
            receive_done: 0,
            messages: 0,
            lens: Vec::new(),
        }
    }

    fn send(&mut self, len: usize) {
        let bytes = pattern(self.sent, len);
        let request = SendRequest {
            wr_id: self.sent,
            op: SendOp::Send,
            payload: Payload::Inline(&bytes),
            signaled: true,
            fence: false,
            solicited: false,
        };
        if self.qp.post_send(&request).is_ok() {
            self.sent += 1;
            self.lens.push(len);
        }
    }

    fn receive(&mut self) {
        let sges = [Sge {
            addr: self.receives % BUFFERS as u64 * BUFFER as u64,
            len: BUFFER as u32,
            lkey: self.lkey,
        }];
        let request = RecvRequest {
            wr_id: self.receives,
            sges: &sges,
        };
        // A slot is used again only when what was in it has been looked at.
        if self.receives - self.receive_done < BUFFERS as u64 {
            self.receives += u64::from(self.qp.post_receive(&request).is_ok());
        }
    }

    fn check(&mut self, lens: &[usize]) {
        let mut out = [Completion::default(); 16];
        while let Ok(n @ 1..) = self.send_cq.poll(&mut out) {
            for c in &out[..n] {
                assert_eq!(c.wr_id, self.send_done, "in order");
                self.send_done += 1;
            }
        }
        while let Ok(n @ 1..) = self.recv_cq.poll(&mut out) {
            for c in &out[..n] {
                assert_eq!(c.wr_id, self.receive_done, "in order");
                self.receive_done += 1;
                if c.status != Status::Success {
                    assert_eq!(self.qp.state(), QpState::Error);
                    continue;
                }
                assert_eq!(c.kind, WorkKind::Receive);
                let len = lens[self.messages as usize];
                assert_eq!(c.byte_len as usize, len);
                let at = c.wr_id as usize % BUFFERS * BUFFER;
                let mut bytes = vec![0; len];
                self.memory.read(at as u64, &mut bytes);
                assert!(bytes == pattern(self.messages, len), "whole");
                self.messages += 1;
            }
        }
        assert!(self.send_done <= self.sent);
        assert!(!self.send_cq.is_overrun() && !self.recv_cq.is_overrun());
    }
}

fn pattern(message: u64, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (message as usize * 31 + i * 7 + i / 256) as u8)
        .collect()
}
