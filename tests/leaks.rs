//! What is not given back, and bad input that must not take anything.
//!
//! Each test counts verbs objects, descriptors, threads and the kernel's own view before and after.

use std::net::SocketAddr;
use std::time::Duration;

use san_provider::{ConnectOptions, Decision, Notification, Rejection, SOMAXCONN, WsaCode};
use san_tests::census::{self, Census};
use san_tests::net;
use san_tests::san::{self, San};
use san_tests::stranger::Stranger;
use san_tests::time::{STEP, bounded, eventually, within};
use verbs_shim::{CmId, ConnParams, live_objects};

#[test]
fn connections_leave_nothing_behind() {
    within(Duration::from_secs(120), || {
        let (server, client) = (San::start(), San::start());
        let listener = server.listen_a(16);
        let talk = |count: usize| {
            let connectors: Vec<_> = (0..count).map(|_| client.connect(listener.addr)).collect();
            let accepted: Vec<_> = (0..count).map(|_| listener.accept()).collect();
            for accepted in &accepted {
                accepted
                    .socket
                    .receive(Notification::Upcall)
                    .expect("one that stays pending");
                // A send that has to wait takes a buffer; whether one does is a matter of luck.
                drop(accepted.socket.buffer().expect("a buffer"));
                san::send(&accepted.socket, b"something");
            }
            for connector in &connectors {
                connector.result().expect("accepted");
                drop(connector.socket.buffer().expect("a buffer"));
                assert_eq!(san::receive(&connector.socket), b"something");
                connector
                    .socket
                    .send(b"on the way at close", 0, Notification::Upcall)
                    .expect("started");
            }
        };
        // The pools of buffers that connections share grow to what their use needs, and stay.
        let mut steady = 0;
        for _ in 0..40 {
            let regions = live_objects().mrs;
            // Twice what is measured: whether connections overlap by a few must not matter.
            talk(16);
            steady = if live_objects().mrs == regions {
                steady + 1
            } else {
                0
            };
            if steady == 4 {
                break;
            }
        }
        eventually("only the listener is left", STEP, || {
            (live_objects().ids, live_objects().qps) == (1, 0)
        });
        let before = Census::take();
        for _ in 0..6 {
            talk(8);
        }
        before.assert_back();
    });
}

#[test]
fn failed_connects_leave_nothing_behind() {
    within(Duration::from_secs(120), || {
        let san = San::start();
        let listener = san.listen_a(1);
        let fail = |rounds: usize| {
            for _ in 0..rounds {
                assert!(san.connect(net::at_a()).result().is_err(), "nobody listens");
                let rejected = san.connect(listener.addr);
                listener.wait_event();
                assert_eq!(
                    san.connect(listener.addr).failure().code(),
                    WsaCode::ConnRefused
                );
                assert!(
                    listener
                        .answer(Decision::Reject(Rejection::Unwanted))
                        .is_err()
                );
                assert_eq!(rejected.failure().code(), WsaCode::ConnRefused);
                let late = san.connect_within(listener.addr, Duration::from_millis(150));
                assert_eq!(late.failure().code(), WsaCode::TimedOut);
                let gone = listener.answer(Decision::Accept).expect_err("it gave up");
                assert_eq!(gone.code(), WsaCode::ConnReset);
            }
        };
        fail(2);
        let before = Census::take();
        fail(10);
        before.assert_back();
    });
}

#[test]
fn a_whole_life_leaves_nothing_behind() {
    within(Duration::from_secs(120), || {
        let live = || {
            let (server, client) = (San::start(), San::start());
            let listener = server.listen_a(2);
            let connector = client.connect(listener.addr);
            let accepted = listener.accept();
            connector.result().expect("accepted");
            san::send(&connector.socket, b"once");
            assert_eq!(san::receive(&accepted.socket), b"once");
        };
        live();
        let before = Census::take();
        let memory = census::resident_bytes();
        for _ in 0..5 {
            live();
        }
        before.assert_back();
        let grown = census::resident_bytes().saturating_sub(memory);
        assert!(grown < 8 << 20, "{grown} bytes more after five more lives");
    });
}

/// Binds an address that cannot be bound; the code of the refusal.
fn bind_code(san: &San, addr: &str) -> WsaCode {
    let addr = addr.parse().expect("an address");
    let socket = san.socket(net::addr_a());
    socket.bind(addr).expect_err("bad input").code()
}

#[test]
fn addresses_that_cannot_be_bound_take_nothing() {
    bounded(|| {
        let san = San::start();
        let taken = san.listen_a(1);
        let before = Census::take();
        let not_local = bind_code(&san, "203.0.113.9:7000");
        assert_eq!(not_local, WsaCode::AddrNotAvailable);
        let in_use = bind_code(&san, &taken.addr.to_string());
        assert_eq!(in_use, WsaCode::AddrNotAvailable);
        let other_family = bind_code(&san, "[::]:7000");
        assert_eq!(other_family, WsaCode::Fault);
        before.assert_back();
    });
}

