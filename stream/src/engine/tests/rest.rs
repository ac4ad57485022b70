//! Streams whose ends move to other processes: nothing is lost, doubled or reordered.

use std::collections::VecDeque;
use std::time::Instant;

use super::*;
use crate::engine::rest::{BadRested, Rested};
use crate::engine::{Source, Write};
use crate::{Action, Failure, Kind, Post, Violation};

/// A pseudo-random sequence that its seed fixes (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// One end. The bytes of a stream are their positions.
struct End {
    engine: Engine<Plain>,
    /// What is on its way here.
    wire: VecDeque<Post>,
    /// Below kind 16, and not read.
    inbox: VecDeque<Post>,
    reads: VecDeque<crate::Read>,
    /// Read by the application.
    read: u64,
    moves: u32,
    refused: u32,
}

fn config() -> Config {
    Config {
        receive_buffer: crate::RING,
        ..Config::new(Role::Connector, Route::Direct)
    }
}

impl End {
    fn new(now: Instant) -> Self {
        Self {
            engine: Engine::new(config(), now),
            wire: VecDeque::new(),
            inbox: VecDeque::new(),
            reads: VecDeque::new(),
            read: 0,
            moves: 0,
            refused: 0,
        }
    }

    fn write(&mut self, length: usize) {
        if let Write::Stage { length, .. } = self.engine.write(length, false) {
            self.engine.staged(length);
        }
    }

    /// Takes a message off the wire.
    fn hear(&mut self, now: Instant) {
        let Some(post) = self.wire.pop_front() else {
            return;
        };
        if post.kind.number() < crate::FIRST_CONTROL {
            return self.inbox.push_back(post);
        }
        let mut bytes = post.head.to_vec();
        bytes.extend(std::iter::repeat_n(0, post.staged.map_or(0, |s| s.length)));
        let event = Event::QpMessage {
            kind: post.kind.number(),
            bytes: &bytes,
        };
        self.engine.handle(event, now);
    }

    /// The application reads.
    fn read(&mut self, most: u64, now: Instant) {
        match self.engine.source() {
            Source::Message => {
                let Some(post) = self.inbox.pop_front() else {
                    return;
                };
                assert_eq!(self.engine.received().0, self.read);
                match (post.kind, post.staged) {
                    (Kind::Data, Some(staged)) => {
                        assert_eq!(staged.position, self.read, "lost, doubled or reordered");
                        assert_eq!(self.engine.data(staged.length), crate::Keep::Deliver);
                        self.read += staged.length as u64;
                    }
                    (kind, _) => {
                        let event = Event::QpMessage {
                            kind: kind.number(),
                            bytes: &[],
                        };
                        self.engine.handle(event, now);
                    }
                }
            }
            Source::Landed { position, length } => {
                assert_eq!(position, self.read);
                let taken = length.min(most);
                self.engine.landed_taken(taken);
                self.read += taken;
            }
            _ => {}
        }
    }

    /// What the engine asks for; messages go to `peer`.
    fn act(&mut self, peer: &mut Self, dice: &mut Dice, now: Instant) {
        for _ in 0..dice.below(4) {
            match self.engine.next_message() {
                Some(post) => peer.wire.push_back(post),
                None => break,
            }
        }
        if dice.below(2) == 0 {
            self.reads.extend(self.engine.next_read());
        }
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::OpenRing => {
                    let ring = ring(crate::RING);
                    self.engine.handle(Event::RingOpened(ring), now);
                }
                Action::MayNotMove => self.refused += 1,
                Action::Reset => panic!("{:?}", self.engine.failure()),
                _ => {}
            }
        }
    }

    fn finish_read(&mut self, now: Instant) {
        if let Some(read) = self.reads.pop_front() {
            let (position, length) = (read.position, read.length);
            self.engine
                .handle(Event::ReadDone { position, length }, now);
        }
    }

    /// Moves, if both rest: what is on the wire to it is in its inbox then.
    fn go(&mut self, now: Instant) {
        let Some(rested) = self.engine.rested() else {
            return;
        };
        assert!(self.wire.is_empty() && self.reads.is_empty());
        self.engine = Engine::taken_up(config(), &rested, now).expect("of a stream that is");
        self.moves += 1;
    }
}

#[test]
fn ends_that_move_again_and_again_lose_and_double_nothing() {
    let now = Instant::now();
    let (mut moves, mut refused, mut offered) = (0, 0, 0);
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let mut ends = [End::new(now), End::new(now)];
        let goal = 2_000_000;
        for step in 0.. {
            assert!(step < 2_000_000, "seed {seed}: it hangs");
            let [a, b] = &mut ends;
            let (one, other) = if dice.below(2) == 0 { (a, b) } else { (b, a) };
            let accepted = one.engine.accepted();
            match dice.below(16) {
                0..=3 if accepted < goal => {
                    one.write((1 + dice.below(100_000)).min(goal - accepted) as usize);
                }
                4 if accepted >= goal => one.engine.handle(Event::Close, now),
                5 if dice.below(8) == 0 => drop(one.engine.suspend(now)),
                6 if dice.below(64) == 0 => one.engine.resume(now),
                7..=9 => one.read(1 + dice.below(100_000), now),
                10 | 11 => one.hear(now),
                12 | 13 => one.finish_read(now),
                // What was sent before the answer is here, or the provider had not let it go.
                14 if one.wire.is_empty() && one.reads.is_empty() => one.go(now),
                _ => {}
            }
            offered += u64::from(one.engine.has_bulk());
            one.act(other, &mut dice, now);
            if ends.iter().all(|end| end.engine.received() == (goal, true)) {
                break;
            }
        }
        moves += ends[0].moves + ends[1].moves;
        refused += ends[0].refused + ends[1].refused;
    }
    assert!(
        moves > 1000 && refused > 20 && offered > 1000,
        "{moves} {refused} {offered}"
    );
}

