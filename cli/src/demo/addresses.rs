//! Which two addresses of this host the demo plays on.

use crate::problem::{Problem, hindrances};
use san_switch::{SanEntry, Switch};
use std::fmt;
use std::net::IpAddr;

/// Where the clients come from and where they go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) client: IpAddr,
    pub(super) server: IpAddr,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.client == self.server {
            write!(f, "{} to itself", self.client)
        } else {
            write!(f, "{} and go to {}", self.client, self.server)
        }
    }
}

/// Takes the addresses given, and finds the others among the SAN's own.
pub(super) fn find(
    switch: &Switch,
    client: Option<IpAddr>,
    server: Option<IpAddr>,
) -> Result<Pair, Problem> {
    let entries = switch.san_addresses();
    if entries.is_empty() {
        let reason = switch
            .no_san_reason()
            .unwrap_or("no RDMA device has an IP address");
        let problem = Problem::new(format!("there is no SAN on this machine: {reason}"));
        let remedy = hindrances().into_iter().next().map_or_else(
            || "san devices says more".to_owned(),
            |hindrance| hindrance.to_string(),
        );
        return Err(problem.with_remedy(remedy));
    }
    for ip in [client, server].into_iter().flatten() {
        if entries.iter().all(|entry| entry.ip != ip) {
            let known: Vec<String> = entries.iter().map(ToString::to_string).collect();
            return Err(Problem::new(format!("{ip} is not an address of a SAN NIC"))
                .with_remedy(format!("those are: {}", known.join(", "))));
        }
    }
    Ok(choose(&entries, client, server))
}

/// Two addresses of one subnet on different devices if there are such, else one and itself.
fn choose(entries: &[SanEntry], client: Option<IpAddr>, server: Option<IpAddr>) -> Pair {
    let other_than = |ip: IpAddr| {
        let own = entries.iter().find(|entry| entry.ip == ip);
        let device = own.map(|entry| entry.device.as_str());
        entries
            .iter()
            .find(|entry| {
                Some(entry.device.as_str()) != device
                    && own.is_some_and(|own| own.is_neighbour(entry))
            })
            .map_or(ip, |entry| entry.ip)
    };
    let usable = |entry: &&SanEntry| match entry.ip {
        IpAddr::V4(_) => true,
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    match (client, server) {
        (Some(client), Some(server)) => Pair { client, server },
        (Some(client), None) => Pair {
            client,
            server: other_than(client),
        },
        (None, Some(server)) => Pair {
            client: other_than(server),
            server,
        },
        (None, None) => {
            let candidates = || entries.iter().filter(usable);
            // IPv4 first, and a NIC with a neighbour before a lonely one.
            let first = candidates()
                .min_by_key(|entry| (other_than(entry.ip) == entry.ip, entry.ip.is_ipv6()))
                .or_else(|| entries.first())
                .expect("the caller saw that there are some");
            Pair {
                client: first.ip,
                server: other_than(first.ip),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(ip: &str, device: &str) -> SanEntry {
        SanEntry {
            provider: 0,
            ip: ip.parse().unwrap(),
            prefix_len: if ip.contains(':') { 64 } else { 24 },
            device: device.into(),
            ifindex: 1,
        }
    }

    fn pair(client: &str, server: &str) -> Pair {
        Pair {
            client: client.parse().unwrap(),
            server: server.parse().unwrap(),
        }
    }

    #[test]
    fn two_devices_of_one_subnet_are_preferred() {
        let entries = [
            entry("fe80::1", "rxe_a"),
            entry("10.9.0.1", "rxe_c"),
            entry("10.0.7.1", "rxe_a"),
            entry("10.0.7.2", "rxe_b"),
        ];
        assert_eq!(choose(&entries, None, None), pair("10.0.7.1", "10.0.7.2"));
        let given = Some("10.0.7.2".parse().unwrap());
        assert_eq!(choose(&entries, given, None), pair("10.0.7.2", "10.0.7.1"));
        assert_eq!(choose(&entries, None, given), pair("10.0.7.1", "10.0.7.2"));
    }

    #[test]
    fn one_device_talks_to_itself() {
        let entries = [entry("fe80::1", "rxe_a"), entry("10.0.7.1", "rxe_a")];
        assert_eq!(choose(&entries, None, None), pair("10.0.7.1", "10.0.7.1"));
        let entries = [entry("fe80::1", "rxe_a")];
        assert_eq!(choose(&entries, None, None), pair("fe80::1", "fe80::1"));
    }
}
