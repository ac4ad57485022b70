//! What a connection over the SAN is ready for: as poll(2) says it of TCP, and told at each change.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

#[path = "following.rs"]
mod following;

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use san_switch::{Connection, Events, Listener, Switch, Watcher};
use san_tests::time::{bounded, eventually};

use support::*;

fn ends() -> (Switch, Listener, Connection, Connection) {
    let switch = switch();
    let listener = switch.listen(any(), backlog(4)).unwrap();
    let client = san_client(&switch, &listener);
    let server = accept(&listener);
    (switch, listener, client, server)
}

/// Polls the lane until these hold, and no others.
fn becomes(connection: &Connection, wanted: Events) {
    let mut last = Events::empty();
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        connection.lane().unwrap().poll();
        last = connection.events();
        if last == wanted {
            return;
        }
        std::thread::yield_now();
    }
    panic!("{last:?} and not {wanted:?}");
}

const IN: Events = Events::READABLE;
const OUT: Events = Events::WRITABLE;

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_044_events_are_those_of_tcp() {
    bounded(|| {
        let (_switch, _listener, client, server) = ends();
        becomes(&client, OUT);
        (&server).write_all(b"two").unwrap();
        becomes(&client, OUT | IN);
        client.peek(&mut [0; 3]).unwrap();
        becomes(&client, OUT | IN);
        assert_eq!(client.receive(&mut [0; 9]).unwrap(), 3);
        becomes(&client, OUT);
        // The end shows before what came earlier is read.
        (&server).write_all(b"more").unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        becomes(&client, OUT | IN | Events::READ_CLOSED);
        assert_eq!(client.receive(&mut [0; 9]).unwrap(), 4);
        assert_eq!(client.receive(&mut [0; 9]).unwrap(), 0);
        becomes(&client, OUT | IN | Events::READ_CLOSED);
        becomes(&server, OUT);
        client.shutdown(Shutdown::Write).unwrap();
        becomes(&client, OUT | IN | Events::READ_CLOSED | Events::HANG_UP);
        becomes(&server, OUT | IN | Events::READ_CLOSED | Events::HANG_UP);
        assert!(client.take_error().unwrap().is_none());
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_broken_connection_says_so_once() {
    bounded(|| {
        let (switch, other) = (switch(), switch());
        let listener = other.listen(any(), backlog(4)).unwrap();
        let client = san_client(&switch, &listener);
        let server = accept(&listener);
        (&server).write_all(b"last").unwrap();
        becomes(&client, OUT | IN);
        let heard = Arc::new(Heard::default());
        client.set_watcher(Some((Arc::clone(&heard) as Arc<dyn Watcher>, 7)));
        // As if the process were gone.
        other.shutdown();
        let over = OUT | IN | Events::READ_CLOSED | Events::HANG_UP;
        becomes(&client, over | Events::ERROR);
        eventually("the watcher hears of it", PATIENCE, || {
            heard.take().contains(&(7, over | Events::ERROR))
        });
        assert_eq!(client.receive(&mut [0; 9]).unwrap(), 4);
        let error = client.take_error().unwrap().unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        becomes(&client, over);
        assert!(client.take_error().unwrap().is_none());
        assert_eq!(client.receive(&mut [0; 9]).unwrap(), 0);
    });
}

/// Threads that look at the connection at the same time are not taken for readers, who would find the error themselves.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_watcher_hears_of_the_error_though_others_look() {
    bounded(|| {
        for _ in 0..5 {
            let (switch, other) = (switch(), switch());
            let listener = other.listen(any(), backlog(4)).unwrap();
            let client = Arc::new(san_client(&switch, &listener));
            let _server = accept(&listener);
            let heard = Arc::new(Heard::default());
            client.set_watcher(Some((Arc::clone(&heard) as Arc<dyn Watcher>, 7)));
            let stop = Arc::new(AtomicBool::new(false));
            let looking = [(); 2].map(|()| {
                let (client, stop) = (Arc::clone(&client), Arc::clone(&stop));
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let _ = client.events();
                    }
                })
            });
            // As if the process were gone.
            other.shutdown();
            let is_error = |(_, events): &(u64, Events)| events.contains(Events::ERROR);
            let mut all = Vec::new();
            eventually("the watcher hears of the error", PATIENCE, || {
                all.append(&mut heard.take());
                all.iter().any(is_error)
            });
            stop.store(true, Ordering::Relaxed);
            for thread in looking {
                thread.join().unwrap();
            }
        }
    });
}

