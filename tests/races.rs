//! The backlog when things happen at once: closing against arriving, dying peers, several accepting.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use san_provider::{AcceptError, ConnectFailure, Decision, Notification, WsaCode};
use san_tests::census::Census;
use san_tests::net;
use san_tests::program::Program;
use san_tests::san::{self, Connector, San};
use san_tests::time::{STEP, bounded, eventually, within};

const PEER: &str = env!("CARGO_BIN_EXE_san-test-peer");

#[test]
fn close_of_the_listener_against_arriving_requests() {
    within(Duration::from_secs(120), || {
        let (server, client) = (San::start(), San::start());
        drop(server.pair());
        let round = |delay: Duration| {
            let listener = server.listen_a(4);
            let connectors: Vec<Connector> =
                (0..8).map(|_| client.connect(listener.addr)).collect();
            thread::sleep(delay);
            listener.socket.close().expect("close");
            for connector in connectors {
                let error = connector.failure();
                // Refused while there was a backlog, in the middle of the end, or after it.
                let known = matches!(
                    error.failure(),
                    ConnectFailure::BacklogFull { backlog: 4 }
                        | ConnectFailure::ListenerClosing
                        | ConnectFailure::NobodyListens { .. }
                        | ConnectFailure::ForeignReject { reason: 28 }
                );
                assert!(known, "{error}");
            }
        };
        round(Duration::ZERO);
        let before = Census::take();
        for millis in [0, 2, 5, 10, 20, 40, 80] {
            round(Duration::from_millis(millis));
        }
        before.assert_back();
    });
}

#[test]
fn wsd_079_requests_queued_at_close_are_refused() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(4);
        let connectors: Vec<Connector> = (0..4).map(|_| san.connect(listener.addr)).collect();
        san.wait_for("queued", 4, |counters| counters.queued);
        listener.socket.close().expect("close");
        for connector in connectors {
            let error = connector.failure();
            assert_eq!(error.failure(), ConnectFailure::ListenerClosing);
            assert!(error.may_try_tcp(), "a TCP listener may still be there");
        }
        // The peers may have their answers before they are counted.
        san.wait_for("refused_closing", 4, |counters| counters.refused_closing);
        assert_eq!(san.counters().refused_closing, 4);
    });
}

#[test]
fn close_of_the_listener_inside_the_condition_function() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(2);
        let connector = san.connect(listener.addr);
        listener.wait_event();
        let answer = listener.socket.accept(|_| {
            listener.socket.close().expect("close");
            Decision::Accept
        });
        assert_eq!(
            answer.expect_err("closed meanwhile").code(),
            WsaCode::NotSocket
        );
        assert_eq!(
            connector.failure().failure(),
            ConnectFailure::ListenerClosing
        );
    });
}

#[test]
fn peer_gone_between_request_and_accept() {
    bounded(|| {
        let (server, client) = (San::start(), San::start());
        let listener = server.listen_a(4);
        let gone = client.connect(listener.addr);
        server.wait_requests(1);
        let there = client.connect(listener.addr);
        server.wait_requests(2);
        gone.socket.close().expect("close");
        // The kernel says nothing of it before the accept.
        let accepted = loop {
            match listener.answer(Decision::Accept) {
                Err(AcceptError::PeerGone) => {}
                answer => break answer.expect("the second request"),
            }
        };
        there.result().expect("accepted");
        assert_eq!(accepted.peer, there.socket.local_addr().expect("open"));
    });
}

#[test]
fn peer_gone_inside_the_condition_function() {
    bounded(|| {
        let (server, client) = (San::start(), San::start());
        let listener = server.listen_a(1);
        let connector = client.connect(listener.addr);
        listener.wait_event();
        let before = Census::take();
        let answer = listener.socket.accept(|_| {
            connector.socket.close().expect("close");
            // Its reject is on the way.
            thread::sleep(Duration::from_millis(300));
            Decision::Accept
        });
        assert_eq!(
            answer.expect_err("nobody is there").code(),
            WsaCode::ConnReset
        );
        eventually("nothing of it is left", STEP, || {
            let live = verbs_shim::live_objects();
            live.ids <= before.live.ids - 2 && live.qps < before.live.qps
        });
    });
}

