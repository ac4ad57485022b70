//! Peers that break the protocol of a stream, and peers that are older than most of it: each is a bare
//! provider with the messages of the test.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use san_provider::{ConnectOptions, DataPath, ProviderConfig, Socket, TransferError};
use san_switch::{Connection, Listener, Switch, SwitchStats};
use san_tests::net::{addr_a, addr_b};
use san_tests::san::{Connector, San};
use san_tests::time::{STEP, bounded, eventually};

use support::*;

struct Ends {
    /// The bare end.
    data: DataPath,
    _socket: Socket,
    server: Connection,
    switch: Switch,
    _listener: Listener,
    _san: San,
}

/// A bare provider that says in the negotiation that it speaks so much.
fn ends(layer: u8) -> Ends {
    let switch = switch();
    let listener = switch.listen(any(), backlog(4)).unwrap();
    let san = San::start_with(ProviderConfig {
        layer_features: layer,
        ..ProviderConfig::default()
    });
    let connector = Connector::new(san.bound(std::net::SocketAddr::new(addr_a(), 0)));
    let options = ConnectOptions {
        deadline: Some(PATIENCE),
        ..ConnectOptions::default()
    };
    let to = at(addr_b(), &listener);
    let started = connector.socket.connect(to, options).unwrap_err();
    assert!(started.is_in_progress(), "{started}");
    let server = accept(&listener);
    connector.result().expect("connected");
    let socket = connector.socket;
    Ends {
        data: socket.data_path().expect("connected"),
        _socket: socket,
        server,
        switch,
        _listener: listener,
        _san: san,
    }
}

fn send(data: &DataPath, kind: u8, bytes: &[u8]) {
    eventually("a message may go out", STEP, || {
        match data.try_send(bytes, kind) {
            Ok(()) => true,
            Err(TransferError::WouldBlock) => false,
            Err(error) => panic!("{error}"),
        }
    });
}

