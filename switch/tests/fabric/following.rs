//! A poller follows streams from TCP to the SAN and back: what it was asked to tell stays as it is.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use san_switch::{Connection, Events, Interest, Poller, RouteChoice, Switch};
use san_tests::net::{addr_a, addr_b, is_soft};
use san_tests::time::{eventually, within};

use super::support::*;

const NOW: Option<Duration> = Some(Duration::ZERO);
const SHORT: Option<Duration> = Some(Duration::from_millis(20));
const LONG: Option<Duration> = Some(PATIENCE);
const TOKEN: u64 = 7;

/// A stream that may move. One end asks and waits for each answer, the other one is in a poller.
struct Ends {
    client: Connection,
    server: Arc<Connection>,
    switches: [Switch; 2],
}

impl Ends {
    fn new() -> Self {
        let config = || config().route(RouteChoice::Upgrade).upgrade_bytes(4096);
        let (here, there) = (
            Switch::new(config()).unwrap(),
            Switch::new(config()).unwrap(),
        );
        let listener = there.listen(any(), backlog(4)).unwrap();
        let client = here
            .connect(at(addr_b(), &listener), &from(addr_a()))
            .unwrap();
        let server = Arc::new(accept(&listener));
        server.set_nonblocking(true).unwrap();
        assert!(server.may_move() && !server.is_san());
        Self {
            client,
            server,
            switches: [here, there],
        }
    }

    fn are_up(&self) -> bool {
        self.client.is_san() && self.server.is_san()
    }

    fn are_down(&self) -> bool {
        !self.client.is_san() && !self.server.is_san()
    }

    /// Moves it by bytes that this end reads without its poller. On a busy machine a dial may not be
    /// answered in time; then the stream stays on TCP: `None`.
    fn up(&self) -> Option<()> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(8) {
            if self.are_up() {
                return Some(());
            }
            (&self.client).write_all(&[1; 500]).unwrap();
            read(&self.server, 500);
            (&*self.server).write_all(&[1; 500]).unwrap();
            read(&self.client, 500);
            thread::sleep(Duration::from_millis(2));
        }
        None
    }

    /// Two ends of a stream that has moved.
    fn moved() -> Self {
        let ends = (0..5).map(|_| Self::new());
        let mut up = ends.filter(|ends| ends.up().is_some());
        up.next().expect("no stream has moved")
    }

    fn down(&self, stay: bool) {
        self.client.move_to_tcp(stay);
        eventually("it is back on TCP", PATIENCE, || self.are_down());
    }
}

/// Reads so many bytes, whatever they are.
fn read(end: &Connection, mut length: usize) {
    let (mut buffer, begun) = ([0; 4096], Instant::now());
    while length > 0 {
        let most = length.min(buffer.len());
        match end.receive(&mut buffer[..most]) {
            Ok(0) => panic!("the end, and {length} bytes are missing"),
            Ok(n) => length -= n,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                assert!(begun.elapsed() < PATIENCE, "{length} bytes are missing");
                thread::yield_now();
            }
        }
    }
}

fn told(poller: &Poller, timeout: Option<Duration>) -> Vec<Events> {
    let mut events = Vec::new();
    poller.wait(&mut events, timeout).unwrap();
    assert!(events.iter().all(|event| event.token == TOKEN));
    events.into_iter().map(|event| event.events).collect()
}

fn byte(at: u64) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 9)) as u8
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Level,
    Edge,
    OneShot,
}

impl Kind {
    fn interest(self) -> Interest {
        match self {
            Kind::Level => Interest::READABLE,
            Kind::Edge => Interest::READABLE.edge(),
            Kind::OneShot => Interest::READABLE.one_shot(),
        }
    }
}

/// Sends back what comes, by what the poller tells, until the end.
fn echo_by_poller(ends: &Ends, poller: &Poller, kind: Kind) {
    let server = &ends.server;
    let (mut came, mut buffer) = (0, [0; 700]);
    loop {
        let events = told(poller, LONG);
        let route = server.route();
        let changes = server.info().changes;
        assert!(
            !events.is_empty(),
            "a wake-up was lost after {came} bytes and {changes:?}: {route}, {:?}",
            server.events()
        );
        assert_eq!(events.len(), 1);
        loop {
            match server.receive(&mut buffer) {
                Ok(0) => return,
                Ok(n) => {
                    let right = |(at, got): (u64, &u8)| *got == byte(at);
                    assert!((came..).zip(&buffer[..n]).all(right), "after {came} bytes");
                    came += n as u64;
                    send(server, &buffer[..n]);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    break;
                }
            }
            if kind == Kind::Level {
                break;
            }
        }
        if kind == Kind::OneShot {
            poller.modify(server, TOKEN, kind.interest()).unwrap();
        }
    }
}

