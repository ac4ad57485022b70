//! Registrations that are kept beyond their use, found by address.
//!
//! Each entry stands for one registration of a range of memory in one domain (a protection domain)
//! with certain rights. What is asked for is a hit if one entry of its domain contains the whole
//! range and has all the rights. Entries that nobody uses are evicted, the least recently used
//! first, when a bound is reached; entries in use count too, and what finds no room is not kept.
//!
//! On one shelf (domain and rights) no entry contains another: a larger one replaces those inside
//! it. So the entries' ends are in the order of their starts, and the one entry that can contain a
//! range is the last that starts at or before it: one step down a tree, whatever overlaps.
//!
//! What leaves the cache while it is in use is never found again and lives on with its users. What
//! has left, and which pages need no watching any more, is handed to the caller in a [`Removed`],
//! who drops it where no lock is held.
//!
//! Not done here: registering, watching mappings, threads, time.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use verbs_shim::Access;

#[cfg(test)]
// Lists of one range of pages are meant.
#[allow(clippy::single_range_in_vec_init)]
mod tests;

/// Bounds of what is kept, in use or not. A bound of 0 keeps nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Registrations.
    pub entries: usize,
    /// Bytes of the pages they pin, counted for each of them.
    pub bytes: usize,
}

/// Stands for an entry; unique for the life of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(u64);

/// What left the cache.
#[derive(Debug)]
pub struct Removed<R> {
    /// Registrations that the cache holds no longer.
    pub registrations: Vec<R>,
    /// Pages in which nothing is registered for the cache any more, and that still are mapped.
    pub unwatched: Vec<Range<usize>>,
    /// Entries that had to make room.
    pub evicted: u64,
    /// Entries whose memory changed.
    pub invalidated: u64,
}

impl<R> Default for Removed<R> {
    fn default() -> Self {
        Self {
            registrations: Vec::new(),
            unwatched: Vec::new(),
            evicted: 0,
            invalidated: 0,
        }
    }
}

/// The cache. `R` stands for a registration; its clones are the same registration.
#[derive(Debug)]
pub struct RegistrationCache<R> {
    limits: CacheLimits,
    page_size: usize,
    entries: HashMap<EntryId, Entry<R>>,
    /// A few: one for each domain and combination of rights in use.
    shelves: Vec<Shelf>,
    /// Entries that nobody uses, by their last use.
    idle: BTreeMap<u64, EntryId>,
    bytes: usize,
    idle_bytes: usize,
    next: u64,
}

#[derive(Debug)]
struct Entry<R> {
    domain: u64,
    access: Access,
    range: Range<usize>,
    state: State<R>,
}

#[derive(Debug)]
enum State<R> {
    /// Its place is taken; it is being registered, and is not found.
    Reserved,
    InUse {
        registration: R,
        users: u64,
    },
    Idle {
        registration: R,
        last_use: u64,
    },
}

#[derive(Debug)]
struct Shelf {
    domain: u64,
    access: Access,
    by_start: BTreeMap<usize, (usize, EntryId)>,
}

impl<R: Clone> RegistrationCache<R> {
    /// An empty cache.
    ///
    /// # Panics
    /// If `page_size` is no power of two.
    #[must_use]
    pub fn new(limits: CacheLimits, page_size: usize) -> Self {
        assert!(page_size.is_power_of_two(), "a page of {page_size} bytes");
        Self {
            limits,
            page_size,
            entries: HashMap::new(),
            shelves: Vec::new(),
            idle: BTreeMap::new(),
            bytes: 0,
            idle_bytes: 0,
            next: 0,
        }
    }

    /// Entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of the pages of all entries.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The pages in which the range lies.
    #[must_use]
    pub fn pages(&self, range: &Range<usize>) -> Range<usize> {
        pages(range, self.page_size)
    }

    /// A registration of the domain that contains the range and has the rights. It is in use until
    /// it is released.
    pub fn find(
        &mut self,
        domain: u64,
        range: &Range<usize>,
        access: Access,
    ) -> Option<(EntryId, R)> {
        let fits = |shelf: &&Shelf| shelf.domain == domain && shelf.access.contains(access);
        let mut found = self
            .shelves
            .iter()
            .filter(fits)
            .flat_map(|shelf| shelf.containing(range));
        let id = found.find(|id| {
            let entry = self.entries.get(id);
            entry.is_some_and(|entry| !matches!(entry.state, State::Reserved))
        })?;
        let entry = self.entries.get_mut(&id)?;
        match &mut entry.state {
            State::Reserved => None,
            State::InUse {
                registration,
                users,
            } => {
                *users += 1;
                Some((id, registration.clone()))
            }
            State::Idle {
                registration,
                last_use,
            } => {
                let registration = registration.clone();
                self.idle.remove(last_use);
                self.idle_bytes -= pinned(&entry.range, self.page_size);
                entry.state = State::InUse {
                    registration: registration.clone(),
                    users: 1,
                };
                Some((id, registration))
            }
        }
    }

