//! The switch on real RDMA or the soft fabric: two NICs of one host, a provider, TCP beside it.
//! Needs SAN_TEST_ADDR_A and SAN_TEST_ADDR_B, which ci/rxe and ci/test set.

#[path = "support.rs"]
mod support;

use san_switch::{
    AcceptError, CancelToken, ConnectError, ConnectOptions, Decision, FallbackReason, Route,
    RouteChoice, Rules, Side, Switch,
};
use san_tests::net::{addr_a, addr_b, addr6_a, addr6_b, is_soft};
use san_tests::program;
use san_tests::time::{bounded, eventually};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::*;

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
        let why = match client.route() {
            Route::Tcp { why: Some(why) } => why,
            route => panic!("{route}"),
        };
        assert!(!why.is_fallback(), "{why}");
        assert_eq!(why.to_string(), "the loopback is not on the SAN");
        assert!(!accept(&listener).is_san());
        let before = switch.provider_counters()[0].1;
        let options = ConnectOptions::default().timeout(Duration::from_millis(200));
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
        let strict = Switch::new(config().strict(true)).unwrap();
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
        let switch =
            Switch::new(config().fabric_connect_timeout(Duration::from_millis(400))).unwrap();
        // In the subnet, but nobody has the address.
        let nobody: SocketAddr = "10.0.7.99:9".parse().unwrap();
        let options = from(addr_a()).timeout(Duration::from_millis(800));
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
        // The peer has its answer before that is counted.
        eventually("three refusals", PATIENCE, || {
            listener.stats().refused_backlog == 3
        });
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
        let options = backlog(4).condition(move |request| {
            assert_eq!(request.side, Side::San);
            assert_eq!(request.local.ip(), addr_b());
            // Every second one is let in.
            if count.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
                Decision::Reject
            } else {
                Decision::Accept
            }
        });
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

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn rules_choose_the_route_by_role_address_and_port() {
    bounded(|| {
        let there = switch();
        let [plain, other] = [(); 2].map(|()| there.listen(any(), backlog(4)).unwrap());
        let port = plain.local_addr().port();
        // Of three, the second is for another port: the first that fits decides.
        let rules = format!(
            "use off connect * {}:{port}\nuse direct any * *:{port}\nuse off listen * *:*",
            addr_b()
        );
        let rules: Rules = rules.parse().unwrap();
        let here = Switch::new(config().rules(rules.clone())).unwrap();
        let client = here.connect(at(addr_b(), &plain), &from(addr_a())).unwrap();
        let told = client.route().to_string();
        assert!(
            told.contains("the settings or the program say TCP"),
            "{told}"
        );
        // What a connect says itself goes before the rules.
        let direct = from(addr_a()).route(RouteChoice::Direct);
        assert!(
            here.connect(at(addr_b(), &plain), &direct)
                .unwrap()
                .is_san()
        );
        assert!(san_client(&here, &other).is_san());
        let none = here.listen(any(), backlog(4)).unwrap();
        assert!(none.san_status().is_empty(), "{:?}", none.san_status());

        // A switch that is TCP's but for its rules.
        let rules: Rules = format!("use direct any * *:{port}").parse().unwrap();
        let config = config().route(RouteChoice::Off).rules(rules);
        let here = Switch::new(config).unwrap();
        assert!(san_client(&here, &plain).is_san());
        let client = here.connect(at(addr_b(), &other), &from(addr_a())).unwrap();
        assert!(!client.is_san());
    });
}

/// On rxe every address of the NIC's interface is in the table, so no other subnet can be had there.
#[test]
#[ignore = "needs a namespace whose addresses can be changed: ci/soft"]
fn a_subnet_that_the_settings_name_is_reached_by_a_router() {
    bounded(|| {
        if !is_soft() || std::env::var_os("SAN_TEST_LINK").is_none() {
            eprintln!("only on the soft fabric, in a namespace");
            return;
        }
        let far = "10.0.98.1";
        program::must("ip", &["addr", "add", "10.0.98.1/32", "dev", "lo"]);
        let far = SocketAddr::new(far.parse().unwrap(), 0);
        let there = Switch::new(config().soft_addresses(vec![far.ip()])).unwrap();
        let listener = there.listen(far, backlog(4)).unwrap();
        let near = || config().soft_addresses(vec![addr_a()]);
        let connect = |config| {
            let here = Switch::new(config).unwrap();
            here.connect(listener.local_addr(), &from(addr_a()))
                .unwrap()
        };
        let client = connect(near());
        let told = client.route().to_string();
        assert!(told.contains("lies in no subnet of the SAN"), "{told}");
        accept(&listener);
        let client = connect(near().subnets(vec!["10.0.96.0/20".parse().unwrap()]));
        assert!(client.is_san(), "{}", client.route());
        echo(&client, &accept(&listener), 100_000);
        program::must("ip", &["addr", "del", "10.0.98.1/32", "dev", "lo"]);
    });
}
