//! On real mappings, with registrations that only count. Whether pinned pages are the mapped ones
//! is asked in the workspace's tests (`cache.rs`), where pages can be pinned.
//!
//! Where the kernel does not tell what becomes of mappings nothing is kept, and that is tested
//! instead.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

const LARGE: usize = 1 << 20;

/// A registration, and how many there are.
#[derive(Debug)]
struct Pinned {
    alive: Arc<AtomicUsize>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Bench {
    store: Arc<RegistrationStore<Arc<Pinned>>>,
    alive: Arc<AtomicUsize>,
    notified: Arc<AtomicBool>,
}

impl Bench {
    fn new(entries: usize, bytes: usize) -> Self {
        let notified = Arc::new(AtomicBool::new(false));
        let notify = Arc::clone(&notified);
        let notify = Arc::new(move || notify.store(true, Ordering::SeqCst));
        let store = RegistrationStore::new(CacheLimits { entries, bytes }, notify).unwrap();
        Self {
            store,
            alive: Arc::default(),
            notified,
        }
    }

    /// Without a watch the rest of a test has no sense.
    fn watches(&self) -> bool {
        let watches = self.store.can_keep();
        if !watches {
            eprintln!("not tested here: mappings cannot be watched");
        }
        watches
    }

    fn acquire(&self, memory: &[u64]) -> Registered<Arc<Pinned>> {
        let registered = self.store.acquire(
            1,
            &range(memory),
            Access::READ_ONLY,
            || {
                self.alive.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Infallible>(Arc::new(Pinned {
                    alive: Arc::clone(&self.alive),
                }))
            },
            |_| false,
        );
        let Ok(registered) = registered;
        registered
    }

    fn alive(&self) -> usize {
        self.alive.load(Ordering::SeqCst)
    }

    fn counts(&self) -> [u64; 5] {
        let c = &self.store.counters;
        [
            &c.hits,
            &c.misses,
            &c.evictions,
            &c.invalidations,
            &c.bypasses,
        ]
        .map(Counter::value)
    }
}

fn range(memory: &[u64]) -> Range<usize> {
    let start = memory.as_ptr() as usize;
    start..start + size_of_val(memory)
}

/// Memory with its number in each word.
fn memory(bytes: usize, stamp: u64) -> Vec<u64> {
    vec![stamp; bytes / 8]
}

#[test]
fn a_hit_registers_nothing_and_goes_on_being_kept() {
    let bench = Bench::new(8, 1 << 30);
    if !bench.watches() {
        return;
    }
    let memory = memory(LARGE, 7);
    let first = bench.acquire(&memory);
    let second = bench.acquire(&memory[100..200]);
    assert_eq!((bench.alive(), bench.counts()), (1, [1, 1, 0, 0, 0]));
    assert!(Arc::ptr_eq(first.registration(), second.registration()));
    drop((first, second));
    assert_eq!(bench.alive(), 1, "kept beyond its use");
    drop(bench.acquire(&memory));
    assert_eq!((bench.alive(), bench.counts()), (1, [2, 1, 0, 0, 0]));
    bench.store.close();
    assert_eq!(bench.alive(), 0);
    drop(bench.acquire(&memory));
    assert_eq!(
        (bench.alive(), bench.counts()[4]),
        (0, 1),
        "nothing is kept after that"
    );
}

#[test]
fn what_nobody_has_used_for_long_is_let_go() {
    let bench = Bench::new(64, 1 << 30);
    if !bench.watches() {
        return;
    }
    let began = Instant::now();
    let [old, used, young] = [1, 2, 3].map(|stamp| memory(LARGE, stamp));
    drop(bench.acquire(&old));
    let used = bench.acquire(&used);
    bench.store.drop_unused(began + UNUSED);
    drop(bench.acquire(&young));
    bench.store.drop_unused(began + UNUSED + UNUSED / 2);
    assert_eq!(bench.alive(), 3, "nothing is old yet");
    bench.store.drop_unused(began + UNUSED * 2);
    assert_eq!((bench.alive(), bench.counts()[2]), (2, 1));
    drop(bench.acquire(&young));
    bench.store.drop_unused(began + UNUSED * 3);
    assert_eq!(bench.alive(), 2, "one is in use, one was used since");
    drop(used);
    bench.store.drop_unused(began + UNUSED * 5);
    assert_eq!((bench.alive(), bench.counts()[0]), (1, 1));
}

#[test]
fn a_bound_of_nothing_keeps_nothing() {
    for (entries, bytes) in [(0, 1 << 30), (8, 0), (8, LARGE / 2)] {
        let bench = Bench::new(entries, bytes);
        let memory = memory(LARGE, 7);
        drop(bench.acquire(&memory));
        assert_eq!((bench.alive(), bench.counts()), (0, [0, 0, 0, 0, 1]));
    }
}

#[test]
fn what_was_freed_is_let_go_without_being_asked_for() {
    let bench = Bench::new(8, 1 << 30);
    if !bench.watches() {
        return;
    }
    let memory = memory(64 << 20, 1);
    drop(bench.acquire(&memory));
    assert_eq!(bench.alive(), 1);
    drop(memory);
    let began = Instant::now();
    while !bench.notified.load(Ordering::SeqCst) {
        assert!(began.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
    bench.store.tidy();
    assert_eq!((bench.alive(), bench.counts()), (0, [0, 1, 0, 1, 0]));
}

#[test]
fn the_callback_lets_go_at_once_or_when_it_is_no_longer_in_use() {
    let bench = Bench::new(8, 1 << 30);
    if !bench.watches() {
        return;
    }
    let memory = memory(LARGE, 1);
    drop(bench.acquire(&memory[..1000]));
    let used = bench.acquire(&memory[5000..]);
    bench.store.invalidate(&range(&memory));
    assert_eq!(bench.alive(), 1, "what is in use");
    let anew = bench.acquire(&memory[6000..]);
    assert!(!Arc::ptr_eq(used.registration(), anew.registration()));
    drop(used);
    assert_eq!((bench.alive(), bench.counts()), (1, [0, 3, 0, 2, 0]));
}

#[test]
fn a_shortage_is_met_with_what_nobody_uses() {
    let bench = Bench::new(8, 1 << 30);
    if !bench.watches() {
        return;
    }
    let (first, second) = (memory(LARGE, 1), memory(LARGE, 2));
    drop(bench.acquire(&first));
    let tries = AtomicUsize::new(0);
    let failing = |succeed_after| {
        let alive = Arc::clone(&bench.alive);
        bench.store.acquire(
            1,
            &range(&second),
            Access::READ_ONLY,
            || {
                if tries.fetch_add(1, Ordering::SeqCst) < succeed_after {
                    return Err("ENOMEM");
                }
                alive.fetch_add(1, Ordering::SeqCst);
                Ok(Arc::new(Pinned {
                    alive: Arc::clone(&alive),
                }))
            },
            |&error| error == "ENOMEM",
        )
    };
    drop(failing(1).unwrap());
    assert_eq!((bench.alive(), tries.load(Ordering::SeqCst)), (1, 2));
    bench.store.shed();
    assert!(
        failing(9).is_err(),
        "nothing was there to drop, so it is not tried again"
    );
    assert_eq!((bench.alive(), tries.load(Ordering::SeqCst)), (0, 3));
    assert_eq!(
        lock(&bench.store.cache).cache.len(),
        0,
        "its place was given up"
    );
}
