//! Closing a stream that has moved while bytes of the peer are unread, or while it goes on sending: the peer is
//! reset as by TCP, and the queue pairs go at once.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use san_switch::{Connection, Events, Listener, RouteChoice, Switch};
use san_tests::census::{SOON, queue_pairs_are_gone};
use san_tests::net::{addr_a, addr_b};
use san_tests::time::{bounded, eventually, within};

use support::*;

struct Ends {
    client: Connection,
    server: Connection,
    /// Its switches.
    here: Switch,
    there: Switch,
    _listener: Listener,
}

impl Ends {
    /// Two ends of a stream that has moved. On a busy machine a dial may come to nothing; then another stream is
    /// tried.
    fn moved() -> Self {
        let moving = || config().route(RouteChoice::Upgrade).upgrade_bytes(4096);
        for _ in 0..5 {
            let (here, there) = (
                Switch::new(moving()).unwrap(),
                Switch::new(moving()).unwrap(),
            );
            let listener = there.listen(any(), backlog(4)).unwrap();
            let client = here
                .connect(at(addr_b(), &listener), &from(addr_a()))
                .unwrap();
            let ends = Self {
                client,
                server: accept(&listener),
                here,
                there,
                _listener: listener,
            };
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(8) {
                if ends.client.is_san() && ends.server.is_san() {
                    return ends;
                }
                ends.ask_and_answer();
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        panic!("no stream has moved");
    }

    fn ask_and_answer(&self) {
        for (from, to) in [(&self.client, &self.server), (&self.server, &self.client)] {
            (&mut &*from).write_all(&[7; 300]).unwrap();
            (&mut &*to).read_exact(&mut [0; 300]).unwrap();
        }
    }
}

fn is_readable(end: &Connection) -> bool {
    if let Some(lane) = end.lane() {
        lane.poll();
    }
    end.events().contains(Events::READABLE)
}

/// Writes until that fails, as it does soon: how.
fn write_fails(end: &Connection) -> ErrorKind {
    let mut failed = None;
    eventually("a write fails", SOON, || {
        failed = (&mut &*end).write(b"x").err();
        failed.is_some()
    });
    failed.map_or(ErrorKind::Other, |error| error.kind())
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_close_with_unread_bytes_or_linger_zero_resets_a_stream_that_moved() {
    bounded(|| {
        for lingers in [false, true] {
            let ends = Ends::moved();
            let Ends { client, server, .. } = ends;
            (&mut &server).write_all(b"before").unwrap();
            eventually("it has come", PATIENCE, || is_readable(&client));
            if lingers {
                server.set_linger(Some(Duration::ZERO)).unwrap();
            } else {
                (&mut &client).write_all(b"nobody reads this").unwrap();
                eventually("it is there", PATIENCE, || is_readable(&server));
            }
            drop(server);
            // The client makes no call meanwhile.
            queue_pairs_are_gone();
            let mut buffer = [0; 9];
            // What had come is read; then the reset, once.
            assert_eq!(client.receive(&mut buffer).unwrap(), 6);
            assert_eq!(&buffer[..6], b"before");
            let error = client.receive(&mut buffer).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert_eq!(client.receive(&mut buffer).unwrap(), 0);
            let error = client.send(b"x").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        }
    });
}

/// Nobody has polled for the bytes that wait.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_close_with_bytes_that_nobody_has_looked_for_resets_too() {
    bounded(|| {
        for length in [10, 30_000] {
            let ends = Ends::moved();
            let Ends { client, server, .. } = ends;
            (&mut &client).write_all(&vec![7; length]).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            drop(server);
            queue_pairs_are_gone();
            // What comes after the close resets as well, and then the end has come before.
            let kind = write_fails(&client);
            let kinds = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
            assert!(kinds.contains(&kind), "{kind:?}");
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn bytes_for_a_closed_stream_reset_it_once_its_own_have_arrived() {
    bounded(|| {
        for length in [0, 10, 100_000] {
            let ends = Ends::moved();
            let sent: Vec<u8> = (0..length)
                .map(|at: u32| (at * 13 + at / 4096) as u8)
                .collect();
            (&mut &ends.server).write_all(&sent).unwrap();
            drop(ends.server);
            (&mut &ends.client).write_all(b"too late").unwrap();
            if length < 1000 {
                queue_pairs_are_gone();
            }
            let mut came = Vec::new();
            (&mut &ends.client).read_to_end(&mut came).unwrap();
            assert!(came == sent, "{} of {length} bytes", came.len());
            let kind = write_fails(&ends.client);
            assert_eq!(kind, ErrorKind::BrokenPipe);
            queue_pairs_are_gone();
            assert_eq!(ends.there.stats().closes_lost, 0);
        }
    });
}

/// The bytes that nobody reads may be on either carrier, or on none.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_close_with_unread_bytes_while_the_carrier_changes_resets() {
    within(Duration::from_secs(90), || {
        for round in 0..8 {
            let ends = Ends::moved();
            let Ends {
                client,
                server,
                here,
                there,
                _listener,
            } = ends;
            (&mut &server).write_all(&[5; 20_000]).unwrap();
            match round % 2 {
                0 => client.move_to_tcp(false),
                _ => server.move_to_tcp(false),
            }
            std::thread::sleep(Duration::from_micros(400 * round));
            drop(client);
            let begun = Instant::now();
            let kind = write_fails(&server);
            let kinds = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
            assert!(kinds.contains(&kind), "{kind:?}");
            drop(server);
            queue_pairs_are_gone();
            for switch in [here, there] {
                assert!(switch.shutdown());
                assert_eq!(switch.stats().closes_lost, 0);
            }
            assert!(begun.elapsed() < 2 * SOON, "round {round}");
        }
    });
}
