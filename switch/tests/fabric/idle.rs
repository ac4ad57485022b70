//! What a stream that moved holds while nothing goes over it: its rings go after a few seconds, and the
//! queue pair with all that belongs to it after the time that is set. The stream is there as before. Back on TCP it
//! holds nothing of the SAN, and a stream that waits for its peer to dial holds one CM id.
//!
//! A program of its own: it measures the memory of its process.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use san_switch::{Connection, Listener, RouteChoice, Switch, SwitchConfig};
use san_tests::census::Census;
use san_tests::net::{self, addr_a, addr_b};
use san_tests::time::{eventually, holds_within, within};

use support::*;

const STREAMS: usize = 100;
/// The same on an emulated machine.
const FEW: usize = 8;
/// How long they are idle on the SAN, where it is not the usual time.
const IDLE: Duration = Duration::from_secs(3);
/// Bytes that an idle end may hold, with its part of what the allocator does not give back. It was 160 KiB while
/// nothing was given back but rings, and half of those.
const MOST: usize = 40 << 10;

fn moving() -> SwitchConfig {
    config()
        .route(RouteChoice::Upgrade)
        .upgrade_bytes(4096)
        .upgrade_idle(Some(IDLE))
}

/// Bytes of memory that the process has of its own, without the pages of programs and files.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    kilobytes.expect("kilobytes") * 1024
}

struct Ends {
    client: Connection,
    server: Connection,
}

impl Ends {
    fn new(here: &Switch, listener: &Listener) -> Self {
        let to = at(addr_b(), listener);
        let client = here.connect(to, &from(addr_a())).unwrap();
        let server = accept(listener);
        Self { client, server }
    }

    fn are_on_san(&self) -> bool {
        self.client.is_san() && self.server.is_san()
    }

    fn ask_and_answer(&self, bytes: &[u8]) {
        for (from, to) in [(&self.client, &self.server), (&self.server, &self.client)] {
            (&mut &*from).write_all(bytes).unwrap();
            let mut came = vec![0; bytes.len()];
            (&mut &*to).read_exact(&mut came).unwrap();
            assert!(came == bytes, "other bytes came");
        }
    }

    /// One way.
    fn carry(&self, bytes: &[u8]) {
        std::thread::scope(|scope| {
            scope.spawn(|| (&mut &self.client).write_all(bytes).unwrap());
            let mut came = vec![0; bytes.len()];
            (&mut &self.server).read_exact(&mut came).unwrap();
            assert!(came == bytes, "other bytes came");
        });
    }