    /// A place for a registration that is about to be made; `None`: it cannot be kept. Its pages
    /// have to be watched before it is filled, and after those in `removed` no longer are: they may
    /// be the same.
    pub fn reserve(
        &mut self,
        domain: u64,
        range: &Range<usize>,
        access: Access,
        removed: &mut Removed<R>,
    ) -> Option<EntryId> {
        let size = pinned(range, self.page_size);
        let in_use = self.entries.len() - self.idle.len();
        let fits = in_use < self.limits.entries
            && (self.bytes - self.idle_bytes)
                .checked_add(size)
                .is_some_and(|bytes| bytes <= self.limits.bytes);
        if range.is_empty() || !fits {
            return None;
        }
        let shelf = self.shelf(domain, access);
        // Another thread has registered it, or is about to.
        if shelf.containing(range).next().is_some() {
            return None;
        }
        for id in shelf.inside(range) {
            self.remove(id, None, removed);
        }
        while self.entries.len() >= self.limits.entries
            || self.bytes.saturating_add(size) > self.limits.bytes
        {
            let (_, &oldest) = self.idle.first_key_value()?;
            self.remove(oldest, None, removed);
            removed.evicted += 1;
        }
        let id = EntryId(self.stamp());
        let shelf = self.shelf(domain, access);
        shelf.by_start.insert(range.start, (range.end, id));
        self.bytes += size;
        let entry = Entry {
            domain,
            access,
            range: range.clone(),
            state: State::Reserved,
        };
        self.entries.insert(id, entry);
        Some(id)
    }

    /// Puts the registration in its place: it is in use until it is released. `false`: the memory
    /// changed meanwhile, or a larger range took its place, and the registration is not kept.
    pub fn fill(&mut self, id: EntryId, registration: &R) -> bool {
        match self.entries.get_mut(&id) {
            Some(entry) => {
                entry.state = State::InUse {
                    registration: registration.clone(),
                    users: 1,
                };
                true
            }
            None => false,
        }
    }

    /// Gives up a place that was not filled.
    pub fn cancel(&mut self, id: EntryId, removed: &mut Removed<R>) {
        self.remove(id, None, removed);
    }

    /// One use less. It stays, for the next who asks. Nothing happens if it left the cache.
    pub fn release(&mut self, id: EntryId) {
        let last_use = self.stamp();
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if let State::InUse {
            registration,
            users,
        } = &mut entry.state
        {
            *users -= 1;
            if *users == 0 {
                let registration = registration.clone();
                entry.state = State::Idle {
                    registration,
                    last_use,
                };
                self.idle.insert(last_use, id);
                self.idle_bytes += pinned(&entry.range, self.page_size);
            }
        }
    }

    /// The range was unmapped: what touches it leaves.
    pub fn unmapped(&mut self, range: &Range<usize>, removed: &mut Removed<R>) {
        self.invalidate(range, Some(range), removed);
    }

    /// The contents of the range change under it, or will: what touches it leaves.
    pub fn changed(&mut self, range: &Range<usize>, removed: &mut Removed<R>) {
        self.invalidate(range, None, removed);
    }

    /// Pages that became watched without being asked for, in whole pages: what of them belongs to
    /// no entry need not be.
    pub fn watched(&self, pages: &Range<usize>, removed: &mut Removed<R>) {
        self.uncovered(pages, removed);
    }

    /// Drops what nobody uses, to give memory back.
    pub fn evict_idle(&mut self, removed: &mut Removed<R>) {
        while let Some((_, &id)) = self.idle.first_key_value() {
            self.remove(id, None, removed);
            removed.evicted += 1;
        }
    }

    /// The moment: what is used from now on was used after it.
    #[must_use]
    pub fn moment(&self) -> u64 {
        self.next
    }

    /// Drops what nobody uses, and nobody has used since this moment: the longest unused first, and so
    /// many at most.
    pub fn evict_unused(&mut self, since: u64, most: usize, removed: &mut Removed<R>) {
        let unused = self.idle.range(..=since).take(most);
        let unused: Vec<_> = unused.map(|(_, id)| *id).collect();
        for id in unused {
            self.remove(id, None, removed);
            removed.evicted += 1;
        }
    }

