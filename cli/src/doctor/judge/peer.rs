//! The peer: which way a connection to it takes, and why that is not the SAN.

use crate::doctor::facts::{
    ConnectOutcome, Datagram, Facts, PeerAddressFacts, PeerFacts, TcpFacts,
};
use crate::doctor::line::Line;
use san_provider::ConnectFailure;
use san_switch::FabricChoice;

/// The headers of a RoCE packet beside its payload: IPv6, UDP, BTH, RETH, immediate data, ICRC.
const ROCE_HEADERS: u32 = 82;

pub(super) fn peer(facts: &Facts) -> Vec<Line> {
    let Some(peer) = &facts.peer else {
        return Vec::new();
    };
    if let Some(why) = &peer.unresolved {
        let host = host_of(&peer.asked);
        return vec![Line::fail(
            "peer",
            why,
            format!("ask the resolver: getent hosts {host}; or give an IP address"),
        )];
    }
    let mut lines = Vec::new();
    for address in &peer.addresses {
        lines.extend(self::address(peer, address, facts));
    }
    if peer.omitted > 0 {
        lines.push(Line::warn(
            "peer",
            format!("{} more addresses were not tried", peer.omitted),
            "name one: san doctor ADDRESS:PORT",
        ));
    }
    lines
}

fn address(peer: &PeerFacts, address: &PeerAddressFacts, facts: &Facts) -> Vec<Line> {
    let mut lines = Vec::new();
    lines.extend(path_mtu(address, facts));
    lines.extend(datagram(address));
    lines.push(way(peer, address, facts));
    if let Some(tcp) = &address.tcp {
        lines.push(self::tcp(address, tcp));
    }
    lines
}

/// Whether RDMA's packets fit the way. The soft fabric fits them itself.
fn path_mtu(address: &PeerAddressFacts, facts: &Facts) -> Option<Line> {
    address.entry.as_ref()?;
    let (path, device) = (address.path_mtu?, address.device_mtu?);
    let is_soft = facts.settings.fabric == FabricChoice::Soft;
    if is_soft || path >= device + ROCE_HEADERS {
        let text = match &address.interface {
            Some(interface) => format!("{path} bytes to {}, by {interface}", address.address.ip()),
            None => format!("{path} bytes to {}", address.address.ip()),
        };
        return Some(Line::ok("path mtu", text));
    }
    let interface = address.interface.as_deref().unwrap_or("NETDEV");
    Some(Line::fail(
        "path mtu",
        format!(
            "packets of {device} bytes (the RDMA MTU) do not fit the path to {}, whose MTU is \
             {path}: large messages would be lost",
            address.address.ip()
        ),
        format!(
            "as root, on the whole path: ip link set {interface} mtu {}; see it: tracepath {}",
            device + 104,
            address.address.ip()
        ),
    ))
}

/// A firewall in between.
fn datagram(address: &PeerAddressFacts) -> Option<Line> {
    let ip = address.address.ip();
    match &address.datagram {
        Datagram::Silent | Datagram::Refused | Datagram::Untried => None,
        Datagram::Prohibited(why) => Some(Line::fail(
            "firewall",
            format!("UDP port 4791 of {ip} is closed to this host: {why}"),
            "on both hosts, as root: nft list ruleset; open it: nft insert rule inet filter input \
             udp dport 4791 accept (or: firewall-cmd --add-port=4791/udp)",
        )),
        Datagram::Unsent(why) => Some(Line::warn(
            "firewall",
            format!("a datagram to UDP port 4791 of {ip} could not be sent: {why}"),
            format!("see the way there: ip route get {ip}"),
        )),
    }
}

fn way(peer: &PeerFacts, address: &PeerAddressFacts, facts: &Facts) -> Line {
    let there = match peer.has_port {
        true => address.address.to_string(),
        false => address.address.ip().to_string(),
    };
    let Some(connect) = &address.connect else {
        return no_entry(address, &there, facts);
    };
    let took = connect.took_ms;
    match &connect.outcome {
        ConnectOutcome::San { .. } if facts.settings.says_tcp => Line::warn(
            "route",
            format!("a connection to {there} takes TCP: SAN_ROUTE=off says so; the SAN has a way"),
            "unset SAN_ROUTE",
        ),
        ConnectOutcome::San { provider, device } => Line::ok(
            "route",
            format!("a connection to {there} goes over the SAN ({provider}, {device}); {took} ms"),
        ),
        ConnectOutcome::Tcp { failure: None, .. } if address.entry.is_none() => {
            no_entry(address, &there, facts)
        }
        ConnectOutcome::Tcp {
            failure: None, why, ..
        } => {
            let why = why.as_deref().unwrap_or("the SAN was not thought of");
            Line::fail(
                "route",
                format!("a connection to {there} takes TCP: {why}"),
                format!("see more: SAN_LOG=debug san connect {there}"),
            )
        }
        ConnectOutcome::Failed { failure: None, why } => {
            Line::fail("route", why.clone(), not_over_tcp(address))
        }
        ConnectOutcome::Tcp {
            failure: Some(failure),
            ..
        }
        | ConnectOutcome::Failed {
            failure: Some(failure),
            ..
        } if !peer.has_port && proves_an_answer(*failure) => Line::ok(
            "route",
            format!(
                "RDMA answers at {there}, within {took} ms; give a port to see which way a \
                 connection takes: san doctor {there}:PORT"
            ),
        ),
        ConnectOutcome::Tcp {
            failure: Some(failure),
            ..
        } => {
            let (why, remedy) = reason(*failure, address);
            Line::fail(
                "route",
                format!("a connection to {there} takes TCP: {why}"),
                remedy,
            )
        }
        ConnectOutcome::Failed {
            failure: Some(failure),
            ..
        } => {
            let (why, remedy) = reason(*failure, address);
            Line::fail(
                "route",
                format!("no connection over the SAN to {there}: {why}"),
                remedy,
            )
        }
    }
}