#[test]
fn connecting_process_killed_with_its_requests_queued() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(8);
        let mut peer = Program::start(PEER, &["connect", &listener.addr.to_string(), "5"]);
        peer.expect("connecting", STEP);
        san.wait_for("queued", 5, |counters| counters.queued);
        peer.kill();
        // Accepted before its end got here, or known to be gone: in no case anything stays.
        for _ in 0..5 {
            match listener.socket.accept(|_| Decision::Accept) {
                Err(AcceptError::PeerGone | AcceptError::WouldBlock) => {}
                Ok(accepted) => {
                    let ended = accepted.socket.receive(Notification::Poll);
                    let ended =
                        ended.map(|operation| san::wait(&accepted.socket, operation).outcome);
                    match ended {
                        Err(error) | Ok(Err(error)) => assert_eq!(error.code(), WsaCode::ConnReset),
                        Ok(Ok(transferred)) => panic!("{transferred:?} from a dead process"),
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        let connector = san.connect(listener.addr);
        let _accepted = listener.accept();
        connector.result().expect("it serves as before");
    });
}

#[test]
fn listening_process_killed_with_requests_queued() {
    bounded(|| {
        let san = San::start();
        let addr = net::at_a();
        let mut peer = Program::start(PEER, &["listen", &addr.to_string(), "8"]);
        peer.expect("listening", STEP);
        let connectors: Vec<Connector> = (0..5).map(|_| san.connect(addr)).collect();
        peer.tell("requests 5");
        peer.expect("seen", STEP);
        assert!(
            connectors
                .iter()
                .all(|connector| connector.ended().is_none())
        );
        let start = Instant::now();
        peer.kill();
        for connector in &connectors {
            let error = connector.failure();
            assert_eq!(
                error.failure(),
                ConnectFailure::ForeignReject { reason: 28 }
            );
            assert_eq!(
                (error.code(), error.may_try_tcp()),
                (WsaCode::TimedOut, true)
            );
        }
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        assert!(matches!(
            san.connect(addr).failure().failure(),
            ConnectFailure::NobodyListens { .. }
        ));
    });
}

#[test]
fn two_threads_accept_each_request_once() {
    within(Duration::from_secs(120), || {
        const REQUESTS: usize = 24;
        let (server, client) = (San::start(), San::start());
        let listener = server.listen_a(REQUESTS as u32);
        let asked = AtomicUsize::new(0);
        let deadline = Instant::now() + Duration::from_secs(60);
        let accept_until_done = || {
            let mut mine = Vec::new();
            while asked.load(Ordering::SeqCst) < REQUESTS && Instant::now() < deadline {
                if !listener.event.wait(Duration::from_millis(50)) {
                    continue;
                }
                let accepted = listener.socket.accept(|_| {
                    asked.fetch_add(1, Ordering::SeqCst);
                    Decision::Accept
                });
                match accepted {
                    Ok(accepted) => mine.push(accepted),
                    Err(AcceptError::WouldBlock) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            mine
        };
        let (connectors, accepted) = thread::scope(|scope| {
            let threads = [
                scope.spawn(accept_until_done),
                scope.spawn(accept_until_done),
            ];
            let connectors: Vec<Connector> = (0..REQUESTS)
                .map(|_| client.connect(listener.addr))
                .collect();
            let accepted = threads.map(|thread| thread.join().expect("an accepting thread"));
            (connectors, accepted)
        });
        let accepted: Vec<_> = accepted.into_iter().flatten().collect();
        assert_eq!(accepted.len(), REQUESTS);
        assert_eq!(asked.load(Ordering::SeqCst), REQUESTS);
        for connector in &connectors {
            connector.result().expect("accepted");
        }
        let mut peers: Vec<_> = accepted
            .iter()
            .map(|accepted| accepted.peer.expect("known"))
            .collect();
        let mut sources: Vec<_> = connectors
            .iter()
            .map(|connector| {
                connector
                    .socket
                    .local_addr()
                    .expect("open")
                    .expect("connected")
            })
            .collect();
        peers.sort_unstable();
        sources.sort_unstable();
        assert_eq!(peers, sources, "each one once");
        assert!(!listener.event.is_set(), "nothing is queued");
    });
}

#[test]
fn accepted_at_once_after_a_kill_ends_with_econnreset() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let mut peer = Program::start(PEER, &["talk", &listener.addr.to_string()]);
        listener.wait_event();
        let answer = listener.socket.accept(|_| {
            peer.kill();
            Decision::Accept
        });
        match answer {
            Err(error) => assert_eq!(error.code(), WsaCode::ConnReset),
            Ok(accepted) => {
                let pending = accepted.socket.receive(Notification::Poll);
                match pending.map(|operation| san::wait(&accepted.socket, operation).outcome) {
                    Err(error) | Ok(Err(error)) => assert_eq!(error.code(), WsaCode::ConnReset),
                    Ok(Ok(transferred)) => panic!("{transferred:?} from a dead process"),
                }
            }
        }
    });
}
