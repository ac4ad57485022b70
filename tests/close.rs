//! Close, by either end, by death, and what is left after it (duties 113 to 115).

use std::time::{Duration, Instant};

use san_provider::{
    ConnectOptions, Decision, EventObject, NetworkEvents, Notification, SocketOption, WsaCode,
};
use san_tests::census::Census;
use san_tests::net;
use san_tests::program::{Program, must};
use san_tests::san::{self, San, Upcall};
use san_tests::time::{STEP, bounded, eventually};

#[test]
fn wsd_113_the_peers_receives_fail_with_econnreset() {
    bounded(|| {
        let san = San::start();
        for closer in 0..2 {
            let (connected, accepted) = san.pair();
            let ends = if closer == 0 {
                [connected, accepted]
            } else {
                [accepted, connected]
            };
            let pending = ends[1].receive(Notification::Poll).expect("started");
            ends[0].close().expect("close");
            let error = san::wait(&ends[1], pending)
                .outcome
                .expect_err("the peer is gone");
            assert_eq!(error.code(), WsaCode::ConnReset, "{error}");
            assert_eq!(
                ends[1]
                    .receive(Notification::Poll)
                    .expect_err("over")
                    .code(),
                WsaCode::ConnReset
            );
            assert_eq!(
                ends[1]
                    .send(b"x", 0, Notification::Poll)
                    .expect_err("over")
                    .code(),
                WsaCode::ConnReset
            );
        }
    });
}

#[test]
fn wsd_113_what_was_received_before_the_end_is_not_lost() {
    bounded(|| {
        let san = San::start();
        let (connected, accepted) = san.pair();
        san::send(&connected, b"first");
        san::send(&connected, b"last");
        connected.close().expect("close");
        let handle = accepted.handle().expect("one");
        // The end is known before anything is asked for.
        let pending = accepted.receive(Notification::Upcall).expect("started");
        eventually("the first message is told", STEP, || {
            san.upcalls.about(handle).iter().any(
                |upcall| matches!(upcall, Upcall::Completed { operation, .. } if *operation == pending),
            )
        });
        assert_eq!(san::receive(&accepted), b"last");
        eventually("then the end", STEP, || {
            match accepted.receive(Notification::Poll) {
                Err(error) => error.code() == WsaCode::ConnReset,
                Ok(operation) => {
                    let error = san::wait(&accepted, operation)
                        .outcome
                        .expect_err("nothing else was sent");
                    error.code() == WsaCode::ConnReset
                }
            }
        });
    });
}

#[test]
fn wsd_113_own_pending_operations_are_aborted_after_their_memory_is_free() {
    bounded(|| {
        let san = San::start();
        let (connected, accepted) = san.pair();
        let handle = accepted.handle().expect("one");
        let queue_pairs = verbs_shim::live_objects().qps;
        let receives = [(); 3].map(|()| accepted.receive(Notification::Upcall).expect("started"));
        accepted.close().expect("close");
        let aborted = || {
            let about = san.upcalls.about(handle).into_iter();
            let about = about.filter_map(|upcall| match upcall {
                Upcall::Completed {
                    operation,
                    outcome,
                    live,
                    ..
                } => Some((operation, outcome, live)),
                _ => None,
            });
            about.collect::<Vec<_>>()
        };
        eventually("every operation is told of", STEP, || aborted().len() == 3);
        for (operation, outcome, live) in aborted() {
            assert!(receives.contains(&operation));
            assert_eq!(outcome, Err(WsaCode::OperationAborted));
            assert!(
                live.qps < queue_pairs,
                "the queue pair had its buffers when it was told: {live:?}"
            );
        }
        drop(connected);
    });
}

#[test]
fn wsd_113_a_waiter_is_woken_by_close() {
    bounded(|| {
        let san = San::start();
        let (_connected, accepted) = san.pair();
        let receive = accepted.receive(Notification::Poll).expect("started");
        let waiting = accepted.clone();
        let waiter = std::thread::spawn(move || {
            let start = Instant::now();
            let result = waiting.get_overlapped_result(receive, Some(STEP));
            (
                result.map(|result| result.outcome.map(|t| t.bytes).map_err(|e| e.code())),
                start.elapsed(),
            )
        });
        std::thread::sleep(Duration::from_millis(300));
        accepted.close().expect("close");
        let (result, took) = waiter.join().expect("the waiter");
        assert!(took < STEP, "it waited to its own end");
        match result {
            Ok(outcome) => assert_eq!(outcome, Err(WsaCode::OperationAborted)),
            Err(error) => assert_eq!(error.code(), WsaCode::NotSocket),
        }
    });
}

