//! Work requests as the verbs driver wants them: built on the stack, linked, handed over.
//!
//! It does not know which queue takes them: the caller makes the call.

use std::ffi::c_int;
use std::mem::offset_of;

use arrayvec::ArrayVec;

use super::ffi::constants::*;
use super::ffi::types::*;
use crate::backend::{
    INLINE, MAX_CHAIN, MessageWr, PostFailure, PostResult, RecvWr, SEND_WITH_IMM, SendWr, Sge,
    WrData,
};
use crate::types::{RemoteMemory, SendFlags, Verb};

const POST_SEND: &str = "ibv_post_send";

/// The driver reads pieces where they are noted, and flags as they are.
const _: () = {
    assert!(size_of::<Sge>() == size_of::<ibv_sge>());
    assert!(align_of::<Sge>() == align_of::<ibv_sge>());
    assert!(offset_of!(Sge, addr) == offset_of!(ibv_sge, addr));
    assert!(offset_of!(Sge, length) == offset_of!(ibv_sge, length));
    assert!(offset_of!(Sge, lkey) == offset_of!(ibv_sge, lkey));
    assert!(SendFlags::FENCED.bits() == IBV_SEND_FENCE);
    assert!(SendFlags::SIGNALED.bits() == IBV_SEND_SIGNALED);
    assert!(SendFlags::SOLICITED.bits() == IBV_SEND_SOLICITED);
};

