//! Peers that break the rules: each gets a name, and harms its own stream only.

use super::{Bench, KEY, Plain, ring};
use crate::engine::Engine;
use crate::frame::{FrameError, FrameKind, Role};
use crate::{
    Action, Config, Decline, Event, Failure, Keep, Message, PullError, Route, Source, State, TcpIn,
    TcpOut, Violation, What, Write,
};

/// The stream is over for this reason.
fn broke(bench: &Bench, violation: Violation) {
    assert_eq!(bench.engine.failure(), Some(Failure::Protocol(violation)));
}

/// The queue pair is declined, and TCP goes on.
fn declined(mut bench: Bench, reason: Decline) {
    let mut actions = Vec::new();
    while let Some(action) = bench.engine.poll_action() {
        actions.push(action);
    }
    assert!(actions.contains(&Action::Decline(reason)), "{actions:?}");
    assert!(actions.contains(&Action::QpDisconnect), "{actions:?}");
    bench.tell(Event::QpDrained);
    assert_eq!(bench.engine.failure(), None);
    assert_eq!(bench.engine.tcp_out(), TcpOut::Application);
}

#[test]
fn a_place_that_is_past_is_declined() {
    let mut bench = Bench::proving(Role::Connector);
    bench.tell(Event::TcpBytes(5));
    bench.hear(Message::Prepare {
        what: What::Proof,
        place: 4,
    });
    declined(bench, Decline::PastPlace);
}

#[test]
fn an_impossible_place_is_declined_for_good() {
    let mut bench = Bench::proving(Role::Connector);
    bench.hear(Message::Prepare {
        what: What::Proof,
        place: u64::MAX,
    });
    declined(bench, Decline::Violation);
}

#[test]
fn a_cut_before_the_proofs_is_declined() {
    let mut bench = Bench::proving(Role::Connector);
    bench.hear(Message::Prepare {
        what: What::Cut,
        place: 0,
    });
    declined(bench, Decline::Violation);
}

#[test]
fn nobody_is_half_closed_on_two_carriers() {
    let mut bench = Bench::proving(Role::Connector);
    bench.tell(Event::TcpFin);
    assert_eq!(bench.engine.state(), State::Leaving);
    bench.tell(Event::QpDrained);
    assert_eq!(bench.engine.state(), State::TcpForGood);
}

#[test]
fn counts_that_differ_keep_a_stream_on_tcp() {
    let mut bench = Bench::connecting(Role::Acceptor);
    let counts = Some(crate::Counts {
        written: 1,
        read: 0,
    });
    bench.tell(Event::QpUp {
        key: KEY,
        generation: 1,
        counts,
    });
    declined(bench, Decline::Counts);
}

#[test]
fn a_wrong_proof_leaves_the_bytes_to_the_application() {
    let mut bench = Bench::proving(Role::Connector);
    bench.hear(Message::Prepare {
        what: What::Proof,
        place: 0,
    });
    bench.flush();
    let forged = bench
        .slot(FrameKind::Proof, 0)
        .emit(&crate::frame::tests::Weak(2), 0);
    bench.peek(&forged);
    assert_eq!(bench.engine.state(), State::Leaving);
    bench.tell(Event::QpDrained);
    bench.peek(&forged);
    assert_eq!(bench.engine.tcp_in(), TcpIn::Raw { limit: u64::MAX });
}

#[test]
fn a_frame_elsewhere_is_data() {
    let mut bench = Bench::proving(Role::Connector);
    bench.hear(Message::Prepare {
        what: What::Proof,
        place: 100,
    });
    assert_eq!(bench.engine.tcp_in(), TcpIn::Raw { limit: 100 });
    let proof = bench.proof(100);
    bench.peek(&proof);
    assert_eq!(bench.engine.received(), (0, false));
}

#[test]
fn data_before_go_breaks_the_stream_or_the_carrier() {
    let mut bench = Bench::waiting_for_go();
    assert_eq!(bench.engine.data(1), Keep::Drop);
    broke(&bench, Violation::DataBeforeGo);
}

#[test]
fn data_after_the_end() {
    let mut bench = Bench::direct();
    bench.hear(Message::End);
    assert_eq!(bench.engine.data(1), Keep::Drop);
    broke(&bench, Violation::AfterEnd);
}

#[test]
fn urgent_data_beside_tcp() {
    let mut bench = Bench::san(Role::Connector);
    bench.hear(Message::Urgent(1));
    broke(&bench, Violation::UrgentBesideTcp);
    let mark = Message::Mark {
        position: 0,
        byte: 1,
    };
    let mut bench = Bench::san(Role::Connector);
    bench.hear(mark);
    broke(&bench, Violation::UrgentBesideTcp);
    let mut bench = Bench::direct();
    bench.hear(Message::End);
    bench.hear(mark);
    broke(&bench, Violation::AfterEnd);
}

