//! A connection in its steady state allocates nothing: neither who posts and polls,
//! nor the endpoint's thread. In a program of its own, whose allocator counts.

#[path = "endpoint/util.rs"]
#[allow(dead_code, reason = "shared with the tests of the endpoint")]
mod util;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use soft_roce::memory::HeapMemory;
use soft_roce::rc::{Completion, Payload, RecvRequest, Remote, SendOp, SendRequest, Status};

use crate::util::{Pair, Side};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

#[allow(
    unsafe_code,
    reason = "an allocator that counts; the work is the system's"
)]
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LEN: usize = 64 << 10;

fn next(side: &Side) -> Completion {
    let mut out = [Completion::default()];
    while side.cq.poll(&mut out).unwrap() == 0 {}
    assert_eq!(out[0].status, Status::Success, "{:?}", out[0]);
    out[0]
}

#[test]
fn a_steady_connection_allocates_nothing() {
    let pair = Pair::new();
    let (a, b) = (&pair.connection.client, &pair.connection.server);
    let ours = pair.client.memory(HeapMemory::new(LEN));
    let theirs = pair.server.memory(HeapMemory::new(LEN));
    let remote = Remote {
        va: theirs.mr.va(),
        rkey: theirs.mr.rkey(),
    };
    let post = |side: &Side, op, len: usize, region: &util::Region| {
        let sges = region.sge(0, len);
        side.qp
            .post_send(&SendRequest {
                wr_id: 1,
                op,
                payload: Payload::Sges(&sges),
                signaled: true,
                fence: false,
                solicited: false,
            })
            .unwrap();
    };
    let receive = |side: &Side, region: &util::Region| {
        let sges = region.sge(0, LEN);
        side.qp
            .post_receive(&RecvRequest {
                wr_id: 2,
                sges: &sges,
            })
            .unwrap();
    };
    // A message there and back, a WRITE and a READ.
    let round = |len: usize| {
        receive(b, &theirs);
        post(a, SendOp::Send, len, &ours);
        next(b);
        next(a);
        receive(a, &ours);
        post(b, SendOp::Send, 64, &theirs);
        next(a);
        next(b);
        for op in [SendOp::Write(remote), SendOp::Read(remote)] {
            post(a, op, len, &ours);
            next(a);
        }
    };
    let rounds = |count: usize| (0..count).for_each(|n| round([64, 5_000, LEN][n % 3]));
    // Queues and buffers grow to what is needed.
    rounds(300);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    rounds(700);
    let after = ALLOCATIONS.load(Ordering::Relaxed);
    // A timer's heap or a reorder buffer may grow once more when the machine is busy; 700 rounds
    // are 2,800 operations.
    assert!(after - before <= 8, "{} allocations", after - before);
}
