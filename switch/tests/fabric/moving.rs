//! Streams that begin on TCP, move to the SAN when they have carried enough, and come back: no byte is
//! lost, doubled or in another order, and the application sees nothing of it.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::{Read, Write};
use std::time::Duration;

use san_switch::{
    ConnectOptions, Connection, DeploymentKey, Route, RouteChoice, Switch, SwitchConfig,
};
use san_tests::time::{bounded, eventually};

use support::*;

fn moving() -> SwitchConfig {
    config().route(RouteChoice::Upgrade).upgrade_bytes(4096)
}

struct Ends {
    client: Connection,
    server: Connection,
    here: Switch,
    there: Switch,
}

fn ends_of(here: SwitchConfig, there: SwitchConfig) -> Ends {
    let (here, there) = (Switch::new(here).unwrap(), Switch::new(there).unwrap());
    let listener = there.listen(any(), backlog(4)).unwrap();
    let client = here
        .connect(
            at(san_tests::net::addr_b(), &listener),
            &from(san_tests::net::addr_a()),
        )
        .unwrap();
    let server = accept(&listener);
    assert!(!client.is_san() && !server.is_san());
    Ends {
        client,
        server,
        here,
        there,
    }
}

fn ends() -> Ends {
    ends_of(moving(), moving())
}

fn byte(at: u64, seed: u64) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 11) ^ seed) as u8
}

/// Writes `length` bytes in writes of many sizes.
fn write(end: &Connection, from: u64, length: u64, seed: u64) {
    let mut at = from;
    while at < from + length {
        let size = [1, 64, 700, 4096, 9000, 65_536][(at % 6) as usize].min(from + length - at);
        let bytes: Vec<u8> = (at..at + size).map(|at| byte(at, seed)).collect();
        (&mut &*end).write_all(&bytes).unwrap();
        at += size;
    }
}

fn read(end: &Connection, from: u64, length: u64, seed: u64) {
    let mut buffer = vec![0; 10_000];
    let mut at = from;
    while at < from + length {
        let most = (from + length - at).min(10_000) as usize;
        let n = end.receive(&mut buffer[..most]).unwrap();
        assert!(n > 0, "the end after {at} bytes");
        for got in &buffer[..n] {
            assert_eq!(*got, byte(at, seed), "byte {at}");
            at += 1;
        }
    }
}

/// Both ends write and read at the same time.
fn talk(ends: &Ends, from: u64, length: u64) {
    std::thread::scope(|scope| {
        scope.spawn(|| write(&ends.client, from, length, 1));
        scope.spawn(|| write(&ends.server, from, length, 2));
        scope.spawn(|| read(&ends.client, from, length, 2));
        scope.spawn(|| read(&ends.server, from, length, 1));
    });
}

/// Asks and answers, until both ends say what they are to say; how many bytes that took.
fn talk_until(ends: &Ends, from: u64, what: impl Fn(&Ends) -> bool) -> u64 {
    let mut at = from;
    for _ in 0..3000 {
        if what(ends) {
            return at;
        }
        write(&ends.client, at, 100, 1);
        read(&ends.server, at, 100, 1);
        write(&ends.server, at, 100, 2);
        read(&ends.client, at, 100, 2);
        at += 100;
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!(
        "client {}, server {}, {:?}, {:?}",
        ends.client.route(),
        ends.server.route(),
        ends.here.stats(),
        ends.there.stats()
    );
}

fn are_up(ends: &Ends) -> bool {
    ends.client.is_san() && ends.server.is_san()
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_stream_moves_to_the_san_and_back() {
    bounded(|| {
        let ends = ends();
        let at = talk_until(&ends, 0, are_up);
        assert!(matches!(ends.client.route(), Route::San { .. }));
        talk(&ends, at, 1_000_000);
        let at = at + 1_000_000;
        ends.client.move_to_tcp(true);
        talk(&ends, at, 500_000);
        let at = at + 500_000;
        let at = talk_until(&ends, at, |ends| {
            !ends.client.is_san() && !ends.server.is_san()
        });
        assert_eq!(ends.here.stats().streams_up, 1);
        assert_eq!(ends.there.stats().streams_down, 1);
        ends.client.shutdown_write().unwrap();
        assert_eq!(ends.server.receive(&mut [0; 10]).unwrap(), 0);
        write(&ends.server, at, 10, 2);
        read(&ends.client, at, 10, 2);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_stream_that_moves_again_and_again_loses_nothing() {
    bounded(|| {
        let ends = ends();
        let mut at = 0;
        for round in 0..6 {
            at = talk_until(&ends, at, are_up);
            std::thread::scope(|scope| {
                scope.spawn(|| talk(&ends, at, 400_000));
                std::thread::sleep(Duration::from_millis(3 * round));
                let end = if round % 2 == 0 {
                    &ends.client
                } else {
                    &ends.server
                };
                end.move_to_tcp(false);
            });
            at += 400_000;
        }
        assert!(
            ends.here.stats().streams_down >= 6,
            "{:?}",
            ends.here.stats()
        );
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn an_end_of_the_stream_on_the_san_is_the_end() {
    bounded(|| {
        let ends = ends();
        let at = talk_until(&ends, 0, are_up);
        write(&ends.client, at, 100_000, 1);
        drop(ends.client);
        read(&ends.server, at, 100_000, 1);
        assert_eq!(ends.server.receive(&mut [0; 10]).unwrap(), 0);
        let mut rest = Vec::new();
        (&mut &ends.server).read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
        drop(ends.server);
        assert_eq!(ends.here.stats().closes_lost, 0);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_peer_without_the_upgrade_leaves_the_stream_on_tcp() {
    bounded(|| {
        let direct = moving().route(RouteChoice::Direct);
        for (here, there) in [(moving(), direct.clone()), (direct, moving())] {
            let listens = Switch::new(there.clone()).unwrap();
            let connects = Switch::new(here).unwrap();
            let listener = listens.listen(any(), backlog(4)).unwrap();
            let options: ConnectOptions = from(san_tests::net::addr_a());
            let options = if there.route == RouteChoice::Upgrade {
                options.tcp_only(true)
            } else {
                options
            };
            let to = at(san_tests::net::addr_b(), &listener);
            let client = connects.connect(to, &options).unwrap();
            let server = accept(&listener);
            let ends = Ends {
                client,
                server,
                here: connects,
                there: listens,
            };
            talk(&ends, 0, 300_000);
            std::thread::sleep(Duration::from_millis(300));
            talk(&ends, 300_000, 300_000);
            assert!(!ends.client.is_san() && !ends.server.is_san());
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn with_a_key_only_its_holders_move() {
    bounded(|| {
        let keyed = |key: &[u8]| moving().key(DeploymentKey::new(key));
        let same = ends_of(keyed(b"the same"), keyed(b"the same"));
        let at = talk_until(&same, 0, are_up);
        talk(&same, at, 200_000);

        let other = ends_of(keyed(b"one"), keyed(b"another"));
        talk(&other, 0, 200_000);
        let told = || other.here.stats().moves_unproven > 0;
        eventually("a proof is turned down", PATIENCE, told);
        talk(&other, 200_000, 200_000);
        assert!(!other.client.is_san() && !other.server.is_san());
    });
}
