//! Against the kernel that runs. Where it offers no userfaultfd (or a container forbids it) there
//! is nothing to test but that it says so.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};

use super::*;

const PAGE: usize = 4096;

/// Pages of a mapping; never unmapped by itself.
#[derive(Debug, Clone, Copy)]
struct Pages {
    at: usize,
    count: usize,
}

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

impl Pages {
    fn anonymous(count: usize) -> Self {
        Self::map(count, None, MapFlags::PRIVATE)
    }

    fn map(count: usize, file: Option<&OwnedFd>, flags: MapFlags) -> Self {
        let (nowhere, len) = (std::ptr::null_mut(), count * PAGE);
        // SAFETY: the kernel chooses the address, so nothing in use is replaced.
        let at = match file {
            // SAFETY: so here.
            None => unsafe { rustix::mm::mmap_anonymous(nowhere, len, READ_WRITE, flags) },
            // SAFETY: as above.
            Some(file) => unsafe { rustix::mm::mmap(nowhere, len, READ_WRITE, flags, file, 0) },
        };
        let at = at.unwrap() as usize;
        Self { at, count }
    }

    fn range(self) -> Range<usize> {
        self.at..self.at + self.count * PAGE
    }

    /// Some of its pages.
    fn part(self, pages: Range<usize>) -> Self {
        Self {
            at: self.at + pages.start * PAGE,
            count: pages.len(),
        }
    }

    fn touch(self) -> Self {
        for page in self.range().step_by(PAGE) {
            // SAFETY: mapped, writable, and nobody else's.
            unsafe { std::ptr::with_exposed_provenance_mut::<u8>(page).write_volatile(1) };
        }
        self
    }

    fn ptr(self) -> *mut std::ffi::c_void {
        std::ptr::with_exposed_provenance_mut(self.at)
    }

    fn unmap(self) {
        // SAFETY: the test's own mapping, to which no reference exists.
        unsafe { rustix::mm::munmap(self.ptr(), self.count * PAGE) }.unwrap();
    }

    fn map_over(self) {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        let len = self.count * PAGE;
        // SAFETY: what is replaced is the test's own mapping.
        unsafe { rustix::mm::mmap_anonymous(self.ptr(), len, READ_WRITE, flags) }.unwrap();
    }

    fn advise(self, advice: Advice) {
        // SAFETY: the test's own mapping, of whose contents nobody cares.
        unsafe { rustix::mm::madvise(self.ptr(), self.count * PAGE, advice) }.unwrap();
    }

    fn remap(self, count: usize, flags: MremapFlags) -> Self {
        let (old, new) = (self.count * PAGE, count * PAGE);
        // SAFETY: the test's own mapping.
        let at = unsafe { rustix::mm::mremap(self.ptr(), old, new, flags) }.unwrap() as usize;
        Self { at, count }
    }
}

