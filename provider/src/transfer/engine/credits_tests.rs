use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

#[test]
fn a_message_costs_a_credit() {
    let mut credits = Credits::new(2, 64);
    assert!(!credits.may_send());
    credits.credits_came(2).unwrap();
    credits.data_sent();
    assert!(credits.may_send());
    credits.data_sent();
    assert!(!credits.may_send());
}

#[test]
fn a_message_without_a_credit_is_a_violation() {
    let mut credits = Credits::new(1, 64);
    credits.data_came().unwrap();
    assert_eq!(credits.data_came(), Err(Violation::NoCredit));
}

#[test]
fn impossible_credits_are_a_violation() {
    let mut credits = Credits::new(1, 64);
    for _ in 0..16 {
        credits.credits_came(4095).unwrap();
    }
    assert_eq!(
        credits.credits_came(16),
        Err(Violation::TooManyCredits(65536))
    );
}

#[test]
fn a_second_credit_message_needs_a_sign_of_life() {
    let mut ours = Credits::new(2, 2);
    let mut theirs = Credits::new(2, 2);
    theirs.credits_came(2).unwrap();
    ours.data_came().unwrap();
    theirs.data_sent();
    ours.freed();
    assert!(ours.must_return(true));
    assert_eq!(give(&mut ours, true), 1);
    theirs.credit_message_came(1).unwrap();
    // The second message could have been sent with the first credits.
    ours.data_came().unwrap();
    theirs.data_sent();
    ours.freed();
    assert!(!ours.must_return(true));
    assert_eq!(
        theirs.credit_message_came(1),
        Err(Violation::EarlyCreditMessage)
    );
    // The third could not.
    ours.data_came().unwrap();
    theirs.data_sent();
    assert!(ours.must_return(true));
    assert_eq!(ours.receives_due(true), 1);
}

#[test]
fn the_window_grows_with_use() {
    let mut credits = Credits::new(2, 5);
    assert_eq!(credits.wanted_growth(), 0);
    credits.data_came().unwrap();
    assert_eq!(credits.wanted_growth(), 2);
    credits.grown(2);
    // What is new goes out with the next message, or alone when there is more.
    assert!(!credits.must_return(false));
    assert_eq!(give(&mut credits, false), 2);
    assert_eq!((credits.window(), credits.outstanding()), (4, 3));
    assert_eq!(credits.wanted_growth(), 0);
    credits.data_came().unwrap();
    assert_eq!(credits.wanted_growth(), 1, "no further than allowed");
}

// One message each way at a time, as in a request and its answer: after the window has grown,
// no credit message is needed.
#[test]
fn request_and_answer_need_no_credit_messages() {
    let mut ends = [End::new(2, 64), End::new(2, 64)];
    let mut wires = [VecDeque::new(), VecDeque::new()];
    for end in &mut ends {
        end.credits.credits_came(2).unwrap();
    }
    let mut credit_messages = 0;
    for round in 0..100 {
        for from in [0, 1] {
            let to = 1 - from;
            ends[from].send(&mut wires[from]);
            while let Some(packet) = wires[from].pop_front() {
                ends[to].take_in(packet);
            }
            ends[to].consume();
            ends[to].pump(&mut wires[to]);
            while let Some(packet) = wires[to].pop_front() {
                assert_eq!(packet.data, 0);
                credit_messages += u32::from(round > 8);
                ends[from].take_in(packet);
            }
        }
    }
    assert_eq!(credit_messages, 0);
}

#[test]
fn receives_are_posted_in_chains() {
    let mut credits = Credits::new(16, 16);
    for _ in 0..8 {
        credits.data_came().unwrap();
        assert_eq!(credits.receives_due(true), 0);
        credits.freed();
    }
    assert_eq!(credits.receives_due(true), 8);
    credits.posted(8);
    assert_eq!((credits.untold(), credits.outstanding()), (8, 8));
    assert_eq!((credits.tell(false), credits.outstanding()), (8, 16));
    // A message that did not go out gives nothing.
    credits.credits_came(1).unwrap();
    credits.data_sent();
    credits.untell(8);
    assert_eq!((credits.untold(), credits.outstanding()), (8, 8));
    assert!(credits.may_send());
}

/// Posts what is due, and gives it to the peer.
fn give(credits: &mut Credits, alone: bool) -> u16 {
    let due = credits.receives_due(true);
    credits.posted(due);
    credits.tell(alone)
}

#[derive(Debug, Clone, Copy)]
struct Packet {
    data: u32,
    credits: u16,
}

/// One side of a connection, with the receives that it really has posted.
struct End {
    credits: Credits,
    posted: u64,
    inbox: u32,
    held: u32,
    wants: u32,
    got: u32,
}

impl End {
    fn new(window: u32, most: u32) -> Self {
        Self {
            credits: Credits::new(window, most),
            posted: u64::from(window) + 1,
            inbox: 0,
            held: 0,
            wants: 0,
            got: 0,
        }
    }

    fn send(&mut self, wire: &mut VecDeque<Packet>) {
        self.wants += 1;
        self.pump(wire);
    }

