//! Where to connect to: `HOST:PORT`, with a name or an address for the host.
//!
//! Parsing looks nothing up; [`Destination::resolve`] asks the system's resolver.

use crate::problem::Problem;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

/// A host and a port, as given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    host: String,
    port: u16,
}

impl Destination {
    /// Its addresses, in the resolver's order: at least one.
    pub(crate) fn resolve(&self) -> Result<Vec<SocketAddr>, Problem> {
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
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| format!("no port; give HOST:PORT, such as {text}:7000 or [::1]:7000"))?;
        let port = port
            .parse()
            .map_err(|_| format!("'{port}' is no port: a number from 1 to 65535"))?;
        if port == 0 {
            return Err("nobody can be reached at port 0".to_owned());
        }
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
        })
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

/// An address of this host to listen on, or to come from.
pub(crate) fn local_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "give an address of this host and a port: 10.0.7.1:7000, 0.0.0.0:7000 or [::]:7000"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
