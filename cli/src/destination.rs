//! Where to connect to, listen, or come from: `HOST:PORT`, with a name or an address for the host.
//! One parser for all three; a name is for the first alone.
//!
//! Parsing looks nothing up; [`Destination::resolve`] asks the system's resolver.

use crate::problem::Problem;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::str::FromStr;

/// The port that is asked where none was given: that of RoCE, on which no program listens.
const NO_PORT: u16 = 4791;

/// A host and a port, as given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    host: String,
    port: u16,
    /// Where the host is given as an address.
    address: Option<SocketAddr>,
}

impl Destination {
    /// Its addresses, in the resolver's order: at least one.
    pub(crate) fn resolve(&self) -> Result<Vec<SocketAddr>, Problem> {
        if let Some(address) = self.address {
            return Ok(vec![address]);
        }
        let found: Vec<SocketAddr> = (self.host.as_str(), self.port)
            .to_socket_addrs()
            .map_err(|error| {
                Problem::new(format!("cannot find the host '{}': {error}", self.host))
                    .with_remedy(format!("ask the resolver: getent hosts {}", self.host))
            })?
            .collect();
        if found.is_empty() {
            return Err(Problem::new(format!("'{}' has no address", self.host)));
        }
        Ok(found)
    }

    /// What both ends of a connection are given as: any port.
    fn parse(text: &str) -> Result<Self, String> {
        if let Some((scheme, rest)) = text.split_once("://") {
            let place = rest.split(['/', '?', '#']).next().unwrap_or_default();
            let place = match place.rsplit_once('@') {
                Some((_, place)) => place,
                None => place,
            };
            let port = match scheme {
                "https" => ":443",
                _ => ":80",
            };
            let port = if place.contains(':') { "" } else { port };
            return Err(format!("give HOST:PORT and no URL: {place}{port}"));
        }
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| format!("no port; give HOST:PORT, such as {text}:7000 or [::1]:7000"))?;
        let port = port
            .parse()
            .map_err(|_| format!("'{port}' is no port: a number from 1 to 65535"))?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        if bracketed.is_none() && host.contains(':') {
            return Err(format!("an IPv6 address goes in brackets: [{host}]:{port}"));
        }
        let host = bracketed.unwrap_or(host);
        if host.is_empty() {
            return Err("no host; give HOST:PORT, such as 10.0.7.2:7000".to_owned());
        }
        Ok(Destination {
            host: host.to_owned(),
            port,
            address: address(host, port)?,
        })
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let destination = Destination::parse(text)?;
        match destination.port {
            0 => Err("nobody can be reached at port 0".to_owned()),
            _ => Ok(destination),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// `HOST:PORT`, or a host alone; and which of the two it was. The port stands for none then.
pub(crate) fn peer(text: &str) -> Result<(Destination, bool), String> {
    let is_host_alone = match text.rsplit_once(':') {
        None => true,
        // An IPv6 address, with or without brackets.
        Some((before, _)) => text.ends_with(']') || before.contains(':') && !text.contains(']'),
    };
    if !is_host_alone {
        return Ok((text.parse()?, true));
    }
    let host = match text.contains(':') && !text.starts_with('[') {
        true => format!("[{text}]"),
        false => text.to_owned(),
    };
    Ok((format!("{host}:{NO_PORT}").parse()?, false))
}

/// An address of this host to listen on, or to come from.
pub(crate) fn local_address(text: &str) -> Result<SocketAddr, String> {
    let hint = "give an address of this host and a port: 10.0.7.1:7000, 0.0.0.0:7000 or [::]:7000";
    if !text.contains(':') {
        return Err(hint.to_owned());
    }
    Destination::parse(text)?
        .address
        .ok_or_else(|| hint.to_owned())
}

/// The host as an address, if it is one and not a name. Link-local ones are there once for each
/// interface, which the zone behind the `%` tells.
fn address(host: &str, port: u16) -> Result<Option<SocketAddr>, String> {
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(Some((ip, port).into()));
    }
    let (ip, zone) = match host.split_once('%') {
        Some((ip, zone)) => (ip, Some(zone)),
        None => (host, None),
    };
    let Ok(ip) = ip.parse::<Ipv6Addr>() else {
        return Ok(None);
    };
    let scope = match zone {
        Some(zone) if ip.is_unicast_link_local() => interface(zone)?,
        Some(_) => {
            return Err(format!(
                "{ip} is the same at every interface: [{ip}]:{port}"
            ));
        }
        None if ip.is_unicast_link_local() => {
            return Err(format!(
                "a link-local address needs its interface: [{ip}%eth0]:{port}"
            ));
        }
        None => 0,
    };
    Ok(Some(SocketAddrV6::new(ip, port, 0, scope).into()))
}

/// An interface's index, by its name or as a number.
fn interface(zone: &str) -> Result<u32, String> {
    if let Ok(index @ 1..) = zone.parse() {
        return Ok(index);
    }
    let found = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)
        .and_then(|socket| name_to_index(socket, zone));
    found.map_err(|_| format!("there is no interface '{zone}'; see which are: ip -br link"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_may_have_no_port() {
        for (text, shown, has_port) in [
            ("node7", "node7:4791", false),
            ("node7:7000", "node7:7000", true),
            ("10.0.7.2", "10.0.7.2:4791", false),
            ("::1", "[::1]:4791", false),
            ("[::1]", "[::1]:4791", false),
            ("[::1]:7000", "[::1]:7000", true),
        ] {
            let (destination, found) = peer(text).unwrap();
            assert_eq!((destination.to_string().as_str(), found), (shown, has_port));
        }
        for bad in ["node7:0", "node7:x", ":7000", "", "http://node7"] {
            assert!(peer(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_and_ports_are_told_apart() {
        for (text, shown) in [
            ("10.0.7.2:7000", "10.0.7.2:7000"),
            ("[::1]:7000", "[::1]:7000"),
            ("node7:7000", "node7:7000"),
        ] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), shown);
        }
        for (text, why) in [
            ("10.0.7.2", "no port"),
            ("10.0.7.2:http", "is no port"),
            ("10.0.7.2:70000", "is no port"),
            ("10.0.7.2:0", "port 0"),
            ("::1:7000", "brackets"),
            ("http://10.0.7.2:7000/file", "no URL: 10.0.7.2:7000"),
            ("https://me@node7", "no URL: node7:443"),
            (":7000", "no host"),
        ] {
            let error = text.parse::<Destination>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn addresses_and_names_are_found() {
        let address: Destination = "127.0.0.1:7".parse().unwrap();
        assert_eq!(address.resolve().unwrap(), ["127.0.0.1:7".parse().unwrap()]);
        let local: Destination = "localhost:7".parse().unwrap();
        assert!(
            local
                .resolve()
                .unwrap()
                .iter()
                .all(|a| a.ip().is_loopback())
        );
    }

    #[test]
    fn a_local_address_is_no_name() {
        assert!(local_address("[::]:7000").is_ok());
        assert!(
            local_address("nonsense")
                .unwrap_err()
                .contains("10.0.7.1:7000")
        );
    }

    #[test]
    fn a_zone_tells_where_a_link_local_address_is() {
        let index = std::fs::read_to_string("/sys/class/net/lo/ifindex").unwrap();
        let lo: u32 = index.trim().parse().unwrap();
        let scope = |address: SocketAddr| match address {
            SocketAddr::V6(address) => address.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        for text in [
            "[fe80::1%lo]:7001".to_owned(),
            format!("[fe80::1%{lo}]:7001"),
        ] {
            let local = local_address(&text).unwrap();
            assert_eq!((scope(local), local.port()), (lo, 7001), "{text}");
            let destination: Destination = text.parse().unwrap();
            assert_eq!(destination.resolve().unwrap(), [local]);
            assert_eq!(destination.to_string(), text);
        }
        for (text, why) in [
            (
                "[fe80::1]:7001",
                "a link-local address needs its interface: [fe80::1%eth0]:7001",
            ),
            ("[fe80::1%no-such]:7001", "there is no interface 'no-such'"),
            ("[fe80::1%]:7001", "there is no interface ''"),
            ("[fd00::1%lo]:7001", "[fd00::1]:7001"),
            ("fe80::1%lo:7001", "brackets"),
        ] {
            for error in [
                local_address(text).unwrap_err(),
                text.parse::<Destination>().unwrap_err(),
            ] {
                assert!(error.contains(why), "{text}: {error}");
            }
        }
    }

    #[test]
    fn a_local_port_may_be_left_open() {
        assert_eq!(local_address("10.0.7.1:0").unwrap().port(), 0);
        assert!(
            local_address("node7:0")
                .unwrap_err()
                .contains("an address of this host")
        );
    }
}
