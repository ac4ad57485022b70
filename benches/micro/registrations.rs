//! The cache of registrations: what finding one costs, making room for one, and losing one.
//!
//! "Engine" is the tree alone. "Store" has the watch over mappings too, with its system calls, and
//! a registration that costs nothing; where the kernel cannot watch mappings it is left out.

use std::convert::Infallible;
use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};

use san_provider::memory::cache::{CacheLimits, RegistrationCache, Removed};
use san_provider::memory::store::RegistrationStore;
use verbs_shim::Access;

const PAGE: usize = 4096;
/// Every second 64 KiB is registered.
const LEN: usize = 16 * PAGE;

fn nth(n: usize) -> Range<usize> {
    let start = (1 << 40) + n * 2 * LEN;
    start..start + LEN
}

fn limits(entries: usize) -> CacheLimits {
    let bytes = usize::MAX;
    CacheLimits { entries, bytes }
}

fn filled(entries: usize) -> RegistrationCache<Arc<()>> {
    let mut cache = RegistrationCache::new(limits(entries), PAGE);
    for n in 0..entries {
        keep(&mut cache, &nth(n));
    }
    assert_eq!(cache.len(), entries);
    cache
}

fn keep(cache: &mut RegistrationCache<Arc<()>>, range: &Range<usize>) -> Removed<Arc<()>> {
    let mut removed = Removed::default();
    if let Some(id) = cache.reserve(1, range, Access::LOCAL_WRITE, &mut removed) {
        cache.fill(id, &Arc::new(()));
        cache.release(id);
    }
    removed
}

fn engine(c: &mut Criterion) {
    let mut group = c.benchmark_group("registrations, engine");
    for entries in [16, 1024, 16_384] {
        let mut cache = filled(entries);
        let inside = |n: usize| nth(n).start + 100..nth(n).end - 100;
        let mut n = 0;
        group.bench_function(format!("hit and release, {entries} entries"), |b| {
            b.iter(|| {
                n = (n + 7) % entries;
                let found = cache.find(1, &black_box(inside(n)), Access::READ_ONLY);
                let Some((id, registration)) = found else {
                    unreachable!("it is there")
                };
                cache.release(id);
                registration
            });
        });
        let mut n = entries;
        group.bench_function(format!("miss, evict, insert, {entries} entries"), |b| {
            b.iter(|| {
                n += 1;
                assert!(cache.find(1, &nth(n), Access::READ_ONLY).is_none());
                keep(&mut cache, &nth(n)).evicted
            });
        });
        group.bench_function(
            format!("unmap what nothing lies in, {entries} entries"),
            |b| {
                b.iter(|| {
                    let mut removed = Removed::default();
                    cache.unmapped(&black_box(0..PAGE), &mut removed);
                    removed.invalidated
                });
            },
        );
    }
    group.finish();
}

fn store(c: &mut Criterion) {
    let Ok(store) = RegistrationStore::new(limits(64), Arc::new(|| ())) else {
        return;
    };
    if !store.can_keep() {
        return;
    }
    let mut group = c.benchmark_group("registrations, store");
    // 64 KiB each, page by page their own.
    let memory: Vec<Vec<u8>> = (0..128).map(|_| vec![1; 2 * LEN]).collect();
    let range = |n: usize| {
        let start = memory[n % memory.len()].as_ptr() as usize;
        let start = start.next_multiple_of(PAGE);
        start..start + LEN
    };
    let acquire = |n: usize| {
        let make = || Ok::<_, Infallible>(Arc::new(()));
        store.acquire(1, &range(n), Access::LOCAL_WRITE, make, |_| false)
    };
    let mut n = 0;
    group.bench_function("hit and release", |b| {
        b.iter(|| {
            n = (n + 1) % 32;
            acquire(n).is_ok()
        });
    });
    group.bench_function("miss, evict, watch and unwatch", |b| {
        b.iter(|| {
            n += 1;
            acquire(n).is_ok()
        });
    });
    group.finish();
}

criterion_group!(benches, engine, store);
criterion_main!(benches);