#[test]
fn an_offer_beyond_its_ring() {
    let mut bench = Bench::direct();
    bench.hear(Message::Ring(ring(65_536)));
    bench.hear(Message::Offer {
        position: 0,
        length: 65_537,
        first: &[],
    });
    broke(&bench, Violation::Pull(PullError::BeyondRing));
}

#[test]
fn an_offer_of_what_was_read() {
    let mut bench = Bench::direct();
    bench.hear(Message::Ring(ring(65_536)));
    assert_eq!(bench.engine.data(10), Keep::Deliver);
    bench.hear(Message::Offer {
        position: 9,
        length: 40_000,
        first: &[],
    });
    broke(&bench, Violation::Pull(PullError::Misplaced));
}

#[test]
fn data_where_an_offer_stands() {
    let mut bench = Bench::direct();
    bench.hear(Message::Ring(ring(65_536)));
    bench.hear(Message::Offer {
        position: 2,
        length: 40_000,
        first: &[1],
    });
    assert_eq!(bench.engine.source(), Source::Message);
    assert_eq!(bench.engine.data(3), Keep::Drop);
    broke(&bench, Violation::Pull(PullError::DataInOffer));
}

#[test]
fn done_for_nothing() {
    let mut bench = Bench::direct();
    bench.hear(Message::Done { length: 1 });
    broke(&bench, Violation::DoneForNothing);
}

/// Beside TCP no more is forgiven: both ends have proved who they are.
#[test]
fn bad_bulk_beside_tcp() {
    let offer = |position, length| Message::Offer {
        position,
        length,
        first: &[],
    };
    let bulk = |why| Violation::Pull(why);
    for role in [Role::Connector, Role::Acceptor] {
        for (message, violation) in [
            (offer(0, 65_537), bulk(PullError::BeyondRing)),
            (offer(u64::MAX, 2), bulk(PullError::BeyondRing)),
            (Message::Done { length: 1 }, Violation::DoneForNothing),
        ] {
            let mut bench = Bench::san(role);
            bench.hear(Message::Ring(ring(65_536)));
            bench.hear(message);
            broke(&bench, violation);
        }
        let mut bench = Bench::san(role);
        bench.hear(offer(0, 40_000));
        broke(&bench, bulk(PullError::NoRing));
    }
}

/// Before both have, whoever it is loses the queue pair and no more.
#[test]
fn bulk_before_the_cut() {
    let mut bench = Bench::proved(Role::Connector);
    bench.hear(Message::Ring(ring(65_536)));
    assert!(bench.engine.failure().is_none());
    assert_eq!(bench.engine.state(), State::Leaving);
}

#[test]
fn bytes_where_a_resume_must_stand() {
    let mut bench = Bench::san(Role::Connector);
    bench.peek(&[9; 3]);
    broke(&bench, Violation::Frame(FrameError::OtherBytes));
}

#[test]
fn a_resume_beyond_what_was_sent() {
    let mut bench = Bench::waiting_for_resume();
    let frame = bench.resume(11);
    bench.peek(&frame);
    broke(&bench, Violation::ResumeBeyond);
}

#[test]
fn a_resume_before_what_was_acknowledged() {
    let mut bench = Bench::sent(10);
    bench.tell(Event::QpUnacknowledged(0));
    bench.tell(Event::QpBroken);
    bench.tell(Event::QpDrained);
    let frame = bench.resume(9);
    bench.peek(&frame);
    assert_eq!(bench.engine.failure(), Some(Failure::BytesLost));
}

#[test]
fn a_resume_in_between_goes_on_there() {
    let mut bench = Bench::waiting_for_resume();
    let frame = bench.resume(6);
    bench.peek(&frame);
    assert_eq!(bench.engine.tcp_out(), TcpOut::Again(&[7; 4]));
    assert_eq!(
        bench.engine.write(5, false),
        Write::Stage {
            position: 10,
            length: 5
        }
    );
    bench.tell(Event::TcpWritten(4));
    assert_eq!(bench.engine.tcp_out(), TcpOut::Application);
}

#[test]
fn an_engine_alone_is_small() {
    let _ = Config::new(Role::Acceptor, Route::Direct);
    assert!(
        size_of::<Engine<Plain>>() < 1024,
        "{}",
        size_of::<Engine<Plain>>()
    );
}

#[test]
fn who_has_proved_nothing_ends_nothing() {
    for number in 0..=255 {
        for bytes in [&[][..], &[1], &[1; 9], &[0; 40]] {
            let mut bench = Bench::proving(Role::Connector);
            bench.tell(Event::QpMessage {
                kind: number,
                bytes,
            });
            bench.tell(Event::QpMessage {
                kind: number,
                bytes,
            });
            bench.tell(Event::QpBroken);
            bench.tell(Event::QpMessage {
                kind: number,
                bytes,
            });
            bench.tell(Event::QpDrained);
            assert_eq!(bench.engine.failure(), None, "kind {number}, {bytes:?}");
            assert_eq!(bench.engine.tcp_out(), TcpOut::Application);
        }
    }
}
