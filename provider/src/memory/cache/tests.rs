//! Sequences of calls against an oracle that keeps a list and looks at all of it, and single cases.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

const PAGE: usize = 16;

type Registration = Arc<u64>;

fn cache(entries: usize, bytes: usize) -> RegistrationCache<Registration> {
    RegistrationCache::new(CacheLimits { entries, bytes }, PAGE)
}

/// Registers and releases, as a call of the application's does.
fn keep(cache: &mut RegistrationCache<Registration>, range: Range<usize>) -> EntryId {
    let id = cache
        .reserve(1, &range, Access::READ_ONLY, &mut Removed::default())
        .expect("room");
    assert!(cache.fill(id, &Arc::new(0)));
    cache.release(id);
    id
}

fn finds(cache: &mut RegistrationCache<Registration>, range: Range<usize>) -> bool {
    match cache.find(1, &range, Access::READ_ONLY) {
        Some((id, _)) => {
            cache.release(id);
            true
        }
        None => false,
    }
}

#[test]
fn a_hit_contains_the_range_and_has_the_rights() {
    let mut cache = cache(8, 1000);
    let rights = Access::LOCAL_WRITE | Access::REMOTE_READ;
    let id = cache
        .reserve(7, &(100..200), rights, &mut Removed::default())
        .unwrap();
    assert!(cache.find(7, &(100..200), rights).is_none(), "not filled");
    assert!(cache.fill(id, &Arc::new(5)));
    for (domain, range, access, hit) in [
        (7, 100..200, rights, true),
        (7, 150..151, Access::READ_ONLY, true),
        (7, 199..200, Access::LOCAL_WRITE, true),
        (7, 99..200, rights, false),
        (7, 100..201, rights, false),
        (7, 100..200, Access::REMOTE_WRITE, false),
        (8, 100..200, rights, false),
    ] {
        let found = cache.find(domain, &range, access).map(|(_, r)| *r);
        assert_eq!(found, hit.then_some(5), "{domain} {range:?} {access:?}");
    }
}

#[test]
fn the_least_recently_used_makes_room() {
    let mut cache = cache(3, 1000);
    for start in [0, 100, 200] {
        keep(&mut cache, start..start + 10);
    }
    assert!(finds(&mut cache, 0..10));
    let mut removed = Removed::default();
    let id = cache.reserve(1, &(300..310), Access::READ_ONLY, &mut removed);
    assert!(cache.fill(id.unwrap(), &Arc::new(0)));
    assert_eq!((removed.evicted, removed.registrations.len()), (1, 1));
    assert_eq!(removed.unwatched, [96..112]);
    assert!(finds(&mut cache, 0..10), "it was used last");
    assert!(!finds(&mut cache, 100..110));
    assert!(finds(&mut cache, 200..210));
}

#[test]
fn what_is_in_use_stays_and_counts() {
    let mut cache = cache(2, 1000);
    let mut removed = Removed::default();
    for start in [0, 100] {
        let id = cache.reserve(1, &(start..start + 10), Access::READ_ONLY, &mut removed);
        assert!(cache.fill(id.unwrap(), &Arc::new(0)));
    }
    assert_eq!(
        cache.reserve(1, &(200..210), Access::READ_ONLY, &mut removed),
        None
    );
    assert_eq!(removed.evicted, 0);
    cache.evict_idle(&mut removed);
    assert_eq!(cache.len(), 2);
}

#[test]
fn bytes_are_bounded_in_whole_pages() {
    let mut cache = cache(100, 4 * PAGE);
    keep(&mut cache, 0..PAGE);
    // Two bytes on two pages.
    keep(&mut cache, 2 * PAGE - 1..2 * PAGE + 1);
    assert_eq!(cache.bytes(), 3 * PAGE);
    keep(&mut cache, 10 * PAGE..12 * PAGE);
    assert_eq!(cache.bytes(), 4 * PAGE, "the first one had to go");
    assert!(!finds(&mut cache, 0..PAGE));
    let large = 100 * PAGE..105 * PAGE;
    let mut removed = Removed::default();
    assert_eq!(
        cache.reserve(1, &large, Access::READ_ONLY, &mut removed),
        None
    );
    assert_eq!(cache.len(), 2, "nothing goes for what has no room anyway");
}

