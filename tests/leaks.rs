//! What is not given back, and bad input that must not take anything.
//!
//! Each test counts verbs objects, descriptors, threads and the kernel's own view before and after.

use std::net::SocketAddr;
use std::time::Duration;

use san_provider::{Completion, ConnectOptions, Decision, Rejection, SOMAXCONN, WsaCode};
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
                    .receive(Completion::Upcall)
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
                    .send(b"on the way at close", 0, Completion::Upcall)
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

#[test]
fn bad_input_takes_nothing() {
    bounded(|| {
        let san = San::start();
        let (connected, _accepted) = san.pair();
        let taken = san.listen_a(1);
        let before = Census::take();

        let code = |addr: &str| {
            let socket = san.socket(net::addr_a());
            socket
                .bind(addr.parse().expect("an address"))
                .expect_err("bad input")
                .code()
        };
        assert_eq!(
            code("203.0.113.9:7000"),
            WsaCode::AddrNotAvailable,
            "not local"
        );
        assert_eq!(
            code("127.0.0.1:7000"),
            WsaCode::AddrNotAvailable,
            "no device"
        );
        assert_eq!(
            code(&taken.addr.to_string()),
            WsaCode::AddrNotAvailable,
            "the port is in use"
        );
        assert_eq!(code("[::]:7000"), WsaCode::Fault, "the other family");

        let bound = san.bound(net::at_a());
        for backlog in [SOMAXCONN + 1, 100_000, u32::MAX] {
            assert_eq!(
                bound.listen(backlog).expect_err("out of range").code(),
                WsaCode::Invalid,
                "{backlog}"
            );
        }
        assert_eq!(
            taken.socket.listen(2).expect_err("fixed").code(),
            WsaCode::Invalid
        );
        assert_eq!(
            san.socket(net::addr_a())
                .listen(1)
                .expect_err("not bound")
                .code(),
            WsaCode::Invalid
        );
        assert_eq!(
            bound
                .accept(|_| Decision::Accept)
                .expect_err("no listener")
                .code(),
            WsaCode::Invalid
        );
        drop(bound);

        for addr in [
            SocketAddr::new(net::addr_a(), 0),
            "0.0.0.0:80".parse().expect("an address"),
        ] {
            let error = san
                .socket(addr.ip())
                .connect(addr, ConnectOptions::default())
                .expect_err("bad input");
            assert_eq!(error.code(), WsaCode::AddrNotAvailable, "{addr}");
        }
        let too_long = vec![
            0;
            connected
                .option(san_provider::SocketOption::MaxMessageSize)
                .expect("open") as usize
                + 1
        ];
        let error = connected
            .send(&too_long, 0, Completion::Poll)
            .expect_err("too long");
        assert_eq!(error.code(), WsaCode::MessageSize);
        let unconnected = san.socket(net::addr_a());
        assert_eq!(
            unconnected
                .send(b"x", 0, Completion::Poll)
                .expect_err("not connected")
                .code(),
            WsaCode::NotConnected
        );
        assert_eq!(
            unconnected
                .receive(Completion::Poll)
                .expect_err("not connected")
                .code(),
            WsaCode::NotConnected
        );
        drop(unconnected);

        let closed = san.socket(net::addr_a());
        closed.close().expect("close");
        assert_eq!(
            closed.bind(net::at_a()).expect_err("closed").code(),
            WsaCode::NotSocket
        );
        assert_eq!(
            closed.close().expect_err("closed").code(),
            WsaCode::NotSocket
        );
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
