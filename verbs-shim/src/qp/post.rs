//! Sending: a request is noted and handed to the device under one lock.

use arrayvec::ArrayVec;

use super::shared::QpShared;
use crate::backend::{MAX_CHAIN, PostFailure, SendWr, Sge, WrData};
use crate::error::{Result, VerbsError};
use crate::memory::RegisteredBuffer;
use crate::types::{Access, MAX_PIECES, SendFlags, Verb};
use crate::work::{BufferPostError, Payload, Piece, Pieces, PostError, SendRequest, SendTable};

const CALL: &str = "ibv_post_send";

impl QpShared {
    /// As [`QpShared::post_inline`], of the operation that is posted most: always where it is called,
    /// since a call more would cost a third of it.
    #[inline(always)]
    #[allow(unsafe_code)]
    pub(super) fn post_inline_imm(
        &mut self,
        token: u32,
        imm: u32,
        bytes: &[u8],
        flags: SendFlags,
    ) -> Result<()> {
        if bytes.len() > self.caps.inline as usize {
            return Err(self.refuse_inline(bytes.len()));
        }
        let sends = self.sends.get_mut();
        let Some(slot) = sends.push_inline(flags.contains(SendFlags::SIGNALED)) else {
            return Err(full());
        };
        let wr_id = self.send_id.wr_id(token, slot);
        // SAFETY: how many bytes there are was looked at, and only the end of `self` destroys it.
        match unsafe { self.backend.post_inline_imm(wr_id, imm, bytes, flags) } {
            Ok(()) => Ok(()),
            Err(failure) => Err(take_back_inline(sends, failure)),
        }
    }

    #[inline]
    pub(super) fn post_inline(
        &self,
        token: u32,
        operation: Verb,
        bytes: &[u8],
        flags: SendFlags,
    ) -> Result<()> {
        if bytes.len() > self.caps.inline as usize || operation.is_read() {
            return Err(self.refuse_inline(bytes.len()));
        }
        let mut sends = self.sends.lock();
        let Some(slot) = sends.push_inline(flags.contains(SendFlags::SIGNALED)) else {
            return Err(full());
        };
        let wr = SendWr {
            wr_id: self.send_id.wr_id(token, slot),
            operation,
            data: WrData::Inline(bytes),
            flags,
        };
        match self.backend.post_one_send(&wr) {
            Ok(()) => Ok(()),
            Err(failure) => Err(take_back(&mut sends, *failure).1),
        }
    }

    pub(super) fn post_buffer(
        &self,
        token: u32,
        operation: Verb,
        buffer: RegisteredBuffer,
        flags: SendFlags,
    ) -> std::result::Result<(), BufferPostError> {
        let region = buffer.region();
        if let Some(why) = self.misfit(operation, region.pd_serial(), region.access()) {
            return Err(BufferPostError {
                buffer: Some(buffer),
                error: VerbsError::invalid(CALL, why),
            });
        }
        let sge = buffer.sge();
        let mut sends = self.sends.lock();
        let slot = match sends.push_buffer(buffer, flags.contains(SendFlags::SIGNALED)) {
            Ok(slot) => slot,
            Err(buffer) => {
                return Err(BufferPostError {
                    buffer: Some(buffer),
                    error: full(),
                });
            }
        };
        let sges = [sge];
        let wr = SendWr {
            wr_id: self.send_id.wr_id(token, slot),
            operation,
            data: WrData::Sges(&sges),
            flags,
        };
        match self.backend.post_one_send(&wr) {
            Ok(()) => Ok(()),
            Err(failure) => {
                let (pieces, error) = take_back(&mut sends, *failure);
                let buffer = pieces.into_iter().find_map(Piece::into_buffer);
                Err(BufferPostError { buffer, error })
            }
        }
    }

