//! The switch on real RDMA or the soft fabric: what changes the host's addresses, and what counts everything that a
//! process holds. So they run one after another. Needs
//! SAN_TEST_ADDR_A and SAN_TEST_ADDR_B, which ci/rxe sets.

use san_switch::{CompanionState, ConnectOptions, ListenOptions, Switch};
use san_tests::census::Census;
use san_tests::net::{addr_a, addr_b, switch_config};
use san_tests::program::must;
use san_tests::time::{eventually, within};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(15);

fn switch() -> Switch {
    Switch::new(
        switch_config()
            .connect_timeout(PATIENCE)
            .io_timeout(Some(PATIENCE)),
    )
    .expect("the fabric under test")
}

/// Runs a test's body while no other one of this process runs.
fn alone(body: impl FnOnce() + Send + 'static) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = san_base::lock(&TURN);
    within(Duration::from_secs(120), body);
}

/// The interface that has the address.
fn interface_of(switch: &Switch, ip: std::net::IpAddr) -> String {
    let entries = switch.san_addresses();
    let index = entries.iter().find(|entry| entry.ip == ip).unwrap().ifindex;
    let interfaces = std::fs::read_dir("/sys/class/net").unwrap();
    interfaces
        .map(|entry| entry.unwrap())
        .find(|entry| {
            std::fs::read_to_string(entry.path().join("ifindex"))
                .is_ok_and(|text| text.trim() == index.to_string())
        })
        .map(|entry| entry.file_name().into_string().unwrap())
        .unwrap()
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_008_after_a_change_of_addresses_the_table_is_read_again() {
    alone(|| {
        let switch = switch();
        let nic = interface_of(&switch, addr_a());
        let late = Ipv4Addr::new(10, 0, 9, 1);
        let destination = |port| SocketAddr::from((late, port));
        let (added, gone) = (
            ["addr", "add", "10.0.9.1/24", "dev", nic.as_str()],
            ["addr", "del", "10.0.9.1/24", "dev", nic.as_str()],
        );

        // The address is this host's already, but not a SAN NIC's: TCP alone.
        must("ip", &["addr", "add", "10.0.9.1/32", "dev", "lo"]);
        let early = switch
            .listen(destination(0), ListenOptions::default())
            .unwrap();
        let wildcard = (Ipv4Addr::UNSPECIFIED, 0).into();
        let wildcard = switch.listen(wildcard, ListenOptions::default()).unwrap();
        assert!(early.san_status().is_empty());

        // It moves to the NIC: the listener gains its companion by itself.
        must("ip", &["addr", "del", "10.0.9.1/32", "dev", "lo"]);
        must("ip", &added);
        eventually("the listener has a companion", PATIENCE, || {
            let status = early.san_status();
            status.len() == 1 && status[0].state == CompanionState::Listening
        });
        assert!(switch.table().own(late.into()).is_some());
        for listener in [&early, &wildcard] {
            let to = destination(listener.local_addr().port());
            let client = switch.connect(to, &ConnectOptions::default()).unwrap();
            assert!(client.is_san(), "{}", client.route());
            assert!(listener.accept_timeout(PATIENCE).unwrap().is_san());
        }

        // It goes: the companion too, and the wildcard's stays for the others.
        must("ip", &gone);
        eventually("the companion is gone", PATIENCE, || {
            early.san_status().is_empty() && switch.table().own(late.into()).is_none()
        });
        assert_eq!(wildcard.san_status().len(), 1);
        let to = SocketAddr::new(addr_b(), wildcard.local_addr().port());
        let options = ConnectOptions::default().local(SocketAddr::new(addr_a(), 0));
        assert!(switch.connect(to, &options).unwrap().is_san());
        assert!(switch.shutdown());
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_051_nothing_is_left_after_cleanup() {
    alone(|| {
        let round = || {
            let switch = switch();
            let any = (Ipv4Addr::UNSPECIFIED, 0).into();
            let options = ListenOptions::default().backlog(4);
            let listener = switch.listen(any, options).unwrap();
            let to = SocketAddr::new(addr_b(), listener.local_addr().port());
            let from_a = ConnectOptions::default().local(SocketAddr::new(addr_a(), 0));
            // Four wait, two are refused, one is called off, two are accepted, two are left waiting.
            let clients: Vec<_> = (0..6).map(|_| switch.connect(to, &from_a)).collect();
            assert_eq!(clients.iter().filter(|client| client.is_ok()).count(), 4);
            drop(switch.start_connect(to, &from_a).unwrap());
            let servers: Vec<_> = (0..2)
                .map(|_| listener.accept_timeout(PATIENCE).unwrap())
                .collect();
            servers[0].send(b"x").unwrap();
            // In the other order than usual: the switch first.
            assert!(switch.shutdown());
            assert!(clients[0].as_ref().unwrap().send(b"x").is_err());
            drop((clients, servers, listener));
        };
        // The first round opens what stays open: the libraries' own descriptors.
        round();
        let census = Census::take();
        for _ in 0..3 {
            round();
        }
        census.assert_back();
        for thread in ["san-accept", "san-cm", "san-progress"] {
            assert!(!Census::take().threads.contains_key(thread), "{thread}");
        }
    });
}
