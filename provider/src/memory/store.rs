//! Registrations for all: found in the cache, or made and kept there.
//!
//! This brings together the cache and the watch over mappings. A lookup first takes in every change
//! of mappings that is complete, so that what was unmapped and mapped again since is never found;
//! while a change is on its way it waits for it, and in the end registers without the cache. Memory
//! that cannot be watched is never kept.
//!
//! Registrations are dropped in threads of the application or of the provider, never where a lock
//! is held, and never in the thread that reads the changes (see `watch.rs`).

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use verbs_shim::{Access, MappingChange, WatchError};

use super::cache::{CacheLimits, EntryId, RegistrationCache, Removed};
use super::rims::Rims;
use super::watch::{Changes, Notice, Watch};
use crate::counters::Counter;
use crate::sync::lock;

#[cfg(test)]
mod tests;

/// How long a lookup waits for a change that is on its way: the thread that makes it only has to
/// run, but may be kept from it.
const PATIENCE: Duration = Duration::from_millis(5);

/// A registration that was not used for so long goes, at the latest after twice the time.
const UNUSED: Duration = Duration::from_secs(10);

/// So many of them go at a time: the device takes up to a millisecond for each.
const AT_A_TIME: usize = 16;

/// What the store counts, since it was made.
#[derive(Debug, Default)]
struct StoreCounters {
    hits: Counter,
    misses: Counter,
    evictions: Counter,
    invalidations: Counter,
    bypasses: Counter,
}

/// The store's counters, read one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreCounts {
    /// Registrations that were there.
    pub hits: u64,
    /// Registrations that were made, to be kept.
    pub misses: u64,
    /// Registrations that were dropped to make room, or since no connection was left.
    pub evictions: u64,
    /// Registrations that left because their memory changed.
    pub invalidations: u64,
    /// Registrations that were made and not kept.
    pub bypasses: u64,
}

/// The store. `R` stands for a registration; its clones are the same registration, which ends with
/// the last of them.
pub struct RegistrationStore<R> {
    limits: CacheLimits,
    /// Before the watch's lock, if both are taken. Memory may be allocated under it.
    cache: Mutex<Kept<R>>,
    watch: Watch,
    counters: StoreCounters,
    users: AtomicUsize,
}

/// What is kept, and what of its memory lies at the rim of a mapping.
struct Kept<R> {
    cache: RegistrationCache<R>,
    rims: Rims,
    age: Age,
    /// Changes that are taken in; empty otherwise.
    told: Changes,
}

/// When what was registered counts as unused for long.
struct Age {
    /// Two moments of the cache: what was not used since the first may go.
    long_ago: u64,
    lately: u64,
    /// When the second one was.
    turned: Instant,
}

/// One for whose sake registrations are kept, a connection; with the last one they go.
#[derive(Debug)]
pub struct StoreUser<R: Clone>(Arc<RegistrationStore<R>>);

/// A registration in use, from the store or not; let go when dropped.
pub struct Registered<R: Clone> {
    registration: R,
    kept: Option<(Arc<RegistrationStore<R>>, EntryId)>,
}

/// What a lookup comes to.
enum Looked<R> {
    Found(EntryId, R),
    /// There is a place for it, and its memory is watched.
    Reserved(EntryId),
    /// It will not be kept.
    Bypass,
}

