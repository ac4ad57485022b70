//! Connect: how it goes on, how it ends, and what may be tried after it (duties 71 to 76).

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use san_provider::wire::{Refusal, RefusalReason};
use san_provider::{
    ConnectFailure, ConnectOptions, Decision, Protocol, ProviderConfig, SocketType, WsaCode,
};
use san_tests::census::Census;
use san_tests::net;
use san_tests::program::{self, Program};
use san_tests::san::{self, Connector, San};
use san_tests::stranger::StrangeListener;
use san_tests::time::{STEP, bounded, eventually};

#[test]
fn wsd_071_connect_does_not_wait() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        // The first connect of a process makes what connections share.
        drop(san.pair());
        let connector = Connector::new(san.socket(net::addr_a()));
        let start = Instant::now();
        let error = connector.start(listener.addr, STEP);
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(error.code(), WsaCode::WouldBlock);
        assert!(error.is_in_progress() && !error.may_try_tcp());
    });
}

#[test]
fn wsd_072_the_event_is_set_at_the_end() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let connector = san.connect(listener.addr);
        listener.wait_event();
        assert!(
            !connector.event.wait(Duration::from_millis(300)),
            "it has not ended"
        );
        let record = connector
            .socket
            .enum_network_events(None)
            .expect("the record");
        assert!(record.connect.is_none());
        let _accepted = listener.accept();
        assert!(connector.event.wait(STEP));
        let record = connector
            .socket
            .enum_network_events(Some(&connector.event))
            .expect("the record");
        assert!(matches!(record.connect, Some(Ok(()))), "{record:?}");
        assert!(!record.accept && !connector.event.is_set());
    });
}

#[test]
fn wsd_073_nobody_listens_is_final_only_where_all_hosts_speak_rdma() {
    bounded(|| {
        for strict in [false, true] {
            let san = San::start_with(ProviderConfig {
                strict,
                ..ProviderConfig::default()
            });
            let error = san.connect(net::at_a()).failure();
            assert_eq!(error.failure(), ConnectFailure::NobodyListens { strict });
            assert_eq!(
                error.code(),
                if strict {
                    WsaCode::ConnReset
                } else {
                    WsaCode::TimedOut
                }
            );
            assert_eq!(error.may_try_tcp(), !strict);
        }
    });
}

#[test]
fn wsd_073_what_a_refusal_of_ours_means() {
    bounded(|| {
        let san = San::start();
        let addr = net::at_a();
        let listener = StrangeListener::listen(addr);
        let cases = [
            (
                RefusalReason::BacklogFull,
                ConnectFailure::BacklogFull { backlog: 9 },
                true,
            ),
            (
                RefusalReason::Condition,
                ConnectFailure::RejectedByPeer,
                true,
            ),
            (
                RefusalReason::ReadyQueueFull,
                ConnectFailure::BacklogFull { backlog: 9 },
                true,
            ),
            (
                RefusalReason::NotOurProtocol,
                ConnectFailure::NotOurProtocol,
                false,
            ),
            (
                RefusalReason::Version,
                ConnectFailure::VersionMismatch {
                    lowest: 1,
                    highest: 1,
                },
                false,
            ),
            (
                RefusalReason::Closing,
                ConnectFailure::ListenerClosing,
                false,
            ),
            (
                RefusalReason::NoResources,
                ConnectFailure::PeerOutOfResources,
                false,
            ),
            (
                RefusalReason::Unknown(999),
                ConnectFailure::PeerOutOfResources,
                false,
            ),
        ];
        for (reason, failure, is_final) in cases {
            let connector = san.connect(addr);
            let request = listener.request();
            request
                .id
                .reject(&Refusal::new(reason, 9).emit())
                .expect("reject");
            let error = connector.failure();
            assert_eq!(error.failure(), failure, "{reason:?}");
            let code = if is_final {
                WsaCode::ConnRefused
            } else {
                WsaCode::TimedOut
            };
            assert_eq!(
                (error.code(), error.may_try_tcp()),
                (code, !is_final),
                "{reason:?}"
            );
        }
    });
}

#[test]
fn wsd_073_a_reject_without_our_data_is_not_final() {
    bounded(|| {
        let san = San::start();
        let addr = net::at_a();
        let listener = StrangeListener::listen(addr);
        let mut altered = Refusal::new(RefusalReason::BacklogFull, 1).emit();
        altered[0] ^= 1;
        let rejects: [&[u8]; 3] = [&[], b"somebody else's protocol", &altered];
        for data in rejects {
            let connector = san.connect(addr);
            listener.request().id.reject(data).expect("reject");
            let error = connector.failure();
            assert_eq!(
                error.failure(),
                ConnectFailure::ForeignReject { reason: 28 },
                "{data:?}"
            );
            assert_eq!(
                (error.code(), error.may_try_tcp()),
                (WsaCode::TimedOut, true)
            );
        }
        // As when its process dies.
        let connector = san.connect(addr);
        drop(listener.request());
        assert_eq!(
            connector.failure().failure(),
            ConnectFailure::ForeignReject { reason: 28 }
        );
    });
}

