//! The switch on real RDMA or the soft fabric: two NICs of one host, a provider, TCP beside it.
//! Needs SAN_TEST_ADDR_A and SAN_TEST_ADDR_B, which ci/rxe and ci/test set.

use san_provider::{Provider, ProviderConfig};
use san_switch::{
    AcceptError, CancelToken, CompanionState, ConnectError, ConnectOptions, Connection, Decision,
    FallbackReason, ListenOptions, Listener, Route, Side, Switch, SwitchConfig,
};
use san_tests::census::threads;
use san_tests::net::{addr_a, addr_b, addr6_a, addr6_b, switch_config};
use san_tests::san::San;
use san_tests::time::{bounded, eventually};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(15);

fn config() -> SwitchConfig {
    SwitchConfig {
        connect_timeout: PATIENCE,
        io_timeout: Some(PATIENCE),
        ..switch_config()
    }
}

fn switch() -> Switch {
    Switch::new(config()).expect("the fabric under test")
}

fn any() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
}

fn backlog(backlog: u32) -> ListenOptions {
    ListenOptions {
        backlog: Some(backlog),
        ..ListenOptions::default()
    }
}

fn from(ip: IpAddr) -> ConnectOptions {
    ConnectOptions {
        local: Some(SocketAddr::new(ip, 0)),
        ..ConnectOptions::default()
    }
}

fn at(ip: IpAddr, listener: &Listener) -> SocketAddr {
    SocketAddr::new(ip, listener.local_addr().port())
}

/// A SAN client from A to B.
fn san_client(switch: &Switch, listener: &Listener) -> Connection {
    let client = switch
        .connect(at(addr_b(), listener), &from(addr_a()))
        .unwrap();
    assert!(client.is_san(), "{}", client.route());
    client
}

fn accept(listener: &Listener) -> Connection {
    listener.accept_timeout(PATIENCE).unwrap()
}

fn assert_listens(listener: &Listener, companions: usize) {
    let status = listener.san_status();
    assert_eq!(status.len(), companions, "{status:?}");
    for companion in status {
        assert_eq!(companion.state, CompanionState::Listening, "{companion}");
    }
}

