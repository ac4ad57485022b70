//! Queue pairs: reliable connected, made on a CM id.
//!
//! A [`PreparedQp`] may post receives; a [`QueuePair`], made of it once the connection is
//! established, may also send. The buffers of posted work belong to the queue pair until
//! [`claim`](QueuePair::claim) gives them back; what is never claimed is freed after the queue
//! pair is destroyed.
//!
//! It does not poll, keep credits, or decide what to signal.
//!
//! ```compile_fail,E0599
//! # use verbs_shim::{PreparedQp, SendRequest, Operation};
//! fn too_early(qp: &PreparedQp) {
//!     let _ = qp.post(SendRequest::inline(0, Operation::Send, b"hello"));
//! }
//! ```
//!
//! ```
//! # use verbs_shim::{PreparedQp, QueuePair, SendRequest, Operation};
//! fn in_time(qp: PreparedQp) -> QueuePair {
//!     let qp = qp.established();
//!     let _ = qp.post(SendRequest::inline(0, Operation::Send, b"hello"));
//!     qp
//! }
//! ```
//!
//! A posted buffer is gone, so it cannot be touched while the device owns it:
//!
//! ```compile_fail,E0382
//! # use verbs_shim::{QueuePair, RegisteredBuffer, SendRequest, Operation};
//! fn reuse(qp: &QueuePair, mut buffer: RegisteredBuffer) {
//!     let _ = qp.post(SendRequest::piece(0, Operation::Send, buffer));
//!     buffer.fill(b"too early");
//! }
//! ```

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrayvec::ArrayVec;

use crate::backend::{self, MAX_CHAIN, RecvWr, SendWr, Sge, WrData};
use crate::completion::{Completion, CompletionQueue};
use crate::error::{Result, VerbsError};
use crate::memory::{Access, ProtectionDomain, RegisteredBuffer};
use crate::srq::SharedReceiveQueue;
use crate::work::{
    MAX_PIECES, Operation, Payload, Piece, Pieces, PostError, RecvPostError, RecvTable,
    SendRequest, SendTable,
};
use crate::wr_id::{Kind, Life, MAX_SLOTS, WrId};

/// The size of a queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QpCaps {
    /// Send requests that can be outstanding; at most 65,536.
    pub send_wr: u32,
    /// Receives that can be outstanding; at most 65,536. 0 with a shared receive queue.
    pub recv_wr: u32,
    /// Pieces of one send request, 1 to [`MAX_PIECES`].
    pub sge: u32,
    /// Bytes that a send request can carry inline. As the answer, what was granted: it may be more
    /// or less than was asked for.
    pub inline: u32,
}

impl Default for QpCaps {
    fn default() -> Self {
        Self {
            send_wr: 16,
            recv_wr: 16,
            sge: 1,
            inline: 64,
        }
    }
}

/// What a queue pair is made with; see [`crate::CmId::create_qp`].
pub(crate) struct Parts<'a> {
    pub(crate) pd: &'a ProtectionDomain,
    pub(crate) send_cq: &'a CompletionQueue,
    pub(crate) recv_cq: &'a CompletionQueue,
    pub(crate) srq: Option<&'a SharedReceiveQueue>,
}

/// A queue pair whose connection is not established yet: it may post receives, not send.
#[derive(Debug)]
pub struct PreparedQp {
    shared: QpShared,
}

/// A queue pair of an established connection. All methods may be called by several threads.
#[derive(Debug)]
pub struct QueuePair {
    shared: QpShared,
}

/// The memory that a completed request gives back.
#[derive(Debug, Default)]
pub struct Claim {
    /// The pieces of a send request, or the one buffer of a receive, with its length set to what
    /// came. None for a request with inline bytes.
    pub pieces: Pieces,
}

impl Claim {
    /// The first buffer among the pieces: that of a receive, or of a send of one buffer.
    #[must_use]
    pub fn into_buffer(self) -> Option<RegisteredBuffer> {
        self.pieces.into_iter().find_map(Piece::into_buffer)
    }
}

impl PreparedQp {
    pub(crate) fn new(backend: Arc<dyn backend::QueuePair>, parts: &Parts<'_>) -> Self {
        Self {
            shared: QpShared::new(backend, parts),
        }
    }

    /// The same queue pair, allowed to send. To be called when [`crate::Event::Established`] came
    /// for its id: what is posted earlier fails.
    #[must_use]
    pub fn established(self) -> QueuePair {
        QueuePair {
            shared: self.shared,
        }
    }
}

