//! What an application sets on a stream, and what it asks of one: buffers, urgent data, information.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use san_switch::{Connection, Events, RouteChoice, StreamState, Switch};
use san_tests::net::{addr_a, addr_b};
use san_tests::time::{bounded, eventually};

use support::*;

/// The most that waits at a receiver beside its buffer: 64 messages.
const MESSAGES: usize = 64 * 4096;

/// Writes until the stream takes no more; how many bytes it took. Nobody reads.
fn fill(writer: &Connection) -> usize {
    writer.set_nonblocking(true).unwrap();
    let bytes = [7; 10_000];
    let mut written = 0;
    // What is under way arrives meanwhile, and makes room.
    let mut refused = 0;
    while refused < 30 {
        match writer.send(&bytes) {
            Ok(taken) => {
                written += taken;
                refused = 0;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                refused += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    written
}

fn drain(reader: &Connection, total: usize) {
    let mut buffer = vec![0; 30_000];
    let mut read = 0;
    while read < total {
        let came = match reader.receive(&mut buffer) {
            Ok(came) => came,
            Err(error) => panic!("{error} after {read} of {total}: {reader:?}"),
        };
        assert!(came > 0, "the end after {read} of {total}");
        assert!(buffer[..came].iter().all(|byte| *byte == 7));
        read += came;
    }
    assert_eq!(read, total);
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_peer_that_does_not_read_stops_us_within_the_bound() {
    bounded(|| {
        let switch = switch();
        let small = backlog(4).send_buffer(1).receive_buffer(20_000);
        let listener = switch.listen(any(), small).unwrap();
        for (send, receive, in_force) in [
            (Some(16_384), Some(50_000), (16_384, 50_000)),
            (Some(1), Some(1), (4096, 4096)),
            (Some(100_000), None, (100_000, 256 << 10)),
            (Some(usize::MAX >> 1), None, (256 << 10, 256 << 10)),
        ] {
            let mut options = from(addr_a());
            options.send_buffer = send;
            options.receive_buffer = receive;
            let client = switch.connect(at(addr_b(), &listener), &options).unwrap();
            assert!(client.is_san());
            let server = accept(&listener);
            let sizes = |end: &Connection| {
                (
                    end.send_buffer_size().unwrap(),
                    end.receive_buffer_size().unwrap(),
                )
            };
            assert_eq!(sizes(&client), in_force);
            assert_eq!(sizes(&server), (4096, 20_000));
            for (writer, reader) in [(&client, &server), (&server, &client)] {
                let bound = sizes(writer).0;
                let held = sizes(reader).1;
                let written = fill(writer);
                let most = bound + held + MESSAGES;
                assert!(written >= bound, "{written} of {bound}");
                assert!(written <= most, "{written} of {most}");
                assert!(!writer.events().contains(Events::WRITABLE));
                drain(reader, written);
                eventually("there is room again", PATIENCE, || {
                    writer.lane().unwrap().poll();
                    writer.events().contains(Events::WRITABLE)
                });
                writer.set_nonblocking(false).unwrap();
            }
            // A bound that is raised lets a write go on at once.
            fill(&client);
            client.set_send_buffer_size(256 << 10).unwrap();
            let more = (256 << 10) - in_force.0;
            if more > 0 {
                assert_eq!(client.send(&vec![7; more]).unwrap(), more);
            }
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn on_tcp_the_kernel_bounds_what_is_under_way() {
    bounded(|| {
        let switch = switch();
        let small = backlog(4).send_buffer(20_000).receive_buffer(30_000);
        let listener = switch.listen(any(), small).unwrap();
        let options = from(addr_a())
            .tcp_only(true)
            .send_buffer(10_000)
            .receive_buffer(15_000);
        let client = switch.connect(at(addr_b(), &listener), &options).unwrap();
        let server = accept(&listener);
        assert!(!client.is_san());
        // The kernel doubles what it is told.
        assert_eq!(client.send_buffer_size().unwrap(), 20_000);
        assert_eq!(client.receive_buffer_size().unwrap(), 30_000);
        assert_eq!(server.send_buffer_size().unwrap(), 40_000);
        assert_eq!(server.receive_buffer_size().unwrap(), 60_000);
        let written = fill(&client);
        assert!(written <= 200_000, "{written}");
        drain(&server, written);
        client.set_send_buffer_size(100_000).unwrap();
        assert_eq!(client.send_buffer_size().unwrap(), 200_000);
    });
}

/// What a reader finds of urgent data, call by call.
struct Urgent<'a> {
    from: &'a Connection,
    to: &'a Connection,
    said: Vec<String>,
}

impl Urgent<'_> {
    fn say(&mut self, what: &str, outcome: impl std::fmt::Debug) {
        self.said.push(format!("{what}: {outcome:?}"));
    }

    fn write(&self, bytes: &[u8]) {
        (&mut &*self.from).write_all(bytes).unwrap();
    }

    fn urgent(&mut self, byte: u8) {
        self.from.send_urgent(byte).unwrap();
    }

    fn look(&self) -> Events {
        if let Some(lane) = self.to.lane() {
            lane.poll();
        }
        self.to.events() & (Events::READABLE | Events::PRIORITY)
    }

    fn await_event(&mut self, event: Events) {
        eventually("it is ready", PATIENCE, || self.look().contains(event));
    }

    /// Lets arrive what is under way.
    fn settle(&mut self) {
        for _ in 0..20 {
            self.look();
            std::thread::sleep(Duration::from_millis(2));
        }
        let ready = self.look();
        self.say("ready", ready);
    }

    fn take(&mut self) {
        let taken = self.to.receive_urgent().map(char::from);
        self.say("urgent", taken.map_err(|error| error.kind()));
        self.mark();
    }

    fn mark(&mut self) {
        let is_at_mark = self.to.is_at_mark().map_err(|error| error.kind());
        self.say("at mark", is_at_mark);
    }

    /// One read of up to 10 bytes.
    fn read(&mut self) {
        let mut bytes = [0; 10];
        let came = self.to.receive(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes[..came]).into_owned();
        self.say("read", text);
        self.mark();
    }

    /// As many bytes, in whatever pieces they come.
    fn read_all(&mut self, length: usize) {
        let mut bytes = vec![0; length];
        (&mut &*self.to).read_exact(&mut bytes).unwrap();
        self.say("read", String::from_utf8(bytes).unwrap());
    }
}

fn urgent_calls(from: &Connection, to: &Connection) -> Vec<String> {
    let said = Vec::new();
    let mut both = Urgent { from, to, said };
    let both = &mut both;
    both.take();
    // One byte, which is taken.
    both.write(b"abc");
    both.urgent(b'!');
    both.write(b"def");
    both.await_event(Events::PRIORITY);
    both.take();
    both.take();
    both.settle();
    both.read();
    both.take();
    both.settle();
    both.read();
    // One that a read passes.
    both.write(b"x");
    both.urgent(b'1');
    both.await_event(Events::PRIORITY);
    both.read();
    both.settle();
    both.write(b"y");
    both.await_event(Events::READABLE);
    both.read();
    both.take();
    both.settle();
    // One that another takes the place of.
    both.write(b"a");
    both.urgent(b'1');
    both.write(b"b");
    both.urgent(b'2');
    both.settle();
    both.take();
    both.read_all(3);
    both.take();
    both.write(b"z");
    both.read();
    // The same, for a reader that stands at the first.
    both.urgent(b'3');
    both.settle();
    both.write(b"c");
    both.urgent(b'4');
    both.settle();
    both.read();
    both.take();
    both.write(b"d");
    both.read();
    // In the stream.
    both.to.set_urgent_inline(true).unwrap();
    assert!(both.to.urgent_inline().unwrap());
    both.write(b"e");
    both.urgent(b'5');
    both.write(b"f");
    both.settle();
    let taken = both.to.receive_urgent().map_err(|error| error.kind());
    both.say("inline", taken);
    both.mark();
    both.read_all(1);
    both.mark();
    both.settle();
    both.read_all(2);
    both.mark();
    both.settle();
    // The first byte of all that is there; and the last.
    both.urgent(b'7');
    both.write(b"gh");
    both.urgent(b'8');
    both.settle();
    both.mark();
    both.read_all(3);
    both.mark();
    both.read_all(1);
    both.mark();
    both.to.set_urgent_inline(false).unwrap();
    both.from.shutdown_write().unwrap();
    let late = both.from.send_urgent(b'6').map_err(|error| error.kind());
    both.say("late", late);
    both.await_event(Events::READABLE);
    both.read();
    std::mem::take(&mut both.said)
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_041_urgent_data_is_that_of_tcp() {
    bounded(|| {
        let switch = switch();
        let moving = Switch::new(config().route(RouteChoice::Upgrade).upgrade_bytes(4096)).unwrap();
        let pair = |switch: &Switch, tcp_only: bool| {
            let listener = switch.listen(any(), backlog(4)).unwrap();
            let options = from(addr_a()).tcp_only(tcp_only);
            let client = switch.connect(at(addr_b(), &listener), &options).unwrap();
            (client, accept(&listener))
        };
        let (client, server) = pair(&switch, true);
        assert!(!client.is_san());
        let kernels = urgent_calls(&client, &server);
        // What a program is promised at least.
        assert!(
            kernels.contains(&"urgent: Ok('!')".to_owned()),
            "{kernels:?}"
        );
        assert!(kernels.contains(&"read: \"a1b\"".to_owned()), "{kernels:?}");
        for flip in [false, true] {
            let (client, server) = pair(&switch, false);
            assert!(client.is_san());
            let (from, to) = if flip {
                (&server, &client)
            } else {
                (&client, &server)
            };
            assert_eq!(urgent_calls(from, to), kernels);
        }
        // A stream that may move stays on TCP from its first urgent byte on.
        let (client, server) = pair(&moving, false);
        assert_eq!(urgent_calls(&client, &server), kernels);
        assert!(!client.is_san() && !server.is_san());
        // Also one that has moved.
        let (client, server) = pair(&moving, false);
        let mut bytes = [0; 1000];
        let is_up = |_: &()| client.is_san() && server.is_san();
        for _ in 0..1000 {
            if is_up(&()) {
                break;
            }
            for (from, to) in [(&client, &server), (&server, &client)] {
                (&mut &*from).write_all(&bytes).unwrap();
                (&mut &*to).read_exact(&mut bytes).unwrap();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if is_up(&()) {
            assert_eq!(urgent_calls(&client, &server), kernels);
            assert!(!client.is_san());
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_041_an_urgent_byte_is_told_of_past_bulk_that_nobody_reads() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        let client = san_client(&switch, &listener);
        let server = accept(&listener);
        let bulk: Vec<u8> = (0..200_000u32).map(|at| (at % 251) as u8).collect();
        (&mut &client).write_all(&bulk).unwrap();
        client.send_urgent(b'!').unwrap();
        (&mut &client).write_all(&bulk).unwrap();
        eventually("it is told of", PATIENCE, || {
            server.lane().unwrap().poll();
            server.events().contains(Events::PRIORITY)
        });
        assert_eq!(server.receive_urgent().unwrap(), b'!');
        let mut back = vec![0; bulk.len()];
        (&mut &server).read_exact(&mut back).unwrap();
        assert!(back == bulk);
        assert!(server.is_at_mark().unwrap());
        // The urgent byte is left out.
        (&mut &server).read_exact(&mut back).unwrap();
        assert!(back == bulk);
        assert!(!server.is_at_mark().unwrap());
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_stream_tells_what_it_has_moved_and_where_it_is() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        for is_san in [true, false] {
            let options = from(addr_a()).tcp_only(!is_san);
            let client = switch.connect(at(addr_b(), &listener), &options).unwrap();
            let server = accept(&listener);
            (&mut &client).write_all(&[7; 5000]).unwrap();
            (&mut &server).read_exact(&mut [0; 3000]).unwrap();
            let (sent, received) = (client.info(), server.info());
            assert_eq!((sent.is_san, received.is_san), (is_san, is_san));
            assert_eq!((sent.bytes_sent, sent.bytes_received), (5000, 0));
            assert_eq!((received.bytes_sent, received.bytes_received), (0, 3000));
            assert_eq!(sent.state, StreamState::Open);
            assert_eq!(sent.changes, (0, 0));
            // A peek takes nothing.
            assert!(server.peek(&mut [0; 100]).unwrap() > 0);
            assert_eq!(server.info().bytes_received, 3000);
            assert_eq!(sent.bytes_unsent.is_some(), is_san);
            assert_eq!(sent.messages_unacknowledged.is_some(), is_san);
            (&mut &server).read_exact(&mut [0; 2000]).unwrap();
            if is_san {
                // Nobody reads: what has no room at the peer has not left.
                let written = fill(&client);
                let unsent = client.info().bytes_unsent.unwrap();
                assert!(unsent > 0 && unsent < written as u64, "{unsent}");
                drain(&server, written);
                client.set_nonblocking(false).unwrap();
                eventually("all has left", PATIENCE, || {
                    client.lane().unwrap().poll();
                    client.info().bytes_unsent == Some(0)
                });
            }
            client.shutdown_write().unwrap();
            assert_eq!(client.info().state, StreamState::Ended);
            let state = |end: &Connection| {
                if let Some(lane) = end.lane() {
                    lane.poll();
                }
                end.info().state
            };
            eventually("the end is seen", PATIENCE, || {
                state(&server) == StreamState::PeerEnded
            });
            server.shutdown_write().unwrap();
            for end in [&client, &server] {
                eventually("both have ended", PATIENCE, || {
                    state(end) == StreamState::Over
                });
            }
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_time_for_idle_peers_is_the_tcp_sockets() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        for is_san in [true, false] {
            let options = from(addr_a()).tcp_only(!is_san);
            let client = switch.connect(at(addr_b(), &listener), &options).unwrap();
            drop(accept(&listener));
            assert_eq!(client.keepalive().unwrap(), None);
            let idle = Some(Duration::from_secs(7));
            client.set_keepalive(idle).unwrap();
            assert_eq!(client.keepalive().unwrap(), idle);
            client.set_keepalive(None).unwrap();
            assert_eq!(client.keepalive().unwrap(), None);
            let never = client.set_keepalive(Some(Duration::ZERO)).unwrap_err();
            assert_eq!(never.kind(), ErrorKind::InvalidInput);
        }
    });
}
