//! Event objects, which are eventfds: a system call each.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use san_provider::EventObject;

fn event(c: &mut Criterion) {
    let Ok(event) = EventObject::new() else {
        panic!("no descriptor is left")
    };
    let mut group = c.benchmark_group("event");
    group.bench_function("set", |b| b.iter(|| black_box(&event).set()));
    group.bench_function("set and reset", |b| {
        b.iter(|| {
            event.set();
            event.reset();
        });
    });
    event.set();
    group.bench_function("is_set, set", |b| b.iter(|| black_box(&event).is_set()));
    group.bench_function("wait, set", |b| {
        b.iter(|| black_box(&event).wait(Duration::from_secs(1)));
    });
    event.reset();
    group.bench_function("reset, not set", |b| b.iter(|| black_box(&event).reset()));
    group.bench_function("is_set, not set", |b| b.iter(|| black_box(&event).is_set()));
    group.finish();
}

criterion_group!(benches, event);
criterion_main!(benches);
