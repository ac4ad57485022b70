//! The wire format: private data of the connect messages, immediate data of each message.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use san_provider::wire::{
    Features, Hello, HelloKind, Immediate, MessageType, Refusal, RefusalReason, Session,
};

fn negotiation(c: &mut Criterion) {
    let hello = Hello {
        features: Features {
            rdma_read: true,
            send_with_invalidate: true,
            moving: true,
            layer: 0,
        },
        credits: 64,
        max_message_size: 4096,
        max_rdma_size: 1 << 30,
        session: Session::with_id(7).secret([7; 16]),
    };
    let request = hello.emit(HelloKind::Request);
    // As RDMA CM delivers them: zero-padded.
    let mut reply = [0; 196];
    reply[..Hello::LENGTH].copy_from_slice(&hello.emit(HelloKind::Reply));
    let mut refusal = [0; 148];
    let full = Refusal::new(RefusalReason::BacklogFull, 16);
    refusal[..Refusal::LENGTH].copy_from_slice(&full.emit());

    let mut group = c.benchmark_group("wire");
    group.bench_function("hello/emit", |b| {
        b.iter(|| black_box(&hello).emit(HelloKind::Request));
    });
    group.bench_function("hello/parse request", |b| {
        b.iter(|| Hello::parse(HelloKind::Request, black_box(&request)));
    });
    group.bench_function("hello/parse reply", |b| {
        b.iter(|| Hello::parse(HelloKind::Reply, black_box(&reply)));
    });
    group.bench_function("hello/parse a stranger's", |b| {
        b.iter(|| Hello::parse(HelloKind::Request, black_box(&[0x5a; 56])));
    });
    group.bench_function("refusal/emit", |b| b.iter(|| black_box(&full).emit()));
    group.bench_function("refusal/parse", |b| {
        b.iter(|| Refusal::parse(black_box(&refusal)));
    });
    group.finish();
}

fn immediate(c: &mut Criterion) {
    let data = Immediate {
        message: MessageType::Data,
        credits: 17,
        kind: 3,
    };
    let number = data.emit();
    let mut group = c.benchmark_group("wire");
    group.bench_function("immediate/emit", |b| b.iter(|| black_box(data).emit()));
    group.bench_function("immediate/parse", |b| {
        b.iter(|| Immediate::parse(black_box(number)));
    });
    group.finish();
}

criterion_group!(benches, negotiation, immediate);
criterion_main!(benches);
