//! Tear-down in every order leaves nothing behind.

mod support;

use std::any::Any;

use support::{
    End, SOON, Shape, addr_a, addr_b, any_port, census, listen, pair, pair_with, resolved,
};
use verbs_shim::{CmId, ConnParams, Event, QpCaps, SendRequest, Verb};

/// The parts of both ends, dropped in an order that `seed` picks.
fn drop_shuffled(mut things: Vec<Box<dyn Any>>, seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while !things.is_empty() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let n = (state % things.len() as u64) as usize;
        drop(things.swap_remove(n));
    }
}

fn things(end: End) -> Vec<Box<dyn Any>> {
    let End {
        qp,
        id,
        channel,
        parts,
    } = end;
    vec![
        Box::new(qp),
        Box::new(id),
        Box::new(channel),
        Box::new(parts.pd),
        Box::new(parts.cq_channel),
        Box::new(parts.cq),
        Box::new(parts.pool),
    ]
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn any_order_with_work_posted_and_events_unread() {
    let census = census();
    for seed in 0..48 {
        let (client, server, srq) = pair_with(Shape::default(), seed % 2 == 0, addr_a(), addr_b());
        // Completed and unclaimed, posted and uncompleted, a buffer in the owner's hand.
        let data = client.parts.filled(b"left behind");
        client
            .qp
            .post(SendRequest::piece(1, Verb::Send, data))
            .unwrap();
        client.parts.cq.request_notify().unwrap();
        let in_hand = server.parts.filled(b"in hand").into_bytes();
        if seed % 3 == 0 {
            client.id.disconnect().unwrap();
        }
        let mut all = things(client);
        all.extend(things(server));
        all.push(Box::new(srq));
        all.push(Box::new(in_hand));
        drop_shuffled(all, seed + 1);
        census.check(&format!("seed {seed}"));
    }
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn unfinished_ids_in_every_state() {
    let census = census();
    for step in 0..6 {
        let listener = listen(any_port(addr_b()), 4);
        let channel = support::fabric().event_channel().unwrap();
        let id = CmId::new(&channel).unwrap();
        if step >= 1 {
            id.bind(any_port(addr_a())).unwrap();
        }
        if step >= 2 {
            id.resolve_addr(None, listener.addr, SOON).unwrap();
        }
        if step >= 3 {
            expect!(&channel, Event::AddrResolved { .. });
            id.resolve_route(SOON).unwrap();
        }
        if step >= 4 {
            expect!(&channel, Event::RouteResolved { .. });
            let parts = support::Parts::of(&id);
            let qp = parts.prepared(&id, QpCaps::default(), None);
            qp.post_recv(1, parts.buffer()).unwrap();
            id.connect(&ConnParams::default()).unwrap();
            if step == 5 {
                // Read and dropped: the peer is refused, not forgotten.
                drop(listener.request());
                expect!(&channel, Event::Rejected { .. });
            }
        }
        drop((id, channel, listener));
        census.check(&format!("step {step}"));
    }
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_failed_connect_leaves_nothing() {
    let census = census();
    for _ in 0..20 {
        let channel = support::fabric().event_channel().unwrap();
        let port = listen(any_port(addr_b()), 1).addr; // closed again at once
        let id = resolved(&channel, addr_a(), port);
        let parts = support::Parts::of(&id);
        let qp = parts.prepared(&id, QpCaps::default(), None);
        id.connect(&ConnParams::default()).unwrap();
        expect!(&channel, Event::Rejected { .. });
        drop(qp);
    }
    census.check("refused twenty times");
}

/// Claims and drops from several threads while events arrive.
#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn destroying_while_another_thread_reads_events() {
    let census = census();
    for _ in 0..16 {
        let (client, server) = pair(Shape::default());
        let events = server.channel.clone();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while support::event_within(&events, std::time::Duration::from_millis(100))
                    .is_some()
                {}
            });
            scope.spawn(move || drop(server));
            scope.spawn(move || drop(client));
        });
    }
    census.check("threads");
}
