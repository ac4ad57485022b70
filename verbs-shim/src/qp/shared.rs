//! What prepared and connected queue pairs have in common: receiving, claiming, and their end.
//! Sending is in [`super::post`].

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Weak;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::window::WindowShared;
use super::{Claim, Parts, QpCaps};
use crate::backend::{self, Sender};
use crate::completion::CompletionQueue;
use crate::error::VerbsError;
use crate::memory::{ProtectionDomain, RegisteredBuffer};
use crate::srq::SharedReceiveQueue;
use crate::types::{Completion, Epoch, Generation, Kind, QueueId};
use crate::work::{BufferPostError, Piece, Pieces, ReceiveQueue, SendTable};

const POST_RECV: &str = "ibv_post_recv";

pub(super) struct QpShared {
    pub(super) backend: Sender,
    pub(super) qp_num: u32,
    pub(super) caps: QpCaps,
    pub(super) generation: Generation,
    /// When it was made.
    epoch: Epoch,
    pub(super) send_id: QueueId,
    /// Held from noting a request to posting it, so that the ring has the queue's order.
    pub(super) sends: Mutex<SendTable>,
    recvs: ReceiveQueue,
    pub(super) unknown: AtomicU64,
    /// Those that may be open.
    pub(super) windows: Mutex<Vec<Weak<WindowShared>>>,
    has_srq: bool,
    pub(super) pd: ProtectionDomain,
    send_cq: CompletionQueue,
    recv_cq: CompletionQueue,
    /// Alive, and its buffers with it, until this queue pair is gone.
    _srq: Option<SharedReceiveQueue>,
}

impl QpShared {
    pub(super) fn new(backend: Box<dyn backend::QueuePair>, parts: &Parts<'_>) -> Self {
        static GENERATIONS: AtomicU32 = AtomicU32::new(0);
        let (qp_num, caps) = (backend.qp_num(), backend.caps());
        let mut generation = Generation::new(GENERATIONS.fetch_add(1, Ordering::Relaxed));
        while parts.send_cq.has_retired(qp_num, generation)
            || parts.recv_cq.has_retired(qp_num, generation)
        {
            generation = generation.next();
        }
        let recv_id = QueueId::new(Kind::Receive, generation);
        Self {
            backend: Sender::new(backend),
            qp_num,
            caps,
            generation,
            epoch: Epoch::begin(),
            send_id: QueueId::new(Kind::Send, generation),
            sends: Mutex::new(SendTable::new(caps.send_wr)),
            recvs: ReceiveQueue::new(POST_RECV, recv_id, parts.pd.serial(), caps.recv_wr),
            unknown: AtomicU64::new(0),
            windows: Mutex::new(Vec::new()),
            has_srq: parts.srq.is_some(),
            pd: parts.pd.clone(),
            send_cq: parts.send_cq.clone(),
            recv_cq: parts.recv_cq.clone(),
            _srq: parts.srq.cloned(),
        }
    }

    pub(super) fn post_recv(
        &self,
        token: u32,
        buffer: RegisteredBuffer,
    ) -> Result<(), BufferPostError> {
        if self.has_srq {
            return Err(BufferPostError {
                buffer: Some(buffer),
                error: VerbsError::invalid(POST_RECV, "the receives come from a shared queue"),
            });
        }
        let post = |wrs: &mut [backend::RecvWr]| self.backend.post_recv(wrs);
        self.recvs.post(token, buffer, post)
    }

    pub(super) fn claim(&self, completion: &Completion) -> Option<Claim> {
        let claim = self.try_claim(completion);
        self.note_claim(completion, claim.is_some());
        claim
    }

    fn try_claim(&self, completion: &Completion) -> Option<Claim> {
        if self.is_send(completion) {
            let (slot, success) = (completion.slot(), completion.is_success());
            let (pieces, freed) = self.sends.lock().claim(slot, success)?;
            return Some(Claim { pieces, freed });
        }
        if self.is_of(completion, self.recvs.id(), &self.recv_cq) {
            let mut pieces = Pieces::new();
            pieces.push(Piece::Buffer(self.recvs.claim(completion)?));
            return Some(Claim { pieces, freed: 1 });
        }
        None
    }

    #[inline]
    pub(super) fn complete_send(&mut self, completion: &Completion) -> Option<u32> {
        let freed = match self.is_send(completion) {
            true => {
                let (slot, success) = (completion.slot(), completion.is_success());
                self.sends.get_mut().complete(slot, success)
            }
            false => None,
        };
        self.note_claim(completion, freed.is_some());
        freed
    }

    /// Withdraws the windows that are still open: none may be bound to a queue pair that is gone.
    fn close_windows(&mut self) {
        for window in self
            .windows
            .get_mut()
            .drain(..)
            .filter_map(|window| window.upgrade())
        {
            if let Err(error) = window.withdraw() {
                tracing::error!(%error, "a memory window could not be withdrawn");
            }
        }
    }

    fn note_claim(&self, completion: &Completion, claimed: bool) {
        match claimed {
            true => completion.set_claimed(),
            false => {
                self.unknown.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn is_send(&self, completion: &Completion) -> bool {
        self.is_of(completion, self.send_id, &self.send_cq)
    }

    /// Whether it was posted to this queue of this queue pair, and polled from `cq`.
    fn is_of(&self, completion: &Completion, queue: QueueId, cq: &CompletionQueue) -> bool {
        completion.queue() == queue
            && completion.qp_num() == self.qp_num
            && completion.is_since(self.epoch)
            && completion.cq == cq.serial()
    }
}

impl Drop for QpShared {
    fn drop(&mut self) {
        self.close_windows();
        let sends = std::mem::replace(self.sends.get_mut(), SendTable::new(0));
        let tables = ManuallyDrop::new((sends, self.recvs.take_all()));
        if let Err(error) = self.backend.destroy() {
            // The device may still use the posted memory: it stays where it is for ever.
            tracing::error!(%error, qp_num = self.qp_num, "a queue pair could not be destroyed");
            return;
        }
        // What was never claimed is freed, now that the device has let go of it.
        let (sends, recvs) = ManuallyDrop::into_inner(tables);
        if !sends.is_empty() {
            self.send_cq.retire(self.qp_num, self.generation);
        }
        if !recvs.is_empty() {
            self.recv_cq.retire(self.qp_num, self.generation);
        }
    }
}

impl fmt::Debug for QpShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QpShared")
            .field("qp_num", &self.qp_num)
            .field("caps", &self.caps)
            .finish_non_exhaustive()
    }
}
