//! Startup, cleanup and sockets of the provider, seen from a switch (duties 63 to 70, 99).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use san_provider::{
    AddressFamily, ConnectOptions, Decision, EventObject, NetworkEvents, NoUpcalls, Notification,
    Protocol, ProviderConfig, SocketOption, SocketType, SpiVersion, WsaCode,
};
use san_tests::census::Census;
use san_tests::net;
use san_tests::program::{self, Program};
use san_tests::san::{San, Upcall};
use san_tests::time::{STEP, bounded, eventually};

const STREAM: (AddressFamily, SocketType, Protocol) =
    (AddressFamily::V4, SocketType::Stream, Protocol::Tcp);

#[test]
fn wsd_063_startup_and_cleanup_are_counted() {
    bounded(|| {
        let provider = San::stopped(ProviderConfig::default());
        for _ in 0..2 {
            provider
                .startup(SpiVersion::CURRENT, true, Arc::new(NoUpcalls))
                .expect("startup");
        }
        provider.cleanup().expect("the first cleanup");
        let socket = provider
            .socket(STREAM.0, STREAM.1, STREAM.2)
            .expect("one startup is left");
        socket.bind(net::at_a()).expect("bind");
        provider.cleanup().expect("the second cleanup");
        let refused = provider
            .socket(STREAM.0, STREAM.1, STREAM.2)
            .expect_err("no startup is left");
        assert_eq!(refused.code(), WsaCode::NotInitialised);
    });
}

#[test]
fn wsd_063_cleanup_without_startup_is_notinitialised() {
    bounded(|| {
        let provider = San::stopped(ProviderConfig::default());
        assert_eq!(
            provider.cleanup().expect_err("never started").code(),
            WsaCode::NotInitialised
        );
        provider
            .startup(SpiVersion::CURRENT, true, Arc::new(NoUpcalls))
            .expect("startup");
        provider.cleanup().expect("the cleanup of that startup");
        assert_eq!(
            provider.cleanup().expect_err("one too many").code(),
            WsaCode::NotInitialised
        );
    });
}

#[test]
fn wsd_063_the_last_cleanup_frees_everything() {
    // What libraries allocate once a process is there afterwards.
    drop(San::start().pair());
    bounded(|| {
        let before = Census::take();
        let client = San::start();
        let server = San::start();
        let listener = server.listen_a(4);
        let connected = client.connect(listener.addr);
        let accepted = listener.accept();
        connected.result().expect("the accepted connect");
        accepted
            .socket
            .receive(Notification::Poll)
            .expect("a receive that stays pending");
        let waiting = [client.connect(listener.addr), client.connect(listener.addr)];
        server.wait_requests(3);

        // Nothing of the server is closed by hand.
        server.provider.cleanup().expect("cleanup");

        for connector in waiting {
            let error = connector.failure();
            assert_eq!(error.code(), WsaCode::TimedOut, "{error}");
        }
        let pending = connected.socket.receive(Notification::Poll);
        let ended =
            pending.map(|operation| san_tests::san::wait(&connected.socket, operation).outcome);
        match ended {
            Err(error) | Ok(Err(error)) => assert_eq!(error.code(), WsaCode::ConnReset, "{error}"),
            Ok(Ok(transferred)) => panic!("nothing was sent, but {transferred:?} came"),
        }
        client.provider.cleanup().expect("cleanup");
        drop((listener, accepted, connected, client, server));
        before.assert_back();
    });
}

#[test]
fn wsd_063_startup_after_the_last_cleanup_begins_anew() {
    bounded(|| {
        let provider = San::stopped(ProviderConfig::default());
        for _ in 0..3 {
            provider
                .startup(SpiVersion::CURRENT, true, Arc::new(NoUpcalls))
                .expect("startup");
            let socket = provider
                .socket(STREAM.0, STREAM.1, STREAM.2)
                .expect("a socket");
            socket.bind(net::at_a()).expect("bind");
            socket.listen(1).expect("listen");
            provider.cleanup().expect("cleanup");
            // The kernel lists a thread a moment longer than it can be waited for.
            eventually("no thread is left", STEP, || {
                !san_tests::census::threads().contains_key("san-cm")
            });
        }
    });
}

