use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;

use super::*;
use crate::memory::BufferPool;
use crate::testing::{Bench, bench};
use crate::types::{Access, Verb, WcStatus};
use crate::work::{Payload, ReadInPlace};

const LOC: Access = Access::LOCAL_WRITE;

fn pool(bench: &Bench) -> BufferPool {
    BufferPool::new(&bench.pd, 16, 8, LOC).unwrap()
}

fn chain<'a>(pool: &BufferPool, count: u32) -> ArrayVec<SendRequest<'a>, 8> {
    let buffer = |n: u32| {
        let mut buffer = pool.take().unwrap();
        buffer.fill(&[n as u8]);
        SendRequest::piece(n, Verb::Send, buffer)
    };
    (0..count).map(buffer).collect()
}

#[test]
fn a_chain_that_fails_half_way_gives_the_rest_back() {
    let bench = bench();
    let pool = pool(&bench);
    let qp = bench.qp(5, None).established();
    let mut requests = chain(&pool, 4);
    *bench.notes.fail_post_after.lock().unwrap() = Some(1);
    let error = qp.post_batch(&mut requests).unwrap_err();
    assert_eq!(error.errno(), libc::ENOMEM);
    assert_eq!((requests.len(), qp.send_room()), (3, 3));
    for (n, request) in requests.iter().enumerate() {
        let Payload::Pieces(pieces) = &request.payload else {
            panic!("{request:?}")
        };
        let Piece::Buffer(buffer) = &pieces[0] else {
            panic!("{pieces:?}")
        };
        assert_eq!((request.token, buffer[0]), (n as u32 + 1, n as u8 + 1));
    }
    *bench.notes.fail_post_after.lock().unwrap() = None;
    qp.post_batch(&mut requests).unwrap();
    assert_eq!((requests.len(), qp.send_room()), (0, 0));
    let order: Vec<u32> = bench
        .notes
        .posted
        .lock()
        .unwrap()
        .iter()
        .map(|&id| (id >> 32) as u32)
        .collect();
    assert_eq!(order, [0, 1, 2, 3]);
}

#[test]
fn a_bad_request_in_a_chain_stops_it_there() {
    let bench = bench();
    let pool = pool(&bench);
    let qp = bench.qp(5, None).established();
    let mut requests = chain(&pool, 2);
    requests.push(SendRequest::inline(2, Verb::Send, b"nine byte"));
    requests.push(SendRequest::inline(3, Verb::Send, b"x"));
    assert_eq!(
        qp.post_batch(&mut requests).unwrap_err().errno(),
        libc::EINVAL
    );
    assert_eq!(
        (requests.len(), requests[0].token, qp.send_room()),
        (2, 2, 2)
    );
    assert_eq!(bench.notes.posted.lock().unwrap().len(), 2);
}

#[test]
fn a_receive_that_is_refused_comes_back() {
    let bench = bench();
    let pool = pool(&bench);
    let qp = bench.qp(5, None);
    *bench.notes.fail_post_after.lock().unwrap() = Some(0);
    let back = qp.post_recv(1, pool.take().unwrap()).unwrap_err();
    assert_eq!(back.error.errno(), libc::ENOMEM);
    drop(back);
    assert_eq!(pool.free(), 8);
}

#[test]
fn buffers_of_a_queue_pair_that_cannot_be_destroyed_are_lost() {
    let bench = bench();
    let pool = pool(&bench);
    let qp = bench.qp(5, None).established();
    qp.post_recv(1, pool.take().unwrap()).unwrap();
    qp.post(chain(&pool, 1).remove(0)).unwrap();
    bench.notes.refuse_destroy.store(true, Ordering::SeqCst);
    drop(qp);
    assert_eq!(pool.free(), 6);
    bench.notes.refuse_destroy.store(false, Ordering::SeqCst);
    drop(pool);
    // The region is still registered: the device may write there.
    assert_eq!(bench.notes.registered.load(Ordering::SeqCst), 1);
}

#[test]
fn unclaimed_buffers_are_freed_with_the_queue_pair() {
    let bench = bench();
    let pool = pool(&bench);
    let qp = bench.qp(5, None).established();
    qp.post_recv(1, pool.take().unwrap()).unwrap();
    qp.post(chain(&pool, 1).remove(0)).unwrap();
    assert_eq!(pool.free(), 6);
    drop(qp);
    assert_eq!(pool.free(), 8);
}

