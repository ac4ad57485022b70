//! Several endpoints on one host: who has port 4791, and how they find each other.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use soft_roce::endpoint::{CmEventKind, ConnParams, HostAddresses};

use soft_roce::rc::{Payload, RecvRequest, SendOp, SendRequest};

use crate::util::{Connection, Node, PATIENCE, TempDir, address, connect};

#[test]
fn several_servers_share_an_address() {
    let dir = TempDir::new();
    let ip = address();
    let servers: Vec<_> = (0..3u16)
        .map(|n| {
            let node = Node::new(dir.config());
            let addr = SocketAddr::new(ip, 7471 + n);
            let listener = node.listen(addr, 4);
            (node, listener, addr)
        })
        .collect();
    let clients = [Node::new(dir.config()), Node::new(dir.config())];
    for client in &clients {
        for (server, _, addr) in &servers {
            drop(connect(client, server, *addr));
            // Whatever the end brings.
            while client.events.next().is_some() || server.events.next().is_some() {}
        }
    }
    // A port that another process has is taken.
    let late = Node::new(dir.config());
    let id = late.endpoint.create_id(&late.events);
    id.bind(servers[1].2).unwrap();
    assert_eq!(
        id.listen(1).unwrap_err().raw_os_error(),
        Some(98),
        "EADDRINUSE"
    );
}

#[test]
fn the_public_port_in_foreign_hands_is_an_error_that_says_so() {
    let dir = TempDir::new();
    let ip = address();
    let _foreign = UdpSocket::bind((ip, 4791)).unwrap();
    let node = Node::new(dir.config());
    let id = node.endpoint.create_id(&node.events);
    id.bind(SocketAddr::new(ip, 7471)).unwrap();
    let why = id.listen(1).unwrap_err();
    assert_eq!(why.kind(), std::io::ErrorKind::AddrInUse);
    let text = why.to_string();
    assert!(text.contains("4791") && text.contains("rdma_rxe"), "{text}");
}

#[test]
fn a_wildcard_listens_on_every_address_of_the_endpoint() {
    let dir = TempDir::new();
    let server = Node::new(dir.config());
    let addresses = [address(), address(), "::1".parse().unwrap()];
    server.endpoint.set_addresses(&addresses);
    let _listener = server.listen("[::]:7471".parse().unwrap(), 4);
    let client = Node::new(dir.config());
    for ip in addresses {
        let connection = connect(&client, &server, SocketAddr::new(ip, 7471));
        assert_eq!(
            connection.server_id.local_addr(),
            Some(SocketAddr::new(ip, 7471))
        );
    }
}

/// What the host's addresses are, as the test says.
struct Told {
    addresses: Mutex<Option<Vec<IpAddr>>>,
    news: OwnedFd,
}

impl Told {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            addresses: Mutex::default(),
            news: eventfd(0, EventfdFlags::NONBLOCK).unwrap(),
        })
    }

    fn tell(&self, addresses: &[IpAddr]) {
        *self.addresses.lock().unwrap() = Some(addresses.to_vec());
        rustix::io::write(&self.news, &1u64.to_ne_bytes()).unwrap();
    }
}

impl AsFd for Told {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }
}

impl HostAddresses for Told {
    fn changed(&self) -> Option<Vec<IpAddr>> {
        let _ = rustix::io::read(&self.news, &mut [0; 8]);
        self.addresses.lock().unwrap().take()
    }
}

/// Waits until somebody has UDP port 4791 of an address, or nobody.
fn comes_to(ip: IpAddr, open: bool) {
    let end = Instant::now() + PATIENCE;
    while std::fs::read_to_string("/proc/net/udp")
        .unwrap()
        .contains(&hex(ip))
        != open
    {
        assert!(Instant::now() < end, "{ip}: open is not {open}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An address with port 4791 as /proc/net/udp writes it.
fn hex(ip: IpAddr) -> String {
    let IpAddr::V4(ip) = ip else {
        panic!("IPv4 only")
    };
    format!("{:08X}:12B7", u32::from_ne_bytes(ip.octets()))
}

/// The client's bytes come to the server.
fn ping(connection: &Connection) {
    let (a, b) = (&connection.client, &connection.server);
    let request = RecvRequest {
        wr_id: 1,
        sges: &[],
    };
    b.qp.post_receive(&request).unwrap();
    let request = SendRequest {
        wr_id: 2,
        op: SendOp::SendImm(3),
        payload: Payload::Inline(&[]),
        signaled: true,
        fence: false,
        solicited: false,
    };
    a.qp.post_send(&request).unwrap();
    assert_eq!(b.success().imm, Some(3));
    a.success();
}

#[test]
fn a_wildcard_follows_the_addresses() {
    let dir = TempDir::new();
    let server = Node::new(dir.config());
    let host = Told::new();
    server.endpoint.follow(host.clone());
    let (first, second) = (address(), address());
    server.endpoint.set_addresses(&[first]);
    let listener = server.listen("0.0.0.0:7471".parse().unwrap(), 4);
    comes_to(first, true);
    let client = Node::new(dir.config());
    let at = |ip| SocketAddr::new(ip, 7471);
    for (come, gone) in [(second, first), (first, second)] {
        host.tell(&[first, second]);
        comes_to(come, true);
        let connection = connect(&client, &server, at(come));
        // It lives on without its address, which may come back.
        host.tell(&[gone]);
        ping(&connection);
        drop(connection);
        while client.events.next().is_some() || server.events.next().is_some() {}
        host.tell(&[come]);
        comes_to(gone, false);
        let id = client.resolved(at(gone));
        let side = client.queue_pair();
        id.connect(&side.qp, &ConnParams::default()).unwrap();
        let refused = client.event().kind;
        assert!(
            matches!(refused, CmEventKind::Rejected { .. }),
            "{refused:?}"
        );
    }
    drop(listener);
}

#[test]
fn a_restarted_server_is_found_at_its_new_port() {
    let dir = TempDir::new();
    let (ip, client) = (address(), Node::new(dir.config()));
    let addr = SocketAddr::new(ip, 7472);
    // Keeps 4791, so that the others get private ports.
    let owner = Node::new(dir.config());
    let _owner = owner.listen(SocketAddr::new(ip, 7471), 1);
    for _ in 0..3 {
        let server = Node::new(dir.config());
        let _listener = server.listen(addr, 4);
        drop(connect(&client, &server, addr));
        while client.events.next().is_some() {}
    }
    let id = client.resolved(addr);
    let side = client.queue_pair();
    id.connect(&side.qp, &ConnParams::default()).unwrap();
    let refused = client.event().kind;
    assert!(
        matches!(refused, CmEventKind::Rejected { .. }),
        "{refused:?}"
    );
}
