//! The peer: the way to it, and what becomes of a connect.
//!
//! A connect of the doctor's is an ordinary one that is closed at once, without a byte: the
//! application at the other end sees a peer that came and went.

use super::fabric::ROCE_PORT;
use super::system;
use crate::destination::Destination;
use crate::doctor::facts::{
    ConnectFacts, ConnectOutcome, Datagram, Facts, PeerAddressFacts, PeerFacts, TcpFacts,
};
use rustix::io::Errno;
use rustix::net::sockopt;
use san_provider::ConnectFailure;
use san_switch::{
    ConnectError, ConnectOptions, FallbackReason, Route, RouteChoice, RouteQuery, Switch,
};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Addresses of one name that are tried.
const MOST_ADDRESSES: usize = 4;
/// How long a connect may take, SAN and TCP together.
const PATIENCE: Duration = Duration::from_secs(6);
/// How long an answer to a datagram is waited for: an ICMP message comes within a round trip.
const DATAGRAM_PATIENCE: Duration = Duration::from_millis(500);

pub(super) fn gather(
    destination: &Destination,
    has_port: bool,
    switch: &Switch,
    facts: &Facts,
) -> PeerFacts {
    let mut peer = PeerFacts {
        asked: destination.to_string(),
        has_port,
        unresolved: None,
        addresses: Vec::new(),
        omitted: 0,
    };
    match destination.resolve() {
        Ok(mut addresses) => {
            addresses.dedup();
            peer.omitted = addresses.len().saturating_sub(MOST_ADDRESSES);
            addresses.truncate(MOST_ADDRESSES);
            let look = |address| look(address, has_port, switch, facts);
            peer.addresses = addresses.into_iter().map(look).collect();
        }
        Err(problem) => peer.unresolved = Some(problem.text().to_owned()),
    }
    peer
}

fn look(address: SocketAddr, has_port: bool, switch: &Switch, facts: &Facts) -> PeerAddressFacts {
    let probe = probe(address);
    let socket = probe.as_ref().ok();
    let source = socket
        .and_then(|socket| socket.local_addr().ok())
        .map(|local| local.ip());
    let path_mtu = socket.and_then(|socket| match address {
        SocketAddr::V4(_) => sockopt::ip_mtu(socket).ok(),
        SocketAddr::V6(_) => sockopt::ipv6_mtu(socket).ok(),
    });
    let table = switch.table();
    let entry = table.route(&RouteQuery {
        destination: address,
        bound: None,
        preferred: source,
    });
    let own = entry.map(|entry| entry.ip);
    let interface = own.or(source).and_then(|ip| interface_of(ip, facts));
    let device = entry.and_then(|entry| {
        let mut devices = facts.fabric.devices.iter();
        devices.find(|device| device.name == entry.device)
    });
    let port = device.and_then(|device| device.ports.first());
    let is_infiniband = port.is_some_and(|port| port.link_layer == "infiniband");
    let connect = (has_port || entry.is_some()).then(|| connect(switch, address));
    let tcp = has_port.then(|| connect_tcp(switch, address));
    PeerAddressFacts {
        address,
        source,
        interface_mtu: interface
            .as_deref()
            .and_then(|name| system::interface(name).mtu),
        interface,
        path_mtu,
        device_mtu: port.map(|port| port.active_mtu),
        entry: entry.map(ToString::to_string),
        datagram: match (entry.is_some() && !is_infiniband, probe) {
            // Last, so that no answer to it meets a connect.
            (true, Ok(socket)) => datagram(&socket),
            (true, Err(error)) => {
                judged(&error).unwrap_or_else(|| Datagram::Unsent(error.to_string()))
            }
            (false, _) => Datagram::Untried,
        },
        connect,
        tcp,
    }
}

/// A UDP socket that is connected to port 4791 there; nothing is sent.
fn probe(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    let mut there = address;
    there.set_port(ROCE_PORT);
    socket.connect(there)?;
    Ok(socket)
}

/// Sends a datagram that is too short to be RoCE, which every RoCE endpoint drops.
fn datagram(socket: &UdpSocket) -> Datagram {
    if let Err(error) = socket.send(&[0]) {
        return judged(&error).unwrap_or_else(|| Datagram::Unsent(error.to_string()));
    }
    if socket.set_read_timeout(Some(DATAGRAM_PATIENCE)).is_err() {
        return Datagram::Silent;
    }
    match socket.recv(&mut [0; 64]) {
        Ok(_) => Datagram::Silent,
        Err(error) => judged(&error).unwrap_or(Datagram::Silent),
    }
}

/// What an error says that an ICMP message, or this host's own firewall, brought about.
fn judged(error: &io::Error) -> Option<Datagram> {
    match Errno::from_io_error(error)? {
        Errno::CONNREFUSED => Some(Datagram::Refused),
        Errno::PERM | Errno::ACCESS | Errno::HOSTUNREACH | Errno::NETUNREACH => {
            Some(Datagram::Prohibited(error.to_string()))
        }
        _ => None,
    }
}

/// The interface of an address that a device serves.
fn interface_of(ip: IpAddr, facts: &Facts) -> Option<String> {
    let ip = ip.to_canonical();
    let mut addresses = facts.fabric.devices.iter().flat_map(|one| &one.addresses);
    let known = addresses.find(|one| one.ip == ip && !one.netdev.is_empty())?;
    Some(known.netdev.clone())
}

/// As an application connects.
fn connect(switch: &Switch, address: SocketAddr) -> ConnectFacts {
    let began = Instant::now();
    // Whether the SAN has a way there is what is asked, whatever SAN_ROUTE says.
    let options = ConnectOptions::default()
        .route(RouteChoice::Direct)
        .timeout(PATIENCE);
    let outcome = switch.connect(address, &options);
    let took_ms = millis(began);
    let outcome = match outcome {
        Ok(connection) => match connection.route() {
            Route::San { provider, device } => ConnectOutcome::San {
                provider: provider.clone(),
                device: device.clone(),
            },
            Route::Tcp { why } => ConnectOutcome::Tcp {
                failure: why.as_ref().and_then(failure_of),
                why: why.as_ref().map(ToString::to_string),
            },
        },
        Err(error) => ConnectOutcome::Failed {
            failure: match &error {
                ConnectError::San { source, .. } => Some(source.failure()),
                error => error.fallback().and_then(failure_of),
            },
            why: error.to_string(),
        },
    };
    ConnectFacts { took_ms, outcome }
}

fn connect_tcp(switch: &Switch, address: SocketAddr) -> TcpFacts {
    let began = Instant::now();
    let options = ConnectOptions::default().timeout(PATIENCE).tcp_only(true);
    match switch.connect(address, &options) {
        Ok(_) => TcpFacts::Connected {
            took_ms: millis(began),
        },
        Err(error) => TcpFacts::Failed {
            refused: error.errno() == Errno::CONNREFUSED.raw_os_error(),
            why: error.to_string(),
        },
    }
}

fn failure_of(reason: &FallbackReason) -> Option<ConnectFailure> {
    match reason.root() {
        FallbackReason::Connect(error) => Some(error.failure()),
        _ => None,
    }
}

fn millis(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}
