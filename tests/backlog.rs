//! The backlog: who gets a place, who is refused, and when a place is free again (duty 80).

use std::time::{Duration, Instant};

use san_provider::wire::{Features, Hello, HelloKind, Refusal, RefusalReason, Session};
use san_provider::{AcceptError, ConnectFailure, Decision, Rejection, WsaCode};
use san_tests::census::{self, Census};
use san_tests::net;
use san_tests::san::{Connector, San};
use san_tests::stranger::{Answer, Flood};
use san_tests::time::{STEP, bounded, eventually, within};
use verbs_shim::RejectReason;

#[test]
fn wsd_080_refused_past_the_backlog() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(4);
        let connectors: Vec<Connector> = (0..10).map(|_| san.connect(listener.addr)).collect();
        san.wait_requests(10);
        let mut failures = Vec::new();
        eventually("six of ten are refused", STEP, || {
            failures.extend(connectors.iter().filter_map(Connector::ended));
            failures.len() >= 6
        });
        for ended in &failures {
            let error = ended.as_ref().expect_err("nobody has accepted");
            assert_eq!(error.code(), WsaCode::ConnRefused, "{error}");
            assert_eq!(error.errno(), 111, "ECONNREFUSED");
            assert_eq!(error.failure(), ConnectFailure::BacklogFull { backlog: 4 });
            assert!(!error.may_try_tcp(), "TCP would find the same listener");
        }
        san.wait_refused(6);
        let counters = san.counters();
        assert_eq!(
            (counters.queued, counters.refused_backlog),
            (4, 6),
            "{counters:?}"
        );
        let accepted: Vec<_> = (0..4).map(|_| listener.accept()).collect();
        eventually("the four with a place are connected", STEP, || {
            failures.extend(connectors.iter().filter_map(Connector::ended));
            failures.len() >= 10
        });
        assert_eq!(
            failures.iter().filter(|ended| ended.is_ok()).count(),
            accepted.len()
        );
        assert!(matches!(
            listener.socket.accept(|_| Decision::Accept),
            Err(AcceptError::WouldBlock)
        ));
    });
}

#[test]
fn wsd_080_the_refusal_comes_at_once() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let _first = san.connect(listener.addr);
        listener.wait_event();
        let start = Instant::now();
        let error = san.connect(listener.addr).failure();
        let took = start.elapsed();
        assert_eq!(error.code(), WsaCode::ConnRefused, "{error}");
        // A request that is dropped is repeated by the peer's CM after some 6 s: this one was answered.
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert_eq!(san.counters().requests, 2);
    });
}

#[test]
fn wsd_080_the_refused_signal_no_event() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let _first = san.connect(listener.addr);
        listener.wait_event();
        assert!(
            listener
                .socket
                .enum_network_events(Some(&listener.event))
                .expect("the record")
                .accept
        );
        // The counter is raised after the event was set.
        san.wait_for("events_signalled", 1, |counters| counters.events_signalled);
        let signalled = san.counters().events_signalled;
        for _ in 0..3 {
            let connector = san.connect(listener.addr);
            assert_eq!(connector.failure().code(), WsaCode::ConnRefused);
        }
        assert!(!listener.event.is_set(), "the refused have set the event");
        assert!(
            !listener
                .socket
                .enum_network_events(None)
                .expect("the record")
                .accept
        );
        // Three for FD_CONNECT of the refused themselves.
        san.wait_for("events_signalled", signalled + 3, |counters| {
            counters.events_signalled
        });
        assert_eq!(san.counters().events_signalled, signalled + 3);
    });
}

#[test]
fn wsd_080_each_answer_gives_the_place_back() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let answers = [
            Decision::Accept,
            Decision::Reject(Rejection::Unwanted),
            Decision::Accept,
        ];
        for (round, answer) in (1..).zip(answers) {
            let connector = san.connect(listener.addr);
            listener.wait_event();
            assert_eq!(san.counters().queued, round);
            let refused = san.connect(listener.addr).failure();
            assert_eq!(
                refused.failure(),
                ConnectFailure::BacklogFull { backlog: 1 },
                "round {round}"
            );
            let accepted = listener.answer(answer);
            assert_eq!(accepted.is_ok(), answer == Decision::Accept);
            assert_eq!(connector.result().is_ok(), answer == Decision::Accept);
        }
    });
}

#[test]
fn wsd_080_a_place_is_held_until_accept_has_answered() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let connector = san.connect(listener.addr);
        listener.wait_event();
        let accepted = listener.socket.accept(|_| {
            // Taken out of the queue, but not answered.
            let refused = san.connect(listener.addr).failure();
            assert_eq!(
                refused.failure(),
                ConnectFailure::BacklogFull { backlog: 1 }
            );
            Decision::Accept
        });
        let _accepted = accepted.expect("the first request");
        connector.result().expect("accepted");
    });
}