impl<R: Clone> RegistrationStore<R> {
    /// An empty store. `notify` is called from the thread that reads changes when
    /// [`RegistrationStore::tidy`] has something to do; it must not allocate, free, or wait.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(
        limits: CacheLimits,
        notify: Arc<dyn Fn() + Send + Sync>,
    ) -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            limits,
            cache: Mutex::new(Kept {
                cache: RegistrationCache::new(limits, rustix::param::page_size()),
                rims: Rims::default(),
                told: Changes::new(),
                age: Age {
                    long_ago: 0,
                    lately: 0,
                    turned: Instant::now(),
                },
            }),
            watch: Watch::new(notify)?,
            counters: StoreCounters::default(),
            users: AtomicUsize::new(0),
        }))
    }

    /// What happened so far.
    pub fn counts(&self) -> StoreCounts {
        let c = &self.counters;
        StoreCounts {
            hits: c.hits.value(),
            misses: c.misses.value(),
            evictions: c.evictions.value(),
            invalidations: c.invalidations.value(),
            bypasses: c.bypasses.value(),
        }
    }

    /// Whether mappings can be watched here; else nothing is kept. Starts the thread.
    pub fn can_keep(&self) -> bool {
        self.limits.entries > 0 && self.limits.bytes > 0 && self.watch.start()
    }

    /// One more for whose sake registrations are kept.
    pub fn user(self: &Arc<Self>) -> StoreUser<R> {
        self.users.fetch_add(1, Ordering::AcqRel);
        StoreUser(Arc::clone(self))
    }

    /// A registration of the range with at least these rights: one that is kept, or what `register`
    /// makes, and then that is kept if it can be. If `register` fails by a shortage of what kept
    /// registrations hold, those that nobody uses are dropped, and it is called once more.
    ///
    /// # Errors
    /// What `register` fails with.
    pub fn acquire<E>(
        self: &Arc<Self>,
        domain: u64,
        range: &Range<usize>,
        access: Access,
        mut register: impl FnMut() -> Result<R, E>,
        is_shortage: impl FnOnce(&E) -> bool,
    ) -> Result<Registered<R>, E> {
        let place = match self.look(domain, range, access) {
            Looked::Found(id, registration) => {
                self.counters.hits.raise();
                let kept = Some((Arc::clone(self), id));
                return Ok(Registered { registration, kept });
            }
            Looked::Reserved(id) => {
                self.counters.misses.raise();
                Some(Claimed { store: self, id })
            }
            Looked::Bypass => {
                self.counters.bypasses.raise();
                None
            }
        };
        let registration = match register() {
            Err(error) if is_shortage(&error) && self.shed() > 0 => register(),
            registration => registration,
        }?;
        let id = place.and_then(|place| place.fill(&registration));
        let kept = id.map(|id| (Arc::clone(self), id));
        Ok(Registered { registration, kept })
    }

    /// The memory is about to change: what is registered in the range and not in use ends now,
    /// what is in use when it is let go, and nothing of it is found again.
    pub fn invalidate(&self, range: &Range<usize>) {
        let mut removed = Removed::default();
        let mut kept = self.up_to_date(&mut removed).0;
        kept.cache.changed(range, &mut removed);
        self.finish(kept, removed);
    }

    /// Takes in what changed, and lets go of what that concerns.
    pub fn tidy(&self) {
        let mut removed = Removed::default();
        let kept = self.up_to_date(&mut removed).0;
        self.finish(kept, removed);
    }

    /// Drops what nobody uses; how many there were.
    pub fn shed(&self) -> u64 {
        let mut removed = Removed::default();
        let mut kept = self.up_to_date(&mut removed).0;
        kept.cache.evict_idle(&mut removed);
        let shed = removed.evicted;
        self.finish(kept, removed);
        shed
    }

    /// Drops some of what nobody has used for long: between [`UNUSED`] and twice that. To be called
    /// every now and then; it costs a look at a lock where there is nothing to drop.
    pub fn drop_unused(&self, now: Instant) {
        let mut kept = lock(&self.cache);
        let Kept { cache, age, .. } = &mut *kept;
        if now.saturating_duration_since(age.turned) >= UNUSED {
            (age.long_ago, age.lately) = (age.lately, cache.moment());
            age.turned = now;
        }
        let mut removed = Removed::default();
        cache.evict_unused(age.long_ago, AT_A_TIME, &mut removed);
        self.finish(kept, removed);
    }

    /// Drops everything, ends the thread, and keeps nothing from now on.
    pub fn close(&self) {
        self.watch.stop();
        let mut removed = Removed::default();
        let mut kept = lock(&self.cache);
        kept.cache.clear(&mut removed);
        self.finish(kept, removed);
    }

    fn look(&self, domain: u64, range: &Range<usize>, access: Access) -> Looked<R> {
        if range.len() > self.limits.bytes || !self.can_keep() {
            return Looked::Bypass;
        }
        let began = Instant::now();
        loop {
            let mut removed = Removed::default();
            let (mut kept, notice) = self.up_to_date(&mut removed);
            let looked = match notice {
                Notice::Complete => Some(match kept.cache.find(domain, range, access) {
                    Some((id, registration)) => Looked::Found(id, registration),
                    None => self.reserve(&mut kept, domain, range, access, &mut removed),
                }),
                Notice::Blind => Some(Looked::Bypass),
                Notice::Pending => None,
            };
            self.finish(kept, removed);
            match looked {
                Some(looked) => return looked,
                None if began.elapsed() > PATIENCE => return Looked::Bypass,
                None => std::thread::yield_now(),
            }
        }
    }

    fn reserve(
        &self,
        kept: &mut Kept<R>,
        domain: u64,
        range: &Range<usize>,
        access: Access,
        removed: &mut Removed<R>,
    ) -> Looked<R> {
        let Some(id) = kept.cache.reserve(domain, range, access, removed) else {
            return Looked::Bypass;
        };
        self.unwatch(&mut kept.rims, &std::mem::take(&mut removed.unwatched));
        match self.watch.watch(range, kept.rims.may_watch()) {
            Ok(at_rim) => {
                kept.rims.watched(&kept.cache.pages(range), at_rim);
                Looked::Reserved(id)
            }
            Err(why) => {
                kept.cache.cancel(id, removed);
                if !matches!(why, WatchError::Kind | WatchError::Rim) {
                    tracing::debug!(%why, "a registration is not kept");
                }
                Looked::Bypass
            }
        }
    }

    fn unwatch(&self, rims: &mut Rims, ranges: &[Range<usize>]) {
        for pages in ranges {
            self.watch.unwatch(pages);
            rims.unwatched(pages, |at| self.watch.is_seam(at));
        }
    }

    /// What is kept, after all changes that are known.
    fn up_to_date(&self, removed: &mut Removed<R>) -> (MutexGuard<'_, Kept<R>>, Notice) {
        let mut guard = lock(&self.cache);
        let Kept {
            cache, rims, told, ..
        } = &mut *guard;
        let notice = self.watch.take(told);
        for change in told.drain(..) {
            match change {
                MappingChange::Unmapped(range) => {
                    cache.unmapped(&range, removed);
                    rims.unmapped(&range);
                }
                MappingChange::Discarded(range) => cache.changed(&range, removed),
                MappingChange::Moved { from, to } => {
                    cache.unmapped(&from, removed);
                    rims.unmapped(&from);
                    cache.watched(&(to..to.saturating_add(from.len())), removed);
                }
                _ => cache.clear(removed),
            }
        }
        (guard, notice)
    }

    /// Lets go of the lock, then of what was removed.
    fn finish(&self, mut kept: MutexGuard<'_, Kept<R>>, removed: Removed<R>) {
        // Under the cache's lock, so that nobody has them watched anew in between.
        self.unwatch(&mut kept.rims, &removed.unwatched);
        drop(kept);
        self.counters.evictions.add(removed.evicted);
        self.counters.invalidations.add(removed.invalidated);
        drop(removed);
    }
}