macro_rules! common {
    ($($qp:ident),*) => {$(
        impl $qp {
            /// Its number on the device.
            #[must_use]
            pub fn qp_num(&self) -> u32 {
                self.shared.qp_num
            }

            /// What was granted.
            #[must_use]
            pub fn caps(&self) -> QpCaps {
                self.shared.caps
            }

            /// Posts a receive of the whole buffer.
            ///
            /// # Errors
            /// Gives the buffer back. `ENOMEM`: the queue is full. `EINVAL`: the queue pair takes
            /// its receives from a shared queue, or the buffer is of another protection domain.
            #[allow(clippy::result_large_err)]
            pub fn post_recv(
                &self,
                token: u32,
                buffer: RegisteredBuffer,
            ) -> std::result::Result<(), RecvPostError> {
                self.shared.post_recv(token, buffer)
            }

            /// Takes the memory of a finished request back. Of a request that succeeded, the
            /// unsignaled ones before it are freed as well.
            ///
            /// `None`, and counted: the completion is not of this queue pair (a receive from a
            /// shared queue is claimed there), or was claimed before.
            pub fn claim(&self, completion: &Completion) -> Option<Claim> {
                self.shared.claim(completion)
            }

            /// How many claims were refused.
            #[must_use]
            pub fn unknown_claims(&self) -> u64 {
                self.shared.unknown.load(Ordering::Relaxed)
            }

            /// Moves it to the error state: everything posted is flushed, and its completions come
            /// with [`crate::WcStatus::WrFlushed`]. Receives posted later are never flushed.
            ///
            /// # Errors
            /// When the device refuses.
            pub fn to_error(&self) -> Result<()> {
                self.shared.backend.to_error()
            }
        }
    )*};
}

common!(PreparedQp, QueuePair);

impl QueuePair {
    /// Posts a request.
    ///
    /// # Errors
    /// Gives the request back with its buffers. `ENOMEM`: the queue is full. `EINVAL`: more inline
    /// bytes or pieces than were granted, memory of another protection domain, or the target of a
    /// READ is registered without [`Access::LOCAL_WRITE`], or READ with inline bytes.
    #[allow(clippy::result_large_err)] // the request travels back as it came, without allocation
    pub fn post<'a>(&self, request: SendRequest<'a>) -> std::result::Result<(), PostError<'a>> {
        let mut one = ArrayVec::<_, 1>::new();
        one.push(request);
        self.shared.post_chain(&mut one).map_err(|error| PostError {
            request: one.remove(0),
            error,
        })
    }

    /// Posts requests in order, with one doorbell for up to 16 of them. Those that were posted
    /// are gone from `requests`.
    ///
    /// # Errors
    /// As [`QueuePair::post`], for the first of those that remain.
    pub fn post_batch<const N: usize>(
        &self,
        requests: &mut ArrayVec<SendRequest<'_>, N>,
    ) -> Result<()> {
        while !requests.is_empty() {
            self.shared.post_chain(requests)?;
        }
        Ok(())
    }

    /// How many requests can be posted now. Slots come back when completions are claimed.
    #[must_use]
    pub fn send_room(&self) -> u32 {
        self.shared.sends().room()
    }
}

struct QpShared {
    backend: Arc<dyn backend::QueuePair>,
    qp_num: u32,
    caps: QpCaps,
    life: Life,
    /// Held from noting a request to posting it, so that the ring has the queue's order.
    send_order: Mutex<()>,
    sends: ManuallyDrop<Mutex<SendTable>>,
    recvs: ManuallyDrop<Mutex<RecvTable>>,
    unknown: AtomicU64,
    has_srq: bool,
    pd: ProtectionDomain,
    send_cq: CompletionQueue,
    recv_cq: CompletionQueue,
    /// Alive, and its buffers with it, until this queue pair is gone.
    _srq: Option<SharedReceiveQueue>,
}

impl QpShared {
    fn new(backend: Arc<dyn backend::QueuePair>, parts: &Parts<'_>) -> Self {
        static LIVES: AtomicU32 = AtomicU32::new(0);
        let (qp_num, caps) = (backend.qp_num(), backend.caps());
        let mut life = Life::new(LIVES.fetch_add(1, Ordering::Relaxed));
        while parts.send_cq.has_grave(qp_num, life) || parts.recv_cq.has_grave(qp_num, life) {
            life = life.next();
        }
        Self {
            backend,
            qp_num,
            caps,
            life,
            send_order: Mutex::new(()),
            sends: ManuallyDrop::new(Mutex::new(SendTable::new(caps.send_wr))),
            recvs: ManuallyDrop::new(Mutex::new(RecvTable::new(caps.recv_wr))),
            unknown: AtomicU64::new(0),
            has_srq: parts.srq.is_some(),
            pd: parts.pd.clone(),
            send_cq: parts.send_cq.clone(),
            recv_cq: parts.recv_cq.clone(),
            _srq: parts.srq.cloned(),
        }
    }

    fn sends(&self) -> MutexGuard<'_, SendTable> {
        self.sends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recvs(&self) -> MutexGuard<'_, RecvTable> {
        self.recvs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wr_id(&self, token: u32, kind: Kind, slot: u16) -> u64 {
        WrId {
            token,
            kind,
            life: self.life,
            slot,
        }
        .pack()
    }