    /// Talks until both are on the SAN. On a busy machine a dial may come to nothing, and it takes more.
    fn move_up(&self) {
        let begun = Instant::now();
        while !self.are_on_san() {
            assert!(begun.elapsed() < PATIENCE, "it stays on TCP");
            self.ask_and_answer(&[7; 700]);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn streams_that_are_idle_hold_hardly_any_memory_and_go_on_afterwards() {
    within(Duration::from_secs(180), || {
        let (here, there) = (
            Switch::new(moving()).unwrap(),
            Switch::new(moving()).unwrap(),
        );
        let listener = there.listen(any(), backlog(64)).unwrap();
        // What is there once for all.
        let first = Ends::new(&here, &listener);
        let bulk: Vec<u8> = (0..600_000_u32).map(|at| ((at * 31) >> 5) as u8).collect();
        first.move_up();
        first.carry(&bulk);
        let before = memory();

        let count = if net::is_soft() { STREAMS } else { FEW };
        let streams: Vec<_> = (0..count).map(|_| Ends::new(&here, &listener)).collect();
        for stream in &streams {
            stream.move_up();
            stream.carry(&bulk);
        }
        let busy = memory().saturating_sub(before) / count / 2;

        eventually("all are on TCP", Duration::from_secs(60), || {
            let all = streams.iter().chain([&first]);
            all.into_iter().all(|stream| {
                let both = [&stream.client, &stream.server];
                both.iter().all(|end| !end.is_san())
            })
        });
        assert!(
            here.stats().streams_down > count as u64,
            "{:?}",
            here.stats()
        );
        let mut idle = usize::MAX;
        let is_back = holds_within(Duration::from_secs(60), || {
            idle = memory().saturating_sub(before) / count / 2;
            !net::is_soft() || idle < MOST
        });
        println!("an end holds {busy} bytes when it has been used, and {idle} when it is idle");
        assert!(is_back, "the memory is not given back");

        for stream in streams.iter().take(FEW) {
            stream.ask_and_answer(&bulk[..1000]);
            stream.move_up();
            stream.ask_and_answer(&bulk[..30_000]);
            let (ups, downs) = stream.client.info().changes;
            assert!(ups >= 2 && downs >= 1, "{ups} up, {downs} down");
        }
    });
}

/// Mappings of the process.
fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
    maps.lines().count()
}

/// Descriptors of the process, of all kinds together.
fn descriptors(census: &Census) -> usize {
    census.descriptors.values().sum()
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn streams_that_are_back_on_tcp_hold_nothing_of_the_san() {
    within(Duration::from_secs(180), || {
        let config = || moving().upgrade_idle(None);
        let (here, there) = (
            Switch::new(config()).unwrap(),
            Switch::new(config()).unwrap(),
        );
        let listener = there.listen(any(), backlog(64)).unwrap();
        // What is there once for all.
        let first = Ends::new(&here, &listener);
        first.move_up();
        first.ask_and_answer(&[7; 700]);
        let before = Census::take();

        let count = if net::is_soft() { STREAMS } else { FEW };
        let streams: Vec<_> = (0..count).map(|_| Ends::new(&here, &listener)).collect();
        let mut held = Vec::new();
        for _ in 0..3 {
            for stream in &streams {
                stream.move_up();
                stream.ask_and_answer(&[7; 700]);
            }
            for (at, stream) in streams.iter().enumerate() {
                match at % 2 {
                    0 => stream.client.move_to_tcp(false),
                    _ => stream.server.move_to_tcp(false),
                }
            }
            let is_down = |stream: &Ends| !stream.client.is_san() && !stream.server.is_san();
            eventually("all are on TCP", PATIENCE, || streams.iter().all(is_down));
            // The memory of a lane that nobody needs any more goes after ten seconds, and 20 at most.
            let mut now = Census::take();
            let is_back = holds_within(Duration::from_secs(30), || {
                now = Census::take();
                let (live, then) = (now.live, before.live);
                // The first one's own may break on a busy machine.
                live.ids <= then.ids
                    && live.qps <= then.qps
                    && live.cqs <= then.cqs
                    && live.mws <= then.mws
                    && live.pds <= then.pds
                    && live.srqs <= then.srqs
                    && live.channels <= then.channels
            });
            assert!(is_back, "before: {before}\nback on TCP: {now}");
            held.push((now.live.mrs, descriptors(&now), mappings()));
            println!("regions, descriptors, mappings: {:?}", held.last());
        }
        // Each end has its socket, and a descriptor for each of its calls that has waited for TCP.
        let most = descriptors(&before) + count * 2 * 3;
        assert!(held[0].1 <= most, "{held:?}, before: {before}");
        // What is kept to be used again does not grow.
        assert!(held[2].0 <= held[0].0 + 2, "regions of {held:?}");
        assert!(held[2].1 <= held[0].1 + count, "descriptors of {held:?}");
        // The allocator takes some anew, by chance.
        assert!(held[2].2 <= held[0].2 + 100, "mappings of {held:?}");

        drop(streams);
        let mut now = Census::take();
        let is_back = holds_within(PATIENCE, || {
            now = Census::take();
            now.live.ids <= before.live.ids && descriptors(&now) <= descriptors(&before)
        });
        assert!(is_back, "before: {before}\nclosed: {now}");
    });
}

/// More streams than listen at a time, whose peer never dials.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn streams_that_wait_for_a_dial_hold_one_cm_id_each_and_so_many_at_most() {
    const MOST: usize = 1024;
    within(Duration::from_secs(240), || {
        let (here, there) = (
            Switch::new(moving()).unwrap(),
            Switch::new(moving().route(RouteChoice::Direct)).unwrap(),
        );
        let listener = there.listen(any(), backlog(64)).unwrap();
        let count = if net::is_soft() { MOST + 76 } else { FEW };
        let streams: Vec<_> = (0..count).map(|_| Ends::new(&here, &listener)).collect();
        let before = verbs_shim::live_objects();
        let most = before.ids + count.min(MOST);
        let mut ids = 0;
        for _ in 0..2 {
            for stream in &streams {
                stream.ask_and_answer(&[7; 2500]);
                // One listens before the oldest gives way.
                ids = verbs_shim::live_objects().ids;
                assert!(ids <= most + 1, "{ids} ids, not {most}");
            }
            let all_listen = holds_within(PATIENCE * 4, || {
                ids = verbs_shim::live_objects().ids;
                ids == most
            });
            assert!(all_listen, "{ids} ids, not {most}");
        }
        drop(streams);
        eventually("none is left", PATIENCE, || {
            verbs_shim::live_objects().ids == before.ids
        });
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_stream_that_waits_or_has_unread_bytes_is_where_it_was_told_to_be() {
    within(Duration::from_secs(60), || {
        let config = moving().upgrade_idle(Some(Duration::from_secs(1)));
        let (here, there) = (
            Switch::new(config.clone()).unwrap(),
            Switch::new(config.upgrade_idle(None)).unwrap(),
        );
        let listener = there.listen(any(), backlog(4)).unwrap();
        let unread = Ends::new(&here, &listener);
        unread.move_up();
        (&mut &unread.server).write_all(&[9; 100]).unwrap();
        let waits = Ends::new(&here, &listener);
        waits.move_up();
        std::thread::scope(|scope| {
            // A read that waits while the carrier changes under it gets what comes afterwards.
            let reader = scope.spawn(|| {
                let mut came = [0; 10];
                (&mut &waits.client).read_exact(&mut came).unwrap();
                came
            });
            eventually("it is on TCP", PATIENCE, || {
                !waits.client.is_san() && !waits.server.is_san()
            });
            (&mut &waits.server).write_all(&[3; 10]).unwrap();
            assert_eq!(reader.join().unwrap(), [3; 10]);
        });
        assert!(unread.are_on_san(), "bytes wait there to be read");
        let mut came = [0; 100];
        (&mut &unread.client).read_exact(&mut came).unwrap();
        assert_eq!(came, [9; 100]);
        eventually("it is on TCP", PATIENCE, || !unread.are_on_san());
    });
}