#[test]
fn what_changed_in_use_is_never_found_again_and_lives_on() {
    let mut cache = cache(8, 1000);
    let registration = Arc::new(1);
    let id = cache
        .reserve(1, &(32..64), Access::READ_ONLY, &mut Removed::default())
        .unwrap();
    assert!(cache.fill(id, &registration));
    let mut removed = Removed::default();
    cache.unmapped(&(48..64), &mut removed);
    assert_eq!((removed.invalidated, cache.len()), (1, 0));
    assert_eq!(removed.unwatched, [32..48], "the rest is still mapped");
    drop(removed);
    assert!(!finds(&mut cache, 32..40));
    assert_eq!(Arc::strong_count(&registration), 1, "its user has it");
    cache.release(id);
    assert!(cache.is_empty());
}

#[test]
fn what_changed_while_it_was_registered_is_not_kept() {
    let mut cache = cache(8, 1000);
    let mut removed = Removed::default();
    let id = cache
        .reserve(1, &(32..64), Access::READ_ONLY, &mut removed)
        .unwrap();
    cache.changed(&(63..64), &mut removed);
    assert!(!cache.fill(id, &Arc::new(1)));
    assert!(!finds(&mut cache, 32..64));
    assert_eq!(cache.bytes(), 0);
}

#[test]
fn a_larger_range_replaces_those_inside_it() {
    let mut cache = cache(8, 10_000);
    keep(&mut cache, 100..200);
    keep(&mut cache, 150..250);
    keep(&mut cache, 300..400);
    keep(&mut cache, 100..300);
    assert_eq!(cache.len(), 2);
    assert!(finds(&mut cache, 120..290) && finds(&mut cache, 300..400));
    let again = cache.reserve(1, &(120..290), Access::READ_ONLY, &mut Removed::default());
    assert_eq!(again, None, "it is there already");
}

#[test]
fn a_page_is_watched_as_long_as_an_entry_lies_in_it() {
    let mut cache = cache(8, 1000);
    let (first, second) = (keep(&mut cache, 0..20), keep(&mut cache, 24..40));
    let mut removed = Removed::default();
    cache.cancel(first, &mut removed);
    assert_eq!(removed.unwatched, [0..16]);
    cache.cancel(second, &mut removed);
    assert_eq!(removed.unwatched, [0..16, 16..48]);
    keep(&mut cache, 16..32);
    let mut removed = Removed::default();
    cache.watched(&(0..64), &mut removed);
    assert_eq!(removed.unwatched, [0..16, 32..64]);
}

/// The same rules, the slow way.
#[derive(Debug, Default)]
struct Oracle {
    entries: Vec<Known>,
    /// Pages that are watched, by number.
    watched: BTreeSet<usize>,
}

#[derive(Debug, Clone)]
struct Known {
    id: EntryId,
    domain: u64,
    range: Range<usize>,
    access: Access,
    filled: bool,
    users: u32,
}

impl Oracle {
    fn finds(&self, domain: u64, range: &Range<usize>, access: Access) -> Vec<EntryId> {
        let fits = |e: &&Known| {
            e.filled
                && e.domain == domain
                && e.access.contains(access)
                && e.range.start <= range.start
                && range.end <= e.range.end
        };
        self.entries.iter().filter(fits).map(|e| e.id).collect()
    }

    fn forget(&mut self, gone: impl Fn(&Known) -> bool) -> u64 {
        let before = self.entries.len();
        self.entries.retain(|e| !gone(e));
        (before - self.entries.len()) as u64
    }

    fn unwatch(&mut self, ranges: &[Range<usize>]) {
        for range in ranges {
            assert!(range.start % PAGE == 0 && range.end % PAGE == 0 && !range.is_empty());
            for page in numbers(range) {
                assert!(self.watched.remove(&page), "it was watched, and is mapped");
            }
        }
    }

    fn needed(&self) -> BTreeSet<usize> {
        self.entries
            .iter()
            .flat_map(|e| numbers(&e.range))
            .collect()
    }

    fn pinned(&self) -> usize {
        self.entries
            .iter()
            .map(|e| numbers(&e.range).len() * PAGE)
            .sum()
    }
}

