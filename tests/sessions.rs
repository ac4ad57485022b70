//! What request and reply say of a session: the provider carries it for the layer above, both ways, and
//! an end that says nothing sends the bytes that it always sent.

use std::sync::{Mutex, PoisonError};

use san_provider::wire::{Hello, HelloKind, Refusal, RefusalReason, Session};
use san_provider::{
    AcceptOptions, ConnectFailure, ConnectOptions, ConnectionRequest, Decision, ProviderConfig,
    Rejection, WsaCode,
};
use san_tests::net;
use san_tests::san::{Connector, Listener, San};
use san_tests::stranger::{Answer, StrangeListener, Stranger};
use san_tests::time::{STEP, bounded};
use verbs_shim::RejectReason;

const ASKED: Session = Session::with_id(0x0102_0304_0506_0708)
    .secret([0xa1; 16])
    .purpose(1)
    .flags(3)
    .tcp_port(0x1f90)
    .generation(5);

const ANSWERED: Session = Session::with_id(u64::MAX)
    .secret([0xb2; 16])
    .purpose(1)
    .flags(1)
    .tcp_port(443)
    .generation(u16::MAX);

// Recorded before sessions could be set: with a window of 2, messages of 4,096 bytes and no RDMA.
#[rustfmt::skip]
const OLD_REQUEST: [u8; 56] = [
    b'S', b'A', b'N', b'D', 1, 1, 0, 56,
    0, 0, 0, 4, 0, 2, 0, 0,
    0, 0, 0x10, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

fn without_rdma() -> San {
    San::start_with(ProviderConfig {
        max_rdma_size: 0,
        rdma_threshold: 0,
        ..ProviderConfig::default()
    })
}

fn connect_with(san: &San, listener: &Listener, session: Session) -> Connector {
    let connector = Connector::new(san.socket(listener.addr.ip()));
    let options = ConnectOptions {
        deadline: Some(2 * STEP),
        session,
        ..ConnectOptions::default()
    };
    let started = connector.socket.connect(listener.addr, options);
    assert!(started.expect_err("it goes on").is_in_progress());
    connector
}

/// Accepts with this session in the reply; what the condition function was shown.
fn accept_with(listener: &Listener, session: Session) -> (san_provider::Socket, Session) {
    listener.wait_event();
    let seen = Mutex::new(Session::NONE);
    let condition = |request: &ConnectionRequest| {
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = request.session;
        Decision::AcceptWith(AcceptOptions::default().session(session))
    };
    let accepted = listener.socket.accept(condition).expect("accepted");
    (accepted.socket, seen.into_inner().expect("no panic"))
}

#[test]
fn each_end_sees_what_the_other_says_of_a_session() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(2);
        let connector = connect_with(&san, &listener, ASKED);
        assert_eq!(connector.socket.peer_session().expect("open"), None);
        let (accepted, shown) = accept_with(&listener, ANSWERED);
        assert_eq!(shown, ASKED);
        assert_eq!(accepted.peer_session().expect("open"), Some(ASKED));
        connector.result().expect("connected");
        let said = connector.socket.peer_session().expect("open");
        assert_eq!(said, Some(ANSWERED));

        // And who says nothing has said nothing.
        let (connected, accepted) = san.pair();
        for socket in [connected, accepted] {
            assert_eq!(socket.peer_session().expect("open"), Some(Session::NONE));
        }
    });
}

#[test]
fn a_closed_socket_has_no_session() {
    bounded(|| {
        let san = San::start();
        let (connected, _accepted) = san.pair();
        connected.close().expect("open");
        let error = connected.peer_session().expect_err("closed");
        assert_eq!(error.code(), WsaCode::NotSocket);
    });
}

