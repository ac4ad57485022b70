//! Much data: bytes of every size both ways, partial writes, full buffers, resets, and calls that other
//! threads end.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use san_switch::{Connection, Events, Listener, Switch, Watcher};
use san_tests::time::{bounded, eventually};

use support::*;

struct Ends {
    client: Connection,
    server: Connection,
    _listener: Listener,
    _switches: [Switch; 2],
}

/// Two ends, each with a switch of its own, as in two processes.
fn ends() -> Ends {
    let switches = [switch(), switch()];
    let listener = switches[1].listen(any(), backlog(4)).unwrap();
    let client = san_client(&switches[0], &listener);
    let server = accept(&listener);
    Ends {
        client,
        server,
        _listener: listener,
        _switches: switches,
    }
}

fn byte(at: usize) -> u8 {
    // A few in a row tell where they belong.
    let mixed = (at as u64 >> 3).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> (8 * (at % 8))) as u8
}

fn bytes(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(byte).collect()
}

/// Sizes that a seed fixes: many small ones, some of bulk.
struct Sizes(u64);

impl Sizes {
    fn next(&mut self, most: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let dice = (self.0 >> 33) as usize;
        let limit = [10, 500, 5000, 40_000, most][dice % 5].min(most);
        1 + (dice / 5) % limit
    }
}

fn write_all(connection: &Connection, total: usize, seed: u64) {
    let mut sizes = Sizes(seed);
    let mut written = 0;
    while written < total {
        let size = sizes.next(200_000).min(total - written);
        (&mut &*connection)
            .write_all(&bytes(written, size))
            .unwrap();
        written += size;
    }
}