#[test]
fn wsd_063_calls_without_startup_are_notinitialised() {
    bounded(|| {
        let provider = San::stopped(ProviderConfig::default());
        let never = provider
            .socket(STREAM.0, STREAM.1, STREAM.2)
            .expect_err("never started");
        assert_eq!(never.code(), WsaCode::NotInitialised);
        assert_eq!(
            provider.address_list().expect_err("never started").code(),
            WsaCode::NotInitialised
        );

        let san = San::start();
        let socket = san.bound(net::at_a());
        let event = EventObject::new().expect("an event");
        san.provider.cleanup().expect("cleanup");
        let codes = [
            socket.bind(net::at_a()).expect_err("bind").code(),
            socket.listen(1).expect_err("listen").code(),
            socket
                .accept(|_| Decision::Accept)
                .expect_err("accept")
                .code(),
            socket
                .connect(net::at_b(), ConnectOptions::default())
                .expect_err("connect")
                .code(),
            socket
                .event_select(&event, NetworkEvents::ACCEPT)
                .expect_err("event_select")
                .code(),
            socket
                .enum_network_events(None)
                .expect_err("enum_network_events")
                .code(),
            socket
                .send(b"x", 0, Notification::Poll)
                .expect_err("send")
                .code(),
            socket
                .receive(Notification::Poll)
                .expect_err("receive")
                .code(),
            socket
                .option(SocketOption::MaxMessageSize)
                .expect_err("option")
                .code(),
            socket
                .set_option(SocketOption::ReuseAddr, 1)
                .expect_err("set_option")
                .code(),
            socket.local_addr().expect_err("local_addr").code(),
            socket.peer_addr().expect_err("peer_addr").code(),
        ];
        assert_eq!(codes, [WsaCode::NotInitialised; 12]);
    });
}

#[test]
fn wsd_064_an_unknown_version_is_vernotsupported() {
    bounded(|| {
        let provider = San::stopped(ProviderConfig::default());
        let asked = SpiVersion {
            major: SpiVersion::CURRENT.major + 1,
            minor: 0,
        };
        let error = provider
            .startup(asked, true, Arc::new(NoUpcalls))
            .expect_err("a version to come");
        assert_eq!(error.code(), WsaCode::VersionNotSupported);
        assert_eq!(
            provider.cleanup().expect_err("that was no startup").code(),
            WsaCode::NotInitialised
        );
    });
}

#[test]
fn wsd_064_too_many_startups_are_eproclim() {
    bounded(|| {
        let provider = San::stopped(ProviderConfig {
            max_startups: 2,
            ..ProviderConfig::default()
        });
        for _ in 0..2 {
            provider
                .startup(SpiVersion::CURRENT, true, Arc::new(NoUpcalls))
                .expect("startup");
        }
        let error = provider
            .startup(SpiVersion::CURRENT, true, Arc::new(NoUpcalls))
            .expect_err("a third");
        assert_eq!(error.code(), WsaCode::TooManyProcesses);
        provider.cleanup().expect("the first");
        provider
            .startup(SpiVersion::CURRENT, true, Arc::new(NoUpcalls))
            .expect("there is room again");
        provider.cleanup().expect("one");
        provider.cleanup().expect("the other");
    });
}

/// In a mount namespace of its own, a process finds one part of RDMA missing; it says which.
#[test]
#[ignore = "needs the kernel's RDMA: ci/test"]
fn wsd_064_a_host_without_rdma_is_sysnotready() {
    bounded(|| {
        let libraries = [
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib/aarch64-linux-gnu",
            "/usr/lib64",
            "/usr/lib",
        ];
        let library = libraries
            .iter()
            .map(|folder| format!("{folder}/librdmacm.so.1"));
        let library = library
            .filter(|path| Path::new(path).exists())
            .collect::<Vec<_>>();
        let library = std::fs::canonicalize(library.first().expect("librdmacm")).expect("its file");
        let peer = env!("CARGO_BIN_EXE_san-test-peer");
        let hide = [
            (
                format!("mount --bind /dev/null {}", library.display()),
                "librdmacm",
            ),
            (
                "mount -t tmpfs tmpfs /dev/infiniband".to_owned(),
                "RDMA device",
            ),
        ];
        for (command, missing) in hide {
            let script = format!("{command} && exec {peer} startup");
            let (status, said) =
                Program::start("unshare", &["-m", "sh", "-c", &script]).finish(STEP);
            assert!(status.success(), "{command}: {status}, {said}");
            assert!(
                said.starts_with("failed WSASYSNOTREADY"),
                "{command}: {said}"
            );
            assert!(said.contains(missing), "it should name {missing}: {said}");
        }
        // And it is the hiding that did it.
        let (_, said) = Program::start(peer, &["startup"]).finish(STEP);
        assert_eq!(said, "started");
    });
}

