//! The backlog of a listening socket: what a request costs that arrives, is refused, is answered.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

use san_provider::backlog::Backlog;

/// Of the size of what stands for a request in the provider.
type Request = [u64; 8];

/// A queue with `limit` places and `waiting` requests, their keys from 0 on.
fn filled(limit: u32, waiting: u32) -> Backlog<Request> {
    let mut backlog = Backlog::new(limit);
    for key in 0..u64::from(waiting) {
        assert!(backlog.arrive(key, [key; 8]).is_ok());
    }
    backlog
}

fn arrivals(c: &mut Criterion) {
    let mut group = c.benchmark_group("backlog");
    for limit in [16, 4096] {
        let backlog = filled(limit, limit);
        group.bench_function(format!("refuse, {limit} wait"), |b| {
            b.iter(|| black_box(&backlog).place());
        });
        let waiting = limit - 1;
        let mut backlog = filled(limit, waiting);
        let mut key = u64::from(waiting);
        group.bench_function(format!("arrive, take, answer; {waiting} wait"), |b| {
            b.iter(|| {
                let arrived = backlog.arrive(key, [key; 8]).is_ok();
                key += 1;
                let Some((ticket, request)) = backlog.take() else {
                    unreachable!("one has just arrived")
                };
                backlog.answered(ticket);
                (arrived, request)
            });
        });
    }
    group.finish();
}

fn leavings(c: &mut Criterion) {
    let mut group = c.benchmark_group("backlog");
    for limit in [16, 4096] {
        let mut backlog = filled(limit, limit);
        // What leaves the middle is followed there by the next key, since new ones join the end.
        let (mut leaving, mut joining) = (u64::from(limit) / 2, u64::from(limit));
        group.bench_function(format!("withdraw from the middle of {limit}"), |b| {
            b.iter(|| {
                let withdrawn = backlog.withdraw(leaving);
                let joined = backlog.arrive(joining, [joining; 8]).is_ok();
                (leaving, joining) = (leaving + 1, joining + 1);
                (withdrawn, joined)
            });
        });
        group.bench_function(format!("close with {limit}"), |b| {
            b.iter_batched(
                || filled(limit, limit),
                |mut backlog| backlog.close().count(),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, arrivals, leavings);
criterion_main!(benches);
