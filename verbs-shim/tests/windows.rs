//! Memory windows over a real fabric: what opens, for whom, and that it closes.

mod support;

use std::time::Instant;

use support::{End, Shape, pair};
use verbs_shim::{
    Access, Binding, MemoryRegion, MemoryWindow, RemoteMemory, SendRequest, SharedMemory, Verb,
    WcStatus, live_objects,
};

const LEN: usize = 10_000;

/// Memory of `owner`, registered with all that windows need.
fn memory(owner: &End) -> (SharedMemory, std::sync::Arc<MemoryRegion>) {
    let memory = SharedMemory::new(LEN).unwrap();
    let pattern: Vec<u8> = (0..LEN).map(|n| (n * 7 + n / 251) as u8).collect();
    memory.write_at(0, &pattern).unwrap();
    let access = Access::LOCAL_WRITE | Access::WINDOWS;
    let region = owner.parts.pd.register((&memory).into(), access).unwrap();
    (memory, region)
}

/// An open window over part of a region.
fn open(owner: &End, region: &std::sync::Arc<MemoryRegion>, access: Access) -> MemoryWindow {
    let slice = region.slice(100, 5000).unwrap();
    let (window, binding) = owner.qp.bind(77, &slice, access).unwrap();
    if binding == Binding::Posted {
        let done = owner.parts.completion();
        assert_eq!((done.token(), done.status()), (77, WcStatus::Success));
        assert!(owner.qp.claim(&done).is_some());
    }
    window
}

fn read(peer: &End, from: RemoteMemory) -> (WcStatus, Vec<u8>) {
    let mut buffer = peer.parts.buffer();
    buffer.set_len(1000);
    peer.qp
        .post(SendRequest::piece(1, Verb::Read(from), buffer))
        .unwrap();
    let done = peer.parts.completion();
    let buffer = peer.qp.claim(&done).unwrap().into_buffer().unwrap();
    (done.status(), buffer.to_vec())
}

fn write(peer: &End, to: RemoteMemory) -> WcStatus {
    let buffer = peer.parts.filled(&[0xee; 1000]);
    peer.qp
        .post(SendRequest::piece(2, Verb::Write(to), buffer))
        .unwrap();
    let done = peer.parts.completion();
    assert!(peer.qp.claim(&done).is_some());
    done.status()
}

fn no_receives() -> Shape {
    Shape {
        receives: 0,
        ..Shape::default()
    }
}

fn bytes(memory: &SharedMemory, at: usize) -> Vec<u8> {
    let mut out = vec![0; 1000];
    memory.read_at(at, &mut out).unwrap();
    out
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_window_opens_a_region_and_closes_again() {
    let (peer, owner) = pair(no_receives());
    let (memory, region) = memory(&owner);
    let window = open(&owner, &region, Access::REMOTE_READ | Access::REMOTE_WRITE);
    assert_eq!(window.remote().addr, region.remote(100).addr);
    let (status, got) = read(&peer, window.remote());
    assert_eq!((status, got), (WcStatus::Success, bytes(&memory, 100)));
    assert_eq!(write(&peer, window.remote()), WcStatus::Success);
    assert_eq!(bytes(&memory, 100), [0xee; 1000]);

    memory.write_at(100, &[1; 1000]).unwrap();
    window.withdraw().unwrap();
    assert_eq!(write(&peer, window.remote()), WcStatus::RemoteAccess);
    assert_eq!(bytes(&memory, 100), [1; 1000]);
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_window_to_read_cannot_be_written() {
    let (peer, owner) = pair(no_receives());
    let (memory, region) = memory(&owner);
    let before = bytes(&memory, 100);
    let window = open(&owner, &region, Access::REMOTE_READ);
    assert_eq!(read(&peer, window.remote()).0, WcStatus::Success);
    assert_eq!(write(&peer, window.remote()), WcStatus::RemoteAccess);
    assert_eq!(bytes(&memory, 100), before);
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_window_to_write_cannot_be_read() {
    let (peer, owner) = pair(no_receives());
    let (_memory, region) = memory(&owner);
    let window = open(&owner, &region, Access::REMOTE_WRITE);
    assert_eq!(write(&peer, window.remote()), WcStatus::Success);
    assert_eq!(read(&peer, window.remote()).0, WcStatus::RemoteAccess);
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn the_regions_own_key_opens_nothing() {
    let (peer, owner) = pair(no_receives());
    let (memory, region) = memory(&owner);
    let before = bytes(&memory, 100);
    let _window = open(&owner, &region, Access::REMOTE_WRITE);
    assert_eq!(write(&peer, region.remote(100)), WcStatus::RemoteAccess);
    assert_eq!(bytes(&memory, 100), before);
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn nothing_past_the_region_can_be_reached() {
    let (peer, owner) = pair(no_receives());
    let (_memory, region) = memory(&owner);
    let window = open(&owner, &region, Access::REMOTE_WRITE);
    let past = RemoteMemory {
        addr: region.remote(LEN - 999).addr,
        ..window.remote()
    };
    assert_eq!(write(&peer, past), WcStatus::RemoteAccess);
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn windows_go_with_their_queue_pair() {
    let census = support::census();
    {
        let (_peer, owner) = pair(no_receives());
        let (_memory, region) = memory(&owner);
        let held = open(&owner, &region, Access::REMOTE_READ);
        let dropped = open(&owner, &region, Access::REMOTE_READ);
        assert_eq!(live_objects().mws, 2);
        drop(dropped);
        assert_eq!(live_objects().mws, 1);
        let start = Instant::now();
        drop(owner);
        // A kernel that has a queue pair with bound windows waits for them.
        assert!(start.elapsed().as_millis() < 700, "{:?}", start.elapsed());
        assert_eq!(live_objects().mws, 0);
        drop(held);
    }
    census.check("a connection with windows");
}

/// What it costs to open, to withdraw, and to register anew: for the figures, not a bound.
#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn what_windows_and_regions_cost() {
    let (_peer, owner) = pair(no_receives());
    let memory = SharedMemory::new(1 << 20).unwrap();
    let access = Access::LOCAL_WRITE | Access::WINDOWS;
    for len in [4096, 65_536, 1 << 20] {
        let register = || {
            let part = memory.part(0, len).unwrap();
            owner.parts.pd.register(part, access).unwrap()
        };
        drop(register());
        const TURNS: u32 = 50;
        let start = Instant::now();
        for _ in 0..TURNS {
            drop(register());
        }
        let registering = start.elapsed() / TURNS;
        let region = register();
        let start = Instant::now();
        for _ in 0..TURNS {
            let slice = region.slice(0, len).unwrap();
            let (window, binding) = owner.qp.bind(1, &slice, Access::REMOTE_READ).unwrap();
            if binding == Binding::Posted {
                assert!(owner.qp.claim(&owner.parts.completion()).is_some());
            }
            window.withdraw().unwrap();
        }
        let opening = start.elapsed() / TURNS;
        println!(
            "{len} bytes: register and deregister {registering:?}, open and withdraw {opening:?}"
        );
    }
}
