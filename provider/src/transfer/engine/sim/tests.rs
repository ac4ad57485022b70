//! What holds in every world.

use proptest::prelude::*;

use super::*;
use crate::transfer::engine::Answer;
use crate::wire::{Immediate, MessageType, Resumption};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    // Sends and receives in every way, in any order, over a wire that takes any time: everything
    // arrives once and in order, no receive is ever missing, nothing gets stuck, every operation ends.
    #[test]
    fn everything_arrives_once_and_in_order(
        windows in [1u16..6, 1u16..6],
        depth in 2u32..20,
        steps in proptest::collection::vec((0usize..2, 0u8..14), 0..400),
    ) {
        let mut world = World::new(windows, depth);
        for (at, what) in steps {
            world.step(at, what);
        }
        world.run_dry();
        for at in [0, 1] {
            let numbers: Vec<u32> = (0..world.ends[1 - at].sent).collect();
            prop_assert_eq!(&world.ends[at].received, &numbers);
            prop_assert!(world.ends[at].sends.is_empty());
            prop_assert_eq!(world.ends[at].broken, None);
        }
    }

    // A connection that ends at any moment: what had arrived is readable, every operation ends once,
    // and after close nothing is posted that is not accounted for.
    #[test]
    fn every_operation_ends_whenever_it_breaks(
        windows in [1u16..6, 1u16..6],
        steps in proptest::collection::vec((0usize..2, 0u8..14), 0..200),
        closes in any::<bool>(),
    ) {
        let mut world = World::new(windows, 8);
        for (at, what) in steps {
            world.step(at, what);
        }
        calls::end(&mut world, closes);
    }

    // Whatever a peer sends, the engine says what is wrong with it or takes it; it never panics, and
    // what it has posted stays accounted for.
    #[test]
    fn a_hostile_peer_is_refused(
        packets in proptest::collection::vec((any::<Option<u32>>(), 0u8..16, proptest::collection::vec(any::<u8>(), 0..48)), 0..60),
    ) {
        let mut world = World::new([4, 4], 8);
        for (immediate, nearly, bytes) in packets {
            // Most are nearly right.
            let immediate = match nearly {
                0..4 => immediate,
                kind => Some(u32::from(kind % 4) << 28 | u32::from(nearly & 1) << 16 | u32::from(kind % 5) << 8),
            };
            let end = &mut world.ends[0];
            if end.posted == 0 {
                break;
            }
            end.posted -= 1;
            let came = end.engine.message_came(immediate, bytes);
            if matches!(came, Some(Came::Credits(_) | Came::Wrong(..))) {
                end.posted += 1;
            }
            if let Some(Ok(arrived)) = end.engine.take_message() {
                end.drop_message(&arrived);
            }
            end.pump(&mut world.wires[0]);
        }
    }

    // The same and more, as the fuzz target `engine_calls` has it.
    #[test]
    fn any_bytes_are_calls_that_keep_the_promises(
        data in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        calls::run(&data);
    }

    // One end leaves while messages are under way both ways: the other's messages go along, its own
    // have arrived, and the end that stays goes on with a new queue pair.
    #[test]
    fn nothing_is_lost_when_an_end_moves(
        windows in [2u16..6, 2u16..6],
        before in proptest::collection::vec((0usize..2, 0u8..14), 0..100),
        after in proptest::collection::vec((0usize..2, 0u8..14), 0..100),
    ) {
        let mut world = World::new(windows, 8);
        for (at, what) in before {
            world.step(at, what);
        }
        prop_assert!(world.ends[0].engine.check_leave().is_ok());
        world.ends[0].posted += 1;
        world.ends[0].engine.leave();
        world.ends[0].pump(&mut world.wires[0]);
        let resumption = Resumption { port: 7, session_id: 1, secret: [2; 16] };
        let mut answered = false;
        let mut departure = None;
        for _ in 0..2000 {
            for at in [0, 1] {
                world.deliver(at);
                world.ends[at].collect();
                world.ends[at].let_go();
                if at == 1 {
                    world.ends[1].take(false);
                }
                let (end, wire) = (&mut world.ends[at], &mut world.wires[at]);
                end.pump(wire);
            }
            if !answered && world.ends[1].engine.handover.is_some() {
                answered = true;
                world.ends[1].engine.answer(Some(Answer { resumption, buffer: None }));
                let (end, wire) = (&mut world.ends[1], &mut world.wires[1]);
                end.pump(wire);
            }
            if let Some(departed) = world.ends[0].engine.departed(None) {
                departure = Some(departed.expect("the peer said yes"));
                break;
            }
        }
        let departure = departure.expect("the departure ends");
        prop_assert_eq!(departure.resumption, resumption);
        world.ends[0].collect();
        for message in &departure.messages {
            world.ends[0].note(&message.bytes);
        }
        // The end that stays had sent so many when it stopped; those that wait go later.
        let numbers: Vec<u32> = (0..world.ends[0].received.len() as u32).collect();
        prop_assert_eq!(&world.ends[0].received, &numbers);
        let numbers: Vec<u32> = (0..world.ends[0].sent).collect();
        world.ends[1].collect();
        while world.ends[1].engine.inbox.front().is_some() {
            world.ends[1].take(false);
        }
        prop_assert_eq!(&world.ends[1].received, &numbers);

        // Taken up elsewhere, as a fresh end with what came along.
        let (came, mut stays) = (std::mem::take(&mut world.ends[0].received), world.ends);
        let [_, stays] = &mut stays;
        prop_assert!(stays.engine.may_renew());
        let missing = match stays.engine.receives_to_renew() {
            Some(missing) => missing,
            None => { stays.engine.grown(1); 1 }
        };
        stays.posted += missing;
        let credits = stays.engine.renew().expect("few receives");
        stays.send_queue.clear();
        stays.engine.end_posted();
        stays.check();
        let fresh = End { received: came, ..End::new(2, 8) };
        let stays = std::mem::replace(stays, End::new(2, 8));
        let (sent, received) = (stays.sent, stays.received.len());
        let mut world = World { ends: [fresh, stays], wires: Default::default() };
        for (at, given) in [(0, credits), (1, 2)] {
            world.ends[at].engine.negotiated((4096, 0), given, true).unwrap();
            world.ends[at].engine.bring_up();
            let (end, wire) = (&mut world.ends[at], &mut world.wires[at]);
            end.pump(wire);
        }
        for (at, what) in after {
            world.step(at, what);
        }
        world.run_dry();
        prop_assert!(world.ends[1].sent >= sent);
        let numbers: Vec<u32> = (0..world.ends[1].sent).collect();
        prop_assert_eq!(&world.ends[0].received, &numbers);
        let numbers: Vec<u32> = (0..world.ends[0].sent).collect();
        prop_assert_eq!(&world.ends[1].received[received..], &numbers[..]);
    }
}

