//! The store of registrations alone, with pages that a pipe pins in place of a device.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::pipe::{IoSliceRaw, SpliceFlags};
use san_provider::memory::cache::CacheLimits;
use san_provider::memory::store::{Registered, RegistrationStore};
use san_tests::net;
use san_tests::time::within;
use verbs_shim::Access;

use crate::mapping::{Mapping, PAGE, alone};

/// Pages that are pinned by a pipe, as a registration pins them; at most 15.
#[derive(Debug)]
struct Pinned {
    range: Range<usize>,
    read: OwnedFd,
    _write: OwnedFd,
    /// So large that freeing it takes a lock of the allocator's.
    _record: Vec<u8>,
}

impl Pinned {
    fn new(mapping: &Mapping) -> io::Result<Self> {
        let (read, _write) = rustix::pipe::pipe()?;
        // SAFETY: mapped; that the pages go on being read is what this is about.
        let bytes = unsafe { std::slice::from_raw_parts(mapping.ptr().cast::<u8>(), mapping.len) };
        let pieces = [IoSliceRaw::from_slice(bytes)];
        // SAFETY: as above; bytes are copied out of the pipe only in `now`.
        let len = unsafe { rustix::pipe::vmsplice(&_write, &pieces, SpliceFlags::NONBLOCK) }?;
        assert_eq!(len, mapping.len);
        let range = mapping.range();
        Ok(Self {
            range,
            read,
            _write,
            _record: vec![3; 3000],
        })
    }

    /// What the pinned pages hold now at the ends of the mapping: what a device would send.
    fn now(&self, mapping: &Mapping) -> [u64; 2] {
        let (read, write) = rustix::pipe::pipe().expect("a pipe");
        let len = self.range.len();
        let copied = rustix::pipe::tee(&self.read, &write, len, SpliceFlags::NONBLOCK);
        assert_eq!(copied, Ok(len));
        let mut bytes = vec![0; len];
        assert_eq!(rustix::io::read(&read, &mut bytes), Ok(len));
        let offset = mapping.at - self.range.start;
        [offset, offset + mapping.len - 8].map(|at| {
            let (word, _) = bytes[at..]
                .as_chunks()
                .0
                .split_first()
                .expect("eight bytes");
            u64::from_ne_bytes(*word)
        })
    }
}

type Store = Arc<RegistrationStore<Arc<Pinned>>>;

fn store(entries: usize) -> Option<Store> {
    let bytes = 1 << 30;
    let limits = CacheLimits { entries, bytes };
    let store = RegistrationStore::new(limits, Arc::new(|| ())).expect("a store");
    if !store.can_keep() {
        eprintln!("not tested here: mappings cannot be watched");
        return None;
    }
    Some(store)
}

fn acquire(store: &Store, mapping: &Mapping) -> Registered<Arc<Pinned>> {
    let register = || Pinned::new(mapping).map(Arc::new);
    let range = mapping.range();
    store
        .acquire(1, &range, Access::READ_ONLY, register, |_| false)
        .expect("pinned")
}

/// Writes to the mapping, and asks the registration what a device would send.
fn check(store: &Store, mapping: &Mapping, value: u64) {
    mapping.write(value);
    let registered = acquire(store, mapping);
    assert_eq!(
        registered.registration().now(mapping),
        [value; 2],
        "it is stale"
    );
}

/// That the other tests can fail: pages that are pinned are not those that are mapped later.
#[test]
fn pinned_pages_are_not_what_is_mapped_there_later() {
    let _alone = alone();
    for change in [Mapping::replace, Mapping::discard] {
        let mapping = Mapping::new(4);
        mapping.write(1);
        let pinned = Pinned::new(&mapping).expect("pinned");
        mapping.write(2);
        assert_eq!(pinned.now(&mapping), [2; 2]);
        change(&mapping);
        mapping.write(3);
        assert_eq!(pinned.now(&mapping), [2; 2]);
        mapping.unmap();
    }
}