/// Far less than there is room for, but while the carrier changes nothing may be taken for a moment.
fn send(end: &Connection, mut bytes: &[u8]) {
    let begun = Instant::now();
    while !bytes.is_empty() {
        match end.send(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                assert!(begun.elapsed() < PATIENCE, "no room");
                thread::yield_now();
            }
        }
    }
}

/// Asks and waits for the answers, in bursts, and has the stream come back to TCP from time to time, with
/// bytes under way. How often it did.
fn ask(ends: &Ends, most: u64) -> u64 {
    let (mut at, mut downs, mut last) = (0_u64, 0, Instant::now());
    for round in 0_u64.. {
        let length = 1 + round * 7919 % 3000;
        let bytes: Vec<u8> = (at..at + length).map(byte).collect();
        (&ends.client).write_all(&bytes).unwrap();
        if ends.are_up() && round % 4 == 0 {
            match downs % 2 {
                0 => ends.client.move_to_tcp(false),
                _ => ends.server.move_to_tcp(false),
            }
            (downs, last) = (downs + 1, Instant::now());
        }
        let mut answer = vec![0; bytes.len()];
        let mut got = 0;
        while got < answer.len() {
            let n = ends.client.receive(&mut answer[got..]).unwrap();
            assert!(n > 0, "the end after {at} bytes");
            got += n;
        }
        assert!(answer == bytes, "other bytes came back after {at}");
        at += length;
        // The loop sleeps meanwhile, or is about to.
        if round % 3 == 0 {
            thread::sleep(Duration::from_micros(round * 131 % 2000));
        }
        if downs == most || last.elapsed() > Duration::from_secs(5) {
            return downs;
        }
    }
    unreachable!("the rounds are never over")
}

/// How often a stream has to come back. The emulated machine is slow.
fn enough() -> u64 {
    if is_soft() { 12 } else { 2 }
}

fn follows(kind: Kind) {
    let (mut moves, begun) = (0, Instant::now());
    for number in 0.. {
        // Before anything was carried; and when it is on the SAN already.
        let ends = match number % 2 {
            0 => Ends::new(),
            _ => Ends::moved(),
        };
        let poller = Poller::new().unwrap();
        poller.add(&ends.server, TOKEN, kind.interest()).unwrap();
        thread::scope(|scope| {
            let echo = scope.spawn(|| echo_by_poller(&ends, &poller, kind));
            moves += ask(&ends, enough() / 2);
            ends.client.shutdown_write().unwrap();
            echo.join().unwrap();
        });
        if moves >= enough() {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(80), "{moves} moves");
    }
}

const LIMIT: Duration = Duration::from_secs(120);

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn level_is_told_of_a_stream_that_moves_again_and_again() {
    within(LIMIT, || follows(Kind::Level));
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn edges_are_told_of_a_stream_that_moves_again_and_again() {
    within(LIMIT, || follows(Kind::Edge));
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn one_shot_is_told_of_a_stream_that_moves_again_and_again() {
    within(LIMIT, || follows(Kind::OneShot));
}

/// One that writes waits for room by edges, while its stream moves.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn room_is_told_of_a_stream_that_moves_again_and_again() {
    const LENGTH: u64 = 12 << 20;
    within(LIMIT, || {
        let ends = Ends::moved();
        let poller = Poller::new().unwrap();
        let interest = Interest::WRITABLE.edge();
        poller.add(&ends.server, TOKEN, interest).unwrap();
        let (read, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut at = 0;
                while at < LENGTH {
                    let most = (LENGTH - at).min(50_000);
                    let bytes: Vec<u8> = (at..at + most).map(byte).collect();
                    match ends.server.send(&bytes) {
                        Ok(n) => at += n as u64,
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::WouldBlock);
                            let changes = ends.server.info().changes;
                            let events = told(&poller, LONG);
                            assert!(!events.is_empty(), "lost after {at}, {changes:?}");
                        }
                    }
                }
            });
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    let before = read.load(Ordering::SeqCst);
                    if ends.are_up() {
                        ends.client.move_to_tcp(false);
                    }
                    thread::sleep(Duration::from_millis(3 + before % 20));
                }
            });
            let (mut at, mut buffer) = (0, vec![0; 60_000]);
            while at < LENGTH {
                let n = ends.client.receive(&mut buffer).unwrap();
                assert!(n > 0, "the end after {at} bytes");
                let right = |(at, got): (u64, &u8)| *got == byte(at);
                assert!((at..).zip(&buffer[..n]).all(right), "after {at} bytes");
                at += n as u64;
                read.store(at, Ordering::SeqCst);
                // The writer is faster, and has to wait.
                if at % 5 == 0 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            is_over.store(true, Ordering::SeqCst);
        });
        assert!(ends.server.info().changes.1 > 0, "it has never come back");
    });
}