/// Another connection of the switch's goes on; this one is reset, and counted once under a name.
fn is_reset(messages: &[(u8, &[u8])], name: &str, count: fn(&SwitchStats) -> u64) {
    let ends = ends(1);
    let (other_client, other_server) = {
        let client = san_client(&ends.switch, &ends._listener);
        (client, accept(&ends._listener))
    };
    for (kind, bytes) in messages {
        if ends.data.try_send(bytes, *kind).is_err() {
            send(&ends.data, *kind, bytes);
        }
    }
    let begun = Instant::now();
    let error = loop {
        match ends.server.receive(&mut [0; 100]) {
            Ok(0) => panic!("{name}: an end"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{name}");
    assert!(begun.elapsed() < PATIENCE / 2, "{name}");
    eventually(name, PATIENCE, || count(&ends.switch.stats()) == 1);
    eventually("the peer is told", PATIENCE, || {
        matches!(ends.data.try_receive(), Err(TransferError::Reset))
    });
    (&other_client).write_all(b"still here").unwrap();
    assert_eq!(other_server.receive(&mut [0; 100]).unwrap(), 10);
}

/// A descriptor of a ring with so many bytes, at an address that nobody opened.
fn ring(length: u64) -> Vec<u8> {
    let mut ring = vec![b'S', b'A', b'N', b'D', 1, 4, 0, 40, 0, 0, 0, 1, 0, 0, 0, 9];
    ring.extend(4096_u64.to_be_bytes());
    ring.extend(length.to_be_bytes());
    ring.extend([0; 8]);
    ring
}

fn offer(position: u64, length: u32, first: &[u8]) -> Vec<u8> {
    let head = [&position.to_be_bytes()[..], &length.to_be_bytes()].concat();
    [&head[..], first].concat()
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn messages_that_are_none_reset_their_connection() {
    let count: fn(&SwitchStats) -> u64 = |stats| stats.violations_message;
    bounded(move || {
        is_reset(&[(9, b"?")], "an unknown kind", count);
        is_reset(&[(200, b"?")], "an unknown kind of control", count);
        is_reset(&[(0, b"")], "no data", count);
        is_reset(&[(1, b"!")], "an end with bytes", count);
        is_reset(
            &[(16, &[1, 0, 0, 0, 0, 0, 0, 0, 9])],
            "a place without TCP",
            count,
        );
        is_reset(&[(32, b"short")], "a short ring", count);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn data_after_the_end_is_not_read_as_data() {
    bounded(|| {
        let ends = ends(1);
        send(&ends.data, 0, b"bytes");
        send(&ends.data, 1, b"");
        send(&ends.data, 0, b"more");
        assert_eq!(ends.server.receive(&mut [0; 100]).unwrap(), 5);
        assert_eq!(ends.server.receive(&mut [0; 100]).unwrap(), 0);
        // Whoever has read the end reads no more.
        assert_eq!(ends.server.receive(&mut [0; 100]).unwrap(), 0);
        // An offer after the end is seen.
        send(&ends.data, 32, &ring(1 << 18));
        send(&ends.data, 33, &offer(5, 40_000, b"1234"));
        eventually("it is counted", PATIENCE, || {
            let _ = ends.server.receive(&mut [0; 100]);
            ends.server.lane().unwrap().poll();
            ends.switch.stats().violations_after_end == 1
        });
        assert!(ends.server.send(b"x").is_err());
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn bulk_that_cannot_be_resets_its_connection() {
    let count: fn(&SwitchStats) -> u64 = |stats| stats.violations_bulk;
    bounded(move || {
        let far = offer(0, (1 << 18) + 1, b"");
        is_reset(
            &[(32, &ring(1 << 18)), (33, &far)],
            "beyond the ring",
            count,
        );
        is_reset(&[(33, &offer(0, 40_000, b""))], "without a ring", count);
        is_reset(&[(32, &ring(0))], "an empty ring", count);
        is_reset(
            &[(34, &40_000_u32.to_be_bytes())],
            "done for nothing",
            count,
        );
        let past = offer(u64::MAX, 9, b"");
        is_reset(
            &[(32, &ring(1 << 18)), (33, &past)],
            "past all positions",
            count,
        );
    });
}

/// What is offered is not open: the READ fails, and the connection with it.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn memory_that_is_not_open_ends_the_connection() {
    bounded(|| {
        let ends = ends(1);
        send(&ends.data, 32, &ring(1 << 18));
        send(&ends.data, 33, &offer(0, 40_000, b"first"));
        let begun = Instant::now();
        let mut read = 0;
        let error = loop {
            match ends.server.receive(&mut [0; 100]) {
                Ok(0) => panic!("an end"),
                Ok(n) => read += n,
                Err(error) => break error,
            }
        };
        assert!(read <= 5, "{read}");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        assert!(begun.elapsed() < PATIENCE / 2);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn an_older_peer_gets_messages_only() {
    const LENGTH: usize = 400_000;
    bounded(|| {
        let ends = ends(0);
        let sent: Vec<u8> = (0..LENGTH).map(|at| (at * 7 + at / 251) as u8).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (&ends.server).write_all(&sent).unwrap();
                ends.server.shutdown_write().unwrap();
            });
            let mut came = Vec::new();
            loop {
                let message = ends.data.receive_within(STEP).expect("a message");
                match message.kind() {
                    0 => came.extend_from_slice(&message),
                    1 => break,
                    kind => panic!("kind {kind}"),
                }
            }
            assert!(came == sent, "{} bytes came", came.len());
        });
        // And what it sends is read.
        send(&ends.data, 0, b"old");
        assert_eq!(ends.server.receive(&mut [0; 9]).unwrap(), 3);
        send(&ends.data, 1, b"");
        assert_eq!(ends.server.receive(&mut [0; 9]).unwrap(), 0);
    });
}

/// A peer that stops in the middle of bulk: whoever waits for it is not kept from his deadline.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_peer_that_says_nothing_more_costs_a_timeout() {
    bounded(|| {
        let ends = ends(1);
        let wait = Duration::from_millis(300);
        ends.server.set_send_timeout(Some(wait)).unwrap();
        let begun = Instant::now();
        let error = loop {
            if let Err(error) = ends.server.send(&[7; 100_000]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(begun.elapsed() >= wait && begun.elapsed() < PATIENCE);
        drop(ends.server);
    });
}

/// Sends bulk, has the bare peer say that it has read it, and gives the kinds that it got.
fn bulk_to_bare_peer(ends: &Ends) -> Vec<u8> {
    const LENGTH: usize = 100_000;
    (&ends.server).write_all(&[7; LENGTH]).unwrap();
    let (mut kinds, mut came) = (Vec::new(), 0);
    while came < LENGTH {
        let message = ends.data.receive_within(STEP).expect("a message");
        kinds.push(message.kind());
        match message.kind() {
            0 => came += message.len(),
            33 => {
                let length = u32::from_be_bytes(message[8..12].try_into().unwrap());
                came += length as usize;
                send(&ends.data, 34, &length.to_be_bytes());
            }
            _ => {}
        }
    }
    assert_eq!(came, LENGTH);
    kinds
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_046_a_ring_that_is_not_used_is_taken_away() {
    bounded(|| {
        let ends = ends(1);
        assert!(bulk_to_bare_peer(&ends).contains(&32), "no ring was told");
        // DONE is seen when somebody polls.
        std::thread::sleep(Duration::from_secs(2));
        ends.server.lane().unwrap().poll();
        assert!(!bulk_to_bare_peer(&ends).contains(&32), "another ring");
        std::thread::sleep(Duration::from_secs(1));
        ends.server.lane().unwrap().poll();
        std::thread::sleep(Duration::from_secs(8));
        assert!(bulk_to_bare_peer(&ends).contains(&32), "it was kept");
    });
}
