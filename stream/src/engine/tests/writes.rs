//! What becomes of writes on a queue pair.

use super::{Bench, ring};
use crate::frame::Role;
use crate::{Action, Event, Kind, Message, OFFER_FROM, Post, RING, Source, State, Write};

/// Stages as many bytes as there are, or as there is room for.
fn stage(bench: &mut Bench, mut length: usize) -> usize {
    let mut staged = 0;
    while length > 0 {
        let Write::Stage { length: n, .. } = bench.engine.write(length, false) else {
            break;
        };
        bench.engine.staged(n);
        staged += n;
        length -= n;
    }
    staged
}

fn next(bench: &mut Bench) -> (Kind, usize) {
    let Post { kind, staged, .. } = bench.engine.next_message().expect("a message");
    (kind, staged.map_or(0, |staged| staged.length))
}

#[test]
fn small_writes_go_at_once_and_in_order() {
    let mut bench = Bench::direct();
    assert_eq!(bench.engine.write(64, true), Write::Message(64));
    bench.engine.message_sent(64, vec![0; 64]);
    assert_eq!(
        bench.engine.write(4097, true),
        Write::Stage {
            position: 64,
            length: 4097
        }
    );
    assert_eq!(
        bench.engine.write(64, false),
        Write::Stage {
            position: 64,
            length: 64
        }
    );
    bench.engine.staged(64);
    assert_eq!(
        bench.engine.write(1, true),
        Write::Stage {
            position: 128,
            length: 1
        }
    );
    assert_eq!(next(&mut bench), (Kind::Data, 64));
    assert_eq!(bench.engine.write(1, true), Write::Message(1));
}

#[test]
fn bulk_is_offered_when_the_ring_is_open() {
    let mut bench = Bench::direct();
    assert_eq!(stage(&mut bench, 300_000), RING as usize);
    assert_eq!(bench.engine.write(1, true), Write::Full);
    assert_eq!(
        next(&mut bench),
        (Kind::Data, 4096),
        "the ring is not open yet"
    );
    bench.tell(Event::RingOpened(ring(RING)));
    assert_eq!(next(&mut bench), (Kind::Ring, 0));
    assert_eq!(next(&mut bench), (Kind::Offer, 4084));
    bench.hear(Message::Done { length: 65_536 });
    // Nothing has to be sent again, so the DATA before it need not be acknowledged.
    assert!(matches!(
        bench.engine.write(70_000, true),
        Write::Stage { length: 69_632, .. }
    ));
}

#[test]
fn what_follows_an_offer_waits_until_it_is_a_whole_one() {
    let mut bench = Bench::direct();
    stage(&mut bench, OFFER_FROM as usize + 4096);
    assert_eq!(next(&mut bench).0, Kind::Data);
    bench.tell(Event::RingOpened(ring(RING)));
    assert_eq!(next(&mut bench).0, Kind::Ring);
    assert_eq!(next(&mut bench).0, Kind::Offer);
    stage(&mut bench, 100_000);
    assert!(bench.engine.next_message().is_none(), "more may join it");
    stage(&mut bench, 40_000);
    assert_eq!(next(&mut bench).0, Kind::Offer, "a whole offer");
    assert_eq!(
        bench.engine.unread(),
        OFFER_FROM + 140_000,
        "no crumb is left"
    );
    // As far as the ring's end, which none crosses.
    stage(&mut bench, 1 << 20);
    assert_eq!(next(&mut bench).0, Kind::Offer);
    assert_eq!(bench.engine.unread(), RING - 4096);
    bench.hear(Message::Done { length: 100_000 });
    stage(&mut bench, 50_000);
    assert!(bench.engine.next_message().is_none(), "more may join it");
    bench.tell(Event::Close);
    assert_eq!(next(&mut bench).0, Kind::Offer, "nothing joins it any more");
}

#[test]
fn small_writes_wait_behind_an_offer() {
    let mut bench = Bench::direct();
    stage(&mut bench, OFFER_FROM as usize + 4096);
    assert_eq!(next(&mut bench), (Kind::Data, 4096));
    bench.tell(Event::RingOpened(ring(RING)));
    assert_eq!(
        (next(&mut bench).0, next(&mut bench).0),
        (Kind::Ring, Kind::Offer)
    );
    // Its bytes must be kept until DONE, though they are acknowledged before.
    assert!(matches!(bench.engine.write(1, true), Write::Stage { .. }));
    bench.hear(Message::Done {
        length: OFFER_FROM as u32,
    });
    assert_eq!(bench.engine.write(1, true), Write::Message(1));
}

