use super::*;
use crate::memory::HeapMemory;

const PD: Pd = Pd(1);
const BASE: u64 = 0x1000;
const REMOTE: Access = Access(7);

fn table() -> MrTable {
    MrTable::new(8, KeySource::seeded(1))
}

fn region(table: &MrTable, access: Access) -> Arc<MemoryRegion> {
    table
        .register(PD, BASE, Arc::new(HeapMemory::new(100)), access)
        .unwrap()
}

#[test]
fn ranges_to_the_byte() {
    let t = table();
    let key = region(&t, REMOTE).rkey();
    let ask = |va, len| {
        t.remote(key, PD, 5, (va, len), Access::REMOTE_READ)
            .map(|s| s.offset)
    };
    assert_eq!(ask(BASE, 100), Ok(0));
    assert_eq!(ask(BASE + 99, 1), Ok(99));
    assert_eq!(ask(BASE + 100, 0), Ok(100));
    for (va, len) in [
        (BASE, 101),
        (BASE + 100, 1),
        (BASE - 1, 1),
        (u64::MAX, 2),
        (BASE + 1, u64::MAX),
    ] {
        assert_eq!(ask(va, len), Err(AccessDenied), "{va:#x} + {len}");
    }
}

#[test]
fn rights_and_domains() {
    let t = table();
    let read_only = region(&t, Access::REMOTE_READ).rkey();
    let at = (BASE, 1);
    assert!(t.remote(read_only, PD, 5, at, Access::REMOTE_READ).is_ok());
    assert!(
        t.remote(read_only, PD, 5, at, Access::REMOTE_WRITE)
            .is_err()
    );
    assert!(
        t.local(read_only, PD, BASE, 1, Access::LOCAL_WRITE)
            .is_err()
    );
    assert!(t.local(read_only, PD, BASE, 1, Access::NONE).is_ok());
    assert!(
        t.remote(read_only, Pd(2), 5, at, Access::REMOTE_READ)
            .is_err()
    );
    assert!(
        t.remote(read_only ^ 1, PD, 5, at, Access::REMOTE_READ)
            .is_err()
    );
    let memory = Arc::new(HeapMemory::new(1));
    assert_eq!(
        t.register(PD, 0, memory, Access::REMOTE_WRITE).err(),
        Some(RegisterError::Access)
    );
}

#[test]
fn nothing_after_deregistration() {
    let t = table();
    let memory = Arc::new(HeapMemory::new(100));
    let r = t.register(PD, BASE, memory.clone(), REMOTE).unwrap();
    let span = t
        .remote(r.rkey(), PD, 5, (BASE, 8), Access::REMOTE_WRITE)
        .unwrap();
    span.region.write(span.offset, &[1; 8]).unwrap();
    t.deregister(r.lkey()).unwrap();
    // A message that was under way holds the span; it gets nowhere.
    assert_eq!(span.region.write(span.offset, &[2; 8]), Err(AccessDenied));
    assert_eq!(memory.to_vec()[..8], [1; 8]);
    assert_eq!(Arc::strong_count(&memory), 1, "the memory is given back");
    assert_eq!(t.deregister(r.lkey()), Err(DeregisterError::Unknown));
    assert_eq!(t.count(), 0);
}

#[test]
fn a_window_is_its_range_and_its_queue_pair() {
    let t = table();
    let r = region(&t, Access::LOCAL_WRITE);
    let w = t.bind(&r, BASE + 10, 20, Access::REMOTE_WRITE, 5).unwrap();
    let ask = |va, qpn| {
        t.remote(w.rkey(), PD, qpn, (va, 20), Access::REMOTE_WRITE)
            .is_ok()
    };
    assert!(ask(BASE + 10, 5));
    assert!(!ask(BASE + 11, 5));
    assert!(!ask(BASE + 9, 5));
    assert!(!ask(BASE + 10, 6));
    assert!(
        t.local(w.rkey(), PD, BASE + 10, 1, Access::NONE).is_err(),
        "a window is for the peer"
    );
    assert!(
        t.remote(r.rkey(), PD, 5, (BASE, 1), Access::REMOTE_WRITE)
            .is_err(),
        "binding does not open the region"
    );
    w.write(0, &[9]).unwrap();
    let mut byte = [0];
    r.read(10, &mut byte).unwrap();
    assert_eq!(byte, [9]);
}

#[test]
fn invalidation_is_for_the_peer_it_was_bound_to() {
    let t = table();
    let r = region(&t, REMOTE);
    let w = t.bind(&r, BASE, 20, Access::REMOTE_READ, 5).unwrap();
    assert_eq!(t.deregister(r.lkey()), Err(DeregisterError::Busy));
    assert_eq!(t.invalidate_remote(w.rkey(), PD, 6), Err(AccessDenied));
    assert_eq!(t.invalidate_remote(w.rkey(), Pd(9), 5), Err(AccessDenied));
    assert_eq!(
        t.invalidate_remote(r.rkey(), PD, 5),
        Err(AccessDenied),
        "a region is not the peer's to withdraw"
    );
    assert_eq!(t.invalidate_remote(w.rkey(), PD, 5), Ok(()));
    assert_eq!(w.read(0, &mut [0]), Err(AccessDenied));
    assert!(!t.invalidate(w.rkey()));
    assert_eq!(t.deregister(r.lkey()), Ok(()));
}

#[test]
fn bounded() {
    let t = MrTable::new(2, KeySource::random());
    let a = region(&t, REMOTE);
    region(&t, REMOTE);
    let more = || t.register(PD, BASE, Arc::new(HeapMemory::new(1)), REMOTE);
    assert_eq!(more().err(), Some(RegisterError::Full(2)));
    t.deregister(a.lkey()).unwrap();
    assert!(more().is_ok());
}

#[test]
fn deregistration_waits_for_an_access_under_way() {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicBool;

    struct Slow {
        inside: Barrier,
        done: AtomicBool,
    }
    impl Memory for Slow {
        fn len(&self) -> u64 {
            8
        }
        fn read(&self, _: u64, _: &mut [u8]) {}
        fn write(&self, _: u64, _: &[u8]) {
            self.inside.wait();
            std::thread::sleep(std::time::Duration::from_millis(20));
            self.done.store(true, Ordering::SeqCst);
        }
    }
    let t = table();
    let memory = Arc::new(Slow {
        inside: Barrier::new(2),
        done: AtomicBool::new(false),
    });
    let r = t.register(PD, 0, memory.clone(), REMOTE).unwrap();
    std::thread::scope(|s| {
        s.spawn(|| r.write(0, &[0; 8]).unwrap());
        memory.inside.wait();
        t.deregister(r.lkey()).unwrap();
        assert!(memory.done.load(Ordering::SeqCst));
    });
}
