//! One end of a connection: a queue pair and the user behind it, who posts a
//! script and checks everything that comes.

use std::collections::VecDeque;
use std::sync::Arc;

use soft_roce::rc::{
    Access, Completion, CompletionQueue, MemoryRegion, Modify, MrTable, PathMtu, Payload, Pd,
    PostError, QpConfig, QpLinks, QpState, QueuePair, RecvRequest, Remote, ReorderBudget, RtrAttr,
    RtsAttr, SendOp, SendRequest, SendWindow, Sge, SharedReceiveQueue, Status, WorkKind,
};

use crate::memory::CountedMemory;
use crate::rng::Rng;
use crate::script::{INLINE, Kind, Op, Script};

/// What both ends of a connection agree on.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub mtu: PathMtu,
    pub ours: bool,
    pub depth: u8,
    pub window: Option<SendWindow>,
    pub timeout: u8,
    pub retry_count: u8,
    pub rnr_retry: u8,
    pub min_rnr_timer: u8,
    pub send_wr: u32,
    /// Receives that the user keeps posted.
    pub receives: usize,
    /// Once in so many chances the user posts receives; 1 is always.
    pub lazy: u64,
    pub srq: bool,
}

/// What all connections of a host share.
#[derive(Clone)]
pub struct Shared {
    pub regions: Arc<MrTable>,
    pub reorder: Arc<ReorderBudget>,
}

const PD: Pd = Pd(7);
/// Addresses that requests use for the regions' first bytes.
const SOURCE: u64 = 0x1_0000_0000;
const TARGET: u64 = 0x2_0000_0000;
const SINK: u64 = 0x3_0000_0000;
const BUFFERS: u64 = 0x4_0000_0000;

pub struct Side {
    pub qp: QueuePair,
    terms: Terms,
    rng: Rng,
    script: Script,
    /// What the other end does.
    theirs: Script,
    their_source: Vec<u8>,
    source_bytes: Vec<u8>,
    send_cq: Arc<CompletionQueue>,
    recv_cq: Arc<CompletionQueue>,
    srq: Option<Arc<SharedReceiveQueue>>,
    source: Arc<MemoryRegion>,
    target: Arc<CountedMemory>,
    target_mr: Arc<MemoryRegion>,
    sink: Arc<CountedMemory>,
    sink_mr: Arc<MemoryRegion>,
    buffers: Arc<CountedMemory>,
    buffers_mr: Arc<MemoryRegion>,
    slot_len: usize,
    free_slots: VecDeque<usize>,
    posted_slots: VecDeque<usize>,
    /// Windows that the other end will invalidate, in its order.
    windows: VecDeque<Arc<MemoryRegion>>,
    /// The other end's keys: source, target, windows.
    remote: (u32, u32, VecDeque<u32>),
    next_post: usize,
    next_done: usize,
    /// In the other end's script.
    next_received: usize,
    /// What failed, and how much completed as failed.
    pub failure: Option<Status>,
    pub failed_sends: usize,
    pub failed_receives: usize,
    /// Post nothing more.
    pub stopped: bool,
}

