//! What an application sets on a stream, and what it asks of one: buffers, urgent data, information.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::ErrorKind;

use san_switch::{Connection, Events};
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
    for _ in 0..200 {
        match writer.send(&bytes) {
            Ok(taken) => written += taken,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
    }
    assert_eq!(
        writer.send(&bytes).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    written
}

fn drain(reader: &Connection, total: usize) {
    let mut buffer = vec![0; 30_000];
    let mut read = 0;
    while read < total {
        let came = reader.receive(&mut buffer).unwrap();
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