    fn pump(&mut self, wire: &mut VecDeque<Packet>) {
        while self.wants > 0 && self.credits.may_send() {
            self.wants -= 1;
            let credits = self.give(false);
            self.credits.data_sent();
            wire.push_back(Packet { data: 1, credits });
        }
        if self.credits.must_return(self.inbox == 0) {
            let credits = self.give(true);
            assert!(credits > 0);
            wire.push_back(Packet { data: 0, credits });
        }
    }

    fn give(&mut self, alone: bool) -> u16 {
        let due = self.credits.receives_due(self.inbox == 0);
        self.posted += u64::from(due);
        self.credits.posted(due);
        self.credits.tell(alone)
    }

    fn take_in(&mut self, packet: Packet) {
        assert!(self.posted > 0, "a message came without a receive for it");
        self.posted -= 1;
        if packet.data == 0 {
            self.credits.credit_message_came(packet.credits).unwrap();
            self.posted += 1;
            return;
        }
        self.credits.credits_came(packet.credits).unwrap();
        self.credits.data_came().unwrap();
        self.inbox += 1;
        self.got += 1;
        let growth = self.credits.wanted_growth();
        self.credits.grown(growth);
    }

    fn consume(&mut self) {
        if self.inbox > 0 {
            self.inbox -= 1;
            self.credits.freed();
        }
    }

    fn hold(&mut self) {
        if self.inbox > 0 {
            self.inbox -= 1;
            self.held += 1;
        }
    }

    fn let_go(&mut self) {
        self.credits.freed();
        self.held -= 1;
    }
}

proptest! {
    // Two sides that send, receive, hold and let go in any order over a wire that takes any time.
    // No receive is ever missing, and when both only consume, everything arrives.
    #[test]
    fn nothing_overruns_and_nothing_gets_stuck(
        windows in (1u32..5, 1u32..5),
        most in 1u32..40,
        steps in proptest::collection::vec((0usize..2, 0u8..6), 0..400),
    ) {
        let mut ends = [End::new(windows.0, most), End::new(windows.1, most)];
        let first = [windows.0, windows.1];
        let mut wires = [VecDeque::new(), VecDeque::new()];
        for (at, end) in ends.iter_mut().enumerate() {
            end.credits.credits_came(u16::try_from(first[1 - at]).unwrap()).unwrap();
        }
        let mut asked = [0u32; 2];
        for (at, step) in steps {
            let end = &mut ends[at];
            match step {
                0 | 1 => {
                    asked[at] += 1;
                    end.send(&mut wires[at]);
                }
                2 => end.consume(),
                3 => end.hold(),
                4 if end.held > 0 => end.let_go(),
                _ => {
                    if let Some(packet) = wires[1 - at].pop_front() {
                        end.take_in(packet);
                    }
                }
            }
            ends[at].pump(&mut wires[at]);
        }
        // From here on both only take in and consume; what they hold they keep, but for one.
        for _ in 0..20_000 {
            for at in [0, 1] {
                if let Some(packet) = wires[1 - at].pop_front() {
                    ends[at].take_in(packet);
                }
                ends[at].consume();
                if u64::from(ends[at].held) >= u64::from(ends[at].credits.window()) {
                    ends[at].let_go();
                }
                ends[at].pump(&mut wires[at]);
            }
            if ends[0].got == asked[1] && ends[1].got == asked[0] {
                break;
            }
        }
        prop_assert_eq!(ends[0].got, asked[1]);
        prop_assert_eq!(ends[1].got, asked[0]);
    }
}

#[test]
fn renewed_credits_are_those_that_are_free() {
    let mut credits = Credits::new(6, 64);
    assert_eq!(credits.credits_came(5), Ok(()));
    credits.data_sent();
    for _ in 0..5 {
        assert_eq!(credits.data_came(), Ok(()));
    }
    // Five came, two were let go, one of them was given back.
    credits.freed();
    assert_eq!(credits.receives_due(false), 0, "no chain yet");
    credits.freed();
    assert_eq!(credits.receives_due(false), 2);
    credits.posted(1);
    assert_eq!(credits.tell(false), 1);
    let renewed = credits.renewed();
    assert_eq!((credits.held(), renewed.held()), (3, 3));
    assert_eq!((renewed.outstanding(), renewed.receives_due(true)), (3, 0));
    assert_eq!((renewed.sent(), renewed.received()), (0, 0));
    assert_eq!(renewed.window(), 6);
    assert!(!renewed.may_send());
}

#[test]
fn a_peer_that_keeps_its_only_credit_can_be_given_more() {
    let mut credits = Credits::new(8, 8);
    for _ in 0..8 {
        assert_eq!(credits.data_came(), Ok(()));
    }
    // One went past an inbox that is full: its credit goes back alone.
    credits.freed();
    credits.control_freed();
    assert!(credits.must_return(false));
    assert_eq!(give(&mut credits, true), 1);
    // Then all of it is read, and the peer keeps the credit for control.
    for _ in 0..7 {
        credits.freed();
    }
    assert!(!credits.must_return(true) && credits.wants_carrier());
    assert_eq!(give(&mut credits, false), 7);
    assert!(!credits.wants_carrier());
}