fn numbers(range: &Range<usize>) -> Range<usize> {
    range.start / PAGE..range.end.div_ceil(PAGE)
}

#[derive(Debug, Clone)]
enum Call {
    /// Find, or else reserve; fill at once or later.
    Register {
        domain: u64,
        range: Range<usize>,
        access: usize,
        at_once: bool,
    },
    /// Fill or give up the nth that was reserved.
    Finish {
        nth: usize,
        fill: bool,
    },
    Release(usize),
    Unmapped(Range<usize>),
    Changed(Range<usize>),
    EvictIdle,
}

const RIGHTS: [Access; 4] = [
    Access::READ_ONLY,
    Access::LOCAL_WRITE,
    Access::REMOTE_READ,
    Access::REMOTE_WRITE,
];

fn ranges() -> impl Strategy<Value = Range<usize>> {
    (0..600_usize, 1..90_usize).prop_map(|(start, len)| start..start + len)
}

fn page_ranges() -> impl Strategy<Value = Range<usize>> {
    (0..40_usize, 1..5_usize).prop_map(|(start, len)| start * PAGE..(start + len) * PAGE)
}

fn calls() -> impl Strategy<Value = Call> {
    prop_oneof![
        6 => (1..3_u64, ranges(), 0..RIGHTS.len(), prop::bool::weighted(0.8)).prop_map(
            |(domain, range, access, at_once)| Call::Register { domain, range, access, at_once }
        ),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(nth, fill)| Call::Finish { nth, fill }),
        5 => any::<usize>().prop_map(Call::Release),
        1 => page_ranges().prop_map(Call::Unmapped),
        1 => ranges().prop_map(Call::Changed),
        1 => Just(Call::EvictIdle),
    ]
}

/// One of a list, by any number.
fn pick<T>(list: &mut Vec<T>, nth: usize) -> Option<T> {
    let len = list.len();
    (len > 0).then(|| list.swap_remove(nth % len))
}

struct Run {
    cache: RegistrationCache<Registration>,
    oracle: Oracle,
    limits: CacheLimits,
    reserved: Vec<EntryId>,
    used: Vec<(EntryId, Registration)>,
    /// Every registration that was ever made.
    made: Vec<std::sync::Weak<u64>>,
}

impl Run {
    fn new(limits: CacheLimits) -> Self {
        Self {
            cache: RegistrationCache::new(limits, PAGE),
            oracle: Oracle::default(),
            limits,
            reserved: Vec::new(),
            used: Vec::new(),
            made: Vec::new(),
        }
    }

    fn call(&mut self, call: Call) {
        let mut removed = Removed::default();
        let mut gone_pages = 0..0;
        match call {
            Call::Register {
                domain,
                range,
                access,
                at_once,
            } => self.register(domain, &range, RIGHTS[access], at_once, &mut removed),
            Call::Finish { nth, fill } => {
                if let Some(id) = pick(&mut self.reserved, nth) {
                    self.finish(id, fill, &mut removed);
                }
            }
            Call::Release(nth) => {
                if let Some((id, registration)) = pick(&mut self.used, nth) {
                    drop(registration);
                    self.cache.release(id);
                    if let Some(known) = self.oracle.entries.iter_mut().find(|e| e.id == id) {
                        known.users -= 1;
                        // The most recent use is the last in the list.
                        let known = known.clone();
                        self.oracle.forget(|e| e.id == id);
                        self.oracle.entries.push(known);
                    }
                }
            }
            Call::Unmapped(range) => {
                self.cache.unmapped(&range, &mut removed);
                gone_pages = numbers(&range);
                self.touched(&range, &removed);
            }
            Call::Changed(range) => {
                self.cache.changed(&range, &mut removed);
                self.touched(&range, &removed);
            }
            Call::EvictIdle => {
                self.cache.evict_idle(&mut removed);
                let evicted = self.oracle.forget(|e| e.filled && e.users == 0);
                assert_eq!(removed.evicted, evicted);
            }
        }
        let watched = &mut self.oracle.watched;
        watched.retain(|page| !gone_pages.contains(page));
        self.oracle.unwatch(&removed.unwatched);
        assert_eq!(self.oracle.watched, self.oracle.needed());
        assert_eq!(self.cache.len(), self.oracle.entries.len());
        assert_eq!(self.cache.bytes(), self.oracle.pinned());
        assert!(self.cache.len() <= self.limits.entries);
        assert!(self.cache.bytes() <= self.limits.bytes);
    }