    /// Drops everything.
    pub fn clear(&mut self, removed: &mut Removed<R>) {
        let ids: Vec<_> = self.entries.keys().copied().collect();
        for id in ids {
            self.remove(id, None, removed);
        }
    }

    fn invalidate(
        &mut self,
        range: &Range<usize>,
        gone: Option<&Range<usize>>,
        removed: &mut Removed<R>,
    ) {
        let touched: Vec<_> = self
            .shelves
            .iter()
            .flat_map(|shelf| shelf.touching(range))
            .map(|(_, id)| id)
            .collect();
        for id in touched {
            self.remove(id, gone, removed);
            removed.invalidated += 1;
        }
    }

    fn remove(&mut self, id: EntryId, gone: Option<&Range<usize>>, removed: &mut Removed<R>) {
        let Some(entry) = self.entries.remove(&id) else {
            return;
        };
        let size = pinned(&entry.range, self.page_size);
        self.bytes -= size;
        match entry.state {
            State::Reserved => {}
            State::InUse { registration, .. } => removed.registrations.push(registration),
            State::Idle {
                registration,
                last_use,
            } => {
                self.idle.remove(&last_use);
                self.idle_bytes -= size;
                removed.registrations.push(registration);
            }
        }
        let shelf = self.shelf(entry.domain, entry.access);
        shelf.by_start.remove(&entry.range.start);
        if shelf.by_start.is_empty() {
            self.shelves
                .retain(|s| (s.domain, s.access) != (entry.domain, entry.access));
        }
        let pages = pages(&entry.range, self.page_size);
        match gone {
            None => self.uncovered(&pages, removed),
            Some(gone) => {
                let before = pages.start..gone.start.clamp(pages.start, pages.end);
                let behind = gone.end.clamp(pages.start, pages.end)..pages.end;
                self.uncovered(&before, removed);
                self.uncovered(&behind, removed);
            }
        }
    }

    /// The parts of `pages` that no entry needs.
    fn uncovered(&self, pages: &Range<usize>, removed: &mut Removed<R>) {
        let mut needed: Vec<_> = self
            .shelves
            .iter()
            .flat_map(|shelf| shelf.touching(pages))
            .map(|(range, _)| self::pages(&range, self.page_size))
            .collect();
        needed.sort_unstable_by_key(|range| range.start);
        let mut from = pages.start;
        for range in needed {
            if range.start > from {
                removed.unwatched.push(from..range.start);
            }
            from = from.max(range.end);
        }
        if from < pages.end {
            removed.unwatched.push(from..pages.end);
        }
    }

    fn shelf(&mut self, domain: u64, access: Access) -> &mut Shelf {
        let is_it = |shelf: &Shelf| shelf.domain == domain && shelf.access == access;
        let at = self.shelves.iter().position(is_it).unwrap_or_else(|| {
            self.shelves.push(Shelf {
                domain,
                access,
                by_start: BTreeMap::new(),
            });
            self.shelves.len() - 1
        });
        &mut self.shelves[at]
    }

    fn stamp(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Shelf {
    /// The entries that contain the range, the last one first. The last that does not start later
    /// than the range ends last too: if it does not contain the range none does.
    fn containing(&self, range: &Range<usize>) -> impl Iterator<Item = EntryId> {
        let end = range.end;
        self.by_start
            .range(..=range.start)
            .rev()
            .take_while(move |&(_, &(until, _))| until >= end)
            .map(|(_, &(_, id))| id)
    }

    /// The entries that the range contains.
    fn inside(&self, range: &Range<usize>) -> Vec<EntryId> {
        self.by_start
            .range(range.start..)
            .take_while(|&(_, &(end, _))| end <= range.end)
            .map(|(_, &(_, id))| id)
            .collect()
    }

    /// The entries that share a byte with the range, the last one first.
    fn touching(&self, range: &Range<usize>) -> impl Iterator<Item = (Range<usize>, EntryId)> {
        let from = range.start;
        self.by_start
            .range(..range.end.max(from))
            .rev()
            .take_while(move |&(_, &(end, _))| end > from)
            .map(|(&start, &(end, id))| (start..end, id))
    }
}

/// The pages in which the range lies.
fn pages(range: &Range<usize>, page_size: usize) -> Range<usize> {
    let start = range.start & !(page_size - 1);
    // The last page of the address space is never an application's.
    start..range.end.saturating_add(page_size - 1) & !(page_size - 1)
}

fn pinned(range: &Range<usize>, page_size: usize) -> usize {
    pages(range, page_size).len()
}