#[test]
fn what_is_kept_is_found_until_its_mapping_changes() {
    let _alone = alone();
    within(Duration::from_secs(60), || {
        let Some(store) = store(8) else { return };
        let mut mapping = Mapping::new(4);
        check(&store, &mapping, 1);
        check(&store, &mapping, 2);
        assert_eq!((store.counts().hits, store.counts().misses), (1, 1));
        mapping.replace();
        check(&store, &mapping, 3);
        check(&store, &mapping, 4);
        mapping.discard();
        check(&store, &mapping, 5);
        let at = mapping.at;
        mapping.grow();
        check(&store, &mapping, 6);
        mapping.unmap();
        let counts = store.counts();
        assert_eq!((counts.hits, counts.bypasses), (2, 0), "{counts:?}");
        assert!(counts.invalidations >= 3, "{counts:?} at {at:x}");
        store.close();
    });
}

/// How many mappings this process has.
fn mappings() -> usize {
    let maps = std::fs::read("/proc/self/maps").expect("the list of mappings");
    maps.iter().filter(|&&b| b == b'\n').count()
}

/// Registrations all over a mapping of which no page was ever there, each written while it lasts:
/// when they have gone it is one mapping again.
#[test]
fn mappings_are_joined_again() {
    const PAGES: usize = 1000;
    const ENTRIES: usize = 16;
    let _alone = alone();
    within(Duration::from_secs(60), || {
        let Some(store) = store(ENTRIES) else { return };
        // An island, so that nothing was written beside it.
        let all = Mapping::new(PAGES + 2);
        for at in [all.at, all.at + all.len - PAGE] {
            Mapping { at, len: PAGE }.unmap();
        }
        let before = mappings();
        for round in 1..500 {
            // All over the place, and no page twice.
            let at = all.at + (round * 597 % PAGES + 1) * PAGE;
            let page = Mapping { at, len: PAGE };
            let registered = acquire(&store, &page);
            page.write(1);
            drop(registered);
            if round % 50 == 0 {
                let now = mappings();
                assert!(now <= before + 2 * ENTRIES + 8, "from {before} to {now}");
            }
        }
        store.close();
        let now = mappings();
        assert!(now <= before + 8, "from {before} to {now}");
    });
}

/// Registers every second page of fresh memory once, and writes a byte of each while it lasts. How many
/// mappings there were before, at most meanwhile, and after the store has closed.
fn every_second_page(rounds: usize, entries: usize) -> Option<[usize; 3]> {
    let store = store(entries)?;
    let all = Mapping::new(2 * rounds + 2);
    for at in [all.at, all.at + all.len - PAGE] {
        Mapping { at, len: PAGE }.unmap();
    }
    let before = mappings();
    let mut most = before;
    for round in 0..rounds {
        let at = all.at + (2 * round + 1) * PAGE;
        let page = Mapping { at, len: PAGE };
        let registered = acquire(&store, &page);
        page.write(1);
        drop(registered);
        if round % (rounds / 40) == 0 {
            most = most.max(mappings());
        }
    }
    store.close();
    let figures = [before, most, mappings()];
    println!("{rounds} registrations, {entries} entries: before, most, after {figures:?}");
    Mapping {
        at: all.at + PAGE,
        len: all.len - 2 * PAGE,
    }
    .unmap();
    Some(figures)
}

/// With a mapping lost for each it would be 4,000, and 70,000 are more than the system allows.
#[test]
fn thousands_of_registrations_leave_no_mappings() {
    let _alone = alone();
    within(Duration::from_secs(100), || {
        // On a machine that is emulated the second would take minutes, and shows nothing else.
        let sizes = [(4_000, 16), (70_000, 1_024)];
        let sizes = if net::is_soft() {
            &sizes[..]
        } else {
            &sizes[..1]
        };
        for &(rounds, entries) in sizes {
            let Some([before, most, after]) = every_second_page(rounds, entries) else {
                return;
            };
            assert!(most <= before + 2 * entries + 8, "{most} from {before}");
            assert!(after <= before + 8, "{after} from {before}");
        }
    });
}