#[derive(Default)]
struct Heard(Mutex<Vec<(u64, Events)>>);

impl Watcher for Heard {
    fn changed(&self, token: u64, events: Events) {
        self.0.lock().unwrap().push((token, events));
    }
}

impl Heard {
    fn take(&self) -> Vec<(u64, Events)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_watcher_hears_of_each_arrival_and_of_the_end() {
    bounded(|| {
        let (_switch, _listener, client, server) = ends();
        let heard = Arc::new(Heard::default());
        client.set_watcher(Some((Arc::clone(&heard) as Arc<dyn Watcher>, 7)));
        let lane = client.lane().unwrap();
        let hears = |what: &str, wanted: Events| {
            eventually(what, PATIENCE, || {
                lane.poll();
                heard.take().contains(&(7, wanted))
            });
        };
        (&server).write_all(b"one").unwrap();
        hears("bytes came", OUT | IN);
        (&server).write_all(b"two").unwrap();
        hears("more bytes came, behind others", OUT | IN);
        server.shutdown(Shutdown::Write).unwrap();
        hears(
            "the end came, behind others",
            OUT | IN | Events::READ_CLOSED,
        );
        client.set_watcher(None);
        client.shutdown(Shutdown::Write).unwrap();
        assert!(heard.take().is_empty());
    });
}

/// An event loop's way to sleep: on the lane's descriptors, while nobody polls.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_loop_that_sleeps_on_the_lane_is_woken() {
    bounded(|| {
        // Lanes of their own: else the sender's calls would poll for the sleeper.
        let (switch, other) = (switch(), switch());
        let listener = other.listen(any(), backlog(4)).unwrap();
        let client = san_client(&switch, &listener);
        let server = accept(&listener);
        client.set_nonblocking(true).unwrap();
        let sender = std::thread::spawn(move || {
            for byte in 0..50 {
                std::thread::sleep(Duration::from_millis(2));
                (&server).write_all(&[byte]).unwrap();
            }
            server
        });
        let lane = client.lane().unwrap();
        let mut came = Vec::new();
        while came.len() < 50 {
            lane.poll();
            let mut buffer = [0; 64];
            match client.receive(&mut buffer) {
                Ok(n) => came.extend_from_slice(&buffer[..n]),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    if lane.arm() {
                        let fds = lane.fds();
                        let mut fds: Vec<_> = fds
                            .iter()
                            .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN))
                            .collect();
                        let patience = san_base::timespec(PATIENCE);
                        let woken = rustix::event::poll(&mut fds, Some(&patience));
                        lane.disarm();
                        assert!(woken.unwrap() > 0, "nothing woke it");
                    }
                }
            }
        }
        assert!(came.into_iter().eq(0..50));
        drop(sender.join().unwrap());
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_receive_that_waits_keeps_nobody_and_is_ended_by_shutdown() {
    bounded(|| {
        let (_switch, _listener, client, _server) = ends();
        let client = Arc::new(client);
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let client = Arc::clone(&client);
                std::thread::spawn(move || client.receive(&mut [0; 9]))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(client.events(), OUT);
        client.set_nonblocking(true).unwrap();
        let begun = Instant::now();
        let nothing = client.receive(&mut [0; 9]).unwrap_err();
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
        assert!(begun.elapsed() < Duration::from_secs(5));
        client.shutdown(Shutdown::Read).unwrap();
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap().unwrap(), 0);
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!(client.events(), OUT | IN | Events::READ_CLOSED);
    });
}