fn watch() -> Option<MappingWatch> {
    match MappingWatch::new() {
        Ok(watch) => Some(watch),
        Err(error @ (WatchError::Unsupported { .. } | WatchError::Denied { .. })) => {
            eprintln!("not tested here: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// What is told while a thread does something that others have to hear of before it goes on.
fn told<T: Send>(
    watch: &MappingWatch,
    action: impl FnOnce() -> T + Send,
) -> (T, Vec<MappingChange>) {
    let mut changes = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(action);
        loop {
            let ended = thread.is_finished();
            watch.read(|change| changes.push(change)).unwrap();
            if ended {
                return thread.join().unwrap();
            }
            assert!(Instant::now() < deadline, "the thread is stuck");
            let mut fds = [PollFd::new(watch, PollFlags::IN)];
            let tick = Timespec {
                tv_sec: 0,
                tv_nsec: 1_000_000,
            };
            rustix::event::poll(&mut fds, Some(&tick)).unwrap();
        }
    });
    assert!(watch.is_settled(), "all was read");
    (result, changes)
}

#[test]
fn unmapping_is_told() {
    let Some(watch) = watch() else { return };
    let pages = Pages::anonymous(4).touch();
    watch.watch(&pages.range()).unwrap();
    let part = pages.part(1..3);
    let ((), changes) = told(&watch, || part.unmap());
    assert_eq!(changes, [MappingChange::Unmapped(part.range())]);
    let ((), changes) = told(&watch, || pages.part(3..4).unmap());
    assert_eq!(changes, [MappingChange::Unmapped(pages.part(3..4).range())]);
}

#[test]
fn mapping_over_it_is_told() {
    let Some(watch) = watch() else { return };
    let pages = Pages::anonymous(4).touch();
    watch.watch(&pages.range()).unwrap();
    let part = pages.part(0..2);
    let ((), changes) = told(&watch, || part.map_over());
    assert_eq!(changes, [MappingChange::Unmapped(part.range())]);
    // What is there now is not watched until it is asked for.
    let ((), changes) = told(&watch, || part.unmap());
    assert_eq!(changes, []);
}

#[test]
fn moving_is_told_and_what_was_moved_stays_watched() {
    let Some(watch) = watch() else { return };
    // The last page keeps the first two from growing where they are.
    let pages = Pages::anonymous(3).touch().part(0..2);
    watch.watch(&pages.range()).unwrap();
    let (moved, changes) = told(&watch, || pages.remap(64, MremapFlags::MAYMOVE));
    assert_ne!(moved.at, pages.at);
    let (from, to) = (pages.range(), moved.at);
    assert!(
        changes.contains(&MappingChange::Moved { from, to }),
        "{changes:?}"
    );
    watch.unwatch(&moved.range());
    let ((), changes) = told(&watch, || moved.unmap());
    assert_eq!(changes, []);
}

#[test]
fn moving_pages_out_of_a_mapping_that_stays_is_told() {
    let Some(watch) = watch() else { return };
    let pages = Pages::anonymous(2).touch();
    watch.watch(&pages.range()).unwrap();
    let len = pages.count * PAGE;
    let (to, changes) = told(&watch, || {
        // rustix leaves out the fifth argument, at which the kernel looks with this flag.
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
        // SAFETY: the test's own mapping, and the address is of the kernel's choice.
        let to = unsafe { libc::mremap(pages.ptr(), len, len, flags, std::ptr::null_mut::<u8>()) };
        to as usize
    });
    let from = pages.range();
    assert!(
        changes.contains(&MappingChange::Moved { from, to }),
        "{changes:?}"
    );
}

#[test]
fn shrinking_is_told_and_growing_in_place_is_not() {
    let Some(watch) = watch() else { return };
    let pages = Pages::anonymous(4).touch();
    watch.watch(&pages.range()).unwrap();
    let (shrunk, changes) = told(&watch, || pages.remap(2, MremapFlags::empty()));
    assert_eq!(changes, [MappingChange::Unmapped(pages.part(2..4).range())]);
    let (_, changes) = told(&watch, || shrunk.remap(3, MremapFlags::empty()));
    assert_eq!(changes, []);
}

#[test]
fn throwing_contents_away_is_told() {
    let Some(watch) = watch() else { return };
    let pages = Pages::anonymous(4).touch();
    watch.watch(&pages.range()).unwrap();
    for advice in [Advice::LinuxDontNeed, Advice::LinuxFree] {
        let part = pages.touch().part(1..2);
        let ((), changes) = told(&watch, || part.advise(advice));
        assert_eq!(
            changes,
            [MappingChange::Discarded(part.range())],
            "{advice:?}"
        );
    }
    let ((), changes) = told(&watch, || pages.advise(Advice::WillNeed));
    assert_eq!(changes, []);
}

#[test]
fn only_what_is_watched_is_told() {
    let Some(watch) = watch() else { return };
    let pages = Pages::anonymous(8).touch();
    watch.watch(&(pages.at + 5000..pages.at + 5001)).unwrap();
    let ((), changes) = told(&watch, || {
        pages.part(2..8).unmap();
        pages.part(0..1).advise(Advice::LinuxDontNeed);
    });
    assert_eq!(changes, [], "the page of that one byte is the second");
    watch.unwatch(&pages.part(1..2).range());
    let ((), changes) = told(&watch, || pages.part(0..2).unmap());
    assert_eq!(changes, []);
}

#[test]
fn nothing_is_changed_by_being_watched() {
    let Some(watch) = watch() else { return };
    let pages = Pages::anonymous(64).touch();
    watch.watch(&pages.range()).unwrap();
    // Faults of every kind: written pages, pages that were never there, and calls of the kernel's.
    pages.part(0..2).advise_in_thread(&watch);
    pages.touch();
    let other = Pages::anonymous(8);
    watch.watch(&other.range()).unwrap();
    // SAFETY: mapped and nobody else's; the kernel fills the pages.
    let bytes =
        unsafe { std::slice::from_raw_parts_mut(other.ptr().cast::<u8>(), other.count * PAGE) };
    let mut zeros = File::open("/dev/zero").unwrap();
    io::Read::read_exact(&mut zeros, bytes).unwrap();
    assert!(bytes.iter().all(|&b| b == 0));
    assert!(!watch.read(|_| ()).unwrap());
}

impl Pages {
    fn advise_in_thread(self, watch: &MappingWatch) {
        let ((), changes) = told(watch, || self.advise(Advice::LinuxDontNeed));
        assert_eq!(changes, [MappingChange::Discarded(self.range())]);
    }
}

/// The moment between the unmapping and its event: it is known that something is on its way.
#[test]
fn what_is_on_its_way_is_known() {
    let Some(watch) = watch() else { return };
    assert!(watch.is_settled());
    let pages = Pages::anonymous(2).touch();
    watch.watch(&pages.range()).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| pages.unmap());
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut buffer = [PollFd::new(&watch, PollFlags::IN)];
        rustix::event::poll(&mut buffer, None).unwrap();
        assert!(!watch.is_settled(), "it was not read yet");
        assert!(!thread.is_finished(), "it waits");
        assert!(watch.read(|_| ()).unwrap());
        while !watch.is_settled() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        thread.join().unwrap();
    });
}