#[test]
fn wsd_113_a_peer_that_dies_is_noticed() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let mut peer = Program::start(
            env!("CARGO_BIN_EXE_san-test-peer"),
            &["talk", &listener.addr.to_string()],
        );
        let accepted = listener.accept();
        peer.expect("connected", STEP);
        peer.tell("echo");
        san::send(&accepted.socket, b"there?");
        assert_eq!(san::receive(&accepted.socket), b"there?");
        let pending = accepted
            .socket
            .receive(Notification::Poll)
            .expect("started");
        peer.kill();
        let error = san::wait(&accepted.socket, pending)
            .outcome
            .expect_err("it is dead");
        assert_eq!(error.code(), WsaCode::ConnReset, "{error}");
    });
}

#[test]
fn wsd_113_close_does_not_wait_for_a_peer_that_does_nothing() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let mut peer = Program::start(
            env!("CARGO_BIN_EXE_san-test-peer"),
            &["talk", &listener.addr.to_string()],
        );
        let accepted = listener.accept();
        peer.expect("connected", STEP);
        let before = Census::take();
        must("kill", &["-STOP", &peer.pid().to_string()]);
        for _ in 0..3 {
            accepted
                .socket
                .send(b"into the void", 0, Notification::Upcall)
                .expect("started");
        }
        let start = Instant::now();
        accepted.socket.close().expect("close");
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "{:?}",
            start.elapsed()
        );
        let live = || verbs_shim::live_objects();
        eventually("its queue pair and id are gone", STEP, || {
            live().qps < before.live.qps && live().ids < before.live.ids
        });
    });
}

#[test]
fn wsd_114_the_last_upcall_is_close_socket_handle() {
    bounded(|| {
        let san = San::start();
        let (connected, accepted) = san.pair();
        let handle = accepted.handle().expect("one");
        for _ in 0..10 {
            accepted.receive(Notification::Upcall).expect("started");
        }
        connected
            .send(b"one of them ends well", 0, Notification::Upcall)
            .expect("started");
        accepted.close().expect("close");
        eventually("the handle is closed", STEP, || {
            san.upcalls.about(handle).contains(&Upcall::Closed(handle))
        });
        std::thread::sleep(Duration::from_millis(200));
        let about = san.upcalls.about(handle);
        assert_eq!(about.first(), Some(&Upcall::Created(handle)));
        assert_eq!(about.last(), Some(&Upcall::Closed(handle)));
        assert_eq!(about.len(), 12, "ten ends between: {about:?}");
        assert_eq!(
            about
                .iter()
                .filter(|upcall| **upcall == Upcall::Closed(handle))
                .count(),
            1
        );
    });
}

#[test]
fn wsd_115_a_closed_socket_is_no_socket() {
    bounded(|| {
        let san = San::start();
        let (connected, _accepted) = san.pair();
        let operation = connected.receive(Notification::Poll).expect("started");
        let clone = connected.clone();
        let event = EventObject::new().expect("an event object");
        connected.close().expect("close");
        // Its data is still there for who holds it.
        assert!(clone.same_as(&connected) && clone.handle().is_some());
        let codes = [
            clone.bind(net::at_a()).expect_err("bind").code(),
            clone.listen(1).expect_err("listen").code(),
            clone
                .accept(|_| Decision::Accept)
                .expect_err("accept")
                .code(),
            clone
                .connect(net::at_b(), ConnectOptions::default())
                .expect_err("connect")
                .code(),
            clone
                .event_select(&event, NetworkEvents::ACCEPT)
                .expect_err("event_select")
                .code(),
            clone
                .enum_network_events(None)
                .expect_err("enum_network_events")
                .code(),
            clone
                .get_overlapped_result(operation, None)
                .expect_err("get_overlapped_result")
                .code(),
            clone
                .option(SocketOption::MaxMessageSize)
                .expect_err("option")
                .code(),
            clone
                .set_option(SocketOption::RdmaThresholdSize, 1)
                .expect_err("set_option")
                .code(),
            clone.local_addr().expect_err("local_addr").code(),
            clone.peer_addr().expect_err("peer_addr").code(),
            clone.close().expect_err("close").code(),
            clone
                .send(b"x", 0, Notification::Poll)
                .expect_err("send")
                .code(),
            clone
                .receive(Notification::Poll)
                .expect_err("receive")
                .code(),
            clone.try_receive().expect_err("try_receive").code(),
            clone.buffer().expect_err("buffer").code(),
        ];
        assert_eq!(codes, [WsaCode::NotSocket; 16]);
    });
}

#[test]
fn wsd_115_a_dropped_socket_is_closed() {
    bounded(|| {
        let san = San::start();
        let (connected, accepted) = san.pair();
        let handle = connected.handle().expect("one");
        let pending = accepted.receive(Notification::Poll).expect("started");
        drop(connected);
        let error = san::wait(&accepted, pending)
            .outcome
            .expect_err("the peer is gone");
        assert_eq!(error.code(), WsaCode::ConnReset);
        eventually("the handle is closed", STEP, || {
            san.upcalls.about(handle).last() == Some(&Upcall::Closed(handle))
        });
    });
}
