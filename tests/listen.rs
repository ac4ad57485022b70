//! Where and how a provider's socket listens (duties 77 to 79).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use san_provider::{ConnectFailure, Decision, SOMAXCONN, SocketOption, WsaCode};
use san_tests::net;
use san_tests::san::San;
use san_tests::time::{STEP, bounded, eventually};

/// Winsock's headers have this number for SOMAXCONN.
const WINSOCK_SOMAXCONN: u32 = 0x7fff_ffff;

#[test]
fn wsd_077_listen_errors() {
    bounded(|| {
        let san = San::start();
        let unbound = san.socket(net::addr_a());
        assert_eq!(
            unbound.listen(4).expect_err("not bound").code(),
            WsaCode::Invalid
        );

        let closed = san.bound(net::at_a());
        closed.close().expect("close");
        assert_eq!(
            closed.listen(4).expect_err("closed").code(),
            WsaCode::NotSocket
        );

        let (connected, accepted) = san.pair();
        assert_eq!(
            connected.listen(4).expect_err("connected").code(),
            WsaCode::IsConnected
        );
        assert_eq!(
            accepted.listen(4).expect_err("connected").code(),
            WsaCode::IsConnected
        );

        let bound = san.bound(net::at_a());
        assert_eq!(
            bound
                .listen(SOMAXCONN + 1)
                .expect_err("out of range")
                .code(),
            WsaCode::Invalid
        );
        bound.listen(4).expect("what failed before does no harm");
    });
}

#[test]
fn wsd_077_the_backlog_is_fixed() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(4);
        listener.socket.listen(4).expect("the same again");
        let error = listener.socket.listen(5).expect_err("another one");
        assert_eq!(error.code(), WsaCode::Invalid);
        assert_eq!(
            listener.socket.option(SocketOption::Backlog).expect("open"),
            4
        );
        let connector = san.connect(listener.addr);
        let _accepted = listener.accept();
        connector.result().expect("it listens as before");
    });
}

#[test]
fn wsd_078_somaxconn_is_a_reasonable_maximum_and_0_is_1() {
    bounded(|| {
        let san = San::start();
        for (asked, granted) in [(0, 1), (1, 1), (SOMAXCONN, 4096), (WINSOCK_SOMAXCONN, 4096)] {
            let listener = san.listen_a(asked);
            assert_eq!(
                listener.socket.option(SocketOption::Backlog).expect("open"),
                granted,
                "asked {asked}"
            );
        }
        assert_eq!(
            san.bound(net::at_a())
                .option(SocketOption::Backlog)
                .expect("open"),
            0,
            "it does not listen"
        );
    });
}

#[test]
fn wsd_079_requests_are_accepted_in_the_order_of_arrival() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(8);
        let mut sources = Vec::new();
        let mut connectors = Vec::new();
        for count in 1..=5 {
            let connector = san.connect(listener.addr);
            san.wait_requests(count);
            sources.push(connector.socket.local_addr().expect("open"));
            connectors.push(connector);
        }
        let accepted = sources
            .iter()
            .map(|_| listener.accept())
            .collect::<Vec<_>>();
        assert_eq!(
            accepted
                .iter()
                .map(|accepted| accepted.peer)
                .collect::<Vec<_>>(),
            sources
        );
        for connector in connectors {
            connector.result().expect("accepted");
        }
    });
}

#[test]
fn wsd_079_a_request_waits_longer_than_a_request_is_repeated() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let connector = san.connect(listener.addr);
        listener.wait_event();
        // The peer's CM repeats a request, the soft fabric's soon, the kernel's after some 6 s;
        // nothing else is on the wire meanwhile.
        let before = received_packets();
        eventually("the request is repeated", STEP, || {
            received_packets() > before
        });
        // What is made of it is seen a moment later.
        thread::sleep(Duration::from_millis(200));
        assert!(connector.ended().is_none(), "nobody has answered yet");
        assert_eq!(
            san.counters().requests,
            1,
            "a repetition is not another request"
        );
        let _accepted = listener.accept();
        connector.result().expect("accepted at last");
    });
}

#[test]
fn wildcard_serves_every_nic() {
    bounded(|| serves(Ipv4Addr::UNSPECIFIED.into(), [net::addr_a(), net::addr_b()]));
}

#[test]
#[ignore = "needs an IPv6 address at each end: ci/test"]
fn wildcard_serves_every_nic_on_ipv6() {
    bounded(|| {
        serves(
            Ipv6Addr::UNSPECIFIED.into(),
            [net::addr6_a(), net::addr6_b()],
        );
    });
}

#[test]
#[ignore = "needs an IPv6 address at each end: ci/test"]
fn address_listener_serves_only_that_nic() {
    bounded(|| {
        for (own, other) in [
            (net::addr_a(), net::addr_b()),
            (net::addr6_a(), net::addr6_b()),
        ] {
            let san = San::start();
            let listener = san.listen(SocketAddr::new(own, net::port()), 4);
            let stranger = san.connect(SocketAddr::new(other, listener.addr.port()));
            let failure = stranger.failure().failure();
            assert_eq!(
                failure,
                ConnectFailure::NobodyListens { strict: false },
                "listening at {own} only"
            );
            let connector = san.connect(listener.addr);
            let accepted = listener.accept();
            connector.result().expect("accepted");
            assert_eq!(
                accepted.socket.local_addr().expect("open"),
                Some(listener.addr)
            );
        }
    });
}

#[test]
#[ignore = "needs an IPv6 address at each end: ci/test"]
fn ipv6_wildcard_leaves_ipv4_to_others() {
    bounded(|| {
        let san = San::start();
        let port = net::port();
        let six = san.listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), 4);
        let four = san.listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), 4);
        let connector = san.connect(SocketAddr::new(net::addr_a(), port));
        let _accepted = four.accept();
        connector.result().expect("accepted");
        assert!(!six.event.is_set());
    });
}

#[test]
fn tcp_can_listen_at_the_same_address_and_port() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(4);
        let tcp = TcpListener::bind(listener.addr).expect("TCP at the same address");
        let stream = TcpStream::connect(listener.addr).expect("TCP");
        assert_eq!(
            tcp.accept().expect("TCP").1,
            stream.local_addr().expect("connected")
        );
        let connector = san.connect(listener.addr);
        let _accepted = listener.accept();
        connector.result().expect("accepted");
    });
}

/// How many packets the devices have taken in.
fn received_packets() -> u64 {
    let devices = net::fabric().devices().expect("devices");
    let counters = devices.iter().flat_map(verbs_shim::Device::counters);
    // As the soft fabric and as the kernel's soft-RoCE call it.
    let of_packets = counters.filter(|(name, _)| name == "received_packets" || name == "rcvd_pkts");
    of_packets.map(|(_, count)| count).sum()
}

/// A listener at the wildcard address takes requests to each of these, and knows which was meant.
fn serves(wildcard: IpAddr, addresses: [IpAddr; 2]) {
    let san = San::start();
    let listener = san.listen(SocketAddr::new(wildcard, net::port()), 4);
    for ip in addresses {
        let target = SocketAddr::new(ip, listener.addr.port());
        let connector = san.connect(target);
        listener.wait_event();
        let mut asked_for = None;
        let accepted = listener.socket.accept(|request| {
            asked_for = request.local;
            Decision::Accept
        });
        let accepted = accepted.unwrap_or_else(|error| panic!("{target}: {error}"));
        assert_eq!(asked_for, Some(target));
        assert_eq!(accepted.socket.local_addr().expect("open"), Some(target));
        connector.result().expect("accepted");
    }
}