/// No address of this host's SAN reaches it.
fn no_entry(address: &PeerAddressFacts, there: &str, facts: &Facts) -> Line {
    if facts.settings.fabric == FabricChoice::Off {
        return Line::warn(
            "route",
            format!("a connection to {there} takes TCP: SAN_FABRIC=off says so"),
            "unset SAN_FABRIC",
        );
    }
    if facts.fabric.table.is_empty() {
        return Line::fail(
            "route",
            format!("a connection to {there} takes TCP: this host has no address on the SAN"),
            "mend what the lines above say; then: san devices",
        );
    }
    if address.address.ip().is_loopback() {
        return Line::fail(
            "route",
            format!("a connection to {there} takes TCP: the loopback is not on the SAN"),
            "use an address of the device (san devices), or: export SAN_LOOPBACK=1",
        );
    }
    let table = facts.fabric.table.join(", ");
    Line::fail(
        "route",
        format!(
            "a connection to {there} takes TCP: it lies in no subnet of the SAN ({table}), and \
             the SAN is not routed"
        ),
        format!(
            "use the peer's address in one of these subnets (there: san devices); see the \
             kernel's way: ip route get {}",
            address.address.ip()
        ),
    )
}

/// Whether it shows that somebody there speaks RDMA, though nobody listens on a port of the
/// doctor's choice.
fn proves_an_answer(failure: ConnectFailure) -> bool {
    use ConnectFailure as F;
    !matches!(
        failure,
        F::TimedOut
            | F::Unreachable
            | F::NoRoute
            | F::OutOfResources
            | F::NetDown
            | F::System
            | F::BadAddress
            | F::AddressFamily
            | F::NotInitialised
            | F::NotSocket
            | F::WrongState
    )
}

/// Why the SAN gave no connection, and what to do: in the words of `route()` and `san stat`. Of silence
/// the doctor knows more than they do.
fn reason(failure: ConnectFailure, address: &PeerAddressFacts) -> (String, String) {
    match failure {
        ConnectFailure::TimedOut | ConnectFailure::Unreachable => silence(address),
        failure => (failure.to_string(), failure.remedy(address.address)),
    }
}

/// Nobody answered: what the datagram says of it.
fn silence(address: &PeerAddressFacts) -> (String, String) {
    let ip = address.address.ip();
    match &address.datagram {
        Datagram::Refused => (
            "nobody has UDP port 4791 there: no RoCE runs on that host".to_owned(),
            "on the peer: san doctor; start its programs with the same SAN_FABRIC as here"
                .to_owned(),
        ),
        Datagram::Prohibited(_) => (
            "no answer, since a firewall closes UDP port 4791".to_owned(),
            "see the line firewall above".to_owned(),
        ),
        Datagram::Untried => (
            "no answer over the fabric".to_owned(),
            format!("on the peer: san doctor; here: ibstat; ip neighbour show {ip}"),
        ),
        Datagram::Silent | Datagram::Unsent(_) => (
            "no answer over RDMA: nobody speaks it there, or a firewall drops UDP port 4791"
                .to_owned(),
            format!(
                "on the peer: san doctor; there, as root: nft list ruleset | grep -n -e 4791 -e \
                 drop; and: tcpdump -ni any udp port 4791 while this runs here: san doctor {ip}"
            ),
        ),
    }
}

fn tcp(address: &PeerAddressFacts, tcp: &TcpFacts) -> Line {
    match tcp {
        TcpFacts::Connected { took_ms } => Line::ok(
            "tcp",
            format!("{} answers over TCP; {took_ms} ms", address.address),
        ),
        TcpFacts::Failed { why, .. } => Line::fail("tcp", why, not_over_tcp(address)),
    }
}

fn not_over_tcp(address: &PeerAddressFacts) -> String {
    let (ip, port) = (address.address.ip(), address.address.port());
    match &address.tcp {
        Some(TcpFacts::Failed { refused: true, .. }) => {
            format!("nobody listens there; on the peer: ss -ltnp 'sport = :{port}'")
        }
        _ => format!(
            "see the way: ip route get {ip}; ping {ip}; on the peer, as root: nft list ruleset | \
             grep {port}"
        ),
    }
}

/// The host of `HOST:PORT`.
fn host_of(asked: &str) -> &str {
    let host = asked.rsplit_once(':').map_or(asked, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}