#[test]
fn memory_that_others_can_change_cannot_be_watched() {
    let Some(watch) = watch() else { return };
    let refused = |pages: Pages| {
        let error = watch.watch(&pages.range()).unwrap_err();
        assert!(matches!(error, WatchError::Kind), "{error}");
        let ((), changes) = told(&watch, || pages.unmap());
        assert_eq!(changes, []);
    };
    refused(Pages::map(2, None, MapFlags::SHARED).touch());
    let memfd = rustix::fs::memfd_create("watch", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memfd, 2 * PAGE as u64).unwrap();
    refused(Pages::map(2, Some(&memfd), MapFlags::SHARED));
    refused(Pages::map(2, Some(&memfd), MapFlags::PRIVATE).touch());
    let file = File::open(std::env::current_exe().unwrap()).unwrap();
    refused(Pages::map(2, Some(&file.into()), MapFlags::PRIVATE));
    // Partly anonymous, partly not mapped.
    let pages = Pages::anonymous(3);
    pages.part(1..2).unmap();
    let error = watch.watch(&pages.range()).unwrap_err();
    assert!(matches!(error, WatchError::Kind), "{error}");
    assert!(watch.watch(&(0..0)).is_err());
    assert!(watch.watch(&(usize::MAX - 1..usize::MAX)).is_err());
}

#[test]
fn memory_of_another_userfaultfd_is_left_to_it() {
    let (Some(first), Some(second)) = (watch(), watch()) else {
        return;
    };
    let pages = Pages::anonymous(2).touch();
    first.watch(&pages.range()).unwrap();
    first.watch(&pages.range()).unwrap();
    assert!(matches!(
        second.watch(&pages.range()),
        Err(WatchError::Kind)
    ));
    drop(first);
    second.watch(&pages.range()).unwrap();
}

#[test]
fn whoever_waits_goes_on_when_the_watch_ends() {
    let Some(watch) = watch() else { return };
    let pages = Pages::anonymous(2).touch();
    watch.watch(&pages.range()).unwrap();
    let thread = std::thread::spawn(move || pages.unmap());
    let mut fds = [PollFd::new(&watch, PollFlags::IN)];
    rustix::event::poll(&mut fds, None).unwrap();
    drop(watch);
    thread.join().unwrap();
}

