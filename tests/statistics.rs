//! Statistics of single sockets: a listener's by reason, a connection's by messages and bytes.

use std::collections::BTreeMap;

use san_provider::{Decision, MemoryAccess, Notification, Rejection, WsaCode};
use san_tests::memory::{filled, open, read};
use san_tests::net;
use san_tests::san::{self, San};
use san_tests::time::{STEP, bounded, eventually};

#[test]
fn a_listener_counts_what_became_of_its_own_requests() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let other = san.listen_a(3);
        let first = san.connect(listener.addr);
        listener.wait_event();
        let error = san.connect(listener.addr).failure();
        assert_eq!(error.code(), WsaCode::ConnRefused);
        let held = listener.socket.stats().expect("open").listen;
        assert_eq!(held.expect("it listens").held, 1);
        let accepted = listener.accept();
        first.result().expect("accepted");
        let unwanted = san.connect(listener.addr);
        let answer = listener.answer(Decision::Reject(Rejection::Unwanted));
        assert!(answer.is_err());
        assert_eq!(unwanted.failure().code(), WsaCode::ConnRefused);

        // The thread that refuses counts after it has told the peer.
        san.wait_refused(1);
        eventually("the refusal is counted", STEP, || {
            let stats = listener.socket.stats().expect("open").listen;
            stats.is_some_and(|listen| listen.refused_backlog == 1)
        });
        let stats = listener.socket.stats().expect("open");
        assert_eq!(stats.state, "listening");
        assert_eq!(stats.local, Some(listener.addr));
        assert_eq!(stats.connection, None);
        let listen = stats.listen.expect("it listens");
        let rows: Vec<_> = listen.rows().filter(|(_, value)| *value > 0).collect();
        let wanted = [
            ("requests", 3),
            ("accepted", 1),
            ("refused_backlog", 1),
            ("refused_condition", 1),
        ];
        assert_eq!(rows, wanted);
        assert_eq!((listen.backlog, listen.held), (1, 0));

        // Another listener's are its own.
        let quiet = other.socket.stats().expect("open").listen;
        let quiet = quiet.expect("it listens");
        assert!(quiet.rows().all(|(_, value)| value == 0), "{quiet:?}");
        assert_eq!(quiet.backlog, 3);
        drop(accepted);
    });
}

#[test]
fn both_ends_count_messages_bytes_and_waiting() {
    bounded(|| {
        let san = San::start();
        let (connected, accepted) = san.pair();
        // More than the first credits, to somebody who takes nothing in yet.
        let sends: Vec<_> = (0..8)
            .map(|_| {
                connected
                    .send(&[7; 100], 0, Notification::Poll)
                    .expect("started")
            })
            .collect();
        let waiting = connected.stats().expect("open").connection.expect("one");
        assert!(waiting.sends_delayed >= 1, "{waiting:?}");
        for _ in 0..8 {
            assert_eq!(san::receive(&accepted).len(), 100);
        }
        for send in sends {
            san::wait(&connected, send).outcome.expect("sent");
        }
        san::send(&accepted, b"thanks");
        assert_eq!(san::receive(&connected), b"thanks");

        let stats = connected.stats().expect("open");
        assert_eq!(stats.state, "connected");
        assert_eq!(stats.listen, None);
        let there = stats.connection.expect("a data path");
        let here = accepted.stats().expect("open").connection.expect("one");
        for (one, other) in [(there, here), (here, there)] {
            assert_eq!(one.messages_sent, other.messages_received);
            assert_eq!(one.bytes_sent, other.bytes_received);
        }
        assert_eq!((there.messages_sent, there.bytes_sent), (8, 800));
        assert_eq!((here.messages_sent, here.bytes_sent), (1, 6));
        assert_eq!((there.sends_waiting, here.messages_waiting), (0, 0));
        assert!(here.sends_delayed <= 1 && there.window >= 1);

        let device = stats.device.expect("a device carries it");
        let all = san.provider.socket_stats();
        let ours: Vec<_> = all.iter().filter(|one| one.connection.is_some()).collect();
        assert_eq!(ours.len(), 2, "{all:?}");
        let is_ours = |number| ours.iter().any(|one| one.number == number);
        assert!(is_ours(connected.number()) && is_ours(accepted.number()));
        assert!(!device.is_empty() && !device.contains('/'));

        connected.close().expect("close");
        let code = connected.stats().expect_err("closed").code();
        assert_eq!(code, WsaCode::NotSocket);
        eventually("the closed socket is not listed", STEP, || {
            let all = san.provider.socket_stats();
            all.iter().all(|one| one.number != connected.number())
        });
        san.provider.cleanup().expect("started");
        assert_eq!(san.provider.socket_stats(), []);
        let code = accepted.stats().expect_err("no provider").code();
        assert_eq!(code, WsaCode::NotInitialised);
    });
}

#[test]
fn a_device_counts_packets_and_what_had_to_be_repeated() {
    bounded(|| {
        let san = San::start();
        let (connected, accepted) = san.pair();
        let device = connected.stats().expect("open").device.expect("one");
        let counted = || -> BTreeMap<String, u64> {
            san.provider.device_counters(&device).into_iter().collect()
        };
        let (sent, repeated) = match net::is_soft() {
            true => ("requests_sent", ["retransmitted", "timeouts", "rnr_naks"]),
            // Of another process, too: it is the device's.
            false => (
                "sent_pkts",
                ["completer_retry_err", "rcvd_seq_err", "rcvd_rnr_err"],
            ),
        };
        let before = counted();
        for _ in 0..20 {
            san::send(&connected, &[1; 100]);
            assert_eq!(san::receive(&accepted).len(), 100);
        }
        let after = counted();
        assert!(after[sent] >= before[sent] + 20, "{before:?}, {after:?}");
        for name in repeated {
            assert!(after.contains_key(name), "{name}: {after:?}");
        }
        // What a queue pair has counted outlives it.
        for socket in [&connected, &accepted] {
            socket.close().expect("open");
        }
        assert!(counted()[sent] >= after[sent], "{after:?}");
        assert_eq!(san.provider.device_counters("no such device"), []);
    });
}

#[test]
fn rdma_is_counted_where_it_is_started() {
    bounded(|| {
        let san = San::start();
        let (reader, owner) = san.pair();
        let memory = filled(1000, 5);
        let opened = open(&owner, (&memory).into(), MemoryAccess::Read);
        assert_eq!(read(&reader, &opened, 0, 100).expect("open"), [5; 100]);
        let counted = |socket: &san_provider::Socket| {
            let stats = socket.stats().expect("open").connection.expect("one");
            (stats.rdma_reads, stats.rdma_bytes_read, stats.rdma_writes)
        };
        assert_eq!(counted(&reader), (1, 100, 0));
        assert_eq!(counted(&owner), (0, 0, 0));
    });
}
