//! The request that is posted most: a message of inline bytes with immediate data. It is built where it is
//! posted, and goes straight to the driver, where the backend has one.

use std::ffi::{c_int, c_uint, c_void};
use std::mem::MaybeUninit;
use std::ops::Deref;

use super::{PostFailure, PostResult, QueuePair, SendWr, Sge, WrData};
use crate::error::{VerbsError, check_ibv};
use crate::types::{SendFlags, Verb};

/// `IBV_WR_SEND_WITH_IMM`.
pub(crate) const SEND_WITH_IMM: c_uint = 3;
/// `IBV_SEND_INLINE`.
pub(crate) const INLINE: c_uint = 8;

const CALL: &str = "ibv_post_send";

/// An `ibv_send_wr` with what a message has. The rest of it is left out: a driver looks at what the
/// opcode has, and to write the other half would cost as much again.
#[repr(C)]
pub(crate) struct MessageWr {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut MessageWr,
    pub(crate) pieces: *const Sge,
    pub(crate) count: c_int,
    pub(crate) opcode: c_uint,
    pub(crate) flags: c_uint,
    /// In network order.
    pub(crate) imm: u32,
    pub(crate) rest: MaybeUninit<[u64; 11]>,
}

impl MessageWr {
    /// One of the bytes that `piece` names.
    #[inline(always)]
    pub(crate) fn new(wr_id: u64, imm: u32, piece: &Sge, flags: SendFlags) -> Self {
        Self {
            wr_id,
            next: std::ptr::null_mut(),
            pieces: piece,
            count: c_int::from(piece.length > 0),
            opcode: SEND_WITH_IMM,
            flags: flags.bits() | INLINE,
            imm: imm.to_be(),
            rest: MaybeUninit::uninit(),
        }
    }
}

/// Posts a request: 0, or an error as `ibv_post_send` returns it, and then in `bad` which one was not taken.
pub(crate) type PostMessage =
    unsafe extern "C" fn(qp: *mut c_void, wr: *mut MessageWr, bad: *mut *mut MessageWr) -> c_int;

/// A function that posts, and for which queue pair.
#[derive(Clone, Copy)]
pub(crate) struct RawSender {
    post: PostMessage,
    qp: *mut c_void,
}

impl RawSender {
    /// # Safety
    /// This holds while the [`QueuePair`] that gives this out lives and was not destroyed: any thread may call
    /// `post` with `qp` and a message. The message has no more inline bytes than were granted. `post` keeps no
    /// pointer to it.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn new(post: PostMessage, qp: *mut c_void) -> Self {
        Self { post, qp }
    }
}

/// A queue pair of a backend. Messages go to its driver by a call to where they are taken: so much of what a
/// message costs here is one call that a table of functions in between would be felt.
pub(crate) struct Sender {
    raw: Option<RawSender>,
    qp: Box<dyn QueuePair>,
}

// SAFETY: the contract of RawSender::new allows any thread, several at once too, and the queue pair may be
// held and dropped by any.
#[allow(unsafe_code)]
unsafe impl Send for Sender {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Sender {}

impl Sender {
    pub(crate) fn new(qp: Box<dyn QueuePair>) -> Self {
        Self {
            raw: qp.raw_sender(),
            qp,
        }
    }

    /// Posts a message of inline bytes with immediate data in host order.
    ///
    /// # Safety
    /// There are no more bytes than were granted, and the queue pair was not destroyed.
    #[inline(always)]
    #[allow(unsafe_code)]
    pub(crate) unsafe fn post_inline_imm(
        &self,
        wr_id: u64,
        imm: u32,
        bytes: &[u8],
        flags: SendFlags,
    ) -> PostResult {
        let Some(RawSender { post, qp }) = self.raw else {
            return self.qp.post_one_send(&SendWr {
                wr_id,
                operation: Verb::SendWithImm(imm),
                data: WrData::Inline(bytes),
                flags,
            });
        };
        let piece = Sge {
            addr: bytes.as_ptr() as u64,
            // No more than the inline size that was granted.
            length: bytes.len() as u32,
            lkey: 0,
        };
        let mut built = MessageWr::new(wr_id, imm, &piece, flags);
        let mut bad = std::ptr::null_mut();
        // SAFETY: the queue pair that gave it out is held and lives, as the caller says; the request and what
        // it points at outlive the call, and have no more bytes than were granted.
        match unsafe { post(qp, &raw mut built, &raw mut bad) } {
            0 => Ok(()),
            ret => Err(not_posted(ret, bad == &raw mut built)),
        }
    }
}

impl Deref for Sender {
    type Target = dyn QueuePair;

    fn deref(&self) -> &Self::Target {
        &*self.qp
    }
}

/// If the driver points elsewhere than at the request it may have it: rxe's does when the request is in the
/// queue and only the doorbell failed.
#[cold]
#[inline(never)]
fn not_posted(ret: c_int, is_refused: bool) -> Box<PostFailure> {
    PostFailure::refused(CALL, ret, usize::from(!is_refused))
}

impl PostFailure {
    /// `ret` is what a call of libibverbs said that has taken so many.
    #[cold]
    pub(crate) fn refused(call: &'static str, ret: c_int, taken: usize) -> Box<Self> {
        // It is not called for success.
        let error = check_ibv(call, ret).err();
        Self::new(
            taken,
            error.unwrap_or_else(|| VerbsError::from_errno(call, libc::EIO)),
        )
    }
}