#[test]
fn the_list_says_the_same_as_the_kernel() {
    let maps = File::open("/proc/self/maps").unwrap();
    let text = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut kinds = HashSet::new();
    let kept: Vec<_> = [MapFlags::PRIVATE, MapFlags::SHARED]
        .map(|flags| Pages::map(3, None, flags))
        .into();
    for line in text.lines() {
        let mapping = maps::parse(line.as_bytes()).expect(line);
        kinds.insert(mapping.private_anonymous);
    }
    assert_eq!(kinds.len(), 2, "both kinds are there: {text}");
    let survey = |pages: Pages| {
        let by_list = maps::by_list::survey(&maps, &pages.range()).unwrap();
        assert_eq!(maps::survey(&maps, &pages.range()), Ok(by_list));
        let AtRim { before, behind } = by_list.at_rim;
        (by_list.private_anonymous, before, behind)
    };
    for (pages, private) in kept.iter().zip([true, false]) {
        assert_eq!(survey(pages.part(1..2)), (private, false, false));
        assert_eq!(survey(*pages).0, private);
        pages.part(1..2).unmap();
        assert!(!survey(*pages).0);
        assert_eq!(survey(pages.part(0..1)).0, private);
        assert!(survey(pages.part(0..1)).2, "nothing is behind it");
        assert!(survey(pages.part(2..3)).1, "nothing is before it");
        assert_eq!(survey(pages.part(1..2)), (false, false, false));
    }
    assert_eq!(maps::parse(b"no mapping"), None);
    let line = b"7f0000000000-7f0000021000 rw-p 00000000 00:00 0 [anon: a name]";
    assert!(maps::parse(line).unwrap().private_anonymous);
    let line = b"7f0000000000-7f0000021000 rw-p 00000000 fe:01 77   /usr/lib/x y";
    assert!(!maps::parse(line).unwrap().private_anonymous);
}

/// How many mappings make up these pages.
fn pieces(pages: Pages) -> usize {
    let text = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mappings = text
        .lines()
        .map(|line| maps::parse(line.as_bytes()).unwrap());
    let inside = |m: &maps::Mapping| m.range.start < pages.range().end && m.range.end > pages.at;
    mappings.filter(inside).count()
}

/// Pages with nothing mapped on either side, and none there yet.
fn island(count: usize) -> Pages {
    let pages = Pages::anonymous(count + 2);
    pages.part(0..1).unmap();
    pages.part(count + 1..count + 2).unmap();
    pages.part(1..count + 1)
}

#[test]
fn the_kernel_joins_what_is_watched_no_longer() {
    let Some(watch) = watch() else { return };
    let pages = island(64);
    let watched = (1..64).step_by(4).map(|n| pages.part(n..n + 2));
    for part in watched.clone() {
        let at_rim = watch.watch(&part.range()).unwrap();
        assert!(!at_rim.before && !at_rim.behind);
        part.touch();
    }
    assert!(pieces(pages) > 16);
    for part in watched {
        watch.unwatch(&part.range());
    }
    assert_eq!(pieces(pages), 1);
    pages.unmap();
}

#[test]
fn what_lies_at_a_rim_is_told_and_refused() {
    let Some(watch) = watch() else { return };
    let pages = island(6);
    for (rim, before, behind) in [(0..2, true, false), (4..6, false, true), (0..6, true, true)] {
        let part = pages.part(rim);
        let error = watch.watch_inside(&part.range()).unwrap_err();
        assert!(matches!(error, WatchError::Rim), "{error}");
        assert_eq!(pieces(pages), 1);
        let at_rim = watch.watch(&part.range()).unwrap();
        assert_eq!(at_rim, AtRim { before, behind });
        watch.unwatch(&part.range());
    }
    watch.watch_inside(&pages.part(1..5).range()).unwrap();
    watch.unwatch(&pages.range());
    assert_eq!(pieces(pages), 1);
    pages.unmap();
}

/// Pages that come beside watched ones and are written at once stay a mapping of their own: the
/// one thing that watching does to a program, and it is seen.
#[test]
fn a_seam_is_seen() {
    let Some(watch) = watch() else { return };
    let maps = File::open("/proc/self/maps").unwrap();
    let is_seam = |at| {
        let seam = watch.is_seam(at);
        assert_eq!(maps::by_list::is_seam(&maps, at), Ok(seam));
        seam
    };
    let pages = island(4).touch();
    pages.part(0..2).unmap();
    let old = pages.part(2..4);
    assert!(watch.watch(&old.range()).unwrap().before);
    assert!(!is_seam(old.at), "nothing is there");
    pages.part(0..2).map_over();
    pages.part(0..2).touch();
    watch.unwatch(&old.range());
    assert!(is_seam(old.at));
    assert!(!is_seam(old.at + PAGE), "inside");
    assert!(!is_seam(old.range().end), "nothing is there");
    pages.unmap();
}