fn read_all(connection: &Connection, total: usize, seed: u64) {
    let mut sizes = Sizes(seed);
    let mut buffer = vec![0; 200_000];
    let mut read = 0;
    while read < total {
        let size = sizes.next(200_000);
        let came = connection.receive(&mut buffer[..size]).unwrap();
        assert!(came > 0, "the end after {read} of {total}");
        if let Some(wrong) = (0..came).find(|at| buffer[*at] != byte(read + at)) {
            let got = &buffer[wrong..came.min(wrong + 16)];
            let place =
                (0..total).find(|from| got.iter().zip(*from..).all(|(got, at)| *got == byte(at)));
            panic!(
                "byte {} of {total}, {wrong} of {came} in this read, is that of {place:?}",
                read + wrong
            );
        }
        read += came;
    }
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_036_bulk_of_every_size_is_read_by_the_peer_both_ways_at_once() {
    const TOTAL: usize = 3_000_000;
    bounded(|| {
        let ends = ends();
        std::thread::scope(|scope| {
            for (seed, from, to) in [
                (1, &ends.client, &ends.server),
                (2, &ends.server, &ends.client),
            ] {
                scope.spawn(move || write_all(from, TOTAL, seed));
                scope.spawn(move || read_all(to, TOTAL, seed + 10));
            }
        });
        let stats = ends._switches.each_ref().map(Switch::provider_counters);
        for stats in stats {
            assert!(stats[0].1.rdma_reads > 0, "nothing was read by RDMA");
        }
        ends.client.shutdown_write().unwrap();
        assert_eq!(ends.server.receive(&mut [0; 9]).unwrap(), 0);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_034_two_that_write_before_they_read_do_not_wait_for_each_other() {
    const TOTAL: usize = 300_000;
    bounded(|| {
        let ends = ends();
        let both = |connection: &Connection, seed| {
            write_all(connection, TOTAL, seed);
            read_all(connection, TOTAL, seed);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| both(&ends.client, 3));
            scope.spawn(|| both(&ends.server, 4));
        });
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn bytes_that_are_left_behind_arrive_though_nobody_calls() {
    bounded(|| {
        let ends = ends();
        // More than the windows hold at first, and less than the buffers: the call returns.
        for round in 0..20 {
            let length = 5000 + round * 9000;
            (&mut &ends.client).write_all(&bytes(0, length)).unwrap();
            read_all(&ends.server, length, 5);
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_035_little_travels_in_messages_and_the_beginning_of_much_too() {
    bounded(|| {
        let ends = ends();
        let read_by_rdma = || ends._switches[1].provider_counters()[0].1.rdma_bytes_read;
        for size in [1, 500, 4096] {
            (&mut &ends.client).write_all(&bytes(0, size)).unwrap();
            read_all(&ends.server, size, 7);
        }
        assert_eq!(read_by_rdma(), 0);
        let much = 200_000;
        (&mut &ends.client).write_all(&bytes(0, much)).unwrap();
        read_all(&ends.server, much, 8);
        let by_rdma = read_by_rdma();
        assert!(by_rdma > 0 && by_rdma < much as u64, "{by_rdma}");
    });
}

#[derive(Default)]
struct Room(AtomicUsize);

impl Watcher for Room {
    fn changed(&self, _: u64, events: Events) {
        if events.contains(Events::WRITABLE) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_write_takes_what_there_is_room_for_and_a_watcher_hears_of_more() {
    const TOTAL: usize = 4_000_000;
    bounded(|| {
        let ends = ends();
        let room = Arc::new(Room::default());
        let watcher = Arc::clone(&room) as Arc<dyn Watcher>;
        ends.client.set_watcher(Some((watcher, 0)));
        ends.client.set_nonblocking(true).unwrap();
        let lane = ends.client.lane().unwrap();
        let chunk = bytes(0, TOTAL);
        let mut written = 0;
        let (mut partial, mut full) = (0, 0);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                read_all(&ends.server, TOTAL, 6);
            });
            while written < TOTAL {
                let heard = room.0.load(Ordering::SeqCst);
                match ends.client.send(&chunk[written..]) {
                    Ok(taken) => {
                        partial += usize::from(taken < TOTAL - written);
                        written += taken;
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::WouldBlock);
                        full += 1;
                        eventually("there is room", PATIENCE, || {
                            lane.poll();
                            room.0.load(Ordering::SeqCst) > heard
                                || ends.client.events().contains(Events::WRITABLE)
                        });
                    }
                }
            }
            // Somebody has to poll for what is left, as an event loop does.
            while !reader.is_finished() {
                lane.poll();
                std::thread::yield_now();
            }
        });
        assert!(partial > 0 && full > 0, "{partial} partial, {full} full");
        assert!(room.0.load(Ordering::SeqCst) > 0);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_close_with_unread_bytes_or_linger_zero_resets() {
    bounded(|| {
        for lingers in [false, true] {
            let ends = ends();
            (&mut &ends.server).write_all(b"before").unwrap();
            let mut buffer = [0; 9];
            // What is under way at a reset is lost.
            eventually("it has come", PATIENCE, || {
                ends.client.lane().unwrap().poll();
                ends.client.events().contains(Events::READABLE)
            });
            if lingers {
                ends.server.set_linger(Some(Duration::ZERO)).unwrap();
                assert_eq!(ends.server.linger().unwrap(), Some(Duration::ZERO));
            } else {
                (&mut &ends.client).write_all(b"nobody reads this").unwrap();
                eventually("it is there", PATIENCE, || {
                    ends.server.lane().unwrap().poll();
                    ends.server.events().contains(Events::READABLE)
                });
            }
            drop(ends.server);
            // The client has its own still.
            eventually("the queue pair is gone", PATIENCE, || {
                verbs_shim::live_objects().qps <= 1
            });
            // What had come is read; then the reset, once.
            assert_eq!(ends.client.receive(&mut buffer).unwrap(), 6);
            let error = ends.client.receive(&mut buffer).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert_eq!(ends.client.receive(&mut buffer).unwrap(), 0);
            let error = ends.client.send(b"x").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_write_that_waits_is_ended_by_another_thread() {
    bounded(|| {
        let ends = ends();
        let client = Arc::new(ends.client);
        let blocked: Vec<_> = (0..2)
            .map(|_| {
                let client = Arc::clone(&client);
                std::thread::spawn(move || {
                    let chunk = [7; 50_000];
                    loop {
                        if let Err(error) = client.send(&chunk) {
                            return error;
                        }
                    }
                })
            })
            .collect();
        // The peer's host takes bulk in as long as it is polled, and nobody polls for it here.
        eventually("both wait", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(50));
            !client.events().contains(Events::WRITABLE)
        });
        let begun = Instant::now();
        client.shutdown(Shutdown::Write).unwrap();
        for thread in blocked {
            assert_eq!(thread.join().unwrap().kind(), ErrorKind::BrokenPipe);
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!(client.send(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        // What was taken arrives, and then the end.
        let mut buffer = vec![0; 100_000];
        let mut total = 0;
        loop {
            match ends.server.receive(&mut buffer).unwrap() {
                0 => break,
                n => total += n,
            }
        }
        assert!(total > 0 && buffer[0] == 7, "{total}");
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_peer_that_vanishes_ends_a_write_that_waits() {
    bounded(|| {
        let ends = ends();
        let client = ends.client;
        let writer = std::thread::spawn(move || {
            loop {
                if let Err(error) = client.send(&[7; 50_000]) {
                    return error;
                }
            }
        });
        std::thread::sleep(Duration::from_millis(200));
        drop(ends.server);
        assert_eq!(writer.join().unwrap().kind(), ErrorKind::ConnectionReset);
    });
}