#[test]
#[ignore = "needs the kernel's RDMA: ci/test"]
fn wsd_073_somebody_elses_server_is_not_connected_to() {
    bounded(|| {
        let san = San::start();
        let before = Census::take();
        let addr = net::at_a();
        let (ip, port) = (addr.ip().to_string(), addr.port().to_string());
        let _server = Program::start("rping", &["-s", "-a", &ip, "-p", &port, "-P"]);
        let deadline = Instant::now() + STEP;
        let error = loop {
            let error = san.connect(addr).failure();
            if !matches!(error.failure(), ConnectFailure::NobodyListens { .. })
                || Instant::now() > deadline
            {
                break error;
            }
            // It is not up yet.
            thread::sleep(Duration::from_millis(100));
        };
        // It accepts what it takes for a peer of its own, or rejects it; either is no peer of ours.
        let strange = matches!(
            error.failure(),
            ConnectFailure::ForeignReply | ConnectFailure::ForeignReject { .. }
        );
        assert!(strange, "{:?}", error.failure());
        assert_eq!(
            (error.code(), error.may_try_tcp()),
            (WsaCode::TimedOut, true)
        );
        drop(_server);
        let live = Census::take().live;
        assert_eq!((live.ids, live.qps), (before.live.ids, before.live.qps));
    });
}

#[test]
#[ignore = "needs routes of its own: ci/test"]
fn wsd_073_without_a_route_it_is_ehostunreach() {
    bounded(|| {
        let san = San::start();
        let socket = san.socket(net::addr_a());
        let nowhere: SocketAddr = "203.0.113.9:7471".parse().expect("an address");
        let error = socket
            .connect(nowhere, ConnectOptions::default())
            .expect_err("there is no way");
        assert_eq!(error.failure(), ConnectFailure::NoRoute);
        assert_eq!(error.code(), WsaCode::HostUnreachable);
        assert!(!error.may_try_tcp(), "TCP has no route either");
    });
}

/// A neighbour that answers nothing: RDMA CM alone would go on for 100 s.
#[test]
#[ignore = "needs interfaces of its own: ci/test"]
fn wsd_073_silence_ends_at_the_deadline() {
    bounded(|| {
        let san = San::start();
        let list = san.provider.address_list().expect("the list");
        let netdev = &list
            .iter()
            .find(|entry| entry.ip == net::addr_b())
            .expect("the second NIC")
            .netdev;
        let source = net::addr_b().to_string();
        let _neighbour = Neighbour::add("10.0.7.99", netdev, &source);
        // The first connect of a process makes what connections share; on the soft fabric the first
        // use of an address, too.
        drop(san.pair());
        drop(san.listen(net::at_b(), 1));
        eventually("both are gone", STEP, || {
            let live = verbs_shim::live_objects();
            (live.ids, live.qps) == (0, 0)
        });
        let before = Census::take();
        let start = Instant::now();
        let connector = san.connect_within(
            "10.0.7.99:7471".parse().expect("an address"),
            Duration::from_secs(2),
        );
        let error = connector.failure();
        let took = start.elapsed();
        assert_eq!(error.failure(), ConnectFailure::TimedOut);
        assert_eq!(
            (error.code(), error.may_try_tcp()),
            (WsaCode::TimedOut, true)
        );
        assert!(
            took >= Duration::from_secs(2) && took < Duration::from_secs(6),
            "{took:?}"
        );
        drop(connector);
        before.assert_back();
    });
}

#[test]
fn wsd_073_the_configured_deadline_holds_too() {
    bounded(|| {
        let config = ProviderConfig {
            connect_deadline: Duration::from_millis(700),
            ..ProviderConfig::default()
        };
        let san = San::start_with(config);
        let listener = san.listen_a(1);
        let connector = Connector::new(san.socket(net::addr_a()));
        let start = Instant::now();
        let started = connector
            .socket
            .connect(listener.addr, ConnectOptions::default());
        assert!(started.expect_err("it goes on").is_in_progress());
        // The request waits in the backlog and nobody accepts.
        assert_eq!(connector.failure().failure(), ConnectFailure::TimedOut);
        assert!(start.elapsed() >= Duration::from_millis(700));
        let answer = listener
            .answer(Decision::Accept)
            .expect_err("nobody waits any more");
        assert_eq!(answer.code(), WsaCode::ConnReset);
    });
}