/// Sends bytes there, has them sent back, and compares.
fn echo(client: &Connection, server: &Connection, length: usize) {
    let sent: Vec<u8> = (0..length).map(|at| (at * 7 + at / 251) as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; 10_000];
            loop {
                match server.receive(&mut buffer).unwrap() {
                    0 => break,
                    n => (&mut &*server).write_all(&buffer[..n]).unwrap(),
                }
            }
            server.shutdown_write().unwrap();
        });
        let reader = scope.spawn(|| {
            let mut back = Vec::new();
            (&mut &*client).read_to_end(&mut back).unwrap();
            back
        });
        (&mut &*client).write_all(&sent).unwrap();
        client.shutdown_write().unwrap();
        let back = reader.join().unwrap();
        assert_eq!(back.len(), sent.len());
        assert!(back == sent, "other bytes came back");
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_001_a_stream_over_the_san_is_a_stream() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        for length in [0, 1, 4095, 4096, 4097, 300_000] {
            let client = san_client(&switch, &listener);
            let server = accept(&listener);
            assert!(server.is_san());
            assert_eq!(client.local_addr(), server.peer_addr());
            assert_eq!(client.peer_addr(), server.local_addr());
            echo(&client, &server, length);
            let error = client.send(b"x").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_001_one_byte_at_a_time_is_the_same_stream() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        let client = san_client(&switch, &listener);
        let server = accept(&listener);
        for byte in b"message boundaries are nobody's business" {
            assert_eq!(client.send(&[*byte]).unwrap(), 1);
        }
        client.shutdown_write().unwrap();
        let mut text = String::new();
        let mut byte = [0];
        while server.receive(&mut byte).unwrap() == 1 {
            text.push(char::from(byte[0]));
        }
        assert_eq!(text, "message boundaries are nobody's business");
        // And the other way round: one message, many reads.
        let client = san_client(&switch, &listener);
        let server = accept(&listener);
        (&client).write_all(b"abc").unwrap();
        for expected in b"abc" {
            assert_eq!(server.receive(&mut byte).unwrap(), 1);
            assert_eq!(byte[0], *expected);
        }
        server
            .set_receive_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let error = server.receive(&mut byte).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        // A time that was over spoils nothing.
        (&client).write_all(b"d").unwrap();
        server.set_receive_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(server.receive(&mut byte).unwrap(), 1);
        assert_eq!(byte, *b"d");
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_001_what_was_sent_before_a_close_arrives() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        for _ in 0..20 {
            let client = san_client(&switch, &listener);
            let server = accept(&listener);
            let sender = std::thread::spawn(move || {
                (&client).write_all(&[7; 100_000]).unwrap();
                drop(client);
            });
            let mut all = Vec::new();
            (&server).read_to_end(&mut all).unwrap();
            assert_eq!(all.len(), 100_000);
            sender.join().unwrap();
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_004_every_registered_provider_is_started_and_cleaned_up() {
    bounded(|| {
        let providers: Vec<_> = (0..2)
            .map(|_| San::stopped(ProviderConfig::default()))
            .collect();
        let is_started = |provider: &Provider| provider.address_list().is_ok();
        assert!(!providers.iter().any(is_started));
        let mut builder = Switch::builder().config(config());
        for (name, provider) in ["one", "two"].into_iter().zip(&providers) {
            builder = builder.provider(name, provider.clone());
        }
        let switch = builder.build().unwrap();
        assert_eq!(switch.providers(), ["one", "two"]);
        assert!(providers.iter().all(is_started));
        // The first one serves the subnets that both have.
        let addresses = switch.san_addresses();
        assert!(addresses.iter().any(|entry| entry.provider == 1));
        let listener = switch.listen(any(), backlog(4)).unwrap();
        let client = san_client(&switch, &listener);
        assert!(matches!(client.route(), Route::San { provider, .. } if provider == "one"));
        assert!(switch.shutdown());
        assert!(!providers.iter().any(is_started));
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_005_the_provider_and_its_threads_are_started_by_the_switch() {
    bounded(|| {
        let switch = switch();
        assert_eq!(switch.providers(), [config().fabric.to_string()]);
        // A thread takes its name as its first act.
        for name in ["san-accept", "san-cm", "san-progress"] {
            eventually(name, PATIENCE, || threads().contains_key(name));
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_006_the_table_holds_the_addresses_of_both_nics() {
    bounded(|| {
        let switch = switch();
        let addresses = switch.san_addresses();
        for ip in [addr_a(), addr_b(), addr6_a(), addr6_b()] {
            let entry = addresses.iter().find(|entry| entry.ip == ip);
            let entry = entry.unwrap_or_else(|| panic!("{ip} is not in {addresses:?}"));
            assert!(!entry.device.is_empty() && entry.ifindex > 0);
        }
        assert!(addresses.iter().all(|entry| !entry.ip.is_loopback()));
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_007_a_provider_that_comes_later_joins_the_listeners() {
    bounded(|| {
        let switch = Switch::builder().config(config()).build().unwrap();
        let wildcard = switch.listen(any(), backlog(4)).unwrap();
        let on_b = switch
            .listen(SocketAddr::new(addr_b(), 0), backlog(4))
            .unwrap();
        let elsewhere = switch
            .listen("127.0.0.1:0".parse().unwrap(), backlog(4))
            .unwrap();
        assert!(wildcard.san_status().is_empty());
        let provider = San::stopped(ProviderConfig::default());
        switch.add_provider("late", provider).unwrap();
        assert_listens(&wildcard, 1);
        assert_listens(&on_b, 1);
        assert_listens(&elsewhere, 0);
        for listener in [&wildcard, &on_b] {
            let client = san_client(&switch, listener);
            assert!(matches!(client.route(), Route::San { provider, .. } if provider == "late"));
            assert!(accept(listener).is_san());
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_010_what_the_application_holds_is_a_tcp_socket() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        let client = san_client(&switch, &listener);
        let server = accept(&listener);
        let copy = listener.as_fd().try_clone_to_owned().unwrap();
        let held = TcpListener::from(copy);
        assert_eq!(held.local_addr().unwrap(), listener.local_addr());
        for connection in [&client, &server] {
            let held = TcpStream::from(connection.as_fd().try_clone_to_owned().unwrap());
            // TCP's socket, of the right family, and not connected: the bytes go elsewhere.
            assert!(held.nodelay().is_ok() && held.local_addr().unwrap().is_ipv4());
            assert_eq!(
                held.peer_addr().unwrap_err().kind(),
                ErrorKind::NotConnected
            );
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_011_a_local_address_is_tcps_business() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        let opened = || switch.provider_counters()[0].1.sockets_opened;
        let before = opened();
        let nowhere = from("192.0.2.1".parse().unwrap());
        let error = switch
            .connect(at(addr_b(), &listener), &nowhere)
            .unwrap_err();
        assert!(matches!(error, ConnectError::Local { .. }), "{error}");
        // Bound to an address without RDMA: no provider has to do with it.
        let loopback = from(Ipv4Addr::LOCALHOST.into());
        let client = switch.connect(at(addr_b(), &listener), &loopback);
        assert!(client.is_ok_and(|client| !client.is_san()));
        assert_eq!(opened(), before);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_012_no_provider_is_chosen_before_listen_or_connect() {
    bounded(|| {
        let switch = switch();
        let opened = || switch.provider_counters()[0].1.sockets_opened;
        assert_eq!(opened(), 0);
        let listener = switch.listen(any(), backlog(4)).unwrap();
        assert_eq!(opened(), 1);
        let _client = san_client(&switch, &listener);
        let _server = accept(&listener);
        assert_eq!(opened(), 3);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_013_the_companion_has_the_tcp_sockets_address_and_port() {
    bounded(|| {
        let switch = switch();
        let listener = switch
            .listen(SocketAddr::new(addr_b(), 0), backlog(4))
            .unwrap();
        let status = &listener.san_status()[0];
        assert_eq!(status.address, listener.local_addr());
        assert_ne!(status.address.port(), 0);
        let client = san_client(&switch, &listener);
        assert_eq!(client.local_addr().ip(), addr_a());
        assert_eq!(client.peer_addr(), listener.local_addr());
        // A port of its own choice too.
        let port = TcpListener::bind((addr_a(), 0)).unwrap();
        let local = port.local_addr().unwrap();
        drop(port);
        let options = ConnectOptions {
            local: Some(local),
            ..ConnectOptions::default()
        };
        let client = switch.connect(listener.local_addr(), &options).unwrap();
        assert!(client.is_san(), "{}", client.route());
        assert_eq!(client.local_addr(), local);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_014_a_listener_on_one_nic_is_not_found_on_the_other() {
    bounded(|| {
        let switch = switch();
        let listener = switch
            .listen(SocketAddr::new(addr_b(), 0), backlog(4))
            .unwrap();
        assert_listens(&listener, 1);
        let elsewhere = at(addr_a(), &listener);
        let error = switch.connect(elsewhere, &from(addr_b())).unwrap_err();
        assert!(
            matches!(
                &error,
                ConnectError::Tcp {
                    fallback: Some(_),
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(
            std::io::Error::from(error).kind(),
            ErrorKind::ConnectionRefused
        );
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_015_options_of_the_tcp_socket_are_the_companions_too() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        let options = ConnectOptions {
            type_of_service: Some(0x20),
            ..from(addr_a())
        };
        let client = switch.connect(at(addr_b(), &listener), &options).unwrap();
        assert!(client.is_san(), "{}", client.route());
        // TCP's listening sockets have SO_REUSEADDR: the port serves again at once on both sides,
        // while a connection of the first listener lives.
        let _server = accept(&listener);
        let address = listener.local_addr();
        drop(listener);
        let listener = switch.listen(address, backlog(4)).unwrap();
        assert_listens(&listener, 1);
        san_client(&switch, &listener);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_016_tcp_goes_on_where_the_companion_cannot_be_made() {
    bounded(|| {
        let first = switch();
        let second = switch();
        let taken = first.listen(any(), backlog(4)).unwrap();
        // Only TCP's half of the port is free again.
        let port = taken.local_addr().port();
        let holder = San::stopped(ProviderConfig::default());
        holder
            .startup(
                san_provider::SpiVersion::CURRENT,
                false,
                Arc::new(san_provider::NoUpcalls),
            )
            .unwrap();
        drop(taken);
        let socket = holder
            .socket(
                san_provider::AddressFamily::V4,
                san_provider::SocketType::Stream,
                san_provider::Protocol::Tcp,
            )
            .unwrap();
        eventually("the port is free on the SAN", PATIENCE, || {
            socket.bind((Ipv4Addr::UNSPECIFIED, port).into()).is_ok()
        });
        let listener = second
            .listen((Ipv4Addr::UNSPECIFIED, port).into(), backlog(4))
            .unwrap();
        let status = listener.san_status();
        let CompanionState::Failed { step, code, .. } = &status[0].state else {
            panic!("{}", status[0]);
        };
        assert_eq!((*step, code.name()), ("bind", "WSAEADDRNOTAVAIL"));
        let client = first
            .connect(at(addr_b(), &listener), &from(addr_a()))
            .unwrap();
        assert!(!client.is_san());
        assert!(!accept(&listener).is_san());
        socket.close().unwrap();
        holder.cleanup().unwrap();
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_017_a_connection_of_the_san_never_turns_to_tcp() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        let client = san_client(&switch, &listener);
        // The peer goes without ending its stream, and a TCP server is there all the while.
        listener.close();
        let error = client.receive(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(client.is_san());
        assert!(client.send(b"x").is_err());
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_018_other_subnets_and_loopback_go_to_tcp() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        let loopback = at(Ipv4Addr::LOCALHOST.into(), &listener);
        let client = switch
            .connect(loopback, &ConnectOptions::default())
            .unwrap();
        assert!(matches!(client.route(), Route::Tcp { why: None }));
        assert!(!accept(&listener).is_san());
        let before = switch.provider_counters()[0].1;
        let options = ConnectOptions {
            timeout: Some(Duration::from_millis(200)),
            ..ConnectOptions::default()
        };
        assert!(
            switch
                .connect("192.0.2.1:9".parse().unwrap(), &options)
                .is_err()
        );
        assert_eq!(switch.provider_counters()[0].1, before);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_019_a_connect_over_the_san_can_be_polled() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        let mut pending = switch
            .start_connect(at(addr_b(), &listener), &from(addr_a()))
            .unwrap();
        let begin = Instant::now();
        let client = loop {
            if let Some(connection) = pending.poll().unwrap() {
                break connection;
            }
            assert!(begin.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(1));
        };
        assert!(client.is_san());
        echo(&client, &accept(&listener), 100);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_021_nobody_on_the_san_means_tcp() {
    bounded(|| {
        let switch = switch();
        let plain = TcpListener::bind((addr_b(), 0)).unwrap();
        let destination = plain.local_addr().unwrap();
        let client = switch.connect(destination, &from(addr_a())).unwrap();
        let Route::Tcp { why: Some(why) } = client.route() else {
            panic!("{}", client.route());
        };
        assert!(matches!(why, FallbackReason::Connect(_)), "{why}");
        assert_eq!(plain.accept().unwrap().1, client.local_addr());
        assert_eq!(switch.stats().fallbacks, 1);
        // It cost next to nothing, so it is asked again the next time.
        assert_eq!(switch.stats().remembered, 0);
        drop(switch.connect(destination, &from(addr_a())).unwrap());
        assert_eq!(switch.stats().remembered, 0);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_021_in_a_strict_san_nobody_means_nobody() {
    bounded(|| {
        let strict = Switch::new(SwitchConfig {
            strict: true,
            ..config()
        })
        .unwrap();
        let plain = TcpListener::bind((addr_b(), 0)).unwrap();
        let error = strict
            .connect(plain.local_addr().unwrap(), &from(addr_a()))
            .unwrap_err();
        assert!(matches!(error, ConnectError::San { .. }), "{error}");
        assert_eq!(
            std::io::Error::from(error).kind(),
            ErrorKind::ConnectionReset
        );
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_021_silence_costs_its_deadline_once() {
    bounded(|| {
        let switch = Switch::new(SwitchConfig {
            fabric_connect_timeout: Duration::from_millis(400),
            ..config()
        })
        .unwrap();
        // In the subnet, but nobody has the address.
        let nobody: SocketAddr = "10.0.7.99:9".parse().unwrap();
        let options = ConnectOptions {
            timeout: Some(Duration::from_millis(800)),
            ..from(addr_a())
        };
        let first = switch.connect(nobody, &options).unwrap_err();
        assert!(
            matches!(first.fallback(), Some(FallbackReason::Connect(_))),
            "{first}"
        );
        assert_eq!(switch.stats().remembered, 0);
        let second = switch.connect(nobody, &options).unwrap_err();
        assert!(
            matches!(second.fallback(), Some(FallbackReason::Remembered(_))),
            "{second}"
        );
        assert_eq!(switch.stats().remembered, 1);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_024_listeners_are_served_on_both_sides_at_one_port() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        assert_listens(&listener, 1);
        for (client, server) in [(addr_a(), addr_b()), (addr_b(), addr_a())] {
            let connection = switch
                .connect(at(server, &listener), &from(client))
                .unwrap();
            assert!(connection.is_san(), "{}", connection.route());
            assert!(accept(&listener).is_san());
        }
        let tcp = TcpStream::connect(at(addr_b(), &listener)).unwrap();
        assert_eq!(accept(&listener).peer_addr(), tcp.local_addr().unwrap());
        let loopback = switch
            .listen("127.0.0.1:0".parse().unwrap(), backlog(4))
            .unwrap();
        assert_listens(&loopback, 0);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_024_ipv6_and_the_wildcard_of_both_families() {
    bounded(|| {
        let switch = switch();
        let listener = switch
            .listen("[::]:0".parse().unwrap(), backlog(4))
            .unwrap();
        assert_listens(&listener, 2);
        for (client, server) in [(addr6_a(), addr6_b()), (addr_a(), addr_b())] {
            let connection = switch
                .connect(at(server, &listener), &from(client))
                .unwrap();
            assert!(connection.is_san(), "{}", connection.route());
            let accepted = accept(&listener);
            assert!(accepted.is_san());
            echo(&connection, &accepted, 5000);
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_025_past_the_backlog_a_connect_is_refused_at_once() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        let waiting: Vec<_> = (0..4).map(|_| san_client(&switch, &listener)).collect();
        eventually("four wait", PATIENCE, || listener.san_waiting() == 4);
        for _ in 0..3 {
            let error = switch
                .connect(at(addr_b(), &listener), &from(addr_a()))
                .unwrap_err();
            assert!(matches!(error, ConnectError::San { .. }), "{error}");
            assert!(error.to_string().contains("backlog of 4"), "{error}");
            let error = std::io::Error::from(error);
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        assert_eq!(listener.stats().refused_backlog, 3);
        assert_eq!(switch.stats().refused, 3);
        // Room comes back with accept.
        let first = accept(&listener);
        assert_eq!(first.peer_addr(), waiting[0].local_addr());
        san_client(&switch, &listener);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_026_many_at_once_are_served_or_refused_and_nobody_hangs() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        let destination = at(addr_b(), &listener);
        let (served, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let connections: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..10)
                .map(|_| scope.spawn(|| switch.connect(destination, &from(addr_a()))))
                .collect();
            let outcomes = threads.into_iter().map(|thread| thread.join().unwrap());
            outcomes
                .filter_map(|outcome| match outcome {
                    Ok(connection) => {
                        served.fetch_add(1, Ordering::SeqCst);
                        Some(connection)
                    }
                    Err(error) => {
                        assert!(matches!(error, ConnectError::San { .. }), "{error}");
                        refused.fetch_add(1, Ordering::SeqCst);
                        None
                    }
                })
                .collect()
        });
        assert_eq!((served.into_inner(), refused.into_inner()), (4, 6));
        assert_eq!(connections.len(), 4);
        assert!(listener.stats().accept_signals > 0);
        for _ in 0..4 {
            assert!(accept(&listener).is_san());
        }
        assert!(listener.try_accept().unwrap().is_none());
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_027_both_sides_come_in_the_order_of_their_arrival() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(16)).unwrap();
        let mut clients = Vec::new();
        let mut plain = Vec::new();
        let mut expected = Vec::new();
        for round in 0..4 {
            let client = san_client(&switch, &listener);
            expected.push(client.local_addr());
            clients.push(client);
            let waiting = round + 1;
            eventually("the SAN's is queued", PATIENCE, || {
                listener.san_waiting() == waiting
            });
            let client = TcpStream::connect(at(addr_b(), &listener)).unwrap();
            expected.push(client.local_addr().unwrap());
            plain.push(client);
            // What arrives before the accept thread looks has arrived at once.
            std::thread::sleep(Duration::from_millis(50));
        }
        let order: Vec<_> = (0..8).map(|_| accept(&listener).peer_addr()).collect();
        assert_eq!(order, expected);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_027_a_program_connects_to_itself_and_then_accepts() {
    bounded(|| {
        let switch = switch();
        let listener = switch
            .listen(SocketAddr::new(addr_a(), 0), backlog(4))
            .unwrap();
        // Towards its own NIC.
        let client = switch
            .connect(listener.local_addr(), &from(addr_a()))
            .unwrap();
        assert!(client.is_san(), "{}", client.route());
        echo(&client, &accept(&listener), 10_000);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_027_accept_waits_for_either_side() {
    bounded(|| {
        let switch = switch();
        let listener = Arc::new(switch.listen(any(), backlog(4)).unwrap());
        for side in [Side::San, Side::Tcp] {
            let waiter = {
                let listener = Arc::clone(&listener);
                std::thread::spawn(move || accept(&listener))
            };
            std::thread::sleep(Duration::from_millis(50));
            let destination = at(addr_b(), &listener);
            if side == Side::San {
                let client = san_client(&switch, &listener);
                let server = waiter.join().unwrap();
                assert!(server.is_san());
                assert_eq!(server.peer_addr(), client.local_addr());
            } else {
                let client = TcpStream::connect(destination).unwrap();
                let server = waiter.join().unwrap();
                assert!(!server.is_san());
                assert_eq!(server.peer_addr(), client.local_addr().unwrap());
            }
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_028_the_condition_function_decides() {
    bounded(|| {
        let switch = switch();
        let seen = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&seen);
        let options = ListenOptions {
            condition: Some(Arc::new(move |request| {
                assert_eq!(request.side, Side::San);
                assert_eq!(request.local.ip(), addr_b());
                // Every second one is let in.
                if count.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
                    Decision::Reject
                } else {
                    Decision::Accept
                }
            })),
            ..backlog(4)
        };
        let listener = switch.listen(any(), options).unwrap();
        for _ in 0..2 {
            let error = switch
                .connect(at(addr_b(), &listener), &from(addr_a()))
                .unwrap_err();
            assert!(matches!(error, ConnectError::San { .. }), "{error}");
            assert!(error.to_string().contains("condition function"), "{error}");
            assert_eq!(
                std::io::Error::from(error).kind(),
                ErrorKind::ConnectionRefused
            );
            san_client(&switch, &listener);
        }
        assert_eq!(seen.load(Ordering::SeqCst), 4);
        assert_eq!(listener.stats().refused_condition, 2);
        eventually("two wait", PATIENCE, || listener.san_waiting() == 2);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_032_what_waits_at_a_closed_listener_is_closed() {
    bounded(|| {
        let switch = switch();
        let listener = Arc::new(switch.listen(any(), backlog(4)).unwrap());
        let client = san_client(&switch, &listener);
        eventually("it waits", PATIENCE, || listener.san_waiting() == 1);
        listener.close();
        let error = client.receive(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(matches!(listener.try_accept(), Err(AcceptError::Closed)));
        // An accept that is called off takes nothing with it.
        let listener = switch.listen(any(), backlog(4)).unwrap();
        let token = CancelToken::new().unwrap();
        token.cancel();
        let client = san_client(&switch, &listener);
        assert!(matches!(
            listener.accept_cancellable(&token, None),
            Err(AcceptError::Cancelled)
        ));
        echo(&client, &accept(&listener), 10);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_047_a_connect_that_is_called_off_leaves_the_listener_alone() {
    bounded(|| {
        let switch = switch();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        for _ in 0..5 {
            let options = from(addr_a());
            drop(
                switch
                    .start_connect(at(addr_b(), &listener), &options)
                    .unwrap(),
            );
        }
        // Those that got through before are gone again; a good one is served.
        let client = san_client(&switch, &listener);
        let server = loop {
            let server = accept(&listener);
            if server.peer_addr() == client.local_addr() {
                break server;
            }
        };
        echo(&client, &server, 1000);
    });
}
