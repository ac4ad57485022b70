//! Streams that begin on TCP, move to the SAN when they have carried enough, and come back: no byte is
//! lost, doubled or in another order, and the application sees nothing of it.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use san_provider::ConnectFailure;
use san_provider::wire::Session;

use san_switch::{
    ConnectOptions, Connection, DeploymentKey, Events, Listener, Route, RouteChoice, Switch,
    SwitchConfig, Watcher,
};
use san_tests::census::queue_pairs_are_gone;
use san_tests::net::{addr_a, addr_b};
use san_tests::san::San;
use san_tests::time::{bounded, eventually, within};
use san_tests::wire::{OUR_OWN, Wire};

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
        .connect(at(addr_b(), &listener), &from(addr_a()))
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

fn byte(at: u64, seed: u64) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 11) ^ seed) as u8
}

/// Writes `length` bytes in writes of many sizes.
fn write(end: &Connection, from: u64, length: u64, seed: u64) {
    let size = |at: u64| [1, 64, 700, 4096, 9000, 65_536][(at % 6) as usize];
    write_by(end, from, length, seed, size);
}

fn write_by(end: &Connection, from: u64, length: u64, seed: u64, size: impl Fn(u64) -> u64) {
    let mut at = from;
    while at < from + length {
        let size = size(at).min(from + length - at);
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

/// Asks and answers until this holds; how many bytes that took. `None`: it does not come to it.
fn talk_until(ends: &Ends, from: u64, what: impl Fn(&Ends) -> bool) -> Option<u64> {
    let (mut at, begun) = (from, Instant::now());
    while begun.elapsed() < Duration::from_secs(8) {
        if what(ends) {
            return Some(at);
        }
        write(&ends.client, at, 100, 1);
        read(&ends.server, at, 100, 1);
        write(&ends.server, at, 100, 2);
        read(&ends.client, at, 100, 2);
        at += 100;
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

/// Two ends of a stream that has moved, and how many bytes it has carried. On a busy machine a dial may
/// not be answered in time; then the stream stays on TCP, as it should, and another one is tried.
fn up_with(config: impl Fn() -> SwitchConfig) -> (Ends, u64) {
    for _ in 0..5 {
        let ends = ends_of(config(), config());
        if let Some(at) = talk_until(&ends, 0, are_up) {
            return (ends, at);
        }
    }
    panic!("no stream has moved");
}

fn up() -> (Ends, u64) {
    up_with(moving)
}

fn are_up(ends: &Ends) -> bool {
    ends.client.is_san() && ends.server.is_san()
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_stream_moves_to_the_san_and_back() {
    bounded(|| {
        let (ends, at) = up();
        assert!(matches!(ends.client.route(), Route::San { .. }));
        talk(&ends, at, 1_000_000);
        let at = at + 1_000_000;
        ends.client.move_to_tcp(true);
        talk(&ends, at, 500_000);
        let at = at + 500_000;
        let are_down = |ends: &Ends| !ends.client.is_san() && !ends.server.is_san();
        let at = talk_until(&ends, at, are_down).expect("both are on TCP");
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
        let (mut ends, mut at) = up();
        let mut downs = 0;
        for round in 0..6 {
            match talk_until(&ends, at, are_up) {
                Some(now) => at = now,
                None => (ends, at) = up(),
            }
            std::thread::scope(|scope| {
                scope.spawn(|| talk(&ends, at, 400_000));
                std::thread::sleep(Duration::from_millis(3 * round));
                let end = if round % 2 == 0 {
                    &ends.client
                } else {
                    &ends.server
                };
                let before = ends.here.stats().streams_down;
                end.move_to_tcp(false);
                eventually("it is back on TCP", PATIENCE, || {
                    ends.here.stats().streams_down > before
                });
                downs += 1;
            });
            at += 400_000;
        }
        assert_eq!(downs, 6);
    });
}

/// The peers' invitations come later than the dials: the thread that makes them has one after the other to do.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn streams_that_begin_at_once_move_all_the_same() {
    let streams = if san_tests::net::is_soft() { 60 } else { 8 };
    within(Duration::from_secs(60), move || {
        let (here, there) = (
            Switch::new(moving()).unwrap(),
            Switch::new(moving()).unwrap(),
        );
        let listener = there.listen(any(), backlog(64)).unwrap();
        let connect = |_| {
            let client = here.connect(at(addr_b(), &listener), &from(addr_a()));
            (client.unwrap(), accept(&listener))
        };
        let ends: Vec<_> = (0..streams).map(connect).collect();
        let mut at = 0;
        let begun = Instant::now();
        let up = || {
            let are_up =
                |(client, server): &&(Connection, Connection)| client.is_san() && server.is_san();
            ends.iter().filter(are_up).count()
        };
        while up() < streams && begun.elapsed() < Duration::from_secs(30) {
            for (client, server) in &ends {
                write_by(client, at, 2000, 1, |_| 2000);
                read(server, at, 2000, 1);
                write_by(server, at, 2000, 2, |_| 2000);
                read(client, at, 2000, 2);
            }
            at += 2000;
        }
        // A machine that is busy with other things is too late for many; a host that is left alone has none.
        let up = up();
        assert!(up * 8 >= streams, "{up} of {streams} have moved");
    });
}

const MIB: u64 = 1 << 20;

/// As [`talk`], in writes of 1 MiB.
fn talk_in_bulk(ends: &Ends, from: u64, length: u64) {
    std::thread::scope(|scope| {
        scope.spawn(|| write_by(&ends.client, from, length, 1, |_| MIB));
        scope.spawn(|| write_by(&ends.server, from, length, 2, |_| MIB));
        scope.spawn(|| read(&ends.client, from, length, 2));
        scope.spawn(|| read(&ends.server, from, length, 1));
    });
}

/// Bytes that the peer has read out of the memory of these switches.
fn bulk(ends: &Ends) -> u64 {
    ends.here.stats().bulk_sent + ends.there.stats().bulk_sent
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn bulk_of_a_stream_that_moved_is_read_by_the_peer() {
    bounded(|| {
        let (ends, at) = up();
        talk_in_bulk(&ends, at, 2 * MIB);
        assert!(are_up(&ends));
        // A little travels in messages: the beginning, while the ring is opened.
        let read = bulk(&ends);
        assert!(read > 3 * MIB && read < 4 * MIB, "{read}");
    });
}

/// Offers are open when it moves.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_stream_that_moves_again_and_again_loses_no_bulk() {
    bounded(|| {
        let (mut ends, mut at) = up();
        for round in 0..6 {
            match talk_until(&ends, at, are_up) {
                Some(now) => at = now,
                None => (ends, at) = up(),
            }
            let length = 2 * MIB + 4321;
            std::thread::scope(|scope| {
                scope.spawn(|| talk_in_bulk(&ends, at, length));
                let before = (bulk(&ends), ends.here.stats().streams_down);
                eventually("bulk travels", PATIENCE, || {
                    bulk(&ends) > before.0 + 64 * 1024 * (1 + round)
                });
                let end = if round % 2 == 0 {
                    &ends.client
                } else {
                    &ends.server
                };
                end.move_to_tcp(false);
                eventually("it is back on TCP", PATIENCE, || {
                    ends.here.stats().streams_down > before.1
                });
            });
            at += length;
        }
    });
}

/// The wire loses everything while bytes are offered that nobody has read.
#[test]
#[ignore = "needs a link of its own: ci/test"]
fn what_was_offered_when_the_san_is_cut_goes_over_tcp() {
    let wire = Wire::here().expect(OUR_OWN);
    within(Duration::from_secs(120), move || {
        let (ends, at) = up();
        let length = 2 * MIB;
        std::thread::scope(|scope| {
            scope.spawn(|| write_by(&ends.client, at, length, 1, |_| MIB));
            read(&ends.server, at, 400_000, 1);
            let offered = || bulk(&ends) > 0 && ends.client.info().bytes_unsent > Some(100_000);
            eventually("bytes are offered", PATIENCE, offered);
            wire.lose();
            scope.spawn(|| read(&ends.server, at + 400_000, length - 400_000, 1));
            eventually("one sees the break", Duration::from_secs(60), || {
                !ends.client.is_san() || !ends.server.is_san()
            });
            wire.mend();
        });
        write(&ends.server, at, 100_000, 2);
        read(&ends.client, at, 100_000, 2);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn an_end_of_the_stream_on_the_san_is_the_end() {
    bounded(|| {
        let (ends, at) = up();
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

/// The last messages have no completion of their own, and the probe of an idle connection comes late.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn who_waits_for_the_arrival_of_the_last_bytes_hears_of_it() {
    bounded(|| {
        let (ends, at) = up();
        write(&ends.client, at, 300, 1);
        read(&ends.server, at, 300, 1);
        assert!(are_up(&ends));
        for end in [&ends.client, &ends.server] {
            end.finish(Some(Duration::from_secs(5))).unwrap();
        }
    });
}

/// So does who sees a closed stream off: a program's exit waits for that.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_stream_that_both_ends_have_closed_is_gone_soon() {
    bounded(|| {
        let (ends, at) = up();
        write(&ends.client, at, 300, 1);
        read(&ends.server, at, 300, 1);
        assert!(are_up(&ends));
        drop(ends.client);
        assert_eq!(ends.server.receive(&mut [0; 10]).unwrap(), 0);
        drop(ends.server);
        queue_pairs_are_gone();
    });
}

/// Neither reads the other's end, which it has to hear of all the same.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_stream_that_both_ends_close_without_a_read_is_gone_soon() {
    bounded(|| {
        let (ends, _) = up();
        assert!(are_up(&ends));
        drop(ends.client);
        drop(ends.server);
        queue_pairs_are_gone();
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
            let options: ConnectOptions = from(addr_a());
            let options = if there.route == RouteChoice::Upgrade {
                options.tcp_only(true)
            } else {
                options
            };
            let to = at(addr_b(), &listener);
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

/// A client without the library, which asks and answers until a dial to it has come to nothing.
fn missed_dial(here: &Switch, there: &Switch, listener: &Listener) {
    let options = from(addr_a()).tcp_only(true);
    let client = here.connect(at(addr_b(), listener), &options).unwrap();
    let server = accept(listener);
    let missed = there.stats().moves_failed;
    // The host may be left alone for some seconds before it is dialled.
    eventually("a dial comes to nothing", 2 * PATIENCE, || {
        for (from, to) in [(&client, &server), (&server, &client)] {
            (&mut &*from).write_all(&[5; 6000]).unwrap();
            (&mut &*to).read_exact(&mut [0; 6000]).unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
        there.stats().moves_failed > missed
    });
    assert!(!server.is_san());
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn clients_that_do_not_move_are_no_reason_to_leave_their_host_alone() {
    within(Duration::from_secs(150), || {
        let (here, there) = (
            Switch::new(moving()).unwrap(),
            Switch::new(moving()).unwrap(),
        );
        let listener = there.listen(any(), backlog(4)).unwrap();
        // The host is not known: it is left alone for a second. Later it is known.
        for clients in [1, 5] {
            for _ in 0..clients {
                missed_dial(&here, &there, &listener);
            }
            let client = here
                .connect(at(addr_b(), &listener), &from(addr_a()))
                .unwrap();
            let server = accept(&listener);
            let begun = Instant::now();
            while !(client.is_san() && server.is_san()) {
                assert!(begun.elapsed() < Duration::from_secs(12), "it stays on TCP");
                for (from, to) in [(&client, &server), (&server, &client)] {
                    (&mut &*from).write_all(&[5; 100]).unwrap();
                    (&mut &*to).read_exact(&mut [0; 100]).unwrap();
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn with_a_key_only_its_holders_move() {
    bounded(|| {
        let keyed = |key: &[u8]| moving().key(DeploymentKey::new(key));
        let (same, at) = up_with(|| keyed(b"the same"));
        talk(&same, at, 200_000);

        let other = ends_of(keyed(b"one"), keyed(b"another"));
        talk(&other, 0, 200_000);
        let told = || other.here.stats().moves_unproven > 0;
        eventually("a proof is turned down", PATIENCE, told);
        talk(&other, 200_000, 200_000);
        assert!(!other.client.is_san() && !other.server.is_san());
    });
}

/// The wire loses everything until the transport of the SAN has given up; TCP goes on when it is mended.
#[test]
#[ignore = "needs a link of its own: ci/test"]
fn a_cut_of_the_san_is_not_the_end_of_the_stream() {
    let wire = Wire::here().expect(OUR_OWN);
    within(Duration::from_secs(120), move || {
        let (ends, at) = up();
        // More than the SAN has brought when it breaks.
        let length = 600_000;
        std::thread::scope(|scope| {
            scope.spawn(|| talk(&ends, at, length));
            std::thread::sleep(Duration::from_millis(20));
            wire.lose();
            eventually("both see the break", Duration::from_secs(60), || {
                // Whoever sends finds out.
                !ends.client.is_san() || !ends.server.is_san()
            });
            wire.mend();
        });
        talk(&ends, at + length, 100_000);
        assert!(ends.here.stats().streams_down + ends.there.stats().streams_down >= 2);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_switch_that_shuts_down_leaves_its_streams_on_tcp() {
    bounded(|| {
        let (ends, at) = up();
        assert!(ends.there.shutdown());
        talk(&ends, at, 300_000);
        assert!(!ends.client.is_san() && !ends.server.is_san());
        ends.server.shutdown_write().unwrap();
        assert_eq!(ends.client.receive(&mut [0; 4]).unwrap(), 0);
    });
}

/// Somebody on the SAN asks for the second carrier of a stream that is not his.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_stranger_gets_no_part_of_a_stream() {
    bounded(|| {
        // Only one end moves, so its port stays open for strangers.
        let direct = Switch::new(moving().route(RouteChoice::Direct)).unwrap();
        let here = Switch::new(moving()).unwrap();
        let listener = direct.listen(any(), backlog(4)).unwrap();
        let client = here
            .connect(at(addr_b(), &listener), &from(addr_a()))
            .unwrap();
        let ends = Ends {
            server: accept(&listener),
            client,
            here,
            there: direct,
        };
        talk(&ends, 0, 20_000);
        let port: SocketAddr = ends.client.local_addr();
        let stranger = San::start();
        let ask = |session: Session| {
            let socket = stranger.bound(SocketAddr::new(addr_b(), 0));
            let connector = san_tests::san::Connector::new(socket);
            let options = san_provider::ConnectOptions {
                deadline: Some(Duration::from_secs(5)),
                session,
                ..san_provider::ConnectOptions::default()
            };
            let _ = connector.socket.connect(port, options);
            connector.failure().failure()
        };
        // The thread that listens may not have come to it yet.
        let forged = Session::with_id(7)
            .secret([9; 16])
            .purpose(1)
            .tcp_port(ends.server.local_addr().port())
            .generation(1);
        eventually("it listens", PATIENCE, || {
            ask(forged) == ConnectFailure::NoSuchConnection
        });
        assert!(ends.here.stats().moves_unproven >= 1);
        for session in [
            Session::NONE,
            forged.purpose(0),
            forged.purpose(9),
            forged.tcp_port(1),
        ] {
            let answer = (0..100)
                .map(|_| ask(session))
                .find(|answer| !matches!(answer, ConnectFailure::BacklogFull { .. }));
            assert_eq!(answer, Some(ConnectFailure::NoSuchConnection));
        }
        talk(&ends, 20_000, 100_000);
        assert!(!ends.client.is_san());
    });
}

struct Heard(AtomicBool);

impl Watcher for Heard {
    fn changed(&self, _token: u64, events: Events) {
        if events.contains(Events::READABLE) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_watcher_hears_of_a_stream_that_has_moved() {
    bounded(|| {
        let (ends, at) = up();
        ends.server.set_nonblocking(true).unwrap();
        let heard = Arc::new(Heard(AtomicBool::new(false)));
        ends.server
            .set_watcher(Some((Arc::clone(&heard) as Arc<dyn Watcher>, 5)));
        assert_eq!(ends.server.events(), Events::WRITABLE);
        let error = ends.server.receive(&mut [0; 9]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        heard.0.store(false, Ordering::SeqCst);
        write(&ends.client, at, 10, 1);
        // It may hear of something else before.
        eventually("the watcher hears of bytes", PATIENCE, || {
            heard.0.swap(false, Ordering::SeqCst) && ends.server.events().contains(Events::READABLE)
        });
        read(&ends.server, at, 10, 1);
        heard.0.store(false, Ordering::SeqCst);
        ends.client.shutdown_write().unwrap();
        eventually("the watcher hears of the end", PATIENCE, || {
            ends.server.events().contains(Events::READ_CLOSED)
        });
        assert_eq!(ends.server.receive(&mut [0; 9]).unwrap(), 0);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_read_that_waits_ends_by_a_shutdown_of_another_thread() {
    bounded(|| {
        let (ends, _) = up();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| ends.client.receive(&mut [0; 4]));
            std::thread::sleep(Duration::from_millis(50));
            ends.client.shutdown(std::net::Shutdown::Read).unwrap();
            assert_eq!(reader.join().unwrap().unwrap(), 0);
        });
    });
}