#[test]
fn while_the_peer_moves_writes_are_staged_up_to_the_bound() {
    let mut bench = Bench::direct();
    bench.hear(Message::Suspend { reached: 0 });
    bench.flush();
    assert!(bench.engine.is_resting() && bench.engine.peer_moves());
    let mut staged = 0;
    while let Write::Stage { length, .. } = bench.engine.write(100_000, true) {
        bench.engine.staged(length);
        staged += length as u64;
    }
    assert_eq!(staged, crate::RING);
    assert!(bench.engine.next_message().is_none());
    bench.hear(Message::Resumed);
    assert_eq!(
        bench.engine.next_message().expect("a byte").kind,
        Kind::Data
    );
}

#[test]
fn an_urgent_byte_is_told_of_when_the_stream_goes_on() {
    let mut bench = Bench::direct();
    bench.hear(Message::Suspend { reached: 0 });
    bench.flush();
    bench.engine.staged(1);
    bench.tell(Event::Urgent(b'!'));
    assert!(bench.engine.next_message().is_none());
    bench.hear(Message::Resumed);
    assert_eq!(bench.engine.next_message().expect("it").kind, Kind::Mark);
    assert_eq!(bench.engine.next_message().expect("it").kind, Kind::Urgent);
}

#[test]
fn what_may_not_come_ends_the_stream() {
    let first = [
        Message::Resumed,
        Message::Suspended { reached: 0 },
        Message::Suspended { reached: 9 },
    ];
    for message in first {
        let mut bench = Bench::direct();
        bench.hear(message);
        let why = Violation::Unexpected(message.kind());
        assert_eq!(bench.engine.failure(), Some(Failure::Protocol(why)));
    }
    let mut bench = Bench::direct();
    bench.hear(Message::Suspend { reached: 0 });
    bench.hear(Message::Suspend { reached: 0 });
    let why = Violation::Unexpected(Kind::Suspend);
    assert_eq!(bench.engine.failure(), Some(Failure::Protocol(why)));
    // More read than was offered.
    let mut bench = Bench::direct();
    bench.engine.staged(100_000);
    while bench.engine.next_message().is_some() {}
    bench.tell(Event::RingOpened(ring(crate::RING)));
    bench.engine.staged(100_000);
    while bench.engine.next_message().is_some() {}
    assert!(bench.engine.has_unsent());
    bench.hear(Message::Suspend { reached: 200_001 });
    let why = Violation::ResumeBeyond;
    assert_eq!(bench.engine.failure(), Some(Failure::Protocol(why)));
}

#[test]
fn beside_tcp_nothing_rests() {
    let mut bench = Bench::with(Role::Acceptor, Route::Upgrade, 0);
    assert!(!bench.engine.suspend(bench.now));
}

#[test]
fn only_what_can_be_is_taken_up() {
    let good = Rested {
        received: 10,
        eof: false,
        landed: vec![(10, 20), (20, 30)],
        sent: 5,
        accepted: 9,
        closed: false,
        has_sent_end: false,
        urgent: Some(8),
        mark: None,
    };
    assert_eq!(good.check(), Ok(()));
    // All that may be held has landed, and the beginning of another offer came.
    let mut full = good.clone();
    full.landed = vec![
        (10, crate::RING + 10),
        (crate::RING + 10, crate::RING + 4094),
    ];
    assert_eq!(full.check(), Ok(()));
    let bad = |change: fn(&mut Rested)| {
        let mut rested = good.clone();
        change(&mut rested);
        let checked: Result<(), BadRested> = rested.check();
        assert!(checked.is_err(), "{rested:?}");
    };
    bad(|rested| rested.sent = 10);
    bad(|rested| rested.accepted = crate::RING + 6);
    bad(|rested| (rested.received, rested.landed) = (u64::MAX, Vec::new()));
    bad(|rested| rested.eof = true);
    bad(|rested| rested.landed[1].0 = 19);
    bad(|rested| rested.landed[1].1 = 20);
    bad(|rested| rested.landed[1].1 = 8 * crate::RING + 11);
    bad(|rested| rested.landed[0].0 = 9);
    bad(|rested| rested.has_sent_end = true);
    bad(|rested| rested.urgent = Some(9));
    bad(|rested| rested.mark = Some((9, 0)));
}