/// Posts one request by `post`.
#[inline]
pub(super) fn post_send(
    wr: &SendWr<'_>,
    post: impl FnOnce(*mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int,
) -> PostResult {
    let inline = inline_sge(wr.data);
    let mut built = send_wr(wr, &inline);
    let mut bad = std::ptr::null_mut();
    match post(&raw mut built, &raw mut bad) {
        0 => Ok(()),
        ret => Err(failure(POST_SEND, ret, &raw mut built, bad, 1)),
    }
}

const _: () = {
    assert!(size_of::<MessageWr>() == size_of::<ibv_send_wr>());
    assert!(align_of::<MessageWr>() == align_of::<ibv_send_wr>());
    assert!(offset_of!(MessageWr, wr_id) == offset_of!(ibv_send_wr, wr_id));
    assert!(offset_of!(MessageWr, next) == offset_of!(ibv_send_wr, next));
    assert!(offset_of!(MessageWr, pieces) == offset_of!(ibv_send_wr, sg_list));
    assert!(offset_of!(MessageWr, count) == offset_of!(ibv_send_wr, num_sge));
    assert!(offset_of!(MessageWr, opcode) == offset_of!(ibv_send_wr, opcode));
    assert!(offset_of!(MessageWr, flags) == offset_of!(ibv_send_wr, send_flags));
    assert!(offset_of!(MessageWr, imm) == offset_of!(ibv_send_wr, imm_data));
    assert!(offset_of!(MessageWr, rest) == offset_of!(ibv_send_wr, wr));
    assert!(SEND_WITH_IMM == IBV_WR_SEND_WITH_IMM && INLINE == IBV_SEND_INLINE);
};

/// Posts a chain of up to [`MAX_CHAIN`] by `post`.
pub(super) fn post_sends(
    wrs: &[SendWr<'_>],
    post: impl FnOnce(*mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int,
) -> PostResult {
    let inline: ArrayVec<Sge, MAX_CHAIN> = wrs
        .iter()
        .take(MAX_CHAIN)
        .map(|wr| inline_sge(wr.data))
        .collect();
    let mut chain: ArrayVec<ibv_send_wr, MAX_CHAIN> = wrs
        .iter()
        .zip(&inline)
        .map(|(wr, inline)| send_wr(wr, inline))
        .collect();
    let count = chain.len();
    let first = chain.as_mut_ptr();
    for n in 1..count {
        chain[n - 1].next = first.wrapping_add(n);
    }
    if count == 0 {
        return Ok(());
    }
    let first = chain.as_mut_ptr();
    let mut bad = std::ptr::null_mut();
    match post(first, &raw mut bad) {
        0 => Ok(()),
        ret => Err(failure(POST_SEND, ret, first, bad, count)),
    }
}

/// Posts the request that opens a window by `post`.
pub(super) fn post_bind(
    wr_id: u64,
    bind: ibv_send_wr_bind_mw,
    post: impl FnOnce(*mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int,
) -> PostResult {
    let mut built = ibv_send_wr {
        wr_id,
        opcode: IBV_WR_BIND_MW,
        send_flags: IBV_SEND_SIGNALED,
        bind_mw: bind,
        ..EMPTY
    };
    let mut bad = std::ptr::null_mut();
    match post(&raw mut built, &raw mut bad) {
        0 => Ok(()),
        ret => Err(failure(POST_SEND, ret, &raw mut built, bad, 1)),
    }
}

const _: () = {
    assert!(offset_of!(RecvWr, wr_id) == offset_of!(ibv_recv_wr, wr_id));
    assert!(offset_of!(RecvWr, next) == offset_of!(ibv_recv_wr, next));
    assert!(offset_of!(RecvWr, pieces) == offset_of!(ibv_recv_wr, sg_list));
    assert!(offset_of!(RecvWr, count) == offset_of!(ibv_recv_wr, num_sge));
    assert!(size_of::<RecvWr>() >= size_of::<ibv_recv_wr>());
    assert!(align_of::<RecvWr>() == align_of::<ibv_recv_wr>());
};

/// Links a chain of receives, and posts it by `post`.
#[inline]
pub(super) fn post_receives(
    call: &'static str,
    wrs: &mut [RecvWr],
    post: impl FnOnce(*mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int,
) -> PostResult {
    let mut first: *mut RecvWr = std::ptr::null_mut();
    for wr in wrs.iter_mut().rev() {
        wr.pieces = &raw mut wr.sge;
        wr.next = first;
        first = wr;
    }
    if first.is_null() {
        return Ok(());
    }
    let mut bad = std::ptr::null_mut();
    match post(first.cast(), &raw mut bad) {
        0 => Ok(()),
        ret => Err(failure(call, ret, first, bad.cast(), wrs.len())),
    }
}

/// Posts a chain by `post` that is linked already.
///
/// # Safety
/// As [`crate::backend::SharedReceiveQueue::post_linked`] asks.
#[inline]
pub(super) unsafe fn post_linked(
    call: &'static str,
    first: *mut RecvWr,
    count: usize,
    post: impl FnOnce(*mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int,
) -> PostResult {
    let mut bad = std::ptr::null_mut();
    match post(first.cast(), &raw mut bad) {
        0 => Ok(()),
        // SAFETY: as the caller promises.
        ret => Err(unsafe { linked_failure(call, ret, (first, count), bad.cast()) }),
    }
}

/// As [`failure`], of a chain whose links do not lie beside each other.
///
/// # Safety
/// As with [`post_linked`].
#[cold]
unsafe fn linked_failure(
    call: &'static str,
    ret: c_int,
    (first, count): (*mut RecvWr, usize),
    bad: *mut RecvWr,
) -> Box<PostFailure> {
    let mut next = first;
    for taken in 0..count {
        if next == bad {
            return PostFailure::refused(call, ret, taken);
        }
        // SAFETY: the chain has `count` of them.
        next = unsafe { (*next).next };
    }
    PostFailure::refused(call, ret, count)
}

/// The place of inline bytes; of no meaning for others.
#[inline]
fn inline_sge(data: WrData<'_>) -> Sge {
    match data {
        WrData::Inline(bytes) => Sge {
            addr: bytes.as_ptr() as u64,
            // No more than the inline size that was granted.
            length: bytes.len() as u32,
            lkey: 0,
        },
        WrData::Sges(_) => Sge::default(),
    }
}

/// A request without a successor. It points at the pieces of `wr`, or at `inline`.
#[inline]
fn send_wr(wr: &SendWr<'_>, inline: &Sge) -> ibv_send_wr {
    let (list, num_sge, inline_flag) = match wr.data {
        WrData::Inline(bytes) => (
            &raw const *inline,
            usize::from(!bytes.is_empty()),
            IBV_SEND_INLINE,
        ),
        WrData::Sges(pieces) => (pieces.as_ptr(), pieces.len(), 0),
    };
    const NOWHERE: RemoteMemory = RemoteMemory { addr: 0, rkey: 0 };
    let (opcode, imm_data, remote) = match wr.operation {
        Verb::Send => (IBV_WR_SEND, 0, NOWHERE),
        Verb::SendWithImm(imm) => (IBV_WR_SEND_WITH_IMM, imm.to_be(), NOWHERE),
        Verb::SendWithInvalidate(rkey) => (IBV_WR_SEND_WITH_INV, rkey, NOWHERE),
        Verb::Write(remote) => (IBV_WR_RDMA_WRITE, 0, remote),
        Verb::WriteWithImm(remote, imm) => (IBV_WR_RDMA_WRITE_WITH_IMM, imm.to_be(), remote),
        Verb::Read(remote) => (IBV_WR_RDMA_READ, 0, remote),
    };
    ibv_send_wr {
        wr_id: wr.wr_id,
        sg_list: list.cast_mut().cast(),
        num_sge: num_sge as c_int,
        opcode,
        send_flags: wr.flags.bits() | inline_flag,
        imm_data,
        wr: ibv_send_wr_rdma {
            remote_addr: remote.addr,
            rkey: remote.rkey,
            rest_of_union: [0; 2],
        },
        ..EMPTY
    }
}

const EMPTY: ibv_send_wr = ibv_send_wr {
    wr_id: 0,
    next: std::ptr::null_mut(),
    sg_list: std::ptr::null_mut(),
    num_sge: 0,
    opcode: 0,
    send_flags: 0,
    imm_data: 0,
    wr: ibv_send_wr_rdma {
        remote_addr: 0,
        rkey: 0,
        rest_of_union: [0; 2],
    },
    qp_type: 0,
    bind_mw: ibv_send_wr_bind_mw {
        mw: std::ptr::null_mut(),
        rkey: 0,
        bind_info: ibv_mw_bind_info {
            mr: std::ptr::null_mut(),
            addr: 0,
            length: 0,
            mw_access_flags: 0,
        },
    },
};

/// What a failed call has taken: what stands before `bad` in the chain of `count` from `first`. If
/// the driver points elsewhere, or nowhere, it may have all: rxe's does when the requests are in
/// the queue and only the doorbell failed.
#[cold]
fn failure<T>(
    call: &'static str,
    ret: c_int,
    first: *mut T,
    bad: *mut T,
    count: usize,
) -> Box<PostFailure> {
    let taken = (0..count)
        .find(|&n| first.wrapping_add(n) == bad)
        .unwrap_or(count);
    PostFailure::refused(call, ret, taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wr<'a>(operation: Verb, data: WrData<'a>) -> SendWr<'a> {
        SendWr {
            wr_id: 5,
            operation,
            data,
            flags: SendFlags::SIGNALED,
        }
    }

    #[test]
    fn immediate_data_goes_out_in_network_order_and_keys_do_not() {
        let inline = Sge::default();
        let imm = send_wr(
            &wr(Verb::SendWithImm(0x0102_0304), WrData::Inline(b"x")),
            &inline,
        );
        assert_eq!(imm.imm_data.to_ne_bytes(), [1, 2, 3, 4]);
        assert_eq!((imm.opcode, imm.send_flags, imm.num_sge), (3, 2 | 8, 1));
        let inv = send_wr(
            &wr(Verb::SendWithInvalidate(0x0102_0304), WrData::Sges(&[])),
            &inline,
        );
        assert_eq!(
            (inv.imm_data, inv.opcode, inv.send_flags, inv.num_sge),
            (0x0102_0304, 9, 2, 0)
        );
    }

    #[test]
    fn a_short_message_is_like_a_long_one() {
        for bytes in [&b"xyz"[..], b""] {
            let inline = inline_sge(WrData::Inline(bytes));
            let long = wr(Verb::SendWithImm(0x0102_0304), WrData::Inline(bytes));
            let long = send_wr(&long, &inline);
            let short = MessageWr::new(5, 0x0102_0304, &inline, SendFlags::SIGNALED);
            assert_eq!(
                (short.wr_id, short.opcode, short.flags, short.imm),
                (long.wr_id, long.opcode, long.send_flags, long.imm_data)
            );
            assert_eq!(short.count, long.num_sge);
            assert!(short.next.is_null());
            assert_eq!(short.pieces, long.sg_list.cast_const().cast());
        }
    }

    #[test]
    fn pieces_and_places_go_where_they_belong() {
        let inline = Sge::default();
        let pieces = [
            Sge {
                addr: 1,
                length: 2,
                lkey: 3,
            },
            Sge {
                addr: 4,
                length: 5,
                lkey: 6,
            },
        ];
        let remote = RemoteMemory { addr: 7, rkey: 8 };
        let read = send_wr(&wr(Verb::Read(remote), WrData::Sges(&pieces)), &inline);
        assert_eq!(
            (read.wr.remote_addr, read.wr.rkey, read.num_sge, read.opcode),
            (7, 8, 2, 4)
        );
        assert_eq!(read.sg_list.cast_const().cast(), pieces.as_ptr());
    }

    #[test]
    fn a_chain_is_linked_in_order_and_a_failure_says_where() {
        let recv = |n| {
            let sge = Sge {
                addr: n,
                length: 1,
                lkey: 2,
            };
            RecvWr::new(n, sge)
        };
        let mut wrs: Vec<RecvWr> = (0..3).map(recv).collect();
        let mut seen = Vec::new();
        let result = post_receives("x", &mut wrs, |first, bad| {
            let mut at = first;
            while !at.is_null() {
                // SAFETY: the chain is built and ends with NULL.
                let wr = unsafe { *at };
                // SAFETY: every link has one piece.
                let sge = unsafe { *wr.sg_list };
                seen.push((wr.wr_id, sge.addr));
                if wr.wr_id == 2 {
                    // SAFETY: the caller's pointer.
                    unsafe { *bad = at };
                }
                at = wr.next;
            }
            libc::ENOMEM
        });
        assert_eq!(seen, [(0, 0), (1, 1), (2, 2)]);
        let failure = result.unwrap_err();
        assert_eq!((failure.taken, failure.error.errno()), (2, libc::ENOMEM));
    }

    /// Its links lie where they may, and a failure says where all the same.
    #[test]
    fn a_chain_that_is_linked_already_is_posted_as_it_is() {
        let mut wrs: Vec<RecvWr> = (0..3).map(|n| RecvWr::new(n, Sge::default())).collect();
        wrs[2].next = &raw mut wrs[0];
        wrs[0].next = &raw mut wrs[1];
        let first = &raw mut wrs[2];
        let post = |bad_one: *mut RecvWr| {
            let fail = |given: *mut ibv_recv_wr, bad: *mut *mut ibv_recv_wr| {
                assert_eq!(given.cast(), first);
                // SAFETY: the caller's pointer.
                unsafe { *bad = bad_one.cast() };
                libc::ENOMEM
            };
            // SAFETY: the chain was linked above, and nobody else has it.
            let result = unsafe { post_linked("x", first, 3, fail) };
            let failure = result.unwrap_err();
            (failure.taken, failure.error.errno())
        };
        let bad = [first, &raw mut wrs[0], &raw mut wrs[1]];
        assert_eq!(bad.map(post), [0, 1, 2].map(|n| (n, libc::ENOMEM)));
        // Nobody knows what it has.
        assert_eq!(post(std::ptr::null_mut()).0, 3);
    }

    /// Nobody knows what such a driver has: the memory must not come back.
    #[test]
    fn a_failure_that_does_not_say_where_has_taken_all() {
        let send = |n| SendWr {
            wr_id: n,
            ..wr(Verb::Send, WrData::Inline(b"x"))
        };
        let sends: Vec<SendWr<'_>> = (0..3).map(send).collect();
        let mut recvs = [RecvWr::new(1, Sge::default()); 2];
        let nowhere = post_sends(&sends, |_, _| libc::EINVAL).unwrap_err();
        let elsewhere = post_sends(&sends, |first, bad| {
            // SAFETY: the caller's pointer.
            unsafe { *bad = first.wrapping_byte_add(1) };
            libc::EINVAL
        });
        assert_eq!((nowhere.taken, elsewhere.unwrap_err().taken), (3, 3));
        let one = post_send(&sends[0], |_, _| libc::EINVAL).unwrap_err();
        assert_eq!((one.taken, one.error.errno()), (1, libc::EINVAL));
        let received = post_receives("x", &mut recvs, |_, _| libc::EINVAL).unwrap_err();
        assert_eq!(received.taken, 2);
        let first = post_send(&sends[0], |first, bad| {
            // SAFETY: the caller's pointer.
            unsafe { *bad = first };
            libc::EINVAL
        });
        assert_eq!(first.unwrap_err().taken, 0);
    }
}
