//! Send requests: what to do, with which bytes, and how to be told of the end.

use arrayvec::ArrayVec;

use crate::backend::Sge;
use crate::error::VerbsError;
use crate::memory::{RegionSlice, RegisteredBuffer};
use crate::types::{Access, MAX_PIECES, SendFlags, Verb};

/// Up to [`MAX_PIECES`] pieces, in the order of their bytes.
pub type Pieces = ArrayVec<Piece, MAX_PIECES>;

/// A piece of local memory. It belongs to the shim from post to claim.
#[derive(Debug)]
pub enum Piece {
    /// A buffer, for its length (its content).
    Buffer(RegisteredBuffer),
    /// Part of a region.
    Region(RegionSlice),
}

impl Piece {
    /// The buffer, if it is one.
    #[must_use]
    pub fn into_buffer(self) -> Option<RegisteredBuffer> {
        match self {
            Self::Buffer(buffer) => Some(buffer),
            Self::Region(_) => None,
        }
    }

    pub(crate) fn sge(&self) -> Sge {
        match self {
            Self::Buffer(buffer) => buffer.sge(),
            Self::Region(slice) => slice.sge(),
        }
    }

    pub(crate) fn pd_serial(&self) -> u64 {
        match self {
            Self::Buffer(buffer) => buffer.region().pd_serial(),
            Self::Region(slice) => slice.region().pd_serial(),
        }
    }

    pub(crate) fn access(&self) -> Access {
        match self {
            Self::Buffer(buffer) => buffer.region().access(),
            Self::Region(slice) => slice.region().access(),
        }
    }
}

impl From<RegisteredBuffer> for Piece {
    fn from(buffer: RegisteredBuffer) -> Self {
        Self::Buffer(buffer)
    }
}

impl From<RegionSlice> for Piece {
    fn from(slice: RegionSlice) -> Self {
        Self::Region(slice)
    }
}

/// The local bytes of a send request.
#[derive(Debug)]
pub enum Payload<'a> {
    /// Copied into the request while it is posted; up to the inline size that the queue pair was
    /// granted. Also the way to send no bytes at all.
    Inline(&'a [u8]),
    /// Registered memory, moved into the shim until the completion is claimed.
    Pieces(Pieces),
}

/// A request for a send queue.
#[derive(Debug)]
pub struct SendRequest<'a> {
    /// Comes back in the completion.
    pub token: u32,
    /// What to do.
    pub operation: Verb,
    /// With which local bytes.
    pub payload: Payload<'a>,
    /// Whether success makes a completion too; failure always does. What was posted without is
    /// taken as done when a later signaled request completes, so every queue's worth of requests
    /// needs one that is signaled.
    pub signaled: bool,
    /// Wakes a peer that asked for solicited completions only.
    pub solicited: bool,
    /// Waits for earlier RDMA READs.
    pub fence: bool,
}

impl<'a> SendRequest<'a> {
    /// A signaled request with bytes that are copied while posting.
    #[must_use]
    pub fn inline(token: u32, operation: Verb, bytes: &'a [u8]) -> Self {
        Self::with_payload(token, operation, Payload::Inline(bytes))
    }

    /// A signaled request with one piece of registered memory.
    #[must_use]
    pub fn piece(token: u32, operation: Verb, piece: impl Into<Piece>) -> Self {
        let mut pieces = Pieces::new();
        pieces.push(piece.into());
        Self::with_payload(token, operation, Payload::Pieces(pieces))
    }

    /// A signaled request with any payload.
    #[must_use]
    pub fn with_payload(token: u32, operation: Verb, payload: Payload<'a>) -> Self {
        Self {
            token,
            operation,
            payload,
            signaled: true,
            solicited: false,
            fence: false,
        }
    }

    pub(crate) fn flags(&self) -> SendFlags {
        SendFlags::SIGNALED.only_if(self.signaled)
            | SendFlags::SOLICITED.only_if(self.solicited)
            | SendFlags::FENCED.only_if(self.fence)
    }

    /// The same, without a completion if it succeeds.
    #[must_use]
    pub fn unsignaled(mut self) -> Self {
        self.signaled = false;
        self
    }

    /// The same, solicited.
    #[must_use]
    pub fn solicited(mut self) -> Self {
        self.solicited = true;
        self
    }

    /// The same, fenced.
    #[must_use]
    pub fn fenced(mut self) -> Self {
        self.fence = true;
        self
    }
}

/// A send request that was not posted. `ENOMEM`: the queue is full.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct PostError<'a> {
    /// The request, with its buffers. Without, if the device may have taken it all the same: they
    /// are freed with the queue then.
    pub request: SendRequest<'a>,
    /// Why it was not posted.
    pub error: VerbsError,
}

/// A buffer that was not posted. `ENOMEM`: the queue is full.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct BufferPostError {
    /// The buffer. `None`: the device may have taken it all the same; it is freed with the queue.
    pub buffer: Option<RegisteredBuffer>,
    /// Why it was not posted.
    pub error: VerbsError,
}
