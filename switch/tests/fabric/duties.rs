//! Duties of the switch that no other subject holds: what is ready when a connect returns, calls that the
//! switch has of its own, sizes, and what a call that was called off leaves.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, UdpSocket};
use std::time::{Duration, Instant};

use san_switch::{AcceptError, ConnectOptions, Connection, Listener, Switch};
use san_tests::net::{addr_a, addr_b};
use san_tests::time::{bounded, eventually};
use socket2::SockRef;

use support::*;

fn listen() -> (Switch, Listener) {
    let switch = switch();
    let listener = switch.listen(any(), backlog(4)).unwrap();
    (switch, listener)
}

/// A client over the SAN, or over TCP.
fn client(switch: &Switch, listener: &Listener, is_san: bool) -> Connection {
    let options = from(addr_a()).tcp_only(!is_san);
    let client = switch.connect(at(addr_b(), listener), &options).unwrap();
    assert_eq!(client.is_san(), is_san, "{}", client.route());
    client
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_022_all_is_ready_when_a_connect_returns() {
    bounded(|| {
        let (switch, listener) = listen();
        for length in [5, 100_000] {
            let client = client(&switch, &listener, true);
            // Nobody has accepted it: the receives are there, and what both ends can do is agreed on.
            let sent = bytes(length);
            (&mut &client).write_all(&sent).unwrap();
            let server = accept(&listener);
            (&mut &server).write_all(&sent).unwrap();
            for end in [&server, &client] {
                let mut back = vec![0; length];
                (&mut &*end).read_exact(&mut back).unwrap();
                assert!(back == sent);
            }
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_031_an_accept_can_wait_for_the_first_data() {
    bounded(|| {
        let (switch, listener) = listen();
        let short = Some(Duration::from_millis(300));
        let mut buffer = [0; 100];
        let nobody = listener.accept_with_data(&mut buffer, short);
        assert!(matches!(nobody, Err(AcceptError::TimedOut)), "{nobody:?}");
        for is_san in [true, false] {
            let silent = client(&switch, &listener, is_san);
            let begun = Instant::now();
            let outcome = listener.accept_with_data(&mut buffer, short);
            assert!(matches!(outcome, Err(AcceptError::TimedOut)), "{outcome:?}");
            assert!(begun.elapsed() >= Duration::from_millis(300));
            // That is the end of a peer that said nothing.
            assert_eq!(silent.receive(&mut buffer).unwrap_or(0), 0);
            let talker = client(&switch, &listener, is_san);
            let (server, came) = std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(50));
                    talker.send(b"first").unwrap();
                });
                let accepted = listener.accept_with_data(&mut buffer, Some(PATIENCE));
                accepted.unwrap()
            });
            assert_eq!(&buffer[..came], b"first");
            assert_eq!(server.is_san(), is_san);
            // The wait was for the first bytes only.
            assert_eq!(server.receive_timeout().unwrap(), Some(PATIENCE));
            talker.send(b"second").unwrap();
            assert_eq!(server.receive(&mut buffer).unwrap(), 6);
            // One that is reset is forgotten; one that ends says that with no bytes.
            if !is_san {
                let gone = client(&switch, &listener, is_san);
                gone.set_linger(Some(Duration::ZERO)).unwrap();
                drop(gone);
            }
            let ended = client(&switch, &listener, is_san);
            ended.shutdown_write().unwrap();
            let (server, came) = listener
                .accept_with_data(&mut buffer, Some(PATIENCE))
                .unwrap();
            assert_eq!(came, 0);
            assert_eq!(server.peer_addr().port(), ended.local_addr().port());
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_033_a_connection_has_a_region_for_each_way() {
    bounded(|| {
        let (switch, listener) = listen();
        let registered = || {
            let counters = &switch.provider_counters()[0].1;
            counters.cache_hits + counters.cache_misses + counters.cache_bypasses
        };
        let pinned = registered();
        let client = client(&switch, &listener, true);
        let server = accept(&listener);
        (&mut &client).write_all(b"little").unwrap();
        (&mut &server).read_exact(&mut [0; 6]).unwrap();
        assert_eq!(registered(), pinned, "little needs no region of its own");
        // What goes out at one end, and what comes in at the other.
        for (regions, writer, reader) in [(2, &client, &server), (4, &server, &client)] {
            let much = bytes(200_000);
            // It is by RDMA that much is read, once the region is open to the peer.
            eventually("both regions are there", PATIENCE, || {
                std::thread::scope(|scope| {
                    scope.spawn(|| (&mut &*writer).write_all(&much).unwrap());
                    let mut back = vec![0; much.len()];
                    (&mut &*reader).read_exact(&mut back).unwrap();
                });
                registered() >= pinned + regions
            });
            assert_eq!(registered(), pinned + regions);
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_039_much_goes_by_rdma_from_a_threshold_of_the_switchs_own() {
    bounded(|| {
        let (switch, listener) = listen();
        let client = client(&switch, &listener, true);
        let server = accept(&listener);
        let by_rdma = || switch.provider_counters()[0].1.rdma_bytes_read;
        for (length, is_much) in [(4096, false), (30_000, false), (60_000, true)] {
            let before = by_rdma();
            (&mut &client).write_all(&bytes(length)).unwrap();
            (&mut &server).read_exact(&mut vec![0; length]).unwrap();
            assert_eq!(by_rdma() > before, is_much, "{length}");
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_040_no_message_and_no_read_is_larger_than_agreed() {
    const MUCH: usize = 3_000_000;
    bounded(|| {
        let (switch, listener) = listen();
        let client = client(&switch, &listener, true);
        let server = accept(&listener);
        let before = switch.provider_counters()[0].1;
        let sent = bytes(MUCH);
        std::thread::scope(|scope| {
            scope.spawn(|| (&mut &client).write_all(&sent).unwrap());
            let mut back = vec![0; MUCH];
            (&mut &server).read_exact(&mut back).unwrap();
            assert!(back == sent);
        });
        let after = switch.provider_counters()[0].1;
        let messages = after.messages_sent - before.messages_sent;
        assert!(after.bytes_sent - before.bytes_sent <= messages * 4096);
        let reads = after.rdma_reads - before.rdma_reads;
        let read = after.rdma_bytes_read - before.rdma_bytes_read;
        assert!(read > 0 && read <= reads * 65_536, "{read} by {reads}");
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_042_no_call_waits_that_was_told_not_to() {
    bounded(|| {
        let (switch, listener) = listen();
        let client = client(&switch, &listener, true);
        let server = accept(&listener);
        client.set_nonblocking(true).unwrap();
        let nothing = client.receive(&mut [0; 10]).unwrap_err();
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
        // Nobody reads: every start of a transfer returns, until there is no room.
        let chunk = bytes(100_000);
        let mut written = 0;
        let full = loop {
            match client.send(&chunk) {
                Ok(taken) => written += taken,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        assert!(written > 0);
        // The end of the stream, too: it follows when there is room.
        client.shutdown_write().unwrap();
        let mut all = Vec::new();
        (&mut &server).read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), written);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_047_a_transfer_that_is_called_off_ends_at_once() {
    bounded(|| {
        let (switch, listener) = listen();
        for is_san in [true, false] {
            let client = client(&switch, &listener, is_san);
            let server = accept(&listener);
            // What a call has taken is the switch's: the caller's memory is its own when the call is over.
            let mut memory = bytes(8_000_000);
            let mut sent = 0;
            let called_off = std::thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    loop {
                        match client.send(&memory[sent..]) {
                            Ok(taken) => sent += taken,
                            Err(error) => break (error, Instant::now()),
                        }
                    }
                });
                let reader = scope.spawn(|| client.receive(&mut [0; 10]));
                std::thread::sleep(Duration::from_millis(300));
                assert!(!writer.is_finished() && !reader.is_finished());
                let begun = Instant::now();
                client.shutdown(Shutdown::Both).unwrap();
                let (error, ended) = writer.join().unwrap();
                assert_eq!(error.kind(), ErrorKind::BrokenPipe);
                assert_eq!(reader.join().unwrap().unwrap(), 0);
                ended - begun
            });
            assert!(called_off < Duration::from_secs(2), "{called_off:?}");
            let expected = memory[..sent].to_vec();
            memory.fill(0xee);
            assert!(sent > 0);
            let mut all = Vec::new();
            (&mut &server).read_to_end(&mut all).unwrap();
            assert!(all == expected, "{} of {sent}", all.len());
        }
    });
}

/// Set for the program that has little memory.
const SMALL: &str = "SAN_TEST_SMALL";

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_038_without_memory_a_large_send_is_enobufs() {
    if std::env::var_os(SMALL).is_none() {
        // It is tried in a process of its own, whose memory has a limit then.
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "wsd_038_without_memory_a_large_send_is_enobufs",
                "--ignored",
                "--nocapture",
            ])
            .env(SMALL, "1")
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
        return;
    }
    bounded(|| {
        let (switch, listener) = listen();
        let client = client(&switch, &listener, true);
        let server = accept(&listener);
        let large = bytes(100_000);
        let mut back = vec![0; large.len()];
        client.send(&large[..100]).unwrap();
        (&mut &server).read_exact(&mut back[..100]).unwrap();

        let unlimited = limit_memory(Some(now_used()));
        let refused = client.send(&large);
        let small = client.send(&large[100..200]);
        limit_memory(unlimited);
        let error = refused.unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(rustix::io::Errno::NOBUFS.raw_os_error()),
            "{error}"
        );
        // What goes by itself still goes, and with memory the rest.
        assert_eq!(small.unwrap(), 100);
        (&mut &server).read_exact(&mut back[100..200]).unwrap();
        (&mut &client).write_all(&large[200..]).unwrap();
        (&mut &server).read_exact(&mut back[200..]).unwrap();
        assert!(back == large);
    });
}

/// Bytes of this process's address space.
fn now_used() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').next().unwrap().parse().unwrap();
    pages * 4096
}

/// Bounds the address space of this process; returns the bound before.
fn limit_memory(bytes: Option<u64>) -> Option<u64> {
    let before = rustix::process::getrlimit(rustix::process::Resource::As);
    let limit = rustix::process::Rlimit {
        current: bytes,
        ..before
    };
    rustix::process::setrlimit(rustix::process::Resource::As, limit).unwrap();
    before.current
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_048_a_stream_whose_call_was_called_off_can_be_closed() {
    bounded(|| {
        let (switch, listener) = listen();
        for is_san in [true, false] {
            let client = client(&switch, &listener, is_san);
            let server = accept(&listener);
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| client.receive(&mut [0; 10]));
                std::thread::sleep(Duration::from_millis(50));
                client.shutdown(Shutdown::Both).unwrap();
                assert_eq!(reader.join().unwrap().unwrap(), 0);
            });
            let late = client.send(b"late").unwrap_err();
            assert_eq!(late.kind(), ErrorKind::BrokenPipe);
            drop(client);
            assert_eq!(server.receive(&mut [0; 10]).unwrap(), 0);
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_050_a_file_is_sent_by_the_switch() {
    bounded(|| {
        let (switch, listener) = listen();
        let sent = bytes(500_000);
        let mut file = tempfile();
        file.write_all(&sent).unwrap();
        for is_san in [true, false] {
            let client = client(&switch, &listener, is_san);
            let server = accept(&listener);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // A part of it, and then all that is left, and nothing behind its end.
                    assert_eq!(client.send_file(&file, 10, 5).unwrap(), 5);
                    let rest = client.send_file(&file, 15, usize::MAX).unwrap();
                    assert_eq!(rest, sent.len() - 15);
                    assert_eq!(client.send_file(&file, 500_000, 1).unwrap(), 0);
                    client.shutdown_write().unwrap();
                });
                let mut all = Vec::new();
                (&mut &server).read_to_end(&mut all).unwrap();
                assert!(all == sent[10..]);
            });
        }
    });
}

/// A file that has no name.
fn tempfile() -> std::fs::File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    rustix::fs::memfd_create("sent", flags).unwrap().into()
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_052_quality_of_service_is_an_option_of_the_tcp_socket() {
    const CLASS: u8 = 0x20;
    bounded(|| {
        let (switch, listener) = listen();
        for is_san in [true, false] {
            let options = from(addr_a()).tcp_only(!is_san).type_of_service(CLASS);
            let client = switch.connect(at(addr_b(), &listener), &options).unwrap();
            assert_eq!(client.is_san(), is_san);
            let fd = client.companion_fd();
            let socket = SockRef::from(&fd);
            assert_eq!(socket.tos_v4().unwrap(), u32::from(CLASS));
            // It is TCP's also afterwards.
            socket.set_tos_v4(0x40).unwrap();
            assert_eq!(socket.tos_v4().unwrap(), 0x40);
            drop(accept(&listener));
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_003_datagrams_and_what_a_router_forwards_never_meet_the_san() {
    bounded(|| {
        let (switch, listener) = listen();
        let before = switch.provider_counters()[0].1;
        // A datagram between addresses of the SAN, to the port that is listened on there.
        let port = listener.local_addr().port();
        let here = UdpSocket::bind((addr_b(), port)).unwrap();
        let there = UdpSocket::bind((addr_a(), 0)).unwrap();
        there.send_to(b"datagram", (addr_b(), port)).unwrap();
        let mut buffer = [0; 20];
        here.set_read_timeout(Some(PATIENCE)).unwrap();
        let (came, from) = here.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..came], b"datagram");
        assert_eq!(from, there.local_addr().unwrap());
        // A destination behind a router, if there is one.
        let options = ConnectOptions::default().timeout(Duration::from_millis(200));
        let far = switch.connect("192.0.2.1:9".parse().unwrap(), &options);
        assert!(far.is_err());
        assert_eq!(switch.provider_counters()[0].1, before);
    });
}
