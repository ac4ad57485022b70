//! Accept and its condition function (duties 84 to 90).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use san_provider::{AcceptError, ConnectFailure, Decision, ProviderConfig, Rejection, WsaCode};
use san_tests::census::Census;
use san_tests::net;
use san_tests::san::{self, San, Upcall};
use san_tests::time::bounded;

#[test]
fn wsd_084_the_condition_function_runs_in_the_callers_thread() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let connector = san.connect(listener.addr);
        listener.wait_event();
        let mut ran_in = None;
        let accepted = listener.socket.accept(|_| {
            ran_in = Some(thread::current().id());
            Decision::Accept
        });
        let _accepted = accepted.expect("the request");
        assert_eq!(ran_in, Some(thread::current().id()));
        connector.result().expect("accepted");
    });
}

#[test]
fn wsd_084_it_is_told_who_asks() {
    bounded(|| {
        let san = San::start_with(ProviderConfig {
            max_message_size: 2048,
            ..ProviderConfig::default()
        });
        let listener = san.listen_a(1);
        let connector = san.connect(listener.addr);
        listener.wait_event();
        let mut asked = None;
        let accepted = listener.socket.accept(|request| {
            asked = Some(request.clone());
            Decision::Accept
        });
        let _accepted = accepted.expect("the request");
        connector.result().expect("accepted");
        let asked = asked.expect("it ran");
        assert_eq!(asked.peer, connector.socket.local_addr().expect("open"));
        assert_eq!(asked.local, Some(listener.addr));
        assert_eq!(asked.max_message_size, 2048, "what the peer said of itself");
    });
}

#[test]
fn wsd_085_the_peer_is_told_nothing_before_it() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let connector = san.connect(listener.addr);
        listener.wait_event();
        let accepted = listener.socket.accept(|_| {
            // Long enough for an answer that was sent to arrive.
            assert!(
                !connector.event.wait(Duration::from_millis(500)),
                "the peer was told"
            );
            assert!(connector.ended().is_none());
            Decision::Accept
        });
        let _accepted = accepted.expect("the request");
        connector.result().expect("accepted");
    });
}

#[test]
fn wsd_086_accepted_both_ends_are_connected() {
    bounded(|| {
        let san = San::start();
        let (connected, accepted) = san.pair();
        san::send(&connected, b"from the connecting end");
        assert_eq!(san::receive(&accepted), b"from the connecting end");
        san::send(&accepted, b"from the accepted end");
        assert_eq!(san::receive(&connected), b"from the accepted end");
    });
}

#[test]
fn wsd_086_rejected_both_ends_get_econnrefused() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let rejections = [
            (Rejection::Unwanted, ConnectFailure::RejectedByPeer),
            (
                Rejection::BacklogFull { backlog: 7 },
                ConnectFailure::BacklogFull { backlog: 7 },
            ),
        ];
        for (rejection, failure) in rejections {
            let connector = san.connect(listener.addr);
            let answer = listener
                .answer(Decision::Reject(rejection))
                .expect_err("rejected");
            assert_eq!(answer.code(), WsaCode::ConnRefused);
            let error = connector.failure();
            assert_eq!(
                (error.code(), error.failure()),
                (WsaCode::ConnRefused, failure)
            );
            assert!(!error.may_try_tcp());
        }
        let counters = san.counters();
        assert_eq!(
            (counters.refused_condition, counters.refused_ready_queue),
            (1, 1)
        );
        assert_eq!(counters.accepted, 0);
    });
}

#[test]
fn wsd_086_a_condition_function_that_panics_has_rejected() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let connector = san.connect(listener.addr);
        listener.wait_event();
        let accept = || {
            listener
                .socket
                .accept(|_| panic!("the condition function's own trouble"))
        };
        assert!(
            catch_unwind(AssertUnwindSafe(accept)).is_err(),
            "the panic goes on"
        );
        assert_eq!(
            connector.failure().failure(),
            ConnectFailure::RejectedByPeer
        );
        let next = san.connect(listener.addr);
        let _accepted = listener.accept();
        next.result().expect("its place is free");
    });
}

