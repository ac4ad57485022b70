//! What two connected sockets keep of the application's memory.

use std::time::Duration;

use rustix::mm::MapFlags;
use san_provider::{Fence, MemoryAccess, Notification, ProviderConfig, Socket, TransferError};
use san_tests::memory::{Opened, all, filled, finished, open, segment};
use san_tests::san::San;
use san_tests::time::{STEP, eventually, within};
use verbs_shim::{MappingWatch, SharedMemory, live_objects};

use crate::mapping::{Mapping, PAGE, alone};

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
            .rdma_write(&segments, place, 0, Fence::None, Notification::Poll);
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
            .rdma_read(&segments, place, 0, Fence::None, Notification::Poll);
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
            .rdma_write(&piece, place, 0, Fence::None, Notification::Poll)
            .expect_err("past its end");
        assert!(
            matches!(refused, TransferError::OutOfBounds { limit: 10, .. }),
            "{refused}"
        );
        let into = [segment(handle, 0, 10)];
        let refused = pair
            .near
            .rdma_read(&into, place, 0, Fence::None, Notification::Poll)
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
