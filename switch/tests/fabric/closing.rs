//! Closing while the peer is slow, gone, or does not read: nothing blocks, nothing is lost silently.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use san_switch::{Connection, Listener, Switch};
use san_tests::time::{Rounds, bounded, eventually};

use support::*;

/// More than the windows hold at first, less than what `send` takes without a reader.
const LENGTH: usize = 200_000;

struct Ends {
    switch: Switch,
    /// Of another switch, so that one can end without the other.
    other: Switch,
    client: Connection,
    server: Connection,
    listener: Listener,
}

fn ends() -> Ends {
    let (switch, other) = (switch(), switch());
    let listener = other.listen(any(), backlog(4)).unwrap();
    let client = san_client(&switch, &listener);
    let server = accept(&listener);
    Ends {
        switch,
        other,
        client,
        server,
        listener,
    }
}

fn bytes() -> Vec<u8> {
    (0..LENGTH).map(|at| (at * 13 + at / 4096) as u8).collect()
}

/// Sends more than a peer that reads nothing takes in: until nothing moves any more.
fn fill(client: &Connection) {
    client.set_nonblocking(true).unwrap();
    let mut moved = Instant::now();
    while moved.elapsed() < Duration::from_millis(300) {
        match client.send(&[7; 30_000]) {
            Ok(_) => moved = Instant::now(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    client.set_nonblocking(false).unwrap();
}

fn read_all(server: &Connection) -> Vec<u8> {
    let mut got = Vec::new();
    (&mut &*server).read_to_end(&mut got).unwrap();
    got
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_close_does_not_wait_for_a_slow_reader_and_loses_nothing() {
    bounded(|| {
        let ends = ends();
        (&mut &ends.client).write_all(&bytes()).unwrap();
        let begun = Instant::now();
        drop(ends.client);
        // It used to wait for two seconds, and to lose what was left then.
        assert!(begun.elapsed() < Duration::from_secs(1), "the close waited");
        assert_eq!(ends.switch.stats().closes_continued, 1);
        // A pause is what is tested here.
        std::thread::sleep(Duration::from_secs(3));
        assert!(read_all(&ends.server) == bytes(), "other bytes came");
        assert_eq!(ends.switch.stats().closes_lost, 0);
        assert_eq!(ends.other.stats().closes_lost, 0);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_close_after_all_has_arrived_needs_nobody_else() {
    bounded(|| {
        let ends = ends();
        (&mut &ends.client).write_all(&bytes()[..5000]).unwrap();
        ends.client.finish(Some(PATIENCE)).unwrap();
        drop(ends.client);
        assert_eq!(read_all(&ends.server).len(), 5000);
        drop(ends.server);
        for stats in [ends.switch.stats(), ends.other.stats()] {
            assert_eq!((stats.closes_continued, stats.closes_lost), (0, 0));
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn whoever_loses_bytes_at_the_end_hears_of_it() {
    bounded(|| {
        let ends = ends();
        fill(&ends.client);
        let early = ends.client.finish(Some(Duration::from_millis(50)));
        assert_eq!(early.unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(ends.server);
        let error = ends.client.finish(Some(PATIENCE)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn bytes_that_a_closed_connection_loses_are_counted() {
    bounded(|| {
        let ends = ends();
        fill(&ends.client);
        drop(ends.client);
        assert_eq!(ends.switch.stats().closes_continued, 1);
        drop(ends.server);
        eventually("the loss is counted", PATIENCE, || {
            ends.switch.stats().closes_lost == 1
        });
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_045_who_ends_last_hears_that_all_has_arrived() {
    bounded(|| {
        let ends = ends();
        let rounds = Rounds::new(100, 10);
        for round in (0..).take_while(|round| rounds.goes_on(*round)) {
            let client = san_client(&ends.switch, &ends.listener);
            let server = accept(&ends.listener);
            client.shutdown_write().unwrap();
            let reader = std::thread::spawn(move || {
                let got = read_all(&client);
                drop(client);
                got.len()
            });
            assert_eq!(read_all(&server).len(), 0);
            (&mut &server).write_all(&bytes()[..10_000]).unwrap();
            // The reader closes as soon as it has the end.
            let finished = server.finish(Some(PATIENCE));
            assert!(finished.is_ok(), "round {round}: {finished:?}");
            drop(server);
            assert_eq!(reader.join().unwrap(), 10_000);
        }
        assert_eq!(ends.other.stats().closes_lost, 0);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_switch_that_ends_waits_for_closed_connections_that_move() {
    bounded(|| {
        let ends = ends();
        (&mut &ends.client).write_all(&bytes()).unwrap();
        drop(ends.client);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_all(&ends.server));
            assert!(ends.switch.shutdown());
            assert!(reader.join().unwrap() == bytes(), "other bytes came");
        });
        assert_eq!(ends.switch.stats().closes_lost, 0);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_switch_that_ends_does_not_wait_for_one_that_reads_nothing() {
    bounded(|| {
        let ends = ends();
        fill(&ends.client);
        drop(ends.client);
        assert!(ends.switch.shutdown());
        assert_eq!(ends.switch.stats().closes_lost, 1);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_049_addresses_are_told_after_the_peer_is_gone() {
    bounded(|| {
        let ends = ends();
        let (client, server) = (ends.client.peer_addr(), ends.client.local_addr());
        drop(ends.server);
        assert!(ends.other.shutdown());
        let _ = (&mut &ends.client).read(&mut [0; 9]);
        assert_eq!(ends.client.peer_addr(), client);
        assert_eq!(ends.client.local_addr(), server);
        assert_eq!(client.port(), ends.listener.local_addr().port());
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn ending_a_stream_whose_peer_has_ended_and_gone_is_no_error() {
    bounded(|| {
        let ends = ends();
        drop(ends.server);
        assert_eq!(ends.client.receive(&mut [0; 1]).unwrap(), 0);
        eventually("the peer is gone", PATIENCE, || {
            let error = ends.client.send(b"x").err();
            error.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
        });
        // As TCP's shutdown(2), which a program calls when it has read everything.
        ends.client.shutdown_write().unwrap();
        ends.client.shutdown(std::net::Shutdown::Both).unwrap();
    });
}
