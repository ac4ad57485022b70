//! Every state and every event: a change of behaviour is a change of `machine.snapshot`.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Bench, KEY, ring};
use crate::engine::State;
use crate::frame::Role;
use crate::{Action, Counts, Decline, Event, Message, Refusal, Route, What};

const MACHINE: &str = include_str!("machine.snapshot");

type Make = fn() -> Bench;

const STATES: [(&str, Make); 22] = [
    ("SanOnly, asks to move", Bench::asking),
    ("SanOnly, may move", || {
        let mut bench = Bench::asking();
        bench.hear(Message::Suspended { reached: 0 });
        bench.flush();
        bench
    }),
    ("SanOnly, the peer moves", || {
        let mut bench = Bench::direct();
        bench.hear(Message::Suspend { reached: 0 });
        bench.flush();
        bench
    }),
    ("Tcp", || {
        Bench::with(Role::Connector, Route::Upgrade, 1 << 30)
    }),
    ("Inviting", || Bench::connecting(Role::Connector)),
    ("Dialling", || Bench::connecting(Role::Acceptor)),
    ("Proving, C", || Bench::proving(Role::Connector)),
    ("Proving, S", || Bench::proving(Role::Acceptor)),
    ("Proving, C, proved", || Bench::proved(Role::Connector)),
    ("Proving, S, proved", || Bench::proved(Role::Acceptor)),
    ("Cutting, C", || Bench::cutting(Role::Connector)),
    ("Cutting, S", || Bench::cutting(Role::Acceptor)),
    ("Cutting, S, waits for GO", Bench::waiting_for_go),
    ("San, C", || Bench::san(Role::Connector)),
    ("San, S, sent 10", || Bench::sent(10)),
    ("Leaving, draining", Bench::draining),
    ("Leaving, waits for RESUME", Bench::waiting_for_resume),
    ("Leaving, in doubt", Bench::in_doubt),
    ("SanOnly", Bench::direct),
    ("TcpForGood", || {
        after(
            Bench::with(Role::Connector, Route::Upgrade, 0),
            Event::TcpFin,
        )
    }),
    ("Ended", || {
        let bench = Bench::with(Role::Connector, Route::Upgrade, 0);
        after(
            after(after(bench, Event::TcpFin), Event::Close),
            Event::TcpShutDown,
        )
    }),
    ("Broken", || {
        after(
            Bench::with(Role::Connector, Route::Upgrade, 0),
            Event::Abort,
        )
    }),
];

fn after(mut bench: Bench, event: Event<'_, crate::frame::tests::Weak>) -> Bench {
    bench.tell(event);
    bench.flush();
    bench
}

type Do = fn(&mut Bench);