impl Side {
    pub fn new(
        rng: &mut Rng,
        shared: &Shared,
        qpn: u32,
        terms: Terms,
        script: Script,
        theirs: Script,
    ) -> Self {
        let mut bytes = |len: usize| -> Vec<u8> {
            let mut out = Vec::with_capacity(len + 8);
            while out.len() < len {
                out.extend(rng.next().to_le_bytes());
            }
            out.truncate(len);
            out
        };
        let source_bytes = bytes(script.len);
        let register = |va, memory: &Arc<CountedMemory>, access| {
            let memory = memory.clone();
            shared.regions.register(PD, va, memory, access).unwrap()
        };
        let lw = Access::LOCAL_WRITE;
        let source = Arc::new(CountedMemory::new(source_bytes.clone()));
        let source = register(SOURCE, &source, Access::REMOTE_READ);
        let target = Arc::new(CountedMemory::zeroed(theirs.len));
        let target_mr = register(TARGET, &target, lw | Access::REMOTE_WRITE);
        let sink = Arc::new(CountedMemory::zeroed(script.len));
        let sink_mr = register(SINK, &sink, lw);
        let slot_len = theirs.ops.iter().map(|op| op.len).max().unwrap_or(0);
        let buffers = Arc::new(CountedMemory::zeroed(slot_len * terms.receives));
        let buffers_mr = register(BUFFERS, &buffers, lw);
        let windows = theirs
            .ops
            .iter()
            .filter(|op| op.kind == Kind::SendInvalidate)
            .map(|_| {
                let len = target_mr.len();
                let access = Access::REMOTE_WRITE;
                let bound = shared.regions.bind(&target_mr, TARGET, len, access, qpn);
                bound.unwrap()
            })
            .collect();
        let srq = terms.srq.then(|| {
            let table = shared.regions.clone();
            Arc::new(SharedReceiveQueue::new(PD, table, terms.receives, 4))
        });
        let send_cq = Arc::new(CompletionQueue::new(terms.send_wr as usize));
        let recv_cq = Arc::new(CompletionQueue::new(terms.receives + 1));
        let qp = QueuePair::new(
            QpConfig {
                qpn,
                pd: PD,
                send_wr: terms.send_wr,
                recv_wr: terms.receives as u32,
                send_sge: 4,
                recv_sge: 4,
                inline: INLINE,
            },
            QpLinks {
                regions: shared.regions.clone(),
                send_cq: send_cq.clone(),
                recv_cq: recv_cq.clone(),
                srq: srq.clone(),
                reorder: shared.reorder.clone(),
            },
        );
        Self {
            qp,
            terms,
            rng: rng.fork(),
            script,
            theirs,
            their_source: Vec::new(),
            source_bytes,
            send_cq,
            recv_cq,
            srq,
            source,
            target,
            target_mr,
            sink,
            sink_mr,
            buffers,
            buffers_mr,
            slot_len,
            free_slots: (0..terms.receives).collect(),
            posted_slots: VecDeque::new(),
            windows,
            remote: (0, 0, VecDeque::new()),
            next_post: 0,
            next_done: 0,
            next_received: 0,
            failure: None,
            failed_sends: 0,
            failed_receives: 0,
            stopped: false,
        }
    }

    /// Learns what the CM would tell, and gets ready to send.
    pub fn connect(&mut self, peer: &Self, rq_psn: u32, sq_psn: u32) {
        let keys = peer.windows.iter().map(|w| w.rkey()).collect();
        self.remote = (peer.source.rkey(), peer.target_mr.rkey(), keys);
        self.their_source.clone_from(&peer.source_bytes);
        let t = self.terms;
        let access = Access::REMOTE_READ | Access::REMOTE_WRITE;
        let steps = [
            Modify::Init { access },
            Modify::Rtr(RtrAttr {
                dest_qpn: peer.qp.qpn(),
                rq_psn,
                path_mtu: t.mtu,
                responder_resources: t.depth,
                min_rnr_timer: t.min_rnr_timer,
                peer_is_ours: t.ours,
            }),
            Modify::Rts(RtsAttr {
                sq_psn,
                timeout: t.timeout,
                retry_count: t.retry_count,
                rnr_retry: t.rnr_retry,
                initiator_depth: t.depth,
                on_host: false,
                window: t.window,
            }),
        ];
        for step in &steps {
            self.qp.modify(step).unwrap();
        }
    }

    /// Whether everything was sent, completed and received.
    pub fn is_done(&self) -> bool {
        self.next_done == self.script.ops.len() && self.next_received == self.theirs.ops.len()
    }

    /// Bytes that this side's script moves.
    pub fn bytes(&self) -> u64 {
        self.script.ops.iter().map(|op| op.len as u64).sum()
    }

    /// The user's turn. Says whether something happened, and whether the user
    /// left something undone for later.
    pub fn user(&mut self) -> (bool, bool) {
        let mut busy = self.take_completions();
        let lazy = !self.free_slots.is_empty() && !self.rng.one_in(self.terms.lazy);
        if !lazy {
            busy |= self.post_receives();
        }
        busy |= self.post_sends();
        (busy, lazy)
    }

    fn post_receives(&mut self) -> bool {
        let mut busy = false;
        while !self.stopped
            && let Some(slot) = self.free_slots.pop_front()
        {
            let at = BUFFERS + (slot * self.slot_len) as u64;
            let sges = cut(at, self.slot_len, self.buffers_mr.lkey(), 1 + slot % 4);
            let request = RecvRequest {
                wr_id: slot as u64,
                sges: &sges,
            };
            match &self.srq {
                Some(srq) => srq.post(&request).unwrap(),
                None => self.qp.post_receive(&request).unwrap(),
            }
            self.posted_slots.push_back(slot);
            busy = true;
        }
        busy
    }