    #[allow(clippy::result_large_err)] // the request travels back as it came, without allocation
    pub(super) fn post<'a>(
        &self,
        mut request: SendRequest<'a>,
    ) -> std::result::Result<(), PostError<'a>> {
        let (token, operation, flags) = (request.token, request.operation, request.flags());
        let posted = match &mut request.payload {
            Payload::Inline(bytes) => self.post_inline(token, operation, bytes, flags),
            Payload::Pieces(pieces) => self.post_pieces(token, operation, pieces, flags),
        };
        posted.map_err(|error| PostError { request, error })
    }

    /// Posts a request with the pieces, which are gone then.
    fn post_pieces(
        &self,
        token: u32,
        operation: Verb,
        pieces: &mut Pieces,
        flags: SendFlags,
    ) -> Result<()> {
        self.check_pieces(operation, pieces)?;
        let sges: ArrayVec<Sge, MAX_PIECES> = pieces.iter().map(Piece::sge).collect();
        let mut sends = self.sends.lock();
        let signaled = flags.contains(SendFlags::SIGNALED);
        let slot = sends.push_pieces(pieces, signaled).ok_or_else(full)?;
        let wr = SendWr {
            wr_id: self.send_id.wr_id(token, slot),
            operation,
            data: WrData::Sges(&sges),
            flags,
        };
        self.backend.post_one_send(&wr).map_err(|failure| {
            let error;
            (*pieces, error) = take_back(&mut sends, *failure);
            error
        })
    }

    /// Posts up to `MAX_CHAIN` requests from the front, and removes those that were posted. An
    /// error is about the first that remains.
    pub(super) fn post_chain<const N: usize>(
        &self,
        requests: &mut ArrayVec<SendRequest<'_>, N>,
    ) -> Result<()> {
        let mut sends = self.sends.lock();
        let mut sges = ArrayVec::<Sge, { MAX_CHAIN * MAX_PIECES }>::new();
        let mut noted = ArrayVec::<(u16, usize), MAX_CHAIN>::new();
        let mut refused = None;
        for request in requests.iter_mut().take(MAX_CHAIN) {
            let before = sges.len();
            match self.note(&mut sends, request, &mut sges) {
                Ok(slot) => noted.push((slot, sges.len() - before)),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        let mut wrs = ArrayVec::<SendWr<'_>, MAX_CHAIN>::new();
        let mut rest = &sges[..];
        for (&(slot, pieces), request) in noted.iter().zip(&*requests) {
            let own;
            (own, rest) = rest.split_at(pieces);
            wrs.push(SendWr {
                wr_id: self.send_id.wr_id(request.token, slot),
                operation: request.operation,
                data: match request.payload {
                    Payload::Inline(bytes) => WrData::Inline(bytes),
                    Payload::Pieces(_) => WrData::Sges(own),
                },
                flags: request.flags(),
            });
        }
        let posted = match wrs.is_empty() {
            true => Ok(()),
            false => self.backend.post_send(&wrs),
        };
        drop(wrs);
        let taken = match posted {
            Ok(()) => noted.len(),
            Err(failure) => {
                refused = Some(failure.error);
                failure.taken.min(noted.len())
            }
        };
        for request in requests[taken..noted.len()].iter_mut().rev() {
            let pieces = sends.pop();
            if let (Payload::Pieces(place), Some(pieces)) = (&mut request.payload, pieces) {
                *place = pieces;
            }
        }
        requests.drain(..taken);
        refused.map_or(Ok(()), Err)
    }

    /// Moves the request's pieces into the table, and says where they are.
    fn note<const N: usize>(
        &self,
        sends: &mut SendTable,
        request: &mut SendRequest<'_>,
        sges: &mut ArrayVec<Sge, N>,
    ) -> Result<u16> {
        let slot = match &mut request.payload {
            Payload::Inline(bytes) => {
                if bytes.len() > self.caps.inline as usize || request.operation.is_read() {
                    return Err(self.refuse_inline(bytes.len()));
                }
                sends.push_inline(request.signaled)
            }
            Payload::Pieces(pieces) => {
                self.check_pieces(request.operation, pieces)?;
                let before = sges.len();
                sges.extend(pieces.iter().map(Piece::sge));
                let slot = sends.push_pieces(pieces, request.signaled);
                if slot.is_none() {
                    sges.truncate(before);
                }
                slot
            }
        };
        slot.ok_or_else(full)
    }

    #[cold]
    fn refuse_inline(&self, len: usize) -> VerbsError {
        let max = self.caps.inline;
        match len > max as usize {
            true => VerbsError::invalid(CALL, format!("{len} inline bytes, at most {max}")),
            false => VerbsError::invalid(CALL, "an RDMA READ into inline bytes"),
        }
    }

    fn check_pieces(&self, operation: Verb, pieces: &Pieces) -> Result<()> {
        if pieces.len() > self.caps.sge as usize {
            let (len, max) = (pieces.len(), self.caps.sge);
            let why = format!("{len} pieces, at most {max}");
            return Err(VerbsError::invalid(CALL, why));
        }
        let misfit = |p: &Piece| self.misfit(operation, p.pd_serial(), p.access());
        match pieces.iter().find_map(misfit) {
            Some(why) => Err(VerbsError::invalid(CALL, why)),
            None => Ok(()),
        }
    }

    /// Why memory cannot be posted.
    fn misfit(&self, operation: Verb, pd: u64, access: Access) -> Option<&'static str> {
        if pd != self.pd.serial() {
            return Some("memory of another protection domain");
        }
        if operation.is_read() && !access.contains(Access::LOCAL_WRITE) {
            return Some("an RDMA READ into memory without LOCAL_WRITE");
        }
        None
    }
}

#[cold]
fn full() -> VerbsError {
    VerbsError::from_errno(CALL, libc::ENOMEM)
}

/// Of the newest request, which failed, and has no memory.
#[cold]
#[inline(never)]
#[allow(clippy::boxed_local)] // as it comes
fn take_back_inline(sends: &mut SendTable, failure: Box<PostFailure>) -> VerbsError {
    take_back(sends, *failure).1
}

/// Of the newest request, which failed: its memory, unless the device may have it.
#[cold]
fn take_back(sends: &mut SendTable, failure: PostFailure) -> (Pieces, VerbsError) {
    let pieces = match failure.taken {
        0 => sends.pop().unwrap_or_default(),
        _ => Pieces::new(),
    };
    (pieces, failure.error)
}
