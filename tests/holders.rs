//! Who holds received messages: as long as they like, as many as they like, and nobody else has less for it.
//! Messages that arrived and were not asked for stay with the connection, and slow its peer; what that one
//! queues meanwhile leaves something to others, too.

use std::time::Duration;

use bytes::Bytes;
use san_provider::{Message, Notification, ProviderConfig, Socket, WsaCode};
use san_tests::census::Census;
use san_tests::san::{self, San};
use san_tests::time::{STEP, bounded, eventually};

const LENGTH: usize = 3000;

fn receive(socket: &Socket) -> Message {
    let operation = socket.receive(Notification::Poll).expect("started");
    let result = san::wait(socket, operation);
    result
        .outcome
        .expect("received")
        .message
        .expect("a message")
}

fn send(socket: &Socket, n: usize) {
    san::send(socket, &[n as u8; LENGTH]);
}

fn is_whole(n: usize, bytes: &[u8]) {
    assert!(
        bytes.len() == LENGTH && bytes.iter().all(|&b| b == n as u8),
        "message {n} did not stay as it was: {} bytes, the first {:?}",
        bytes.len(),
        bytes.first()
    );
}

#[test]
fn a_holder_of_messages_slows_nobody_and_gets_copies_past_half_of_the_window() {
    bounded(|| {
        const WINDOW: u16 = 8;
        const MESSAGES: usize = 40;
        let san = San::start_with(ProviderConfig {
            max_window: WINDOW,
            ..ProviderConfig::default()
        });
        let (slow, slow_peer) = san.pair();
        let (quick, quick_peer) = san.pair();
        // One after the other: the peer has to get its credits back all the time.
        let mut held: Vec<Message> = (0..MESSAGES)
            .map(|n| {
                send(&slow_peer, n);
                receive(&slow)
            })
            .collect();
        let copied = |socket: &Socket| {
            let stats = socket.stats().expect("open");
            stats.connection.expect("a data path").messages_copied as usize
        };
        assert_eq!(MESSAGES - copied(&slow), usize::from(WINDOW) / 2);
        for n in 0..50_u8 {
            san::send(&quick, &[n]);
            assert_eq!(san::receive(&quick_peer), [n]);
        }
        for (n, message) in held.iter().enumerate() {
            is_whole(n, message);
        }
        // Who lets go is given buffers again.
        held.clear();
        let before = copied(&slow);
        for n in 0..20 {
            send(&slow_peer, n);
            is_whole(n, &receive(&slow));
        }
        assert_eq!(copied(&slow), before);
    });
}

#[test]
fn messages_outlive_their_connection_and_take_no_place_of_others() {
    bounded(|| {
        let san = San::start_with(ProviderConfig {
            lane_connections: 4,
            lane_receives: 64,
            ..ProviderConfig::default()
        });
        let idle = Census::take().live;
        let gone = || {
            eventually("the connections are gone", STEP, || {
                let now = Census::take().live;
                (now.ids, now.qps) == (idle.ids, idle.qps)
            });
        };
        drop(san.pair());
        gone();
        let one_lane = Census::take().live.cqs;
        let mut held: Vec<Bytes> = Vec::new();
        for round in 0..20 {
            let (here, there) = san.pair();
            for n in 0..6 {
                send(&there, round * 6 + n);
                held.push(receive(&here).into_bytes());
            }
            drop((here, there));
            gone();
        }
        // Places are given back: all of them had room in the one lane that there was.
        assert_eq!(Census::take().live.cqs, one_lane);
        for (n, bytes) in held.iter().enumerate() {
            is_whole(n, bytes);
        }
        drop(held);
        let again = san.pair();
        assert_eq!(Census::take().live.cqs, one_lane);
        drop(again);
    });
}

#[test]
fn who_holds_all_that_it_can_leaves_room_for_those_who_come_later() {
    bounded(|| {
        const PLACES: u32 = 12;
        let san = San::start_with(ProviderConfig {
            lane_connections: PLACES,
            lane_receives: 128,
            ..ProviderConfig::default()
        });
        let (first, first_peer) = san.pair();
        let lanes = Census::take().live.cqs;
        // Nobody asks for what arrives, while more and more comes: windows grow as far as they may.
        let flood = |from: &Socket| while from.try_send(&[1; LENGTH], 0).is_ok() {};
        let second = san.pair();
        let third = san.pair();
        let busy = [
            (&first, &first_peer),
            (&second.0, &second.1),
            (&third.0, &third.1),
        ];
        for (one, other) in busy {
            for _ in 0..10 {
                flood(one);
                flood(other);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let window = |socket: &Socket| {
            let stats = socket.stats().expect("open");
            stats.connection.expect("a data path").window
        };
        assert!(window(&first) > 2, "it did not grow");
        // The places that are left have their receives.
        let late: Vec<_> = (0..3).map(|_| san.pair()).collect();
        for (n, (here, there)) in late.iter().enumerate() {
            for _ in 0..10 {
                send(there, n);
                is_whole(n, &receive(here));
                send(here, n);
                is_whole(n, &receive(there));
            }
        }
        assert_eq!(Census::take().live.cqs, lanes, "all are in one lane");
    });
}

#[test]
fn who_queues_all_that_it_can_leaves_buffers_to_others() {
    bounded(|| {
        let san = San::start_with(ProviderConfig {
            lane_send_buffers: 64,
            ..ProviderConfig::default()
        });
        // Their peers ask for nothing. Long messages and short ones, which need a buffer only to be queued.
        let stuck: Vec<_> = (0..6).map(|_| san.pair()).collect();
        let mut queued = Vec::new();
        for ((socket, _), length) in stuck.iter().zip([LENGTH, 8].into_iter().cycle()) {
            let mut mine = 0;
            let why = loop {
                match socket.send(&[1; LENGTH][..length], 0, Notification::Poll) {
                    Ok(_) => mine += 1,
                    Err(why) => break why,
                }
            };
            assert_eq!(why.code(), WsaCode::WouldBlock, "{why}");
            queued.push(mine);
        }
        assert!(queued.iter().all(|&n| n > 0), "{queued:?}");
        let (here, there) = san.pair();
        for n in 0..50 {
            send(&here, n);
            is_whole(n, &receive(&there));
        }
        // And what was queued goes out when it may.
        for ((_, peer), queued) in stuck.iter().zip(&queued) {
            for _ in 0..*queued {
                assert_eq!(receive(peer)[0], 1);
            }
        }
    });
}