    fn post_sends(&mut self) -> bool {
        let mut busy = false;
        // What is posted to a broken queue pair completes at once: one is enough.
        while !self.stopped
            && (self.qp.state() != QpState::Error || self.next_post == self.next_done)
            && let Some(op) = self.script.ops.get(self.next_post).copied()
        {
            let range = op.at..op.at + op.len;
            let (va, key) = match op.kind {
                Kind::Read => (SINK, self.sink_mr.lkey()),
                _ => (SOURCE, self.source.lkey()),
            };
            let sges = cut(va + op.at as u64, op.len, key, op.pieces);
            let target = Remote {
                va: TARGET + op.at as u64,
                rkey: self.remote.1,
            };
            let request = SendRequest {
                wr_id: self.next_post as u64,
                op: match op.kind {
                    Kind::Send => SendOp::Send,
                    Kind::SendImm(imm) => SendOp::SendImm(imm),
                    Kind::SendInvalidate => SendOp::SendInvalidate(self.remote.2[0]),
                    Kind::Write => SendOp::Write(target),
                    Kind::WriteImm(imm) => SendOp::WriteImm(target, imm),
                    Kind::Read => SendOp::Read(Remote {
                        va: SOURCE + op.from as u64,
                        rkey: self.remote.0,
                    }),
                },
                payload: if op.inline {
                    Payload::Inline(&self.source_bytes[range])
                } else {
                    Payload::Sges(&sges)
                },
                signaled: op.signaled,
                fence: op.fence,
                solicited: false,
            };
            match self.qp.post_send(&request) {
                Ok(()) => {}
                Err(PostError::QueueFull) => break,
                Err(e) => panic!("post_send: {e}"),
            }
            if op.kind == Kind::SendInvalidate {
                self.remote.2.pop_front();
            }
            self.next_post += 1;
            busy = true;
        }
        busy
    }

    fn take_completions(&mut self) -> bool {
        let mut busy = false;
        let mut batch = [Completion::default(); 16];
        loop {
            let n = self.send_cq.poll(&mut batch).unwrap();
            for c in &batch[..n] {
                self.sent(c);
            }
            let m = self.recv_cq.poll(&mut batch).unwrap();
            for c in &batch[..m] {
                self.received(c);
            }
            if n + m == 0 {
                return busy;
            }
            busy = true;
        }
    }

    fn sent(&mut self, c: &Completion) {
        assert_eq!(c.qpn, self.qp.qpn());
        if c.status != Status::Success {
            // Before the first failure some may have succeeded without a word.
            while self.failure.is_none()
                && self.next_done < c.wr_id as usize
                && !self.script.ops[self.next_done].signaled
            {
                self.check_sent(self.next_done);
                self.next_done += 1;
            }
            // From it on every request completes.
            assert_eq!(c.wr_id as usize, self.next_done, "flush out of order");
            match self.failure {
                None => {
                    self.failure = Some(c.status);
                }
                Some(_) => assert_eq!(c.status, Status::WrFlush),
            }
            self.failed_sends += 1;
            self.next_done += 1;
            return;
        }
        assert!(self.failure.is_none(), "success after a failure");
        while !self.script.ops[self.next_done].signaled {
            self.check_sent(self.next_done);
            self.next_done += 1;
        }
        assert_eq!(c.wr_id as usize, self.next_done, "completion out of order");
        self.check_sent(self.next_done);
        let op = self.script.ops[self.next_done];
        let kind = match op.kind {
            Kind::Send | Kind::SendImm(_) | Kind::SendInvalidate => WorkKind::Send,
            Kind::Write | Kind::WriteImm(_) => WorkKind::Write,
            Kind::Read => WorkKind::Read,
        };
        assert_eq!((c.kind, c.byte_len as usize), (kind, op.len));
        self.next_done += 1;
    }

    /// An RDMA READ that is complete has brought its bytes, once.
    fn check_sent(&self, index: usize) {
        let op = self.script.ops[index];
        if op.kind == Kind::Read {
            let expected = &self.their_source[op.from..op.from + op.len];
            assert!(
                self.sink.bytes(op.at, op.len) == expected,
                "bytes read by operation {index}"
            );
            assert!(self.sink.written(op.at, op.len, 1), "placed once");
        }
    }

