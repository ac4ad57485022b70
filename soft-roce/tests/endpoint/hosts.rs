//! Several endpoints on one host: who has port 4791, and how they find each other.

use std::net::{SocketAddr, UdpSocket};

use soft_roce::endpoint::{CmEventKind, ConnParams};

use crate::util::{Node, TempDir, address, connect};

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
    server.endpoint.set_addresses(addresses.to_vec());
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