#[test]
fn wsd_065_both_ends_are_named_by_ip() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let connector = san.connect(listener.addr);
        let accepted = listener.accept();
        connector.result().expect("the accepted connect");
        assert_eq!(
            connector.socket.peer_addr().expect("open"),
            Some(listener.addr)
        );
        assert_eq!(
            accepted.socket.local_addr().expect("open"),
            Some(listener.addr)
        );
        let source = connector
            .socket
            .local_addr()
            .expect("open")
            .expect("connected");
        // Unasked, the kernel goes from an address of the host to itself.
        let expected = match net::is_soft() {
            true => net::addr_a(),
            false => net::addr_b(),
        };
        assert_eq!(source.ip(), expected, "the wire is between the two NICs");
        assert_eq!(accepted.socket.peer_addr().expect("open"), Some(source));
    });
}

#[test]
#[ignore = "needs the kernel's RDMA: ci/test"]
fn wsd_066_the_address_list_follows_the_nics() {
    bounded(|| {
        let san = San::start();
        let own = san.provider.address_list().expect("the list");
        let netdev = &own
            .iter()
            .find(|entry| entry.ip == net::addr_a())
            .expect("the first NIC")
            .netdev;
        let added: IpAddr = "10.0.99.1".parse().expect("an address");
        assert!(!own.iter().any(|entry| entry.ip == added));
        let has_added = || {
            san.provider
                .address_list()
                .expect("the list")
                .iter()
                .any(|entry| entry.ip == added)
        };
        let told = || {
            san.upcalls
                .told()
                .iter()
                .filter(|upcall| **upcall == Upcall::AddressesChanged)
                .count()
        };

        // An interface without an RDMA device is none of its business.
        let before = told();
        program::must("ip", &["addr", "add", "10.0.98.1/32", "dev", "lo"]);
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(told(), before, "an address of another interface");
        program::must("ip", &["addr", "del", "10.0.98.1/32", "dev", "lo"]);

        program::must("ip", &["addr", "add", "10.0.99.1/24", "dev", netdev]);
        eventually("the switch is told of the new address", STEP, || {
            told() > before
        });
        eventually("the new address is listed", STEP, has_added);
        san.bound(SocketAddr::new(added, net::port()))
            .close()
            .expect("a bound socket");
        let before = told();
        program::must("ip", &["addr", "del", "10.0.99.1/24", "dev", netdev]);
        eventually("the switch is told that it is gone", STEP, || {
            told() > before
        });
        eventually("it is not listed any more", STEP, || !has_added());
    });
}

#[test]
fn wsd_067_the_handle_is_got_by_upcall() {
    bounded(|| {
        let san = San::start();
        let socket = san.socket(net::addr_a());
        let handle = socket.handle().expect("a handle");
        assert_eq!(san.upcalls.told(), [Upcall::Created(handle)]);
        socket.close().expect("close");
        eventually("the switch's handle is closed", STEP, || {
            san.upcalls.told().len() == 2
        });
        assert_eq!(san.upcalls.told()[1], Upcall::Closed(handle));
    });
}

#[test]
fn wsd_067_without_a_handle_there_is_no_socket() {
    bounded(|| {
        let san = San::start();
        let before = Census::take();
        san.upcalls.gives_no_handles.store(true, Ordering::SeqCst);
        let error = san
            .provider
            .socket(STREAM.0, STREAM.1, STREAM.2)
            .expect_err("no handle");
        assert_eq!(error.code(), WsaCode::NoBuffers);
        assert_eq!(
            san.upcalls.told(),
            [],
            "a handle that was not given is not closed"
        );
        before.assert_back();
    });
}