impl<R: Clone> Registered<R> {
    /// One that is not kept.
    pub fn alone(registration: R) -> Self {
        Self {
            registration,
            kept: None,
        }
    }

    /// The registration.
    pub fn registration(&self) -> &R {
        &self.registration
    }
}

impl<R: Clone> Drop for StoreUser<R> {
    fn drop(&mut self) {
        if self.0.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.shed();
        }
    }
}

impl<R: Clone> Drop for Registered<R> {
    fn drop(&mut self) {
        if let Some((store, id)) = self.kept.take() {
            lock(&store.cache).cache.release(id);
        }
    }
}

/// A place that is given up unless it is filled.
struct Claimed<'a, R: Clone> {
    store: &'a RegistrationStore<R>,
    id: EntryId,
}

impl<R: Clone> Claimed<'_, R> {
    fn fill(self, registration: &R) -> Option<EntryId> {
        let kept = lock(&self.store.cache).cache.fill(self.id, registration);
        let id = self.id;
        std::mem::forget(self);
        kept.then_some(id)
    }
}

impl<R: Clone> Drop for Claimed<'_, R> {
    fn drop(&mut self) {
        let mut removed = Removed::default();
        let mut kept = lock(&self.store.cache);
        kept.cache.cancel(self.id, &mut removed);
        self.store.finish(kept, removed);
    }
}

impl<R: Clone + fmt::Debug> fmt::Debug for Registered<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered")
            .field("registration", &self.registration)
            .field("kept", &self.kept.is_some())
            .finish()
    }
}

impl<R> fmt::Debug for RegistrationStore<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistrationStore")
            .field("limits", &self.limits)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}
