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
//! # use verbs_shim::{PreparedQp, SendRequest, Verb};
//! fn too_early(qp: &PreparedQp) {
//!     let _ = qp.post(SendRequest::inline(0, Verb::Send, b"hello"));
//! }
//! ```
//!
//! ```
//! # use verbs_shim::{PreparedQp, QueuePair, SendRequest, Verb};
//! fn in_time(qp: PreparedQp) -> QueuePair {
//!     let qp = qp.established();
//!     let _ = qp.post(SendRequest::inline(0, Verb::Send, b"hello"));
//!     qp
//! }
//! ```
//!
//! A posted buffer is gone, so it cannot be touched while the device owns it:
//!
//! ```compile_fail,E0382
//! # use verbs_shim::{QueuePair, RegisteredBuffer, SendRequest, Verb};
//! fn reuse(qp: &QueuePair, mut buffer: RegisteredBuffer) {
//!     let _ = qp.post(SendRequest::piece(0, Verb::Send, buffer));
//!     buffer.fill(b"too early");
//! }
//! ```
//!
//! A completion gives its buffers back once; there is no second one like it:
//!
//! ```compile_fail,E0277
//! fn copies<T: Clone>() {}
//! copies::<verbs_shim::Completion>();
//! ```

mod bind;
mod post;
mod shared;
#[cfg(test)]
mod tests;
mod window;

use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;

use self::shared::QpShared;
pub use self::window::{Binding, MemoryWindow};
use crate::backend;
use crate::completion::CompletionQueue;
use crate::error::{Result, VerbsError};
use crate::memory::{ProtectionDomain, RegionSlice, RegisteredBuffer};
use crate::srq::SharedReceiveQueue;
use crate::types::{Access, Completion, MAX_PIECES, MAX_SLOTS, QpCaps, SendFlags, Verb};
use crate::work::{BufferPostError, Piece, Pieces, PostError, SendRequest};

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
    /// For how many requests more its queue has room now: a send that succeeded frees the
    /// unsignaled ones before it, too.
    pub freed: u32,
}

impl Claim {
    /// The first buffer among the pieces: that of a receive, or of a send of one buffer.
    #[must_use]
    pub fn into_buffer(self) -> Option<RegisteredBuffer> {
        self.pieces.into_iter().find_map(Piece::into_buffer)
    }
}

impl PreparedQp {
    pub(crate) fn new(backend: Box<dyn backend::QueuePair>, parts: &Parts<'_>) -> Self {
        Self {
            shared: QpShared::new(backend, parts),
        }
    }

    /// The same queue pair, allowed to send. To be called when [`Event::Established`](crate::Event) came
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
            pub fn post_recv(
                &self,
                token: u32,
                buffer: RegisteredBuffer,
            ) -> std::result::Result<(), BufferPostError> {
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

            /// The same for a send whose memory is not wanted back: it is freed, and the answer is
            /// [`Claim::freed`]. Whoever has the queue pair for himself needs no lock.
            #[inline]
            pub fn complete_send(&mut self, completion: &Completion) -> Option<u32> {
                self.shared.complete_send(completion)
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
        self.shared.post(request)
    }

    /// Posts a request with bytes that are copied while posting, the shortest way.
    ///
    /// # Errors
    /// As [`QueuePair::post`].
    #[inline]
    pub fn post_inline(
        &self,
        token: u32,
        operation: Verb,
        bytes: &[u8],
        flags: SendFlags,
    ) -> Result<()> {
        self.shared.post_inline(token, operation, bytes, flags)
    }

    /// Posts a message with immediate data, of bytes that are copied while posting: the shortest way
    /// of all. Whoever has the queue pair for himself needs no lock.
    ///
    /// # Errors
    /// As [`QueuePair::post`].
    #[inline]
    pub fn post_inline_imm(
        &mut self,
        token: u32,
        imm: u32,
        bytes: &[u8],
        flags: SendFlags,
    ) -> Result<()> {
        self.shared.post_inline_imm(token, imm, bytes, flags)
    }

    /// Posts a request with one buffer, the shortest way.
    ///
    /// # Errors
    /// Gives the buffer back. As [`QueuePair::post`].
    #[inline]
    pub fn post_buffer(
        &self,
        token: u32,
        operation: Verb,
        buffer: RegisteredBuffer,
        flags: SendFlags,
    ) -> std::result::Result<(), BufferPostError> {
        self.shared.post_buffer(token, operation, buffer, flags)
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

    /// Opens a part of a region to this queue pair's peer, and to nobody else, under a key of its
    /// own. The region has to be registered with [`Access::WINDOWS`], and with
    /// [`Access::LOCAL_WRITE`] if the peer is to write.
    ///
    /// Some devices (rxe among them) check the bounds of the region only, not those of the window:
    /// what the peer must not reach should not be in the region.
    ///
    /// # Errors
    /// `EINVAL`: rights that the region does not allow, none at all, or a region of another
    /// protection domain. `ENOMEM`: the send queue is full, or the device has no more windows.
    /// `EOPNOTSUPP`: it has none of type 2.
    pub fn bind(
        &self,
        token: u32,
        slice: &RegionSlice,
        access: Access,
    ) -> Result<(MemoryWindow, Binding)> {
        self.shared.bind(token, slice, access)
    }

    /// How many requests can be posted now. Slots come back when completions are claimed.
    #[must_use]
    pub fn send_room(&self) -> u32 {
        self.shared.sends.lock().room()
    }
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
