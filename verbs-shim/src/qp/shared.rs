//! What prepared and connected queue pairs have in common: posting, claiming, and their end.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arrayvec::ArrayVec;

use super::window::{Binding, MemoryWindow, WindowShared};
use super::{Claim, Parts, QpCaps};
use crate::backend::{self, MAX_CHAIN, RecvWr, SendWr, Sge, WrData};
use crate::completion::{Completion, CompletionQueue};
use crate::error::{Result, VerbsError};
use crate::memory::{Access, ProtectionDomain, RegionSlice, RegisteredBuffer};
use crate::srq::SharedReceiveQueue;
use crate::work::{
    MAX_PIECES, Operation, Payload, Piece, Pieces, RecvPostError, RecvTable, SendRequest, SendTable,
};
use crate::wr_id::{Kind, Life, WrId};

pub(super) struct QpShared {
    pub(super) backend: Arc<dyn backend::QueuePair>,
    pub(super) qp_num: u32,
    pub(super) caps: QpCaps,
    pub(super) life: Life,
    /// What the send and the receive queue counted when this was made.
    births: (u64, u64),
    /// Held from noting a request to posting it, so that the ring has the queue's order.
    send_order: Mutex<()>,
    sends: ManuallyDrop<Mutex<SendTable>>,
    recvs: ManuallyDrop<Mutex<RecvTable>>,
    pub(super) unknown: AtomicU64,
    /// Those that may be open.
    windows: Mutex<Vec<Weak<WindowShared>>>,
    has_srq: bool,
    pd: ProtectionDomain,
    send_cq: CompletionQueue,
    recv_cq: CompletionQueue,
    /// Alive, and its buffers with it, until this queue pair is gone.
    _srq: Option<SharedReceiveQueue>,
}

impl QpShared {
    pub(super) fn new(backend: Arc<dyn backend::QueuePair>, parts: &Parts<'_>) -> Self {
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
            births: (parts.send_cq.birth(), parts.recv_cq.birth()),
            send_order: Mutex::new(()),
            sends: ManuallyDrop::new(Mutex::new(SendTable::new(caps.send_wr))),
            recvs: ManuallyDrop::new(Mutex::new(RecvTable::new(caps.recv_wr))),
            unknown: AtomicU64::new(0),
            windows: Mutex::new(Vec::new()),
            has_srq: parts.srq.is_some(),
            pd: parts.pd.clone(),
            send_cq: parts.send_cq.clone(),
            recv_cq: parts.recv_cq.clone(),
            _srq: parts.srq.cloned(),
        }
    }

    pub(super) fn sends(&self) -> MutexGuard<'_, SendTable> {
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
    pub(super) fn post_chain<const N: usize>(
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

    pub(super) fn bind(
        &self,
        token: u32,
        slice: &RegionSlice,
        access: Access,
    ) -> Result<(MemoryWindow, Binding)> {
        const CALL: &str = "ibv_alloc_mw";
        let region = slice.region();
        let allowed = region.access();
        let writes = access.contains(Access::REMOTE_WRITE);
        let refused = if region.pd_serial() != self.pd.serial() {
            Some("memory of another protection domain")
        } else if slice.is_empty() {
            Some("a window of no bytes")
        } else if !writes && !access.contains(Access::REMOTE_READ) {
            Some("a window without remote rights")
        } else if !allowed.contains(Access::WINDOWS) {
            Some("a region without WINDOWS")
        } else if writes && !allowed.contains(Access::LOCAL_WRITE) {
            Some("a window to write in a region without LOCAL_WRITE")
        } else {
            None
        };
        if let Some(why) = refused {
            return Err(VerbsError::invalid(CALL, why));
        }
        let place = (slice.sge().addr, slice.len());
        let _order = self
            .send_order
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let backend = self
            .backend
            .window(region.backend(), place.0, place.1 as u64, access)?;
        let needs_request = backend.needs_request();
        if needs_request {
            let full = || VerbsError::from_errno("ibv_post_send", libc::ENOMEM);
            let mut pieces = Pieces::new();
            pieces.push(slice.clone().into());
            let noted = self.sends().push(pieces, true);
            let posted = noted.map_err(|_| full()).and_then(|slot| {
                let wr_id = self.wr_id(token, Kind::Send, slot);
                self.backend.post_bind(&*backend, wr_id).inspect_err(|_| {
                    self.sends().pop();
                })
            });
            if let Err(error) = posted {
                if let Err(error) = backend.withdraw() {
                    tracing::error!(%error, "a memory window is lost");
                }
                return Err(error);
            }
        }
        let window = MemoryWindow::new(backend, region, place, access);
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|window| window.strong_count() > 0);
        windows.push(Arc::downgrade(window.shared()));
        let binding = match needs_request {
            true => Binding::Posted,
            false => Binding::Done,
        };
        Ok((window, binding))
    }

    /// Withdraws the windows that are still open: none may be bound to a queue pair that is gone.
    fn close_windows(&mut self) {
        let windows = self
            .windows
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for window in windows.drain(..).filter_map(|window| window.upgrade()) {
            if let Err(error) = window.withdraw() {
                tracing::error!(%error, "a memory window could not be withdrawn");
            }
        }
    }

    #[allow(clippy::result_large_err)]
    pub(super) fn post_recv(
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

    pub(super) fn claim(&self, completion: &Completion) -> Option<Claim> {
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
            Kind::Send if is_from(completion, &self.send_cq, self.births.0) => {
                let success = completion.status().is_success();
                let (pieces, freed) = self.sends().claim(wr.slot, success)?;
                Some(Claim { pieces, freed })
            }
            Kind::Receive if is_from(completion, &self.recv_cq, self.births.1) => {
                let mut buffer = self.recvs().take(wr.slot)?;
                let filled = completion.filled(buffer.capacity());
                buffer.set_len(filled);
                let mut pieces = Pieces::new();
                pieces.push(Piece::Buffer(buffer));
                Some(Claim { pieces, freed: 1 })
            }
            _ => None,
        }
    }
}

impl Drop for QpShared {
    fn drop(&mut self) {
        self.close_windows();
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

/// Whether it was polled from `cq` after the queue pair was made.
fn is_from(completion: &Completion, cq: &CompletionQueue, births: u64) -> bool {
    completion.cq_serial() == cq.serial() && completion.births() >= births
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