#[test]
fn control_messages_pass_those_that_nobody_reads() {
    let mut world = World::new([4, 4], 8);
    world.ends[1].engine.set_control_aside(true);
    world.ends[0].send(&mut world.wires[0], false);
    world.deliver(0);
    let end = &mut world.ends[0];
    let plan = end.engine.send_message(1, 16, false);
    end.post(
        &mut world.wires[0],
        NOBODYS,
        (plan.immediate, plan.signaled),
        vec![9],
    );
    let packet = world.wires[0].pop_front().unwrap();
    let end = &mut world.ends[1];
    end.posted -= 1;
    assert!(!end.engine.is_plain(), "it is not for who waits");
    let came = end
        .engine
        .message_came(Some(packet.immediate), packet.bytes);
    assert!(matches!(came, Some(Came::Control(16, bytes)) if bytes == [9]));
    assert_eq!(end.engine.inbox.len(), 1, "the other one still waits");
}

#[test]
fn a_sink_takes_the_short_way_from_who_waits_only_for_what_it_is_to_hear() {
    let mut world = World::new([4, 4], 8);
    let engine = &mut world.ends[1].engine;
    engine.set_control_aside(true);
    let data = |kind| {
        let message = MessageType::Data;
        let credits = 0;
        Some(
            Immediate {
                message,
                credits,
                kind,
            }
            .emit(),
        )
    };
    assert!(engine.is_plain());
    assert_eq!(engine.plain_data(data(0)), Some((0, 0)));
    assert_eq!(engine.plain_data(data(1)), None, "the sink hears of it");
    assert_eq!(engine.plain_data(data(16)), None, "it is the sink's");
    engine.set_tell_each(true);
    assert!(!engine.is_plain(), "the sink hears of every message");
}

#[test]
fn what_the_transport_has_is_counted() {
    let mut world = World::new([4, 4], 8);
    for _ in 0..3 {
        assert!(world.ends[0].send(&mut world.wires[0], true));
    }
    assert_eq!(world.ends[0].engine.unacknowledged(), 3);
    world.deliver(0);
    assert_eq!(world.ends[0].engine.unacknowledged(), 2);
    world.deliver(0);
    world.deliver(0);
    assert_eq!(
        world.ends[0].engine.unacknowledged(),
        0,
        "credits do not count"
    );
}

// The one after a message that the device did not take would leave a gap before it; or, if the device took it all
// the same, the caller's second try would come twice.
#[test]
fn after_a_message_that_failed_none_goes_out() {
    let mut world = World::new([4, 4], 8);
    let engine = &mut world.ends[0].engine;
    let fail = |engine: &mut Engine<_>, ending| {
        let plan = engine.send_message(1, 0, false);
        engine.take_back(plan.immediate, 1);
        engine.break_with(ending);
    };
    // That is one operation's own fault.
    fail(engine, Ending::ForeignBuffer);
    assert!(engine.can_send_now());
    fail(engine, Ending::NetDown);
    assert!(!engine.can_send_now() && !engine.can_send_control() && !engine.is_plain());
    // Until the connection has ended it is as if there was no room.
    assert!(engine.check_send(1).is_ok());
    engine.finish(Ending::NetDown);
    assert!(engine.check_send(1).is_err());
}