#[test]
fn without_a_session_the_bytes_are_those_of_old() {
    bounded(|| {
        let san = without_rdma();
        let strange = StrangeListener::listen(net::at_a());
        let addr = strange.addr();
        let _connector = san.connect(addr);
        let request = strange.request();
        assert_eq!(request.private_data[..56], OLD_REQUEST);
        // Whatever RDMA CM pads it with, nothing of ours follows.
        assert!(request.private_data[56..].iter().all(|byte| *byte == 0));

        let listener = san.listen_a(1);
        let stranger = Stranger::request(listener.addr, &OLD_REQUEST);
        let accepted = listener.accept();
        assert_eq!(
            accepted.socket.peer_session().expect("open"),
            Some(Session::NONE)
        );
        let mut reply = OLD_REQUEST;
        reply[5] = 2;
        match stranger.answer() {
            Answer::Accepted(data) => assert_eq!(data[..56], reply),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_session_is_these_bytes_for_a_peer_of_another_make() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let mut request = OLD_REQUEST;
        request[24..32].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        request[32..48].fill(0xa1);
        request[48..].copy_from_slice(&[1, 3, 0x1f, 0x90, 0, 5, 0, 0]);
        let stranger = Stranger::request(listener.addr, &request);
        let (_accepted, shown) = accept_with(&listener, ANSWERED);
        assert_eq!(shown, ASKED);
        match stranger.answer() {
            Answer::Accepted(data) => {
                assert_eq!(data[24..32], [0xff; 8]);
                assert_eq!(data[32..48], [0xb2; 16]);
                assert_eq!(data[48..56], [1, 1, 1, 0xbb, 0xff, 0xff, 0, 0]);
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn not_now_and_no_such_connection_leave_tcp() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let cases = [
            (Rejection::NotNow, ConnectFailure::NotNow, 8),
            (
                Rejection::NoSuchConnection,
                ConnectFailure::NoSuchConnection,
                9,
            ),
        ];
        for (rejection, failure, number) in cases {
            let connector = connect_with(&san, &listener, ASKED);
            let answer = listener.answer(Decision::Reject(rejection));
            let answer = answer.expect_err("rejected");
            assert_eq!(answer.code(), WsaCode::ConnRefused);
            let error = connector.failure();
            assert_eq!(
                (error.failure(), error.code()),
                (failure, WsaCode::TimedOut)
            );
            assert!(error.may_try_tcp());
            assert_eq!(connector.socket.peer_session().expect("open"), None);

            let stranger = Stranger::request(listener.addr, &OLD_REQUEST);
            let answer = listener.answer(Decision::Reject(rejection));
            let _ = answer.expect_err("rejected");
            match stranger.answer() {
                Answer::Rejected(RejectReason::ConsumerDefined, data) => {
                    assert_eq!(data[8..10], [0, number]);
                }
                other => panic!("{other:?}"),
            }
        }
        let counters = san.counters();
        assert_eq!(
            (counters.refused_not_now, counters.refused_no_connection),
            (2, 2)
        );
        assert_eq!(
            (counters.connects_refused, counters.connects_failed),
            (0, 2)
        );
    });
}

#[test]
fn a_peer_that_knows_no_purposes_refuses_them_and_leaves_tcp() {
    bounded(|| {
        let san = San::start();
        let strange = StrangeListener::listen(net::at_a());
        let connector = Connector::new(san.socket(strange.addr().ip()));
        let options = ConnectOptions {
            deadline: Some(2 * STEP),
            session: ASKED,
            ..ConnectOptions::default()
        };
        let _ = connector.socket.connect(strange.addr(), options);
        let request = strange.request();
        let said = Hello::parse(HelloKind::Request, &request.private_data).expect("a request");
        assert_eq!(said.session, ASKED);
        // As its speakers without purposes do, for which these bytes have to be 0.
        let refusal = Refusal::new(RefusalReason::NotOurProtocol, 0);
        request.id.reject(&refusal.emit()).expect("reject");
        let error = connector.failure();
        assert_eq!(error.failure(), ConnectFailure::NotOurProtocol);
        assert!(error.may_try_tcp());
    });
}