    fn check(&self, request: &SendRequest<'_>) -> Result<()> {
        const CALL: &str = "ibv_post_send";
        match &request.payload {
            Payload::Inline(bytes) => {
                if bytes.len() > self.caps.inline as usize {
                    let (len, max) = (bytes.len(), self.caps.inline);
                    return Err(VerbsError::invalid(
                        CALL,
                        format!("{len} inline bytes, at most {max}"),
                    ));
                }
                if matches!(request.operation, Operation::Read(_)) {
                    return Err(VerbsError::invalid(CALL, "an RDMA READ into inline bytes"));
                }
            }
            Payload::Pieces(pieces) => {
                if pieces.len() > self.caps.sge as usize {
                    let (len, max) = (pieces.len(), self.caps.sge);
                    return Err(VerbsError::invalid(
                        CALL,
                        format!("{len} pieces, at most {max}"),
                    ));
                }
                if pieces.iter().any(|p| p.pd_serial() != self.pd.serial()) {
                    return Err(VerbsError::invalid(
                        CALL,
                        "memory of another protection domain",
                    ));
                }
                let writable = |p: &Piece| p.access().contains(Access::LOCAL_WRITE);
                if matches!(request.operation, Operation::Read(_)) && !pieces.iter().all(writable) {
                    return Err(VerbsError::invalid(
                        CALL,
                        "an RDMA READ into memory without LOCAL_WRITE",
                    ));
                }
            }
        }
        Ok(())
    }

    /// Posts up to `MAX_CHAIN` requests from the front, and removes those that were posted. An
    /// error is about the first that remains.
    fn post_chain<const N: usize>(
        &self,
        requests: &mut ArrayVec<SendRequest<'_>, N>,
    ) -> Result<()> {
        let _order = self
            .send_order
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut sges = [[Sge::default(); MAX_PIECES]; N];
        let mut noted = ArrayVec::<(u16, usize), N>::new();
        let mut refused = None;
        for (request, sges) in requests.iter_mut().zip(&mut sges).take(MAX_CHAIN) {
            if let Err(error) = self.check(request) {
                refused = Some(error);
                break;
            }
            match self.note(request, sges) {
                Some(entry) => noted.push(entry),
                None => {
                    refused = Some(VerbsError::from_errno("ibv_post_send", libc::ENOMEM));
                    break;
                }
            }
        }
        let wrs: ArrayVec<SendWr<'_>, N> = noted
            .iter()
            .zip(requests.iter())
            .zip(&sges)
            .map(|((&(slot, pieces), request), sges)| SendWr {
                wr_id: self.wr_id(request.token, Kind::Send, slot),
                op: request.operation.to_wr(),
                data: match request.payload {
                    Payload::Inline(bytes) => WrData::Inline(bytes),
                    Payload::Pieces(_) => WrData::Sges(&sges[..pieces]),
                },
                signaled: request.signaled,
                solicited: request.solicited,
                fence: request.fence,
            })
            .collect();
        let posted = match wrs.is_empty() {
            true => Ok(()),
            false => self.backend.post_send(&wrs),
        };
        let (taken, failed) = match posted {
            Ok(()) => (noted.len(), refused),
            Err((taken, error)) => (taken.min(noted.len()), Some(error)),
        };
        drop(wrs);
        for request in requests[taken..noted.len()].iter_mut().rev() {
            let pieces = self.sends().pop();
            if let (Payload::Pieces(place), Some(pieces)) = (&mut request.payload, pieces) {
                *place = pieces;
            }
        }
        requests.drain(..taken);
        failed.map_or(Ok(()), Err)
    }

    /// Moves the request's pieces into the table; `None`: it is full.
    fn note(
        &self,
        request: &mut SendRequest<'_>,
        sges: &mut [Sge; MAX_PIECES],
    ) -> Option<(u16, usize)> {
        let pieces = match &mut request.payload {
            Payload::Inline(_) => Pieces::new(),
            Payload::Pieces(pieces) => std::mem::take(pieces),
        };
        for (sge, piece) in sges.iter_mut().zip(&pieces) {
            *sge = piece.sge();
        }
        let count = pieces.len();
        match self.sends().push(pieces, request.signaled) {
            Ok(slot) => Some((slot, count)),
            Err(pieces) => {
                if let Payload::Pieces(place) = &mut request.payload {
                    *place = pieces;
                }
                None
            }
        }
    }

