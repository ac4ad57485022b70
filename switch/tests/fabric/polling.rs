//! The poller: what it tells of connections over the SAN, and that it loses nothing under load.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use san_switch::{Connection, Events, Interest, Listener, PolledEvent, Poller, Switch};
use san_tests::time::{Rounds, bounded};

use support::*;

const SHORT: Option<Duration> = Some(Duration::from_millis(20));
const LONG: Option<Duration> = Some(PATIENCE);

fn ends() -> (Switch, Listener, Arc<Connection>, Arc<Connection>) {
    let switch = switch();
    let listener = switch.listen(any(), backlog(4)).unwrap();
    let client = san_client(&switch, &listener);
    let server = accept(&listener);
    (switch, listener, Arc::new(client), Arc::new(server))
}

fn told(poller: &Poller, timeout: Option<Duration>) -> Vec<(u64, Events)> {
    let mut events = Vec::new();
    poller.wait(&mut events, timeout).unwrap();
    let pair = |event: PolledEvent| (event.token, event.events);
    events.into_iter().map(pair).collect()
}

const IN: Events = Events::READABLE;
const OUT: Events = Events::WRITABLE;

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_044_level_edge_and_one_shot_are_epolls() {
    bounded(|| {
        let (_switch, _listener, client, server) = ends();
        let poller = Poller::new().unwrap();
        poller.add(&client, 5, Interest::READABLE).unwrap();
        let again = poller.add(&client, 5, Interest::READABLE).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AlreadyExists);
        assert_eq!(told(&poller, SHORT), []);
        (&*server).write_all(b"a").unwrap();
        assert_eq!(told(&poller, LONG), [(5, IN)]);
        assert_eq!(told(&poller, LONG), [(5, IN)], "as long as it is so");
        assert_eq!(client.receive(&mut [0; 9]).unwrap(), 1);
        assert_eq!(told(&poller, SHORT), []);

        poller.modify(&client, 5, Interest::BOTH.edge()).unwrap();
        assert_eq!(told(&poller, LONG), [(5, OUT)]);
        assert_eq!(told(&poller, SHORT), []);
        (&*server).write_all(b"b").unwrap();
        assert_eq!(told(&poller, LONG), [(5, IN | OUT)]);
        assert_eq!(told(&poller, SHORT), [], "once");
        (&*server).write_all(b"c").unwrap();
        assert_eq!(told(&poller, LONG), [(5, IN | OUT)], "and when more comes");

        poller
            .modify(&client, 5, Interest::READABLE.one_shot())
            .unwrap();
        assert_eq!(told(&poller, LONG), [(5, IN)]);
        (&*server).write_all(b"d").unwrap();
        assert_eq!(told(&poller, SHORT), []);
        poller.remove(&client, 5).unwrap();
        assert!(poller.remove(&client, 5).is_err());

        let end = Interest::level(Events::READ_CLOSED);
        poller.add(&client, 6, end).unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(told(&poller, LONG), [(6, Events::READ_CLOSED)]);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_poller_hears_of_listeners_tcp_and_its_waker_too() {
    bounded(|| {
        let (switch, listener, client, server) = ends();
        let poller = Arc::new(Poller::new().unwrap());
        poller.add_listener(&listener, 1).unwrap();
        poller.add(&client, 2, Interest::READABLE).unwrap();
        let tcp = Switch::builder().build().unwrap();
        let plain = tcp
            .listen("127.0.0.1:0".parse().unwrap(), backlog(4))
            .unwrap();
        let to = plain.local_addr();
        let there = tcp.connect(to, &Default::default()).unwrap();
        let here = Arc::new(accept(&plain));
        poller.add(&here, 3, Interest::READABLE).unwrap();
        assert_eq!(told(&poller, SHORT), []);

        (&there).write_all(b"x").unwrap();
        assert_eq!(told(&poller, LONG), [(3, IN)]);
        (&*server).write_all(b"y").unwrap();
        // Both sides get their turns, whichever is always ready.
        let mut seen = Vec::new();
        for _ in 0..20 {
            seen.extend(told(&poller, LONG).into_iter().map(|(token, _)| token));
        }
        assert!(seen.contains(&2) && seen.contains(&3), "{seen:?}");
        poller.remove(&here, 3).unwrap();
        poller.remove(&client, 2).unwrap();

        let _another = san_client(&switch, &listener);
        assert_eq!(told(&poller, LONG), [(1, IN)]);
        drop(accept(&listener));
        let waker = poller.waker();
        let sleeper = Arc::clone(&poller);
        let thread = thread::spawn(move || told(&sleeper, LONG));
        thread::sleep(Duration::from_millis(20));
        waker.wake();
        assert_eq!(thread.join().unwrap(), []);
    });
}

/// A thread in a call and a thread in a loop sleep on the same lane.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_loop_and_a_blocking_writer_do_not_take_each_others_events() {
    bounded(|| {
        let (_switch, _listener, client, server) = ends();
        let writer = thread::spawn(move || {
            for _ in 0..2000 {
                (&*server).write_all(&[7; 1500]).unwrap();
            }
            server.shutdown(Shutdown::Write).unwrap();
            server
        });
        let poller = Poller::new().unwrap();
        client.set_nonblocking(true).unwrap();
        poller.add(&client, 1, Interest::READABLE.edge()).unwrap();
        let (mut bytes, mut slow) = (0, 0);
        let mut buffer = [0; 700];
        loop {
            match client.receive(&mut buffer) {
                Ok(0) => break,
                Ok(count) => bytes += count,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    let begun = Instant::now();
                    assert!(!told(&poller, LONG).is_empty(), "after {bytes} bytes");
                    // What the progress thread mends shows as half a second.
                    slow += usize::from(begun.elapsed() > Duration::from_millis(400));
                }
            }
        }
        assert_eq!(bytes, 2000 * 1500);
        assert!(slow <= 2, "{slow} waits took half a second");
        writer.join().unwrap();
    });
}

