//! Over the fabric: streams, providers and the companions of sockets (duties 1 to 17).

#[path = "support.rs"]
mod support;

use san_provider::{Provider, ProviderConfig};
use san_switch::{CompanionState, ConnectError, ConnectOptions, FallbackReason, Route, Switch};
use san_tests::census::threads;
use san_tests::net::{addr_a, addr_b, addr6_a, addr6_b};
use san_tests::san::San;
use san_tests::time::{bounded, eventually};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use support::*;

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
            let held = TcpStream::from(connection.companion_fd().try_clone_to_owned().unwrap());
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
        let options = ConnectOptions::default().local(local);
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
        let options = from(addr_a()).type_of_service(0x20);
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

/// Somebody has this port on the SAN, and not on TCP.
fn taken_on_the_san(port: u16) -> (Provider, san_provider::Socket) {
    let holder = San::stopped(ProviderConfig::default());
    holder
        .startup(
            san_provider::SpiVersion::CURRENT,
            false,
            Arc::new(san_provider::NoUpcalls),
        )
        .unwrap();
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
    (holder, socket)
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_016_a_connect_whose_companion_cannot_be_made_takes_tcp() {
    bounded(|| {
        let switch = switch();
        let plain = TcpListener::bind((addr_b(), 0)).unwrap();
        // A port that TCP gives again once its listener is dropped.
        let free = TcpListener::bind((addr_a(), 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let (holder, socket) = taken_on_the_san(port);
        let options = ConnectOptions::default().local((addr_a(), port).into());
        let client = switch
            .connect(plain.local_addr().unwrap(), &options)
            .unwrap();
        let Route::Tcp { why: Some(why) } = client.route() else {
            panic!("{}", client.route());
        };
        let FallbackReason::Companion { step, .. } = why else {
            panic!("{why}");
        };
        assert_eq!(*step, "bind");
        let report = switch.report();
        let told = report.connections[0].why.as_deref();
        assert_eq!(told, Some(why.to_string().as_str()));
        drop(client);
        socket.close().unwrap();
        holder.cleanup().unwrap();
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
        drop(taken);
        let (holder, socket) = taken_on_the_san(port);
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