    fn received(&mut self, c: &Completion) {
        let slot = c.wr_id as usize;
        assert_eq!(
            self.posted_slots.pop_front(),
            Some(slot),
            "receives in order"
        );
        if c.status != Status::Success {
            assert_eq!(c.status, Status::WrFlush);
            self.failed_receives += 1;
            return;
        }
        assert_eq!(self.failed_receives, 0, "success after a failure");
        // What was sent before is in its place, too.
        loop {
            let index = self.next_received;
            let op = self.theirs.ops[index];
            self.next_received += 1;
            self.check_written(index, &op);
            if op.consumes() {
                self.check_received(index, &op, c, slot);
                break;
            }
        }
        self.skip_silent_tail();
        self.buffers.forget(slot * self.slot_len, self.slot_len);
        self.free_slots.push_back(slot);
    }

    fn check_written(&self, index: usize, op: &Op) {
        if matches!(op.kind, Kind::Write | Kind::WriteImm(_)) {
            let expected = &self.their_source[op.at..op.at + op.len];
            assert!(
                self.target.bytes(op.at, op.len) == expected,
                "bytes written by operation {index}"
            );
            assert!(self.target.written(op.at, op.len, 1), "written once");
        }
    }

    fn check_received(&mut self, index: usize, op: &Op, c: &Completion, slot: usize) {
        assert_eq!(c.byte_len as usize, op.len, "length of message {index}");
        let imm = match op.kind {
            Kind::SendImm(imm) | Kind::WriteImm(imm) => Some(imm),
            _ => None,
        };
        assert_eq!(c.imm, imm);
        if let Kind::WriteImm(_) = op.kind {
            assert_eq!(c.kind, WorkKind::ReceiveWriteImm);
            return;
        }
        assert_eq!(c.kind, WorkKind::Receive);
        let at = slot * self.slot_len;
        let expected = &self.their_source[op.at..op.at + op.len];
        assert!(
            self.buffers.bytes(at, op.len) == expected,
            "bytes of message {index}"
        );
        assert!(self.buffers.written(at, op.len, 1), "placed once");
        if op.kind == Kind::SendInvalidate {
            let window = self.windows.pop_front().unwrap();
            assert_eq!(c.invalidated, Some(window.rkey()));
            assert!(!window.is_live());
        }
    }

    /// Operations of the other end that tell nothing and come last: taken as
    /// received; what they wrote is checked at the end.
    fn skip_silent_tail(&mut self) {
        let rest = &self.theirs.ops[self.next_received..];
        if rest.iter().all(|op| !op.consumes()) {
            self.next_received = self.theirs.ops.len();
        }
    }

    /// Before the first packet.
    pub fn begin(&mut self) {
        self.skip_silent_tail();
    }

    /// When everything is over.
    pub fn check_end(&mut self) {
        assert!(!self.take_completions(), "completions out of nowhere");
        for (index, op) in self.theirs.ops.clone().iter().enumerate() {
            self.check_written(index, op);
        }
        assert_eq!(self.qp.sends_posted(), 0);
    }

    /// Every request posted has completed, if the queue pair broke.
    pub fn check_flushed(&mut self) {
        self.take_completions();
        assert_eq!(self.qp.sends_posted(), 0);
        assert_eq!(
            self.next_done, self.next_post,
            "sends complete, all of them"
        );
        if self.srq.is_none() {
            assert!(self.posted_slots.is_empty(), "receives, too");
        }
    }

    pub fn check_bounds(&self) {
        assert!(self.qp.sends_posted() <= self.terms.send_wr as usize);
        assert!(self.qp.receives_posted() <= self.terms.receives);
    }
}

/// Cuts a range into pieces of about the same size.
fn cut(at: u64, len: usize, lkey: u32, pieces: usize) -> Vec<Sge> {
    let piece = len.div_ceil(pieces).max(1);
    (0..pieces)
        .map(|i| {
            let from = (i * piece).min(len);
            let to = ((i + 1) * piece).min(len);
            Sge {
                addr: at + from as u64,
                len: (to - from) as u32,
                lkey,
            }
        })
        .collect()
}