    #[allow(clippy::result_large_err)]
    fn post_recv(
        &self,
        token: u32,
        buffer: RegisteredBuffer,
    ) -> std::result::Result<(), RecvPostError> {
        const CALL: &str = "ibv_post_recv";
        if self.has_srq {
            let error = VerbsError::invalid(CALL, "the receives come from a shared queue");
            return Err(RecvPostError { buffer, error });
        }
        if let Err(error) = check_recv(CALL, &buffer, &self.pd) {
            return Err(RecvPostError { buffer, error });
        }
        let sge = buffer.receive_sge();
        let slot = match self.recvs().push(buffer) {
            Ok(slot) => slot,
            Err(buffer) => {
                let error = VerbsError::from_errno(CALL, libc::ENOMEM);
                return Err(RecvPostError { buffer, error });
            }
        };
        let wr_id = self.wr_id(token, Kind::Receive, slot);
        let Err((_, error)) = self.backend.post_recv(&[RecvWr { wr_id, sge }]) else {
            return Ok(());
        };
        match self.recvs().take(slot) {
            Some(buffer) => Err(RecvPostError { buffer, error }),
            // Not posted, and yet claimed: no completion can have named it.
            None => Ok(()),
        }
    }

    fn claim(&self, completion: &Completion) -> Option<Claim> {
        let claim = self.try_claim(completion);
        match claim {
            Some(_) => completion.set_claimed(),
            None => {
                self.unknown.fetch_add(1, Ordering::Relaxed);
            }
        }
        claim
    }

    fn try_claim(&self, completion: &Completion) -> Option<Claim> {
        let wr = completion.wr()?;
        let ours =
            wr.life == self.life && completion.qp_num() == self.qp_num && !completion.is_claimed();
        if !ours {
            return None;
        }
        match wr.kind {
            Kind::Send if completion.cq_serial() == self.send_cq.serial() => {
                let success = completion.status().is_success();
                let pieces = self.sends().claim(wr.slot, success)?;
                Some(Claim { pieces })
            }
            Kind::Receive if completion.cq_serial() == self.recv_cq.serial() => {
                let mut buffer = self.recvs().take(wr.slot)?;
                let filled = completion.filled(buffer.capacity());
                buffer.set_len(filled);
                let mut pieces = Pieces::new();
                pieces.push(Piece::Buffer(buffer));
                Some(Claim { pieces })
            }
            _ => None,
        }
    }
}

impl Drop for QpShared {
    fn drop(&mut self) {
        if let Err(error) = self.backend.destroy() {
            // The device may still use the posted memory: it stays where it is for ever.
            tracing::error!(%error, qp_num = self.qp_num, "a queue pair could not be destroyed");
            return;
        }
        if !self.sends().is_empty() {
            self.send_cq.bury(self.qp_num, self.life);
        }
        if !self.recvs().is_empty() {
            self.recv_cq.bury(self.qp_num, self.life);
        }
        drop_tables(self);
    }
}

/// Frees what was never claimed, now that the queue pair is destroyed.
#[allow(unsafe_code)]
fn drop_tables(qp: &mut QpShared) {
    // SAFETY: called once, at the end of drop; the table is not used after.
    unsafe { ManuallyDrop::drop(&mut qp.sends) };
    // SAFETY: as above.
    unsafe { ManuallyDrop::drop(&mut qp.recvs) };
}

impl fmt::Debug for QpShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QpShared")
            .field("qp_num", &self.qp_num)
            .field("caps", &self.caps)
            .finish_non_exhaustive()
    }
}

/// Whether a buffer may be posted to receive.
pub(crate) fn check_recv(
    call: &'static str,
    buffer: &RegisteredBuffer,
    pd: &ProtectionDomain,
) -> Result<()> {
    let region = buffer.region();
    if region.pd_serial() != pd.serial() {
        return Err(VerbsError::invalid(
            call,
            "a buffer of another protection domain",
        ));
    }
    if !region.access().contains(Access::LOCAL_WRITE) {
        return Err(VerbsError::invalid(call, "a buffer without LOCAL_WRITE"));
    }
    Ok(())
}

/// Checks the sizes that are asked for, before the device is.
pub(crate) fn check_caps(caps: QpCaps, has_srq: bool) -> Result<()> {
    const CALL: &str = "rdma_create_qp";
    if caps.send_wr == 0 || caps.send_wr > MAX_SLOTS {
        return Err(VerbsError::invalid(
            CALL,
            format!("send_wr {}, 1 to {MAX_SLOTS}", caps.send_wr),
        ));
    }
    if caps.recv_wr > MAX_SLOTS || (caps.recv_wr > 0) == has_srq {
        return Err(VerbsError::invalid(
            CALL,
            format!(
                "recv_wr {}, 1 to {MAX_SLOTS}, or 0 with a shared receive queue",
                caps.recv_wr
            ),
        ));
    }
    if caps.sge == 0 || caps.sge as usize > MAX_PIECES {
        return Err(VerbsError::invalid(
            CALL,
            format!("sge {}, 1 to {MAX_PIECES}", caps.sge),
        ));
    }
    Ok(())
}
