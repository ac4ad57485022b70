//! Registrations that are kept stay true: whatever becomes of a mapping, what is found is what is
//! there.

#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};
use rustix::pipe::{IoSliceRaw, SpliceFlags};
use san_provider::memory::cache::CacheLimits;
use san_provider::memory::store::{Registered, RegistrationStore};
use san_provider::{
    AppMemory, Completion, Fence, MemoryAccess, ProviderConfig, Socket, TransferError,
};
use san_tests::memory::{Opened, all, filled, finished, open, segment};
use san_tests::san::San;
use san_tests::time::{STEP, eventually, within};
use verbs_shim::{Access, MappingWatch, SharedMemory, live_objects};

const PAGE: usize = 4096;
const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// A private anonymous mapping, which nothing refers to but its address.
#[derive(Debug)]
struct Mapping {
    at: usize,
    len: usize,
}

impl Mapping {
    fn new(pages: usize) -> Self {
        Self::map(pages, MapFlags::PRIVATE)
    }

    fn map(pages: usize, flags: MapFlags) -> Self {
        let (len, nowhere) = (pages * PAGE, std::ptr::null_mut());
        // SAFETY: at an address of the kernel's choice, so nothing in use is replaced.
        let at = unsafe { rustix::mm::mmap_anonymous(nowhere, len, READ_WRITE, flags) };
        let at = at.expect("memory") as usize;
        Self { at, len }
    }

    fn range(&self) -> Range<usize> {
        self.at..self.at + self.len
    }

    fn ptr(&self) -> *mut std::ffi::c_void {
        std::ptr::with_exposed_provenance_mut(self.at)
    }

    /// Where the first and the last word lie.
    fn ends(&self) -> [*mut u64; 2] {
        [self.at, self.at + self.len - 8].map(std::ptr::with_exposed_provenance_mut)
    }

    fn write(&self, value: u64) {
        for word in self.ends() {
            // SAFETY: mapped, writable, aligned, and nobody else's.
            unsafe { word.write_volatile(value) };
        }
    }

    /// Other pages at the same place.
    fn replace(&self) {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: what is replaced is this mapping, to which nothing refers.
        unsafe { rustix::mm::mmap_anonymous(self.ptr(), self.len, READ_WRITE, flags) }
            .expect("memory");
    }

    fn discard(&self) {
        // SAFETY: nobody cares for the contents.
        unsafe { rustix::mm::madvise(self.ptr(), self.len, Advice::LinuxDontNeed) }
            .expect("madvise");
    }

    /// Nothing, and then other pages at the same place.
    fn map_again(&self) {
        // SAFETY: nothing refers to it.
        unsafe { rustix::mm::munmap(self.ptr(), self.len) }.expect("munmap");
        let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
        // SAFETY: only where nothing is mapped; nobody else asks for this address.
        unsafe { rustix::mm::mmap_anonymous(self.ptr(), self.len, READ_WRITE, flags) }
            .expect("its place is free");
    }

    /// Other pages, moved here from elsewhere.
    fn exchange(&self) {
        let other = Self::new(self.len / PAGE);
        other.write(0);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: nothing refers to either place.
        let moved = unsafe { libc::mremap(other.ptr(), self.len, self.len, flags, self.ptr()) };
        assert_eq!(moved, self.ptr());
    }

    /// Its pages elsewhere, and other pages here.
    fn move_away(&self) {
        // SAFETY: nothing refers to it.
        let away =
            unsafe { rustix::mm::mremap(self.ptr(), self.len, self.len * 2, MremapFlags::MAYMOVE) };
        if away.expect("mremap") != self.ptr() {
            self.replace();
        }
    }

    fn memory(&self) -> AppMemory {
        let at = NonNull::new(self.ptr().cast()).expect("not at 0");
        // SAFETY: it stays mapped while it is registered, and no reference to it exists.
        unsafe { AppMemory::new(at, self.len) }
    }

    fn fill(&self, byte: u8) {
        for n in 0..self.len {
            let at = std::ptr::with_exposed_provenance_mut::<u8>(self.at + n);
            // SAFETY: mapped, writable, and nobody else's.
            unsafe { at.write_volatile(byte) };
        }
    }

    fn holds(&self, byte: u8) -> bool {
        (0..self.len).all(|n| {
            let at = std::ptr::with_exposed_provenance::<u8>(self.at + n);
            // SAFETY: mapped, and nobody writes it now.
            byte == unsafe { at.read_volatile() }
        })
    }

    /// The same pages in more room, perhaps elsewhere.
    fn grow(&mut self) {
        let len = self.len * 2;
        // SAFETY: nothing refers to the old place.
        let at = unsafe { rustix::mm::mremap(self.ptr(), self.len, len, MremapFlags::MAYMOVE) };
        let at = at.expect("mremap") as usize;
        *self = Self { at, len };
    }