#[test]
#[ignore = "needs interfaces of its own: ci/test"]
fn an_address_without_a_device_takes_nothing() {
    bounded(|| {
        let san = San::start();
        let before = Census::take();
        let code = bind_code(&san, "127.0.0.1:7000");
        assert_eq!(code, WsaCode::AddrNotAvailable);
        before.assert_back();
    });
}

#[test]
fn a_listen_that_cannot_be_takes_nothing() {
    bounded(|| {
        let san = San::start();
        let taken = san.listen_a(1);
        let before = Census::take();
        let bound = san.bound(net::at_a());
        for backlog in [SOMAXCONN + 1, 100_000, u32::MAX] {
            let error = bound.listen(backlog).expect_err("out of range");
            assert_eq!(error.code(), WsaCode::Invalid, "{backlog}");
        }
        let twice = taken.socket.listen(2).expect_err("it is fixed");
        assert_eq!(twice.code(), WsaCode::Invalid);
        let unbound = san.socket(net::addr_a()).listen(1);
        assert_eq!(unbound.expect_err("not bound").code(), WsaCode::Invalid);
        let accepted = bound.accept(|_| Decision::Accept);
        let error = accepted.expect_err("no listener");
        assert_eq!(error.code(), WsaCode::Invalid);
        drop(bound);
        before.assert_back();
    });
}

#[test]
fn a_connect_to_no_address_takes_nothing() {
    bounded(|| {
        let san = San::start();
        let before = Census::take();
        let unspecified = "0.0.0.0:80".parse().expect("an address");
        for addr in [SocketAddr::new(net::addr_a(), 0), unspecified] {
            let socket = san.socket(addr.ip());
            let connect = socket.connect(addr, ConnectOptions::default());
            let code = connect.expect_err("bad input").code();
            assert_eq!(code, WsaCode::AddrNotAvailable, "{addr}");
        }
        before.assert_back();
    });
}

#[test]
fn transfers_that_cannot_be_take_nothing() {
    bounded(|| {
        let san = San::start();
        let (connected, _accepted) = san.pair();
        let before = Census::take();
        let most = connected.option(san_provider::SocketOption::MaxMessageSize);
        let too_long = vec![0; most.expect("open") as usize + 1];
        let sent = connected.send(&too_long, 0, Notification::Poll);
        let error = sent.expect_err("too long");
        assert_eq!(error.code(), WsaCode::MessageSize);
        let unconnected = san.socket(net::addr_a());
        let sent = unconnected.send(b"x", 0, Notification::Poll);
        let error = sent.expect_err("not connected");
        assert_eq!(error.code(), WsaCode::NotConnected);
        let received = unconnected.receive(Notification::Poll);
        let error = received.expect_err("not connected");
        assert_eq!(error.code(), WsaCode::NotConnected);
        drop(unconnected);
        before.assert_back();
    });
}

#[test]
fn a_closed_socket_takes_nothing() {
    bounded(|| {
        let san = San::start();
        let before = Census::take();
        let closed = san.socket(net::addr_a());
        closed.close().expect("close");
        let error = closed.bind(net::at_a()).expect_err("closed");
        assert_eq!(error.code(), WsaCode::NotSocket);
        let error = closed.close().expect_err("closed");
        assert_eq!(error.code(), WsaCode::NotSocket);
        drop(closed);
        before.assert_back();
    });
}

#[test]
fn private_data_that_is_too_long_is_refused_with_its_limit() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let before = Census::take();
        let stranger = Stranger::resolved(listener.addr);
        let params = ConnParams {
            private_data: &[0; 57],
            ..ConnParams::default()
        };
        let error = stranger.id.connect(&params).expect_err("57 bytes");
        assert_eq!(error.errno(), 22, "EINVAL");
        assert!(error.to_string().contains("56"), "{error}");
        drop(stranger);
        before.assert_back();
        assert_eq!(san.counters().requests, 0, "nothing went out");
    });
}

#[test]
fn ids_that_are_only_made_are_counted_and_freed() {
    bounded(|| {
        let channel = net::fabric().event_channel().expect("an event channel");
        let before = Census::take();
        let ids: Vec<CmId> = (0..50)
            .map(|_| CmId::new(&channel).expect("a CM id"))
            .collect();
        assert_eq!(
            Census::take().live.ids,
            before.live.ids + 50,
            "the census counts"
        );
        drop(ids);
        before.assert_back();
    });
}