/// Registrations of ever new memory, which the kernel maps beside what is watched. What is written
/// there meanwhile is never joined with it; that happens a number of times, and no more. Memory
/// inside of what is mapped goes on being kept.
#[test]
fn new_memory_does_not_use_up_mappings() {
    const LOST: usize = 64;
    const ENTRIES: usize = 16;
    const ROUNDS: usize = 600;
    let _alone = alone();
    within(Duration::from_secs(60), || {
        let Some(store) = store(ENTRIES) else { return };
        let before = mappings();
        let mut places = Vec::with_capacity(ROUNDS);
        for round in 1..ROUNDS {
            let mapping = Mapping::new(2);
            let (at, len) = (mapping.at, PAGE);
            if round % 2 == 0 {
                mapping.write(1);
            }
            let registered = acquire(&store, &Mapping { at, len });
            mapping.write(1);
            drop(registered);
            places.push(at);
            if round % 50 == 0 {
                let now = mappings();
                let most = before + LOST + 2 * ENTRIES + 8;
                assert!(now <= most, "from {before} to {now}, {round}");
            }
        }
        let counts = store.counts();
        assert!(counts.bypasses > 0, "{counts:?}");
        // The one before the last has neighbours on both sides, where the kernel maps downwards.
        let inside = |at: usize| places.contains(&(at - 2 * PAGE));
        let at = *places
            .iter()
            .rev()
            .find(|&&at| inside(at))
            .expect("mapped in a row");
        let inside = Mapping { at, len: PAGE };
        check(&store, &inside, 1);
        check(&store, &inside, 2);
        assert_eq!(store.counts().hits, counts.hits + 1, "{counts:?}");
        store.close();
        let now = mappings();
        assert!(now <= before + LOST + ENTRIES + 8, "from {before} to {now}");
    });
}

/// Threads that map, register, change and unmap, where the kernel gives one the addresses that
/// another has just left, with the allocator's traffic besides. A lock that is held in the wrong
/// place would have them all wait for ever.
#[test]
fn many_threads_never_find_what_is_stale() {
    const THREADS: u64 = 4;
    let _alone = alone();
    within(Duration::from_secs(100), || {
        let Some(store) = store(64) else { return };
        let until = Instant::now() + Duration::from_secs(4);
        let stamps = AtomicU64::new(1);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (store, stamps) = (&store, &stamps);
                scope.spawn(move || churn(store, stamps, thread, until));
            }
        });
        let counts = store.counts();
        eprintln!("{counts:?}");
        assert!(counts.hits > 0 && counts.misses > 0 && counts.invalidations > 0);
        store.close();
    });
}

fn churn(store: &Store, stamps: &AtomicU64, seed: u64, until: Instant) {
    let mut random = 0x9E37_79B9_7F4A_7C15 ^ seed;
    let mut traffic: Vec<Vec<u8>> = Vec::new();
    let stamp = || stamps.fetch_add(1, Ordering::Relaxed);
    while Instant::now() < until {
        // xorshift
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut mapping = Mapping::new(4);
        check(store, &mapping, stamp());
        check(store, &mapping, stamp());
        match random % 8 {
            0 => mapping.replace(),
            1 => mapping.discard(),
            2 => mapping.grow(),
            3 => store.invalidate(&mapping.range()),
            4 => store.tidy(),
            _ => {}
        }
        check(store, &mapping, stamp());
        // Allocations, the smaller ones registered too: freeing them gives memory back while a
        // lock of the allocator's is held.
        let mut block = vec![1_u8; [200, 5000, 50_000][random as usize / 8 % 3]];
        let start = block.as_mut_ptr().expose_provenance();
        let inside = Mapping {
            at: start.next_multiple_of(8),
            len: (block.len() - 8) & !7,
        };
        check(store, &inside, stamp());
        traffic.push(block);
        traffic.push(vec![2; 100_000 << (random >> 32 & 3)]);
        while traffic.len() > 16 {
            traffic.swap_remove(random as usize % 16);
        }
        mapping.unmap();
    }
}