const EVENTS: [(&str, Do); 47] = [
    ("SUSPEND 0", |b| b.hear(Message::Suspend { reached: 0 })),
    ("SUSPENDED 0", |b| b.hear(Message::Suspended { reached: 0 })),
    ("RESUMED", |b| b.hear(Message::Resumed)),
    ("TcpBytes 1", |b| b.tell(Event::TcpBytes(1))),
    ("TcpPeeked other", |b| b.peek(&[1; 32])),
    ("TcpPeeked half a PROOF", |b| {
        let frame = b.proof(0);
        b.peek(&frame[..20]);
    }),
    ("TcpPeeked PROOF", |b| {
        let frame = b.proof(0);
        b.peek(&frame);
    }),
    ("TcpPeeked RESUME 0", |b| {
        let frame = b.resume(0);
        b.peek(&frame);
    }),
    ("TcpPeeked RESUME 11", |b| {
        let frame = b.resume(11);
        b.peek(&frame);
    }),
    ("TcpShutDown", |b| b.tell(Event::TcpShutDown)),
    ("TcpFin", |b| b.tell(Event::TcpFin)),
    ("TcpReset", |b| b.tell(Event::TcpReset)),
    ("QpUp", |b| {
        b.tell(Event::QpUp {
            key: KEY,
            generation: 2,
            counts: None,
        });
    }),
    ("QpUp, counts differ", |b| {
        let counts = Some(Counts {
            written: 77,
            read: 0,
        });
        b.tell(Event::QpUp {
            key: KEY,
            generation: 2,
            counts,
        });
    }),
    ("Dialled", |b| b.tell(Event::Dialled)),
    ("Refused, not now", |b| {
        b.tell(Event::Refused(Refusal::NotNow));
    }),
    ("Refused, after a pause", |b| {
        b.tell(Event::Refused(Refusal::After(Duration::from_secs(9))));
    }),
    ("Refused, never", |b| b.tell(Event::Refused(Refusal::Never))),
    ("DATA", |b| b.hear(Message::Data(&[1]))),
    ("DATA, empty", |b| b.hear(Message::Data(&[]))),
    ("END", |b| b.hear(Message::End)),
    ("URGENT", |b| b.hear(Message::Urgent(1))),
    ("ABORT", |b| b.hear(Message::Abort)),
    ("PREPARE PROOF 0", |b| {
        b.hear(Message::Prepare {
            what: What::Proof,
            place: 0,
        });
    }),
    ("PREPARE CUT 0", |b| {
        b.hear(Message::Prepare {
            what: What::Cut,
            place: 0,
        });
    }),
    ("PREPARE CUT 2^63", |b| {
        b.hear(Message::Prepare {
            what: What::Cut,
            place: 1 << 63,
        });
    }),
    ("READY PROOF", |b| {
        b.hear(Message::Ready {
            what: What::Proof,
            read: 0,
        });
    }),
    ("READY CUT", |b| {
        b.hear(Message::Ready {
            what: What::Cut,
            read: 0,
        });
    }),
    ("READY CUT, too much", |b| {
        b.hear(Message::Ready {
            what: What::Cut,
            read: 99,
        });
    }),
    ("VERIFIED", |b| b.hear(Message::Verified)),
    ("GO", |b| b.hear(Message::Go)),
    ("NO", |b| b.hear(Message::No(Decline::HalfClosed))),
    ("RING", |b| b.hear(Message::Ring(ring(65_536)))),
    ("OFFER", |b| {
        b.hear(Message::Offer {
            position: 0,
            length: 40_000,
            first: &[1],
        });
    }),
    ("DONE 1", |b| b.hear(Message::Done { length: 1 })),
    ("MARK 7", |b| {
        b.hear(Message::Mark {
            position: 7,
            byte: 1,
        });
    }),
    ("unknown kind", |b| {
        b.tell(Event::QpMessage {
            kind: 99,
            bytes: &[],
        });
    }),
    ("QpUnacknowledged 0", |b| b.tell(Event::QpUnacknowledged(0))),
    ("QpBroken", |b| b.tell(Event::QpBroken)),
    ("QpDrained", |b| b.tell(Event::QpDrained)),
    ("ReadDone", |b| {
        b.tell(Event::ReadDone {
            position: 0,
            length: 1,
        });
    }),
    ("RingOpened", |b| {
        b.tell(Event::RingOpened(ring(crate::RING)));
    }),
    ("Close", |b| b.tell(Event::Close)),
    ("Abort", |b| b.tell(Event::Abort)),
    ("Urgent", |b| b.tell(Event::Urgent(1))),
    ("WantDown", |b| b.tell(Event::WantDown { for_good: true })),
    ("Timer, an hour later", |b| {
        b.now += Duration::from_secs(3600);
        b.tell(Event::Timer);
    }),
];

/// What one event does: `-` is nothing.
fn line(bench: &mut Bench, name: &str, event: Do) -> String {
    let before = bench.engine.state();
    event(bench);
    let mut said = Vec::new();
    let after: State = bench.engine.state();
    if after != before {
        said.push(format!("{after:?}"));
    }
    while let Some(action) = bench.engine.poll_action() {
        match action {
            Action::Changed(_) => {}
            action => said.push(format!("{action:?}")),
        }
    }
    while let Some(post) = bench.engine.next_message() {
        said.push(format!("posts {:?}", post.kind));
    }
    let what = if said.is_empty() {
        "-".to_owned()
    } else {
        said.join(", ")
    };
    let (position, eof) = bench.engine.received();
    let received = if eof {
        format!("{position} and the end")
    } else {
        position.to_string()
    };
    format!("  {name}: {what}; received {received}\n")
}