/// Servers of a stress: connections spread over loops, all of one switch, so that loops share lanes.
struct Servers {
    threads: Vec<thread::JoinHandle<()>>,
    wakers: Vec<san_switch::Waker>,
    stop: Arc<AtomicBool>,
}

const CONNECTIONS: usize = 24;

fn serve(servers: &[Arc<Connection>], loops: usize) -> Servers {
    let stop = Arc::new(AtomicBool::new(false));
    let (mut threads, mut wakers) = (Vec::new(), Vec::new());
    for number in 0..loops {
        let own: Vec<_> = servers
            .iter()
            .skip(number)
            .step_by(loops)
            .cloned()
            .collect();
        let poller = Poller::new().unwrap();
        for (token, connection) in own.iter().enumerate() {
            let interest = match token % 2 {
                0 => Interest::READABLE,
                _ => Interest::READABLE.edge(),
            };
            poller.add(connection, token as u64, interest).unwrap();
        }
        wakers.push(poller.waker());
        let stop = Arc::clone(&stop);
        threads.push(thread::spawn(move || echo(&poller, &own, &stop, number)));
    }
    Servers {
        threads,
        wakers,
        stop,
    }
}

fn echo(poller: &Poller, own: &[Arc<Connection>], stop: &AtomicBool, number: usize) {
    let mut events = Vec::new();
    let mut turns = number;
    while !stop.load(Ordering::Acquire) {
        poller.wait(&mut events, None).unwrap();
        for event in &events {
            let connection = &own[usize::try_from(event.token).unwrap()];
            let mut buffer = [0; 64];
            while let Ok(count @ 1..) = connection.receive(&mut buffer) {
                connection.send(&buffer[..count]).unwrap();
            }
        }
        // Some loops have something else to do now and then, while completions for others come.
        turns = turns.wrapping_mul(5).wrapping_add(1);
        if turns.is_multiple_of(16) {
            let until = Instant::now() + Duration::from_micros(turns as u64 % 200);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
        }
    }
}

fn loses_nothing(loops: usize) {
    // Who asks for so many gets them.
    let asked = std::env::var("SAN_TEST_ROUNDS").map(|text| text.parse().unwrap());
    let (most, least) = asked.map_or((20_000, 200), |asked| (asked, asked));
    let switch = switch();
    let listener = switch.listen(any(), backlog(64)).unwrap();
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        clients.push(Arc::new(san_client(&switch, &listener)));
        servers.push(Arc::new(accept(&listener)));
    }
    for connection in clients.iter().chain(&servers) {
        connection.set_nonblocking(true).unwrap();
    }
    let served = serve(&servers, loops);
    let poller = Poller::new().unwrap();
    let mut done = 0;
    for (token, client) in clients.iter().enumerate() {
        poller
            .add(client, token as u64, Interest::READABLE)
            .unwrap();
        client.send(b"question").unwrap();
    }
    let mut events = Vec::new();
    let answers = Rounds::new(most, least);
    while answers.goes_on(done) {
        poller.wait(&mut events, LONG).unwrap();
        assert!(
            !events.is_empty(),
            "a wake-up was lost after {done} answers"
        );
        for event in &events {
            let client = &clients[usize::try_from(event.token).unwrap()];
            let mut buffer = [0; 64];
            if let Ok(count) = client.receive(&mut buffer) {
                assert_eq!(&buffer[..count], b"question");
                done += 1;
                client.send(b"question").unwrap();
            }
        }
    }
    served.stop.store(true, Ordering::Release);
    for waker in &served.wakers {
        waker.wake();
    }
    for thread in served.threads {
        thread.join().unwrap();
    }
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn one_loop_loses_nothing() {
    bounded(|| loses_nothing(1));
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn three_loops_on_one_lane_lose_nothing() {
    bounded(|| loses_nothing(3));
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn six_loops_on_one_lane_lose_nothing() {
    bounded(|| loses_nothing(6));
}