/// A completion of a queue pair that is gone frees nothing of one that got its number.
#[test]
fn a_number_that_comes_back_is_another_generation() {
    let bench = bench();
    let pool = pool(&bench);
    let first = bench.qp(5, None).established();
    first.post(chain(&pool, 1).remove(0)).unwrap();
    drop(first);
    let second = bench.qp(5, None).established();
    second.post(chain(&pool, 1).remove(0)).unwrap();
    bench.notes.complete(0, 5, 0);
    bench.notes.complete(1, 5, 0);
    let batch = bench.poll();
    let [stale, fresh] = batch.iter().collect::<Vec<_>>()[..] else {
        panic!("{batch:?}")
    };
    assert!(second.claim(stale).is_none());
    assert!(second.claim(fresh).is_some());
    assert_eq!(second.unknown_claims(), 1);
}

/// Generations wrap after 16,384 queue pairs; one that left work behind is skipped over.
#[test]
fn a_generation_that_left_work_behind_is_not_given_again() {
    let bench = bench();
    let pool = pool(&bench);
    let first = bench.qp(5, None).established();
    let generation = first.shared.generation;
    first.post(chain(&pool, 1).remove(0)).unwrap();
    drop(first);
    // Twice the generations there are, since other tests draw from the same counter.
    for _ in 0..2 << 14 {
        assert_ne!(bench.qp(5, None).shared.generation, generation);
    }
    // Under another number there is nothing to mix up.
    assert!((0..2 << 14).any(|_| bench.qp(6, None).shared.generation == generation));
}

/// A completion that was polled and kept while its queue pair went and another came.
#[test]
fn a_completion_from_before_is_not_taken() {
    let bench = bench();
    let pool = pool(&bench);
    let first = bench.qp(5, None).established();
    first.post(chain(&pool, 1).remove(0)).unwrap();
    bench.notes.complete(0, 5, 0);
    let kept = bench.poll();
    let first_id = first.shared.send_id;
    drop(first);
    let mut second = bench.qp(5, None).established();
    // As after 16,384 others.
    second.shared.send_id = first_id;
    second.post(chain(&pool, 1).remove(0)).unwrap();
    assert!(second.claim(kept.iter().next().unwrap()).is_none());
    bench.notes.complete(1, 5, 0);
    let fresh = bench.poll();
    assert!(second.claim(fresh.iter().next().unwrap()).is_some());
}

#[test]
fn a_receive_has_the_length_of_its_message() {
    let bench = bench();
    let pool = pool(&bench);
    let qp = bench.qp(5, None);
    qp.post_recv(70, pool.take().unwrap()).unwrap();
    qp.post_recv(71, pool.take().unwrap()).unwrap();
    bench.notes.complete(1, 5, 0);
    bench.notes.complete(0, 5, 5);
    let batch = bench.poll();
    let lengths: Vec<(u32, WcStatus, usize)> = batch
        .iter()
        .map(|c| {
            let buffer = qp.claim(c).unwrap().into_buffer().unwrap();
            (c.token(), c.status(), buffer.len())
        })
        .collect();
    assert_eq!(
        lengths,
        [(71, WcStatus::Success, 3), (70, WcStatus::WrFlushed, 0)]
    );
}

/// A device that says more came than fits is not believed.
#[test]
fn a_length_past_the_buffer_is_cut() {
    let bench = bench();
    let small = BufferPool::new(&bench.pd, 2, 1, LOC).unwrap();
    let qp = bench.qp(5, None);
    qp.post_recv(1, small.take().unwrap()).unwrap();
    bench.notes.complete(0, 5, 0);
    let batch = bench.poll();
    let buffer = qp
        .claim(batch.iter().next().unwrap())
        .unwrap()
        .into_buffer()
        .unwrap();
    assert_eq!(buffer.len(), 2);
}

#[test]
fn completions_of_nothing_are_refused() {
    let bench = bench();
    let qp = bench.qp(5, None);
    for wr_id in [0, u64::MAX, 3 << 30, 1 << 30 | 0xffff] {
        bench.notes.posted.lock().unwrap().push(wr_id);
    }
    (0..4).for_each(|n| bench.notes.complete(n, 5, 99));
    let batch = bench.poll();
    assert_eq!(batch.len(), 4);
    for completion in &batch {
        assert_eq!(completion.status(), WcStatus::Unknown(99));
        assert!(qp.claim(completion).is_none());
    }
    assert_eq!(qp.unknown_claims(), 4);
}