#[test]
fn every_state_meets_every_event() {
    let mut found = String::new();
    for (state, make) in STATES {
        let _ = writeln!(found, "{state}");
        for (name, event) in EVENTS {
            found.push_str(&line(&mut make(), name, event));
        }
    }
    if let Some(path) = std::env::var_os("SAN_STREAM_SNAPSHOT") {
        std::fs::write(path, &found).expect("the snapshot is written");
    }
    let changed: Vec<String> = found
        .lines()
        .zip(MACHINE.lines())
        .filter(|(is, was)| is != was)
        .map(|(is, was)| format!("- {was}\n+ {is}"))
        .collect();
    assert!(
        found == MACHINE,
        "the machine changed (SAN_STREAM_SNAPSHOT=FILE writes it):\n{}",
        changed.join("\n")
    );
}

#[test]
fn the_fixtures_are_what_they_say() {
    for (name, make) in STATES {
        let state = format!("{:?}", make().engine.state());
        let wanted = name.split(',').next().unwrap_or_default();
        assert!(state.starts_with(wanted), "{name} is {state}");
    }
}

/// Positions go on where they were, and a stream that has carried enough by other ways moves.
#[test]
fn what_passed_an_engine_by_counts() {
    let mut bench = Bench::with(Role::Connector, Route::Upgrade, 1000);
    let passed = |read, written, turns| crate::Passed {
        read,
        written,
        turns,
        is_old: false,
    };
    bench.engine.passed(passed(400, 100, 3), bench.now);
    assert_eq!(bench.engine.state(), State::Tcp);
    bench.engine.passed(passed(300, 300, 3), bench.now);
    assert_eq!(bench.engine.state(), State::Inviting);
    assert_eq!(bench.engine.received(), (700, false));
    assert_eq!(bench.engine.accepted(), 400);
    // One that is about to move has to be told of each byte.
    bench.engine.passed(passed(1, 1, 1), bench.now);
    assert_eq!(bench.engine.received(), (700, false));
}

/// A dial may wait long for its turn, and then it is answered soon or given up.
#[test]
fn the_time_of_a_dial_begins_with_its_turn() {
    let seconds = Duration::from_secs;
    let dialling = || {
        let bench = Bench::with(Role::Acceptor, Route::Upgrade, 10);
        after(bench, Event::TcpBytes(20))
    };
    let mut bench = dialling();
    let later = |bench: &mut Bench, time| {
        bench.now += seconds(time);
        bench.tell(Event::Timer);
        bench.engine.state()
    };
    assert_eq!(later(&mut bench, 50), State::Dialling);
    bench.tell(Event::Dialled);
    bench.now += seconds(1) / 2;
    // It is dialled again.
    bench.tell(Event::Dialled);
    assert_eq!(later(&mut bench, 0), State::Dialling);
    assert_eq!(later(&mut bench, 1), State::Tcp);

    let mut bench = dialling();
    assert_eq!(later(&mut bench, 61), State::Tcp, "it had no turn");
}

/// A host that is left alone costs a stream none of its dials, and the time is kept.
#[test]
fn a_pause_is_waited_for_and_is_no_dial() {
    let pause = Duration::from_secs(10);
    let bench = Bench::with(Role::Acceptor, Route::Upgrade, 10);
    let mut bench = after(bench, Event::TcpBytes(20));
    for _ in 0..5 {
        assert_eq!(bench.engine.state(), State::Dialling);
        bench.tell(Event::Refused(Refusal::After(pause)));
        bench.tell(Event::TcpBytes(100));
        assert_eq!(bench.engine.state(), State::Tcp);
        assert_eq!(bench.engine.pause(bench.now), Some(pause));
        bench.now += pause / 2;
        bench.tell(Event::TcpBytes(100));
        assert_eq!(bench.engine.state(), State::Tcp);
        bench.now += pause / 2;
        assert_eq!(bench.engine.pause(bench.now), None);
        bench.tell(Event::TcpBytes(1));
    }
    // Those that were dialled do count: there are three.
    let mut dials = 0;
    while bench.engine.state() == State::Dialling {
        dials += 1;
        bench.tell(Event::Refused(Refusal::NotNow));
        bench.tell(Event::TcpBytes(1000));
    }
    assert_eq!(dials, 3);
}