/// Bytes that came over the SAN are not read, and the application waits for room on TCP.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn room_is_told_while_bytes_of_the_san_are_not_read() {
    within(LIMIT, || {
        let ends = Ends::moved();
        (&ends.client).write_all(&[9; 3000]).unwrap();
        eventually("they are here", PATIENCE, || {
            ends.server.lane().unwrap().poll();
            ends.server.events().contains(Events::READABLE)
        });
        ends.down(true);
        let poller = Poller::new().unwrap();
        let interest = Interest::WRITABLE.edge();
        poller.add(&ends.server, TOKEN, interest).unwrap();
        let mut sent = 0;
        loop {
            match ends.server.send(&[5; 65_536]) {
                Ok(n) => sent += n,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    // What the kernel takes in of it, it has taken after this.
                    if told(&poller, SHORT).is_empty() {
                        break;
                    }
                }
            }
        }
        thread::scope(|scope| {
            let waiter = scope.spawn(|| told(&poller, LONG));
            thread::sleep(Duration::from_millis(20));
            read(&ends.client, sent);
            assert_eq!(waiter.join().unwrap(), [Events::WRITABLE]);
        });
        read(&ends.server, 3000);
        assert_eq!(ends.server.info().changes, (1, 1));
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_loop_that_sleeps_meanwhile_hears_what_comes_after_a_move() {
    within(LIMIT, || {
        for _ in 0..enough().min(8) {
            let ends = Ends::new();
            let poller = Poller::new().unwrap();
            let interest = Interest::READABLE.edge();
            let count = 9000;
            poller.add(&ends.server, TOKEN, interest).unwrap();
            (&ends.client).write_all(&vec![1; count]).unwrap();
            read(&ends.server, count);
            send(&ends.server, &vec![1; count]);
            read(&ends.client, count);
            // Whatever was told of these is over.
            while !told(&poller, NOW).is_empty() {}
            for moves_up in [true, false] {
                thread::scope(|scope| {
                    let sleeper = scope.spawn(|| {
                        // A move may be told as an edge of what holds: nothing.
                        loop {
                            let events = told(&poller, LONG);
                            assert!(!events.is_empty(), "a wake-up was lost");
                            let mut byte = [0; 9];
                            match ends.server.receive(&mut byte) {
                                Ok(n) => return byte[..n].to_vec(),
                                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                            }
                        }
                    });
                    let begun = Instant::now();
                    match moves_up {
                        // A dial that comes to nothing leaves it on TCP.
                        true => while !ends.are_up() && begun.elapsed() < Duration::from_secs(2) {},
                        false => ends.down(false),
                    }
                    (&ends.client).write_all(b"x").unwrap();
                    assert_eq!(sleeper.join().unwrap(), b"x");
                });
            }
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_place_is_taken_out_changed_and_put_back_while_the_stream_moves() {
    within(LIMIT, || {
        let (mut moves, begun) = (0, Instant::now());
        while moves < enough() {
            assert!(begun.elapsed() < Duration::from_secs(80), "{moves} moves");
            let ends = Ends::new();
            let poller = Poller::new().unwrap();
            thread::scope(|scope| {
                scope.spawn(|| {
                    let server = &ends.server;
                    let mut buffer = [0; 4096];
                    for round in 0_u32.. {
                        poller.add(server, TOKEN, Interest::READABLE).unwrap();
                        let again = poller.add(server, TOKEN, Interest::READABLE).unwrap_err();
                        assert_eq!(again.kind(), ErrorKind::AlreadyExists);
                        if round % 2 == 0 {
                            let interest = Interest::READABLE.one_shot();
                            poller.modify(server, TOKEN, interest).unwrap();
                        }
                        let timeout = Duration::from_micros(u64::from(round * 37 % 900));
                        let has_come = !told(&poller, Some(timeout)).is_empty();
                        poller.remove(server, TOKEN).unwrap();
                        assert_eq!(told(&poller, NOW), []);
                        let gone = poller.remove(server, TOKEN).unwrap_err();
                        assert_eq!(gone.kind(), ErrorKind::NotFound);
                        assert!(poller.modify(server, TOKEN, Interest::BOTH).is_err());
                        // What it does not hear of now it hears of after the next add.
                        if !has_come {
                            continue;
                        }
                        match server.receive(&mut buffer) {
                            Ok(0) => return,
                            Ok(n) => send(server, &buffer[..n]),
                            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                        }
                    }
                });
                moves += ask(&ends, enough() / 2);
                ends.client.shutdown_write().unwrap();
            });
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_reading_half_that_is_shut_is_told_on_either_carrier() {
    within(LIMIT, || {
        for ends in [Ends::new(), Ends::moved()] {
            let poller = Poller::new().unwrap();
            let interest = Interest::READABLE;
            poller.add(&ends.server, TOKEN, interest).unwrap();
            assert_eq!(told(&poller, SHORT), []);
            thread::scope(|scope| {
                let sleeper = scope.spawn(|| told(&poller, LONG));
                thread::sleep(Duration::from_millis(20));
                ends.server.shutdown(Shutdown::Read).unwrap();
                assert_eq!(sleeper.join().unwrap(), [Events::READABLE]);
            });
            assert_eq!(ends.server.receive(&mut [0; 9]).unwrap(), 0);
        }
    });
}

/// A stream that is closed has bytes under way, and its socket stays open for them.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn nothing_is_told_of_a_stream_that_is_closed_or_in_another_poller() {
    within(LIMIT, || {
        for stays_up in [false, true] {
            let ends = Ends::moved();
            let (poller, other) = (Poller::new().unwrap(), Poller::new().unwrap());
            poller.add(&ends.server, TOKEN, Interest::BOTH).unwrap();
            assert_eq!(told(&poller, LONG), [Events::WRITABLE]);
            other.add(&ends.server, TOKEN, Interest::BOTH).unwrap();
            assert_eq!(told(&poller, SHORT), []);
            assert_eq!(told(&other, LONG), [Events::WRITABLE]);
            if !stays_up {
                ends.down(true);
                assert_eq!(told(&other, LONG), [Events::WRITABLE]);
            }
            while ends.server.send(&[5; 65_536]).is_ok() {}
            let Ends { client, server, .. } = ends;
            drop(server);
            assert_eq!(told(&other, SHORT), []);
            drop(client);
            assert_eq!(told(&other, SHORT), []);
        }
    });
}

/// A program may take a read that finds nothing for an error, as wrk does.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_stream_is_not_readable_because_it_comes_back() {
    within(LIMIT, || {
        for way in [Down::Asked, Down::ShutDown, Down::Asked, Down::ShutDown] {
            let ends = Ends::moved();
            let poller = Poller::new().unwrap();
            let interest = Interest::READABLE;
            poller.add(&ends.server, TOKEN, interest).unwrap();
            assert_eq!(told(&poller, SHORT), []);
            thread::scope(|scope| {
                scope.spawn(|| match way {
                    Down::Asked => ends.client.move_to_tcp(true),
                    Down::ShutDown => assert!(ends.switches[0].shutdown()),
                });
                let begun = Instant::now();
                while !ends.are_down() {
                    assert_eq!(told(&poller, SHORT), []);
                    assert!(begun.elapsed() < PATIENCE);
                }
            });
            assert_eq!(told(&poller, SHORT), []);
            (&ends.client).write_all(&[1]).unwrap();
            assert_eq!(told(&poller, LONG), [Events::READABLE]);
        }
    });
}

/// Why a stream comes back to TCP.
#[derive(Clone, Copy)]
enum Down {
    Asked,
    ShutDown,
}