    fn unmap(self) {
        // SAFETY: nothing refers to it.
        unsafe { rustix::mm::munmap(self.ptr(), self.len) }.expect("munmap");
    }
}

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

/// One test at a time: they count what the process has.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    san_base::lock(&ONE)
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

/// Two connected sockets, their provider, and whether anything is kept here.
struct Pair {
    san: San,
    near: Socket,
    far: Socket,
    keeps: bool,
}

fn pair() -> Pair {
    pair_with(ProviderConfig::default())
}

fn pair_with(config: ProviderConfig) -> Pair {
    let keeps = config.memory_cache_entries > 0 && MappingWatch::new().is_ok();
    let san = San::start_with(config);
    let (near, far) = san.pair();
    // Whether something has to wait and takes a buffer is a matter of luck; now there are some.
    for socket in [&near, &far] {
        drop(socket.buffer().expect("a buffer"));
    }
    Pair {
        san,
        near,
        far,
        keeps,
    }
}

impl Pair {
    /// Sends all of the mapping to what is open at the other side.
    fn write(&self, from: &Mapping, to: &Opened) -> Result<usize, TransferError> {
        let handle = self
            .near
            .register_memory(from.memory(), MemoryAccess::Read)
            .expect("registered");
        let place = &to.descriptor;
        let segments = [segment(handle, 0, from.len)];
        let started = self
            .near
            .rdma_write(&segments, place, 0, Fence::None, Completion::Poll);
        let outcome = finished(&self.near, started);
        self.near.deregister_memory(handle).expect("registered");
        outcome
    }

    /// Fetches what is open at the other side.
    fn read(&self, into: &Mapping, from: &Opened) {
        let handle = self
            .near
            .register_memory(into.memory(), MemoryAccess::Write)
            .expect("registered");
        let place = &from.descriptor;
        let segments = [segment(handle, 0, into.len)];
        let started = self
            .near
            .rdma_read(&segments, place, 0, Fence::None, Completion::Poll);
        finished(&self.near, started).expect("read");
        self.near.deregister_memory(handle).expect("registered");
    }

    /// Hits, misses, invalidations.
    fn counts(&self) -> [u64; 3] {
        let c = self.san.counters();
        [c.cache_hits, c.cache_misses, c.cache_invalidations]
    }
}

#[test]
fn wsd_107_local_memory_stays_registered() {
    let _alone = alone();
    within(STEP * 4, || {
        let pair = pair();
        let mapping = Mapping::new(8);
        let before = live_objects().mrs;
        let handle = pair
            .near
            .register_memory(mapping.memory(), MemoryAccess::Write)
            .expect("registered");
        assert_eq!(live_objects().mrs, before + 1);
        pair.near.deregister_memory(handle).expect("registered");
        assert_eq!(live_objects().mrs, before + usize::from(pair.keeps));
        assert!(pair.near.deregister_memory(handle).is_err(), "it is over");
    });
}

#[test]
fn wsd_107_open_memory_stays_registered_out_of_the_peers_reach() {
    let _alone = alone();
    within(STEP * 4, || {
        let pair = pair();
        let mapping = Mapping::new(8);
        mapping.fill(1);
        let before = live_objects();
        let opened = open(&pair.far, mapping.memory(), MemoryAccess::ReadWrite);
        let source = Mapping::new(8);
        source.fill(2);
        pair.write(&source, &opened).expect("open");
        assert!(mapping.holds(2));
        pair.far
            .deregister_rdma_memory(opened.handle)
            .expect("registered");
        let now = live_objects();
        let kept = 2 * usize::from(pair.keeps);
        assert_eq!((now.mrs, now.mws), (before.mrs + kept, before.mws));
        source.fill(3);
        let refused = pair.write(&source, &opened).expect_err("closed");
        assert!(matches!(refused, TransferError::RemoteAccess), "{refused}");
        assert!(mapping.holds(2));
    });
}

#[test]
fn wsd_108_what_is_kept_is_not_registered_again() {
    let _alone = alone();
    within(STEP * 4, || {
        let pair = pair();
        let peers = filled(8 * PAGE, 0);
        let opened = open(&pair.far, (&peers).into(), MemoryAccess::Write);
        let mapping = Mapping::new(8);
        mapping.fill(1);
        pair.write(&mapping, &opened).expect("written");
        let (regions, [hits, misses, _]) = (live_objects().mrs, pair.counts());
        for byte in 2..12 {
            mapping.fill(byte);
            pair.write(&mapping, &opened).expect("written");
            assert_eq!(all(&peers), [byte; 8 * PAGE]);
            assert_eq!(live_objects().mrs, regions);
        }
        if pair.keeps {
            assert_eq!(pair.counts(), [hits + 10, misses, 0]);
            // Of the socket's own: the first was made, all others were kept.
            let stats = pair.near.stats().expect("open");
            let stats = stats.connection.expect("a data path");
            assert_eq!((stats.cache_hits, stats.registrations), (10, 1));
        }
        // A part of it, too, and only that part is meant.
        let part = Mapping {
            at: mapping.at + PAGE,
            len: 10,
        };
        mapping.fill(77);
        part.fill(78);
        pair.write(&part, &opened).expect("written");
        assert_eq!(all(&peers)[..20], [[78; 10], [11; 10]].concat());
        assert_eq!(live_objects().mrs, regions);
    });
}