#[test]
fn wsd_087_the_handle_is_got_after_the_condition_function_has_accepted() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(2);
        let _rejected = san.connect(listener.addr);
        let before = san.upcalls.told();
        assert!(
            listener
                .answer(Decision::Reject(Rejection::Unwanted))
                .is_err()
        );
        assert_eq!(
            san.upcalls.told(),
            before,
            "a rejected request needs no handle"
        );

        let connector = san.connect(listener.addr);
        listener.wait_event();
        let before = san.upcalls.told();
        let accepted = listener.socket.accept(|_| {
            assert_eq!(san.upcalls.told(), before, "too early");
            Decision::Accept
        });
        let accepted = accepted.expect("the request");
        let handle = accepted.socket.handle().expect("it has one");
        assert_eq!(san.upcalls.about(handle), [Upcall::Created(handle)]);
        connector.result().expect("accepted");
    });
}

#[test]
fn wsd_087_without_a_handle_the_request_is_refused() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let connector = san.connect(listener.addr);
        listener.wait_event();
        san.upcalls.gives_no_handles.store(true, Ordering::SeqCst);
        let error = listener.answer(Decision::Accept).expect_err("no handle");
        assert_eq!(error.code(), WsaCode::NoBuffers);
        let error = connector.failure();
        assert_eq!(error.failure(), ConnectFailure::PeerOutOfResources);
        assert!(
            error.may_try_tcp(),
            "TCP may have what the provider has not"
        );
        san.upcalls.gives_no_handles.store(false, Ordering::SeqCst);
        let next = san.connect(listener.addr);
        let _accepted = listener.accept();
        next.result().expect("its place is free");
    });
}

#[test]
#[ignore = "needs an IPv6 address at each end: ci/test"]
fn wsd_089_the_peers_address_is_returned() {
    bounded(|| {
        let san = San::start();
        for target in [
            net::at_a(),
            std::net::SocketAddr::new(net::addr6_a(), net::port()),
        ] {
            let listener = san.listen(target, 1);
            let connector = san.connect(target);
            let accepted = listener.accept();
            connector.result().expect("accepted");
            let source = connector.socket.local_addr().expect("open");
            assert!(source.is_some_and(|addr| addr.port() != 0));
            assert_eq!(accepted.peer, source);
            assert_eq!(accepted.socket.peer_addr().expect("open"), source);
        }
    });
}

#[test]
fn wsd_090_accept_errors() {
    bounded(|| {
        let san = San::start();
        let never =
            |_: &san_provider::ConnectionRequest| -> Decision { panic!("there is no request") };
        let open = san.socket(net::addr_a());
        assert_eq!(
            open.accept(never).expect_err("not bound").code(),
            WsaCode::Invalid
        );
        let bound = san.bound(net::at_a());
        assert_eq!(
            bound.accept(never).expect_err("does not listen").code(),
            WsaCode::Invalid
        );
        let (connected, _accepted) = san.pair();
        assert_eq!(
            connected.accept(never).expect_err("connected").code(),
            WsaCode::Invalid
        );
        let listener = san.listen_a(1);
        assert_eq!(
            listener
                .socket
                .accept(never)
                .expect_err("nobody asks")
                .code(),
            WsaCode::WouldBlock
        );
        listener.socket.close().expect("close");
        assert_eq!(
            listener.socket.accept(never).expect_err("closed").code(),
            WsaCode::NotSocket
        );
    });
}

#[test]
fn wsd_090_too_many_sockets_is_emfile_and_the_peer_may_try_tcp() {
    bounded(|| {
        let server = San::start_with(ProviderConfig {
            max_sockets: 1,
            ..ProviderConfig::default()
        });
        let client = San::start();
        let listener = server.listen_a(1);
        let connector = client.connect(listener.addr);
        let before = Census::take();
        let error = listener.answer(Decision::Accept).expect_err("no room");
        assert_eq!(error.code(), WsaCode::TooManySockets);
        let error = connector.failure();
        assert_eq!(error.failure(), ConnectFailure::PeerOutOfResources);
        assert!(error.may_try_tcp());
        assert!(
            Census::take().live.ids < before.live.ids,
            "the request's id and the connector's are gone"
        );
    });
}

#[test]
fn a_deferred_request_goes_back_to_the_head_of_the_queue() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(2);
        let first = san.connect(listener.addr);
        san.wait_requests(1);
        let _second = san.connect(listener.addr);
        san.wait_requests(2);
        assert!(matches!(
            listener.answer(Decision::Defer),
            Err(AcceptError::Deferred)
        ));
        let accepted = listener.accept();
        first.result().expect("the first is accepted first");
        assert_eq!(accepted.peer, first.socket.local_addr().expect("open"));
        assert_eq!(san.counters().deferred, 1);
    });
}
