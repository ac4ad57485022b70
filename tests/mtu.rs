//! Two ends whose interfaces have different MTUs: what can work does, and what cannot is refused at once,
//! so that TCP is tried. The kernel's RDMA CM takes the path MTU of any request; the soft fabric refuses by
//! itself (`soft-roce`).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use san_provider::{ConnectFailure, WsaCode};
use san_tests::net;
use san_tests::program::must;
use san_tests::san::{self, Connector, San};
use san_tests::time::{STEP, bounded, eventually};

const LARGE: u32 = 9000;
const SMALL: u32 = 1500;

/// An interface with another MTU; it gets its own back.
struct Altered {
    netdev: String,
    device: String,
    before: u32,
}

impl Altered {
    fn set(san: &San, ip: IpAddr, mtu: u32) -> Self {
        let list = san.provider.address_list().expect("addresses");
        let entry = list.iter().find(|entry| entry.ip == ip).expect("listed");
        let altered = Self {
            netdev: entry.netdev.clone(),
            device: entry.device.clone(),
            before: mtu_of(&entry.netdev),
        };
        altered.change(mtu);
        altered
    }

    fn change(&self, mtu: u32) {
        must(
            "ip",
            &["link", "set", &self.netdev, "mtu", &mtu.to_string()],
        );
        // As much as fits, beside the headers.
        let payload = if mtu >= LARGE { 4096 } else { 1024 };
        eventually("the device follows", STEP, || {
            let devices = net::fabric().devices().expect("devices");
            let mut devices = devices.into_iter();
            let device = devices.find(|device| device.name() == self.device);
            let port = device.expect("the device").port(1).expect("its port");
            port.active_mtu == payload
        });
    }
}

impl Drop for Altered {
    fn drop(&mut self) {
        self.change(self.before);
    }
}

fn mtu_of(netdev: &str) -> u32 {
    let path = format!("/sys/class/net/{netdev}/mtu");
    let mtu = std::fs::read_to_string(path).expect("an interface");
    mtu.trim().parse().expect("a number")
}

/// A connect from an address of ours.
fn connect_from(san: &San, from: IpAddr, to: SocketAddr) -> Connector {
    let connector = Connector::new(san.bound(SocketAddr::new(from, 0)));
    let started = connector.start(to, Duration::from_secs(60));
    assert!(started.is_in_progress(), "{started}");
    connector
}

#[test]
#[ignore = "needs the kernel's RDMA: ci/test"]
fn a_listener_that_cannot_take_the_packets_refuses() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let altered = Altered::set(&san, net::addr_a(), SMALL);
        let connector = connect_from(&san, net::addr_b(), listener.addr);
        let error = connector.failure();
        assert_eq!(error.failure(), ConnectFailure::PathMtu);
        assert_eq!(error.code(), WsaCode::TimedOut);
        assert!(error.may_try_tcp());
        let counters = san.counters();
        assert_eq!((counters.refused_path_mtu, counters.queued), (1, 0));

        // And once it can, it does.
        drop(altered);
        carries_messages(
            &san,
            &connect_from(&san, net::addr_b(), listener.addr),
            || listener.accept().socket,
        );
    });
}

#[test]
#[ignore = "needs the kernel's RDMA: ci/test"]
fn a_listener_takes_packets_that_are_smaller_than_its_own() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen(net::at_b(), 1);
        let _altered = Altered::set(&san, net::addr_a(), SMALL);
        carries_messages(
            &san,
            &connect_from(&san, net::addr_a(), listener.addr),
            || listener.accept().socket,
        );
        assert_eq!(san.counters().refused_path_mtu, 0);
    });
}

/// Both ways, up to the largest.
fn carries_messages(
    san: &San,
    connector: &Connector,
    accept: impl FnOnce() -> san_provider::Socket,
) {
    let accepted = accept();
    connector.result().expect("connected");
    let largest = san.provider.config().max_message_size;
    for length in [1, 1440, 1500, largest as usize] {
        let message: Vec<u8> = (0..=u8::MAX).cycle().take(length).collect();
        san::send(&connector.socket, &message);
        assert_eq!(san::receive(&accepted), message);
        san::send(&accepted, &message);
        assert_eq!(san::receive(&connector.socket), message);
    }
}