#[test]
fn a_part_of_a_kept_registration_reaches_no_further() {
    let _alone = alone();
    within(STEP * 4, || {
        let pair = pair();
        let peers = filled(8 * PAGE, 0);
        let opened = open(&pair.far, (&peers).into(), MemoryAccess::Write);
        let mapping = Mapping::new(8);
        pair.read_write_once(&mapping);
        let part = Mapping {
            at: mapping.at + PAGE,
            len: 10,
        };
        let handle = pair
            .near
            .register_memory(part.memory(), MemoryAccess::Read)
            .expect("registered");
        let place = &opened.descriptor;
        let piece = [segment(handle, 5, 6)];
        let refused = pair
            .near
            .rdma_write(&piece, place, 0, Fence::None, Completion::Poll)
            .expect_err("past its end");
        assert!(
            matches!(refused, TransferError::OutOfBounds { limit: 10, .. }),
            "{refused}"
        );
        let into = [segment(handle, 0, 10)];
        let refused = pair
            .near
            .rdma_read(&into, place, 0, Fence::None, Completion::Poll)
            .expect_err("registered to be read, though what is kept may be written");
        assert!(matches!(refused, TransferError::NotAllowed), "{refused}");
    });
}

impl Pair {
    fn read_write_once(&self, mapping: &Mapping) {
        let handle = self
            .near
            .register_memory(mapping.memory(), MemoryAccess::ReadWrite)
            .expect("registered");
        self.near.deregister_memory(handle).expect("registered");
    }
}

#[test]
fn wsd_109_the_callback_lets_go_before_a_mapping_changes() {
    let _alone = alone();
    within(STEP * 4, || {
        let pair = pair();
        let (idle, used) = (Mapping::new(8), Mapping::new(8));
        let before = live_objects().mrs;
        pair.read_write_once(&idle);
        let handle = pair
            .near
            .register_memory(used.memory(), MemoryAccess::Read)
            .expect("registered");
        let provider = &pair.san.provider;
        for mapping in [&idle, &used] {
            let told = provider.memory_registration_cache_callback(mapping.at, mapping.len);
            told.expect("started");
        }
        assert_eq!(live_objects().mrs, before + 1, "what is in use");
        pair.near.deregister_memory(handle).expect("registered");
        assert_eq!(live_objects().mrs, before);
        let stopped = San::stopped(ProviderConfig::default());
        assert!(stopped.memory_registration_cache_callback(0, 1).is_err());
    });
}

type Change = fn(&Mapping);

/// What the test of a kept registration is about: other pages at the same address.
#[test]
fn wsd_109_what_is_sent_is_what_is_mapped() {
    let _alone = alone();
    within(STEP * 6, || {
        let changes: [(&str, Change); 5] = [
            ("munmap and mmap", Mapping::map_again),
            ("mmap over it", Mapping::replace),
            ("mremap onto it", Mapping::exchange),
            ("mremap away", Mapping::move_away),
            ("MADV_DONTNEED", Mapping::discard),
        ];
        let pair = pair();
        let peers = SharedMemory::new(8 * PAGE).expect("memory");
        let opened = open(&pair.far, (&peers).into(), MemoryAccess::ReadWrite);
        for (name, change) in changes {
            let mapping = Mapping::new(8);
            mapping.fill(1);
            pair.write(&mapping, &opened).expect("written");
            assert_eq!(all(&peers), [1; 8 * PAGE], "{name}");
            change(&mapping);
            mapping.fill(2);
            pair.write(&mapping, &opened).expect("written");
            assert_eq!(all(&peers), [2; 8 * PAGE], "{name}");
            // And what is fetched arrives where it is looked for.
            pair.read(&mapping, &opened);
            change(&mapping);
            mapping.fill(3);
            pair.read(&mapping, &opened);
            assert!(mapping.holds(2), "{name}");
            mapping.unmap();
        }
        let [hits, misses, invalidations] = pair.counts();
        assert_eq!(hits, 0, "each of them was registered anew");
        if pair.keeps {
            assert!(
                misses >= 20 && invalidations >= 10,
                "{misses} {invalidations}"
            );
        }
    });
}