#[test]
fn shared_queues_do_not_take_each_others_buffers() {
    let bench = bench();
    let pool = pool(&bench);
    let (one, two) = (
        bench.pd.create_srq(4).unwrap(),
        bench.pd.create_srq(4).unwrap(),
    );
    one.post(1, pool.take().unwrap()).unwrap();
    two.post(2, pool.take().unwrap()).unwrap();
    let qp = bench.qp(5, Some(&one));
    bench.notes.complete(0, 5, 0);
    let batch = bench.poll();
    let completion = batch.iter().next().unwrap();
    assert!(completion.is_shared_recv());
    assert!(two.claim(completion).is_none());
    assert!(qp.claim(completion).is_none());
    assert!(one.claim(completion).is_some());
    assert!(one.claim(completion).is_none());
}

#[test]
fn a_shared_chain_that_fails_half_way_gives_the_rest_back_in_order() {
    let bench = bench();
    let pool = pool(&bench);
    let srq = bench.pd.create_srq(4).unwrap();
    let mut buffers: ArrayVec<RegisteredBuffer, 4> = ArrayVec::new();
    for n in 0..4 {
        let mut buffer = pool.take().unwrap();
        buffer.fill(&[n]);
        buffers.push(buffer);
    }
    *bench.notes.fail_post_after.lock().unwrap() = Some(2);
    assert!(srq.post_batch(1, &mut buffers).is_err());
    assert_eq!(buffers.iter().map(|b| b[0]).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(srq.room(), 2);
    bench.notes.refuse_destroy.store(true, Ordering::SeqCst);
    drop((srq, buffers));
    assert_eq!(
        pool.free(),
        6,
        "posted buffers of a queue that stays are lost"
    );
}

#[test]
fn receives_from_a_source_stop_where_it_ends_or_the_device_refuses() {
    let bench = bench();
    let pool = pool(&bench);
    let srq = bench.pd.create_srq(4).unwrap();
    let mut posted = 9;
    // It gives one, and no more.
    let mut one = pool.take();
    srq.post_from(1, 3, || one.take(), || None, &mut posted)
        .unwrap();
    assert_eq!((posted, srq.room()), (1, 3));
    // The device takes one of three: the others are free again.
    *bench.notes.fail_post_after.lock().unwrap() = Some(1);
    assert!(
        srq.post_from(1, 3, || None, || pool.take(), &mut posted)
            .is_err()
    );
    assert_eq!((posted, srq.room(), pool.free()), (1, 2, 6));
    *bench.notes.fail_post_after.lock().unwrap() = None;
    // More than fit.
    let full = srq.post_from(1, 3, || None, || pool.take(), &mut posted);
    assert_eq!(full.unwrap_err().errno(), libc::ENOMEM);
    assert_eq!((posted, srq.room(), pool.free()), (2, 0, 4));
    // It refuses, and does not say what it has taken: all of it, perhaps.
    let strange = bench.pd.create_srq(4).unwrap();
    *bench.notes.fail_post_after.lock().unwrap() = Some(0);
    bench.notes.fail_strangely.store(true, Ordering::SeqCst);
    assert!(
        strange
            .post_from(1, 2, || pool.take(), || None, &mut posted)
            .is_err()
    );
    assert_eq!((posted, strange.room(), pool.free()), (2, 2, 2));
    // A buffer that cannot be received into.
    let constant = BufferPool::new(&bench.pd, 16, 8, Access::READ_ONLY).unwrap();
    let other = bench.pd.create_srq(4).unwrap();
    let wrong = other.post_from(1, 1, || constant.take(), || None, &mut posted);
    assert_eq!(wrong.unwrap_err().errno(), libc::EINVAL);
    assert_eq!((posted, other.room(), constant.free()), (0, 4, 8));
}

/// Sees messages, and takes them or not.
struct Lengths {
    seen: Vec<usize>,
    wanted: bool,
}

impl ReadInPlace for Lengths {
    fn read(&mut self, bytes: &[u8]) -> bool {
        self.seen.push(bytes.len());
        self.wanted
    }
}

#[test]
fn what_was_read_in_its_place_is_posted_before_what_is_spare() {
    let bench = bench();
    let pool = pool(&bench);
    let srq = bench.pd.create_srq(4).unwrap();
    let mut posted = 0;
    srq.post_from(1, 3, || None, || pool.take(), &mut posted)
        .unwrap();
    let _qp = bench.qp(1, Some(&srq));
    (0..3).for_each(|n| bench.notes.complete(n, 1, 0));
    let batch = bench.poll();
    let mut came = batch.iter();
    // The first is read, the second is not wanted, the third is.
    let mut lengths = Lengths {
        seen: Vec::new(),
        wanted: true,
    };
    let first = came.next().unwrap();
    let read = srq.read(first, &mut lengths);
    assert_eq!(read, Some(3));
    assert!(srq.read(first, &mut lengths).is_none(), "it is claimed");
    assert!(srq.claim(first).is_none());
    lengths.wanted = false;
    let second = came.next().unwrap();
    assert_eq!(srq.read(second, &mut lengths), None);
    let second = srq.claim(second).unwrap();
    lengths.wanted = true;
    let read = srq.read(came.next().unwrap(), &mut lengths);
    assert_eq!(read, Some(3));
    assert_eq!(lengths.seen, [3, 3, 3]);
    assert_eq!((second.len(), srq.room(), pool.free()), (3, 4, 5));
    assert_eq!(srq.unknown_claims(), 1);
    // One's own buffers first, then the spent ones, then others.
    let mut own = Some(second);
    srq.post_from(1, 4, || own.take(), || pool.take(), &mut posted)
        .unwrap();
    assert_eq!((posted, srq.room(), pool.free()), (4, 0, 4));
    let numbers = bench.notes.posted.lock().unwrap()[3..].to_vec();
    let slots: Vec<u16> = numbers.iter().map(|&number| number as u16).collect();
    assert_eq!(slots, [1, 2, 0, 3]);
    drop((batch, srq, _qp));
    assert_eq!(pool.free(), 8);
}

#[test]
fn what_was_read_in_its_place_and_is_not_posted_again_is_free() {
    let bench = bench();
    let pool = pool(&bench);
    let srq = bench.pd.create_srq(4).unwrap();
    let mut posted = 0;
    srq.post_from(1, 4, || None, || pool.take(), &mut posted)
        .unwrap();
    let _qp = bench.qp(1, Some(&srq));
    (0..4).for_each(|n| bench.notes.complete(n, 1, 0));
    let batch = bench.poll();
    let mut lengths = Lengths {
        seen: Vec::new(),
        wanted: true,
    };
    for completion in &batch {
        assert_eq!(srq.read(completion, &mut lengths), Some(3));
    }
    assert_eq!((srq.room(), pool.free()), (4, 4));
    assert_eq!(srq.post_spent(7, 2).unwrap(), 2);
    *bench.notes.fail_post_after.lock().unwrap() = Some(1);
    let (taken, _) = srq.post_spent(7, 5).unwrap_err();
    assert_eq!((taken, srq.room(), pool.free()), (1, 1, 5));
    // In each chain the one that was spent last is the last.
    let numbers = bench.notes.posted.lock().unwrap()[4..].to_vec();
    let parts: Vec<_> = numbers.iter().map(|n| (n >> 32, *n as u16)).collect();
    assert_eq!(parts, [(7, 2), (7, 3), (7, 0)]);
    assert_eq!(srq.post_spent(7, 5).unwrap(), 0);
    drop((batch, srq, _qp));
    assert_eq!(pool.free(), 8);
}

#[test]
fn a_long_message_is_not_read_in_its_place() {
    let bench = bench();
    let long = BufferPool::new(&bench.pd, 8192, 1, Access::LOCAL_WRITE).unwrap();
    let srq = bench.pd.create_srq(1).unwrap();
    srq.post(1, long.take().unwrap()).unwrap();
    let wr_id = bench.notes.posted.lock().unwrap()[0];
    bench
        .notes
        .completions
        .lock()
        .unwrap()
        .push_back(Completion {
            wr_id,
            byte_len: 4097,
            qp_num: 1,
            ..Completion::none()
        });
    let batch = bench.poll();
    let mut lengths = Lengths {
        seen: Vec::new(),
        wanted: true,
    };
    let completion = batch.iter().next().unwrap();
    assert_eq!(srq.read(completion, &mut lengths), None);
    assert_eq!(srq.claim(completion).unwrap().len(), 4097);
    assert!(lengths.seen.is_empty());
}

#[test]
fn a_window_holds_a_place_until_it_is_claimed() {
    let bench = bench();
    let qp = bench.qp(7, None).established();
    let windows = || bench.notes.windows.load(Ordering::SeqCst);
    let region = bench
        .pd
        .region(100, Access::LOCAL_WRITE | Access::WINDOWS)
        .unwrap();
    let slice = region.slice(10, 20).unwrap();
    let (window, binding) = qp.bind(5, &slice, Access::REMOTE_WRITE).unwrap();
    assert_eq!(binding, Binding::Posted);
    assert_eq!(window.remote().addr, region.remote(10).addr);
    assert_eq!((window.remote().rkey, window.len()), (33, 20));
    assert_eq!((qp.send_room(), windows()), (3, 1));
    bench.notes.complete(0, 7, 0);
    let batch = bench.poll();
    let completion = batch.iter().next().unwrap();
    assert_eq!(completion.token(), 5);
    assert!(qp.claim(completion).is_some());
    assert_eq!(qp.send_room(), 4);
    window.withdraw().unwrap();
    window.withdraw().unwrap();
    assert_eq!(windows(), 0);

    // What is still open is closed with its queue pair.
    let (held, _) = qp.bind(6, &slice, Access::REMOTE_READ).unwrap();
    assert_eq!(windows(), 1);
    drop(qp);
    assert_eq!(windows(), 0);
    drop(held);
    assert_eq!(windows(), 0);
}

#[test]
fn windows_that_cannot_be_are_refused() {
    let bench = bench();
    let qp = bench.qp(7, None).established();
    let errno = |region: &Arc<crate::MemoryRegion>, len, access| {
        let slice = region.slice(0, len).unwrap();
        qp.bind(1, &slice, access).unwrap_err().errno()
    };
    let closed = bench.pd.region(100, Access::LOCAL_WRITE).unwrap();
    assert_eq!(errno(&closed, 10, Access::REMOTE_READ), libc::EINVAL);
    let readable = bench.pd.region(100, Access::WINDOWS).unwrap();
    assert_eq!(errno(&readable, 10, Access::REMOTE_WRITE), libc::EINVAL);
    assert_eq!(errno(&readable, 10, Access::LOCAL_WRITE), libc::EINVAL);
    assert_eq!(errno(&readable, 0, Access::REMOTE_READ), libc::EINVAL);
    *bench.notes.fail_post_after.lock().unwrap() = Some(0);
    assert_eq!(errno(&readable, 10, Access::REMOTE_READ), libc::ENOMEM);
    assert_eq!(qp.send_room(), 4);
    assert_eq!(bench.notes.windows.load(Ordering::SeqCst), 0);
}

/// The same with a shared receive queue, whose generation comes back after 16,383 others.
#[test]
fn a_completion_of_a_shared_queue_that_is_gone_is_not_taken() {
    let bench = bench();
    let pool = pool(&bench);
    let first = bench.pd.create_srq(4).unwrap();
    first.post(1, pool.take().unwrap()).unwrap();
    bench.notes.complete(0, 5, 0);
    let kept = bench.poll();
    let kept = kept.iter().next().unwrap();
    drop(first);
    // Twice as many as there are generations, since other tests draw from the same ones.
    let taken = (0..2 << 14).any(|_| {
        let other = bench.pd.create_srq(1).unwrap();
        other.post(1, pool.take().unwrap()).unwrap();
        other.claim(kept).is_some()
    });
    assert!(!taken, "a buffer that the device has was given out");
}

#[test]
fn memory_that_the_device_may_have_does_not_come_back() {
    let bench = bench();
    let pool = pool(&bench);
    let srq = bench.pd.create_srq(4).unwrap();
    let qp = bench.qp(5, None).established();
    *bench.notes.fail_post_after.lock().unwrap() = Some(0);
    bench.notes.fail_strangely.store(true, Ordering::SeqCst);
    let mut sends = chain(&pool, 2);
    let mut receives: ArrayVec<RegisteredBuffer, 2> = ArrayVec::new();
    receives.extend(std::iter::repeat_with(|| pool.take().unwrap()).take(2));
    let flags = SendFlags::SIGNALED;

    qp.post_batch(&mut sends).unwrap_err();
    srq.post_batch(1, &mut receives).unwrap_err();
    assert!(sends.is_empty() && receives.is_empty());
    let one = qp.post(chain(&pool, 1).remove(0)).unwrap_err();
    assert!(matches!(one.request.payload, Payload::Pieces(pieces) if pieces.is_empty()));
    let buffer = pool.take().unwrap();
    let one = qp.post_buffer(1, Verb::Send, buffer, flags).unwrap_err();
    assert!(one.buffer.is_none());
    let one = qp.post_recv(1, pool.take().unwrap()).unwrap_err();
    assert!(one.buffer.is_none());
    assert_eq!((pool.free(), qp.send_room(), srq.room()), (1, 0, 2));

    drop((qp, srq));
    assert_eq!(pool.free(), 8);
}

#[test]
fn the_short_ways_post_and_complete() {
    let bench = bench();
    let pool = pool(&bench);
    let mut qp = bench.qp(5, None).established();
    let errno = |result: Result<()>| result.unwrap_err().errno();
    let nowhere = crate::RemoteMemory { addr: 0, rkey: 0 };
    let (quiet, told) = (SendFlags::NONE, SendFlags::SIGNALED);
    qp.post_inline(1, Verb::SendWithImm(7), b"x", quiet)
        .unwrap();
    let buffer = pool.take().unwrap();
    qp.post_buffer(2, Verb::Send, buffer, quiet).unwrap();
    qp.post_inline(3, Verb::Send, b"", told | SendFlags::FENCED)
        .unwrap();
    assert_eq!((qp.send_room(), pool.free()), (1, 7));
    assert_eq!(
        errno(qp.post_inline(4, Verb::Send, b"nine byte", told)),
        libc::EINVAL
    );
    assert_eq!(
        errno(qp.post_inline(4, Verb::Read(nowhere), b"x", told)),
        libc::EINVAL
    );

    bench.notes.complete(2, 5, 0);
    let batch = bench.poll();
    let completion = batch.iter().next().unwrap();
    assert_eq!(qp.complete_send(completion), Some(3));
    assert_eq!(qp.complete_send(completion), None);
    assert_eq!(
        (qp.send_room(), pool.free(), qp.unknown_claims()),
        (4, 8, 1)
    );

    for token in 0..4 {
        qp.post_inline(token, Verb::Send, b"", told).unwrap();
    }
    assert_eq!(
        errno(qp.post_inline(4, Verb::Send, b"", told)),
        libc::ENOMEM
    );
    let full = qp
        .post_buffer(4, Verb::Send, pool.take().unwrap(), told)
        .unwrap_err();
    assert_eq!(
        (full.error.errno(), full.buffer.is_some()),
        (libc::ENOMEM, true)
    );
}

/// Memory is checked on every way to post.
#[test]
fn foreign_memory_is_refused() {
    let bench = bench();
    let other = crate::testing::bench();
    let qp = bench.qp(5, None).established();
    let srq = bench.pd.create_srq(4).unwrap();
    let foreign = pool(&other);
    let constant = BufferPool::new(&bench.pd, 16, 8, Access::READ_ONLY).unwrap();
    let nowhere = crate::RemoteMemory { addr: 0, rkey: 0 };
    let refused = |pool: &BufferPool, operation| {
        let post = |buffer| qp.post_buffer(1, operation, buffer, SendFlags::SIGNALED);
        let short = post(pool.take().unwrap()).unwrap_err();
        let long = SendRequest::piece(1, operation, pool.take().unwrap());
        let long = qp.post(long).unwrap_err();
        assert!(short.buffer.is_some());
        (short.error.errno(), long.error.errno())
    };
    let both = (libc::EINVAL, libc::EINVAL);
    assert_eq!(refused(&foreign, Verb::Send), both);
    assert_eq!(refused(&constant, Verb::Read(nowhere)), both);
    let mut mixed: ArrayVec<RegisteredBuffer, 3> = ArrayVec::new();
    mixed.push(pool(&bench).take().unwrap());
    mixed.push(constant.take().unwrap());
    mixed.push(foreign.take().unwrap());
    for left in [2, 1] {
        let error = srq.post_batch(1, &mut mixed).unwrap_err();
        assert_eq!((error.errno(), mixed.len()), (libc::EINVAL, left));
        mixed.remove(0);
    }
    assert_eq!(srq.room(), 3);
}