    fn touched(&mut self, range: &Range<usize>, removed: &Removed<Registration>) {
        let overlaps = |e: &Known| e.range.start < range.end && range.start < e.range.end;
        assert_eq!(self.oracle.forget(overlaps), removed.invalidated);
    }

    fn register(
        &mut self,
        domain: u64,
        range: &Range<usize>,
        access: Access,
        at_once: bool,
        removed: &mut Removed<Registration>,
    ) {
        let known = self.oracle.finds(domain, range, access);
        if let Some((id, registration)) = self.cache.find(domain, range, access) {
            assert!(known.contains(&id), "a stale hit, or one that does not fit");
            let entry = self.oracle.entries.iter_mut().find(|e| e.id == id).unwrap();
            entry.users += 1;
            self.used.push((id, registration));
            return;
        }
        assert_eq!(known, [], "there was one");
        let Some(id) = self.cache.reserve(domain, range, access, removed) else {
            assert!(self.has_no_room(domain, range, access));
            assert!(removed.registrations.is_empty());
            return;
        };
        self.oracle.forget(|e| {
            (e.domain, e.access) == (domain, access)
                && range.start <= e.range.start
                && e.range.end <= range.end
        });
        let size = numbers(range).len() * PAGE;
        for _ in 0..removed.evicted {
            assert!(
                self.oracle.entries.len() >= self.limits.entries
                    || self.oracle.pinned() + size > self.limits.bytes,
                "evicted without need"
            );
            let idle = |e: &Known| e.filled && e.users == 0;
            let at = self.oracle.entries.iter().position(idle).unwrap();
            self.oracle.entries.remove(at);
        }
        self.oracle.unwatch(&std::mem::take(&mut removed.unwatched));
        self.oracle.watched.extend(numbers(range));
        self.oracle.entries.push(Known {
            id,
            domain,
            range: range.clone(),
            access,
            filled: false,
            users: 0,
        });
        match at_once {
            true => self.finish(id, true, removed),
            false => self.reserved.push(id),
        }
    }

    fn has_no_room(&self, domain: u64, range: &Range<usize>, access: Access) -> bool {
        let busy = || {
            self.oracle
                .entries
                .iter()
                .filter(|e| !e.filled || e.users > 0)
        };
        let bytes: usize = busy().map(|e| numbers(&e.range).len() * PAGE).sum();
        let same = |e: &Known| {
            (e.domain, e.access) == (domain, access)
                && e.range.start <= range.start
                && range.end <= e.range.end
        };
        busy().count() >= self.limits.entries
            || bytes + numbers(range).len() * PAGE > self.limits.bytes
            || busy().any(same)
    }

    fn finish(&mut self, id: EntryId, fill: bool, removed: &mut Removed<Registration>) {
        if !fill {
            self.cache.cancel(id, removed);
            self.oracle.forget(|e| e.id == id);
            return;
        }
        let registration = Arc::new(id.0);
        self.made.push(Arc::downgrade(&registration));
        let kept = self.cache.fill(id, &registration);
        let known = self.oracle.entries.iter_mut().find(|e| e.id == id);
        assert_eq!(kept, known.is_some());
        if let Some(known) = known {
            known.filled = true;
            known.users = 1;
            self.used.push((id, registration));
        }
    }

    fn end(mut self) {
        let mut removed = Removed::default();
        self.cache.clear(&mut removed);
        assert!(self.cache.is_empty() && self.cache.bytes() == 0);
        for (id, _) in std::mem::take(&mut self.used) {
            self.cache.release(id);
        }
        drop(removed);
        let alive = self.made.iter().filter(|r| r.strong_count() > 0).count();
        assert_eq!(alive, 0, "registrations that nobody holds are dropped");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn it_does_what_a_list_does(
        entries in 1..12_usize,
        pages in 1..40_usize,
        calls in prop::collection::vec(calls(), 1..120),
    ) {
        let mut run = Run::new(CacheLimits { entries, bytes: pages * PAGE });
        for call in calls {
            run.call(call);
        }
        run.end();
    }
}