/// On a stream that may go back to TCP, acknowledgements are waited for, which nobody announces: DONE does.
#[test]
fn where_much_is_unacknowledged_one_small_offer_asks_and_the_rest_gathers() {
    let mut bench = Bench::san(Role::Connector);
    for _ in 0..32 {
        assert_eq!(stage(&mut bench, 4096), 4096);
        assert_eq!(next(&mut bench), (Kind::Data, 4096));
    }
    stage(&mut bench, 4096);
    assert_eq!(
        next(&mut bench),
        (Kind::Data, 4096),
        "the ring is not open yet"
    );
    bench.tell(Event::RingOpened(ring(RING)));
    assert_eq!(next(&mut bench), (Kind::Ring, 0));
    for _ in 0..8 {
        stage(&mut bench, 4096);
    }
    let Post { kind, head, .. } = bench.engine.next_message().expect("a message");
    assert_eq!(kind, Kind::Offer);
    assert_eq!(head[8..12], 32_768_u32.to_be_bytes(), "all that was there");

    let mut bench = Bench::san(Role::Connector);
    for _ in 0..33 {
        stage(&mut bench, 4096);
        bench.engine.next_message().expect("a message");
    }
    bench.tell(Event::RingOpened(ring(RING)));
    assert_eq!(next(&mut bench), (Kind::Ring, 0));
    stage(&mut bench, 4096);
    assert_eq!(next(&mut bench).0, Kind::Offer, "a small one asks");
    stage(&mut bench, 7 * 4096);
    assert!(bench.engine.next_message().is_none(), "it gathers");
    bench.hear(Message::Done { length: 4096 });
    bench.tell(Event::QpUnacknowledged(0));
    assert_eq!(next(&mut bench), (Kind::Data, 4096));
}

#[test]
fn little_is_held_while_no_carrier_takes_bytes() {
    let mut bench = Bench::cutting(Role::Acceptor);
    assert_eq!(stage(&mut bench, 1 << 20), 64 * 1024);
    assert_eq!(bench.engine.write(1, true), Write::Full);
}

#[test]
fn an_application_that_does_not_read_is_read_for() {
    let mut bench = Bench::waiting_for_resume();
    assert!(!bench.engine.must_read_ahead(), "the RESUME is next");
    bench.tell(Event::Timer);
    let mut bench = Bench::proved(Role::Connector);
    bench.hear(Message::Prepare {
        what: crate::What::Cut,
        place: 50,
    });
    bench.hear(Message::Ready {
        what: crate::What::Cut,
        read: 0,
    });
    bench.flush();
    assert_eq!(bench.engine.state(), State::San);
    assert_eq!(bench.engine.source(), Source::Tcp);
    bench.engine.message_sent(3, vec![0; 3]);
    bench.tell(Event::QpBroken);
    bench.tell(Event::QpDrained);
    assert!(bench.engine.must_read_ahead());
}

#[test]
fn an_urgent_byte_is_a_message_of_its_own() {
    let mut bench = Bench::direct();
    stage(&mut bench, 5);
    bench.tell(Event::Urgent(9));
    stage(&mut bench, 3);
    // The peer hears of it before it has read what stands before it.
    let post = bench.engine.next_message().expect("a message");
    assert_eq!(post.kind, Kind::Mark);
    assert_eq!(*post.head, [0, 0, 0, 0, 0, 0, 0, 4, 9]);
    assert_eq!(next(&mut bench), (Kind::Data, 4));
    assert_eq!(next(&mut bench), (Kind::Urgent, 1));
    assert_eq!(next(&mut bench), (Kind::Data, 3));
}

#[test]
fn a_second_urgent_byte_takes_the_place_of_the_first() {
    let mut bench = Bench::direct();
    stage(&mut bench, 5);
    bench.tell(Event::Urgent(9));
    stage(&mut bench, 3);
    bench.tell(Event::Urgent(8));
    let post = bench.engine.next_message().expect("a message");
    assert_eq!(
        (post.kind, &*post.head),
        (Kind::Mark, &[0, 0, 0, 0, 0, 0, 0, 7, 8][..])
    );
    assert_eq!(next(&mut bench), (Kind::Data, 7));
    assert_eq!(next(&mut bench), (Kind::Urgent, 1));
    assert!(bench.engine.next_message().is_none());
}

#[test]
fn a_mark_of_a_byte_that_was_read_says_nothing_new() {
    let mut bench = Bench::direct();
    bench.hear(Message::Urgent(1));
    assert_eq!(bench.engine.poll_action(), Some(Action::Urgent(1)));
    bench.hear(Message::Mark {
        position: 0,
        byte: 1,
    });
    assert_eq!(bench.engine.poll_action(), None);
    let (position, byte) = (1, 2);
    bench.hear(Message::Mark { position, byte });
    assert_eq!(
        bench.engine.poll_action(),
        Some(Action::Mark { position, byte })
    );
}