#[test]
fn wsd_080_a_deferred_request_keeps_its_place() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let connector = san.connect(listener.addr);
        assert!(matches!(
            listener.answer(Decision::Defer),
            Err(AcceptError::Deferred)
        ));
        let refused = san.connect(listener.addr).failure();
        assert_eq!(
            refused.failure(),
            ConnectFailure::BacklogFull { backlog: 1 }
        );
        let _accepted = listener.accept();
        connector.result().expect("accepted in the end");
    });
}

#[test]
fn wsd_080_a_peer_that_gives_up_leaves_its_place() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let first = san.connect(listener.addr);
        listener.wait_event();
        first.socket.close().expect("the first gives up");
        // Nobody accepts, and yet there is room for another.
        let mut second = san.connect(listener.addr);
        eventually("another request finds the place free", STEP, || {
            let refused = second.event.wait(Duration::from_millis(500));
            if refused {
                second = san.connect(listener.addr);
            }
            !refused
        });
        let accepted = loop {
            match listener.answer(Decision::Accept) {
                Err(AcceptError::PeerGone) => {}
                answer => break answer.expect("the second request"),
            }
        };
        second.result().expect("accepted");
        assert_eq!(accepted.peer, second.socket.local_addr().expect("open"));
    });
}

#[test]
fn wsd_080_backlogs_of_two_listeners_are_their_own() {
    bounded(|| {
        let san = San::start();
        let (full, free) = (san.listen_a(1), san.listen_a(2));
        let _waiting = [san.connect(full.addr), san.connect(free.addr)];
        san.wait_requests(2);
        assert_eq!(
            san.connect(full.addr).failure().code(),
            WsaCode::ConnRefused
        );
        let second = san.connect(free.addr);
        san.wait_requests(4);
        let _accepted = [free.accept(), free.accept()];
        second.result().expect("a place at the other listener");
    });
}

#[test]
fn wsd_080_a_flood_of_2000_leaves_nothing_behind() {
    const REQUESTS: usize = 2000;
    within(Duration::from_secs(240), || {
        let san = San::start();
        let listener = san.listen_a(16);
        // What libraries and allocators keep is there after a first, smaller flood. On the soft
        // fabric what the kernel would keep is in this process, too. A lane that nobody uses for ten seconds goes, so a
        // connection holds one while the census is compared.
        let _held = san.pair();
        flood(&san, &listener, if net::is_soft() { REQUESTS } else { 200 });
        let before = Census::take();
        // 2,000 ids of the flooding side itself were there meanwhile; per request it is next to nothing. What an
        // allocator keeps depends on how threads meet, so one flood may take more; what is lost is lost each time.
        let grown = [(); 3].map(|()| {
            let memory = census::resident_bytes();
            flood(&san, &listener, REQUESTS);
            before.assert_back();
            census::resident_bytes().saturating_sub(memory)
        });
        let takes_more = |grown: &usize| *grown >= 2 << 20;
        assert!(
            !grown.iter().all(takes_more),
            "{grown:?} bytes more each time"
        );

        let connector = san.connect(listener.addr);
        let _accepted = listener.accept();
        connector.result().expect("it serves as before");
    });
}

/// Sends so many requests to a backlog of 16 and checks every answer; the 16 that wait give up.
fn flood(san: &San, listener: &san_tests::san::Listener, count: usize) {
    let before = san.counters();
    let flood = Flood::send(
        listener.addr,
        count,
        &request(),
        count - 16,
        Duration::from_secs(200),
    );
    assert_eq!(flood.sent(), count);
    for answer in &flood.answers {
        let Answer::Rejected(RejectReason::ConsumerDefined, data) = answer else {
            panic!("{answer:?}")
        };
        let refusal = Refusal::parse(data).expect("a refusal of ours");
        assert_eq!(
            (refusal.reason, refusal.backlog),
            (RefusalReason::BacklogFull, 16)
        );
    }
    san.wait_refused(before.refused_backlog + count as u64 - 16);
    let counters = san.counters();
    assert_eq!(
        counters.refused_backlog - before.refused_backlog,
        count as u64 - 16,
        "{counters:?}"
    );
    assert_eq!(counters.queued - before.queued, 16);
    drop(flood);
    // The kernel tells nobody that the peer of a queued request gave up: accept finds out.
    eventually("every place is free again", STEP, || {
        matches!(
            listener.socket.accept(|_| Decision::Accept),
            Err(AcceptError::WouldBlock)
        )
    });
}

fn request() -> [u8; Hello::LENGTH] {
    let hello = Hello {
        features: Features::default(),
        credits: 2,
        max_message_size: 4096,
        max_rdma_size: 0,
        session: Session::NONE,
    };
    hello.emit(HelloKind::Request)
}