#[test]
fn wsd_068_socket_errors() {
    bounded(|| {
        let san = San::start_with(ProviderConfig {
            max_sockets: 2,
            ..ProviderConfig::default()
        });
        let code = |family, kind, protocol| {
            san.provider
                .socket(family, kind, protocol)
                .map(|_| ())
                .map_err(|e| e.code())
        };
        let (v4, stream, tcp) = STREAM;
        assert_eq!(
            code(AddressFamily::Other(1), stream, tcp),
            Err(WsaCode::AfNoSupport)
        );
        assert_eq!(code(v4, SocketType::Other(2), tcp), Err(WsaCode::ProtoType));
        assert_eq!(
            code(v4, stream, Protocol::Other(17)),
            Err(WsaCode::ProtoNoSupport)
        );
        let first = san.socket(net::addr_a());
        let _second = san.socket(net::addr_a());
        assert_eq!(code(v4, stream, tcp), Err(WsaCode::TooManySockets));
        first.close().expect("close");
        assert_eq!(code(v4, stream, tcp), Ok(()), "a closed socket makes room");
    });
}

#[test]
#[ignore = "needs interfaces of its own: ci/test"]
fn wsd_069_bind_errors() {
    bounded(|| {
        let san = San::start();
        let code = |addr: SocketAddr| {
            san.socket(net::addr_a())
                .bind(addr)
                .map_err(|error| error.code())
        };
        let elsewhere = SocketAddr::new(Ipv4Addr::new(203, 0, 113, 9).into(), net::port());
        assert_eq!(code(elsewhere), Err(WsaCode::AddrNotAvailable));
        let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), net::port());
        assert_eq!(
            code(loopback),
            Err(WsaCode::AddrNotAvailable),
            "no RDMA device is there"
        );
        assert_eq!(
            code("[::1]:7".parse().expect("an address")),
            Err(WsaCode::Fault),
            "the other family"
        );

        let taken = san.bound(net::at_a());
        let addr = taken.local_addr().expect("open").expect("bound");
        assert_eq!(
            taken.bind(addr).expect_err("bound already").code(),
            WsaCode::Invalid
        );
        // Never EADDRINUSE.
        assert_eq!(code(addr), Err(WsaCode::AddrNotAvailable));
        let wildcard = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), addr.port());
        assert_eq!(code(wildcard), Err(WsaCode::AddrNotAvailable));
        taken.close().expect("close");
        assert_eq!(code(addr), Ok(()), "a closed socket leaves its port");
    });
}

#[test]
fn wsd_069_port_0_is_any_free_port() {
    bounded(|| {
        let san = San::start();
        let sockets = [(); 2].map(|()| san.bound(SocketAddr::new(net::addr_a(), 0)));
        let ports = sockets.map(|socket| socket.local_addr().expect("open").expect("bound").port());
        assert!(
            ports[0] != 0 && ports[1] != 0 && ports[0] != ports[1],
            "{ports:?}"
        );
    });
}

#[test]
fn wsd_070_no_error_is_einprogress() {
    // Every error of the provider has one of these codes.
    assert!(WsaCode::ALL.len() > 20);
    assert!(
        WsaCode::ALL
            .iter()
            .all(|code| code.name() != "WSAEINPROGRESS" && code.number() != 10036)
    );
}

#[test]
#[ignore = "needs interfaces of its own: ci/test"]
fn wsd_099_the_address_list_has_the_addresses_of_the_devices() {
    bounded(|| {
        let san = San::start();
        let list = san.provider.address_list().expect("the list");
        let devices = net::fabric().devices().expect("the devices");
        for (ip, prefix_len) in [
            (net::addr_a(), 24),
            (net::addr_b(), 24),
            (net::addr6_a(), 64),
            (net::addr6_b(), 64),
        ] {
            let entry = list.iter().find(|entry| entry.ip == ip);
            let entry = entry.unwrap_or_else(|| panic!("{ip} is missing in {list:?}"));
            assert_eq!(entry.prefix_len, prefix_len, "{entry:?}");
            assert!(
                devices.iter().any(|device| device.name() == entry.device),
                "{entry:?}"
            );
            let index = std::fs::read_to_string(format!("/sys/class/net/{}/ifindex", entry.netdev))
                .expect("ifindex");
            assert_eq!(entry.ifindex.to_string(), index.trim());
        }
        let device = |ip| {
            &list
                .iter()
                .find(|entry| entry.ip == ip)
                .expect("listed above")
                .device
        };
        // The soft fabric is one device with all addresses.
        let is_one = device(net::addr_a()) == device(net::addr_b());
        assert_eq!(is_one, net::is_soft());
        assert!(!list.iter().any(|entry| entry.ip.is_loopback()), "{list:?}");
    });
}