#[test]
fn wsd_109_what_the_peer_reaches_is_what_is_mapped() {
    let _alone = alone();
    within(STEP * 4, || {
        let pair = pair();
        let source = Mapping::new(8);
        let target = Mapping::new(8);
        for byte in 1..6 {
            let opened = open(&pair.far, target.memory(), MemoryAccess::Write);
            source.fill(byte);
            pair.write(&source, &opened).expect("written");
            assert!(target.holds(byte));
            pair.far
                .deregister_rdma_memory(opened.handle)
                .expect("registered");
            target.map_again();
        }
    });
}

#[test]
fn wsd_109_what_is_unmapped_is_let_go_without_being_asked_for() {
    let _alone = alone();
    within(STEP * 4, || {
        let pair = pair();
        let before = live_objects().mrs;
        let mapping = Mapping::new(8);
        pair.read_write_once(&mapping);
        mapping.unmap();
        eventually("the registration is gone", STEP, || {
            live_objects().mrs == before
        });
    });
}

/// A child has copies of its own of pinned pages from the start (Linux 5.12): the parent's stay
/// the pinned ones, whoever writes first.
#[test]
fn after_a_fork_the_parents_registrations_are_right() {
    let _alone = alone();
    within(STEP * 4, || {
        let pair = pair();
        let peers = filled(8 * PAGE, 0);
        let opened = open(&pair.far, (&peers).into(), MemoryAccess::Write);
        let mapping = Mapping::new(8);
        mapping.fill(1);
        pair.write(&mapping, &opened).expect("written");
        // SAFETY: the child calls nothing but `write_volatile`, `pause` and `_exit`.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            mapping.fill(9);
            // SAFETY: it waits for the signal that ends it.
            unsafe { libc::pause() };
            // SAFETY: nothing of the parent's is run.
            unsafe { libc::_exit(0) };
        }
        let child = Child(child);
        for byte in 2..5 {
            mapping.fill(byte);
            pair.write(&mapping, &opened).expect("written");
            assert_eq!(all(&peers), [byte; 8 * PAGE]);
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(child);
        let [hits, ..] = pair.counts();
        assert_eq!(hits, 3 * u64::from(pair.keeps));
    });
}

struct Child(libc::pid_t);

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: a child of this process that was not waited for yet.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        // SAFETY: as above.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) };
    }
}

#[test]
fn memory_that_cannot_be_watched_is_not_kept() {
    let _alone = alone();
    within(STEP * 4, || {
        let pair = pair();
        let before = live_objects().mrs;
        let shared = Mapping::map(8, MapFlags::SHARED);
        for bypasses in 1..4 {
            pair.read_write_once(&shared);
            assert_eq!(live_objects().mrs, before);
            assert_eq!(pair.san.counters().cache_bypasses, bypasses);
        }
        shared.unmap();
    });
}

#[test]
fn bounds_are_kept() {
    let _alone = alone();
    within(STEP * 4, || {
        let pair = pair_with(ProviderConfig {
            memory_cache_entries: 3,
            memory_cache_bytes: 12 * PAGE as u64,
            ..ProviderConfig::default()
        });
        let before = live_objects().mrs;
        let mappings: Vec<_> = (0..10).map(|_| Mapping::new(5)).collect();
        for mapping in &mappings {
            pair.read_write_once(mapping);
        }
        let kept = 2 * usize::from(pair.keeps);
        assert_eq!(live_objects().mrs, before + kept, "for want of bytes");
        for mapping in &mappings {
            let part = Mapping {
                at: mapping.at,
                len: 1,
            };
            pair.read_write_once(&part);
        }
        let kept = 3 * usize::from(pair.keeps);
        assert_eq!(live_objects().mrs, before + kept);
    });
}

#[test]
fn wsd_110_what_is_kept_goes_with_the_last_connection() {
    let _alone = alone();
    within(STEP * 4, || {
        let first = pair();
        let (near, far) = first.san.pair();
        let before = live_objects().mrs;
        let mapping = Mapping::new(8);
        first.read_write_once(&mapping);
        let opened = open(&near, mapping.memory(), MemoryAccess::Write);
        near.deregister_rdma_memory(opened.handle)
            .expect("registered");
        let kept = before + 2 * usize::from(first.keeps);
        assert_eq!(live_objects().mrs, kept);
        near.close().expect("open");
        far.close().expect("open");
        first.near.close().expect("open");
        first.far.close().expect("open");
        eventually("nothing is registered for the application", STEP, || {
            live_objects().mrs <= before
        });
        let again = first.san.pair();
        drop(again);
        drop(first);
        eventually("nothing is left", STEP, || live_objects().mrs == 0);
    });
}
