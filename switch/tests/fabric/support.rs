//! Switches, ends and what is said over them, for the tests on the fabric.

use san_switch::{
    CompanionState, ConnectOptions, Connection, ListenOptions, Listener, Switch, SwitchConfig,
};
use san_tests::net::{addr_a, addr_b, switch_config};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) fn config() -> SwitchConfig {
    switch_config()
        .connect_timeout(PATIENCE)
        .io_timeout(Some(PATIENCE))
}

pub(crate) fn switch() -> Switch {
    Switch::new(config()).expect("the fabric under test")
}

pub(crate) fn any() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
}

pub(crate) fn backlog(backlog: u32) -> ListenOptions {
    ListenOptions::default().backlog(backlog)
}

pub(crate) fn from(ip: IpAddr) -> ConnectOptions {
    ConnectOptions::default().local(SocketAddr::new(ip, 0))
}

pub(crate) fn at(ip: IpAddr, listener: &Listener) -> SocketAddr {
    SocketAddr::new(ip, listener.local_addr().port())
}

/// A SAN client from A to B.
pub(crate) fn san_client(switch: &Switch, listener: &Listener) -> Connection {
    let client = switch
        .connect(at(addr_b(), listener), &from(addr_a()))
        .unwrap();
    assert!(client.is_san(), "{}", client.route());
    client
}

pub(crate) fn accept(listener: &Listener) -> Connection {
    listener.accept_timeout(PATIENCE).unwrap()
}

pub(crate) fn assert_listens(listener: &Listener, companions: usize) {
    let status = listener.san_status();
    assert_eq!(status.len(), companions, "{status:?}");
    for companion in status {
        assert_eq!(companion.state, CompanionState::Listening, "{companion}");
    }
}

/// Sends bytes there, has them sent back, and compares.
pub(crate) fn echo(client: &Connection, server: &Connection, length: usize) {
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