#[test]
fn wsd_074_close_ends_a_connect_promptly() {
    bounded(|| {
        let server = San::start();
        let client = San::start();
        let listener = server.listen_a(4);
        let give_up = |count: u64| {
            let connector = client.connect(listener.addr);
            server.wait_requests(count);
            let made = Census::take().live.qps;
            let start = Instant::now();
            connector.socket.close().expect("close");
            assert!(
                start.elapsed() < Duration::from_secs(2),
                "{:?}",
                start.elapsed()
            );
            assert!(
                !connector.event.is_set(),
                "nobody is told of what it closed itself"
            );
            let answer = listener
                .answer(Decision::Accept)
                .expect_err("nobody waits any more");
            assert_eq!(answer.code(), WsaCode::ConnReset);
            made
        };
        give_up(1);
        // From here on everything that connections share is there.
        let before = Census::take();
        assert!(give_up(2) > before.live.qps, "a connect has a queue pair");
        before.assert_back();
    });
}

#[test]
fn wsd_074_close_right_after_connect() {
    bounded(|| {
        let san = San::start();
        let before = Census::take();
        for _ in 0..20 {
            // Address, route or nobody's refusal under way: whatever it is, it is ended.
            san.connect(net::at_a()).socket.close().expect("close");
        }
        let live = || Census::take().live;
        eventually("the ids and queue pairs are gone", STEP, || {
            (live().ids, live().qps) == (before.live.ids, before.live.qps)
        });
    });
}

#[test]
fn wsd_075_a_second_connect_is_ealready() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let connector = san.connect(listener.addr);
        assert_eq!(
            connector.start(listener.addr, STEP).code(),
            WsaCode::Already
        );
        listener.wait_event();
        assert_eq!(
            connector.start(listener.addr, STEP).code(),
            WsaCode::Already
        );
        let _accepted = listener.accept();
        connector.result().expect("the first goes on unharmed");
        assert_eq!(
            connector.start(listener.addr, STEP).code(),
            WsaCode::IsConnected
        );
        assert_eq!(san.counters().connects, 1);
    });
}

#[test]
fn wsd_076_a_connection_outlives_its_listener() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let connector = san.connect(listener.addr);
        let accepted = listener.accept();
        connector.result().expect("accepted");
        listener.socket.close().expect("close");
        assert!(matches!(
            san.connect(listener.addr).failure().failure(),
            ConnectFailure::NobodyListens { .. }
        ));
        san::send(&connector.socket, b"still there");
        assert_eq!(san::receive(&accepted.socket), b"still there");
    });
}

#[test]
#[ignore = "needs an IPv6 address at each end: ci/test"]
fn connect_refuses_what_cannot_be() {
    bounded(|| {
        let san = San::start();
        let code = |addr: SocketAddr| {
            let socket = san.provider.socket(
                san_provider::AddressFamily::V4,
                SocketType::Stream,
                Protocol::Tcp,
            );
            let error = socket
                .expect("a socket")
                .connect(addr, ConnectOptions::default());
            error.expect_err("it cannot be").code()
        };
        assert_eq!(
            code(SocketAddr::new(net::addr6_a(), 7)),
            WsaCode::AfNoSupport
        );
        assert_eq!(
            code(SocketAddr::new(net::addr_a(), 0)),
            WsaCode::AddrNotAvailable
        );
        assert_eq!(
            code("0.0.0.0:7".parse().expect("an address")),
            WsaCode::AddrNotAvailable
        );
        let listener = san.listen_a(1);
        let error = listener
            .socket
            .connect(net::at_b(), ConnectOptions::default())
            .expect_err("it listens");
        assert_eq!(error.code(), WsaCode::Invalid);
        let connector = san.connect(net::at_a());
        assert!(connector.result().is_err(), "nobody listens");
        assert_eq!(
            connector.start(net::at_a(), STEP).code(),
            WsaCode::Invalid,
            "it failed before"
        );
    });
}

/// A neighbour with a hardware address that nobody has.
struct Neighbour<'a> {
    ip: &'a str,
    netdev: &'a str,
}

impl<'a> Neighbour<'a> {
    fn add(ip: &'a str, netdev: &'a str, source: &str) -> Self {
        program::must(
            "ip",
            &[
                "neigh",
                "replace",
                ip,
                "lladdr",
                "02:00:00:00:0d:0d",
                "dev",
                netdev,
                "nud",
                "permanent",
            ],
        );
        program::must(
            "ip",
            &["route", "replace", ip, "dev", netdev, "src", source],
        );
        Self { ip, netdev }
    }
}

impl Drop for Neighbour<'_> {
    fn drop(&mut self) {
        // The guest goes away with all of it, should one fail.
        let _ = program::output_of("ip", &["route", "del", self.ip, "dev", self.netdev]);
        let _ = program::output_of("ip", &["neigh", "del", self.ip, "dev", self.netdev]);
    }
}
