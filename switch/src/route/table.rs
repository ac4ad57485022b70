//! Which provider serves which destination: the table of SAN subnets.
//!
//! Built from the providers' address lists (duty 6) and rebuilt whole after every change (duty 8).
//! It only answers questions; it asks nobody, keeps no socket and reads no clock. Routed and
//! inter-subnet traffic finds nothing here and so goes to TCP (duties 3 and 18).

use super::fallback::NotTried;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use ipnet::IpNet;

/// One address of a SAN NIC, and with it the subnet that NIC reaches directly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SanEntry {
    /// The provider, by its number within the switch.
    pub provider: usize,
    /// The NIC's own address.
    pub ip: IpAddr,
    /// Length of the subnet's prefix in bits.
    pub prefix_len: u8,
    /// The RDMA device's name.
    pub device: String,
    /// The network interface, which tells IPv6 link-local subnets apart.
    pub ifindex: u32,
}

/// A question to the table.
#[derive(Debug, Clone, Copy)]
pub struct RouteQuery {
    /// Where the connection is to go.
    pub destination: SocketAddr,
    /// The local address the application bound, if it did: only the NIC with that address will do.
    pub bound: Option<IpAddr>,
    /// The source address the kernel would choose, which decides between NICs of equal right.
    pub preferred: Option<IpAddr>,
}

/// The subnets of all providers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SanTable {
    entries: Vec<SanEntry>,
    loopback: bool,
    /// Subnets that are reached by a router.
    routed: Vec<IpNet>,
    /// Providers for which the wildcard address stands for other devices, too.
    without_wildcard: Vec<usize>,
}

impl SanTable {
    /// Makes a table of these addresses. Loopback addresses are left out unless `loopback`;
    /// wildcard and multicast addresses and impossible prefixes always are.
    pub fn new(entries: impl IntoIterator<Item = SanEntry>, loopback: bool) -> Self {
        let mut entries: Vec<SanEntry> = entries
            .into_iter()
            .map(|entry| SanEntry {
                ip: entry.ip.to_canonical(),
                ..entry
            })
            .filter(|entry| {
                !entry.ip.is_unspecified()
                    && !entry.ip.is_multicast()
                    && (loopback || !entry.ip.is_loopback())
                    && entry.prefix_len <= bits(entry.ip)
            })
            .collect();
        // The longest prefix first; the sort is stable, so equals keep the providers' order.
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.prefix_len));
        SanTable {
            entries,
            loopback,
            routed: Vec::new(),
            without_wildcard: Vec::new(),
        }
    }

    /// The same table, with providers on which nobody listens on the wildcard address, but on each address.
    #[must_use]
    pub(crate) fn without_wildcard(self, without_wildcard: Vec<usize>) -> Self {
        SanTable {
            without_wildcard,
            ..self
        }
    }

    /// The same table, with subnets that the SAN reaches by a router.
    #[must_use]
    pub fn routed(self, routed: Vec<IpNet>) -> Self {
        SanTable { routed, ..self }
    }

    /// The NIC through which a destination is reached, if any: without a router, or in a subnet of
    /// [`SanTable::routed`] through the NIC with the address that is bound, or that the kernel would
    /// choose.
    ///
    /// The longest prefix wins. Among equals: the NIC that the kernel would use, then the one that
    /// has the destination itself (a connection to our own host), then the provider that was
    /// registered first.
    pub fn route(&self, query: &RouteQuery) -> Option<&SanEntry> {
        let destination = query.destination.ip().to_canonical();
        if destination.is_unspecified()
            || destination.is_multicast()
            || (destination.is_loopback() && !self.loopback)
        {
            return None;
        }
        let scope = match query.destination {
            SocketAddr::V6(address) => address.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        let bound = query
            .bound
            .map(|ip| ip.to_canonical())
            .filter(|ip| !ip.is_unspecified());
        let preferred = query.preferred.map(|ip| ip.to_canonical());
        let fits = |entry: &&SanEntry| {
            contains(entry.ip, entry.prefix_len, destination)
                && bound.is_none_or(|ip| entry.takes(ip))
                && (scope == 0 || !is_link_local(destination) || scope == entry.ifindex)
        };
        let Some(longest) = self.entries.iter().find(fits) else {
            return self.by_router(destination, bound.or(preferred));
        };
        let longest = longest.prefix_len;
        let rank = |entry: &&SanEntry| match () {
            () if Some(entry.ip) == preferred => 0,
            () if entry.ip == destination => 1,
            () => 2,
        };
        self.entries
            .iter()
            .filter(|entry| entry.prefix_len == longest)
            .filter(fits)
            .min_by_key(rank)
    }

    fn by_router(&self, destination: IpAddr, from: Option<IpAddr>) -> Option<&SanEntry> {
        let is_routed = self
            .routed
            .iter()
            .any(|subnet| subnet.contains(&destination));
        let from = from.filter(|from| is_routed && from.is_ipv4() == destination.is_ipv4())?;
        self.own(from)
    }

    /// Why [`SanTable::route`] finds nothing.
    pub(crate) fn why_none(&self, query: &RouteQuery) -> NotTried {
        let unbound = RouteQuery {
            bound: None,
            ..*query
        };
        match self.route(&unbound) {
            Some(_) => NotTried::BoundElsewhere,
            None if query.destination.ip().to_canonical().is_loopback() => NotTried::Loopback,
            None => NotTried::OtherSubnet,
        }
    }

    /// The entry whose NIC has this address, if any: the one that names it before one of the
    /// loopback, whose network is this host's as a whole.
    pub fn own(&self, ip: IpAddr) -> Option<&SanEntry> {
        let ip = ip.to_canonical();
        let named = self.entries.iter().find(|entry| entry.ip == ip);
        named.or_else(|| self.entries.iter().find(|entry| entry.takes(ip)))
    }

    /// Whether a provider has an address of this family.
    pub fn serves(&self, provider: usize, ipv6: bool) -> bool {
        self.entries
            .iter()
            .any(|entry| entry.provider == provider && entry.ip.is_ipv6() == ipv6)
    }

    /// Where a listener on the wildcard address listens with a provider, port 0 to be filled in: on the
    /// wildcard address, or on each address of that family.
    pub(crate) fn wildcard_of(&self, provider: usize, ipv6: bool) -> Vec<SocketAddr> {
        if !self.serves(provider, ipv6) {
            return Vec::new();
        }
        if !self.without_wildcard.contains(&provider) {
            let wildcard: IpAddr = match ipv6 {
                true => Ipv6Addr::UNSPECIFIED.into(),
                false => Ipv4Addr::UNSPECIFIED.into(),
            };
            return vec![SocketAddr::new(wildcard, 0)];
        }
        let fits = |entry: &&SanEntry| entry.provider == provider && entry.ip.is_ipv6() == ipv6;
        let address = |entry: &SanEntry| match entry.ip {
            IpAddr::V6(ip) if is_link_local(entry.ip) => {
                SocketAddr::V6(SocketAddrV6::new(ip, 0, 0, entry.ifindex))
            }
            ip => SocketAddr::new(ip, 0),
        };
        self.entries.iter().filter(fits).map(address).collect()
    }

    /// Every address, the longest prefixes first.
    pub fn entries(&self) -> &[SanEntry] {
        &self.entries
    }
}

impl SanEntry {
    /// Whether an address is the NIC's own. On the loopback that is every one of its network:
    /// 127.0.0.2 as well as 127.0.0.1, which alone is named by the interface.
    fn takes(&self, ip: IpAddr) -> bool {
        let is_loopback = self.ip.is_loopback() && ip.is_loopback();
        ip == self.ip || is_loopback && contains(self.ip, self.prefix_len, ip)
    }

    /// Whether the other address lies in this one's subnet.
    pub fn is_neighbour(&self, other: &SanEntry) -> bool {
        contains(self.ip, self.prefix_len, other.ip)
    }
}

impl fmt::Display for SanEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} on {}", self.ip, self.prefix_len, self.device)
    }
}

fn bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn contains(network: IpAddr, prefix_len: u8, ip: IpAddr) -> bool {
    match (network, ip) {
        (IpAddr::V4(network), IpAddr::V4(ip)) => {
            let differing = network.to_bits() ^ ip.to_bits();
            differing.leading_zeros() >= u32::from(prefix_len)
        }
        (IpAddr::V6(network), IpAddr::V6(ip)) => {
            let differing = network.to_bits() ^ ip.to_bits();
            differing.leading_zeros() >= u32::from(prefix_len)
        }
        _ => false,
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(provider: usize, ip: &str, prefix_len: u8, ifindex: u32) -> SanEntry {
        SanEntry {
            provider,
            ip: ip.parse().unwrap(),
            prefix_len,
            device: format!("dev{ifindex}"),
            ifindex,
        }
    }

    fn ask(table: &SanTable, destination: &str) -> Option<(usize, String)> {
        table
            .route(&RouteQuery {
                destination: destination.parse().unwrap(),
                bound: None,
                preferred: None,
            })
            .map(|entry| (entry.provider, entry.ip.to_string()))
    }

    #[test]
    fn wsd_018_a_destination_outside_every_subnet_finds_nothing() {
        let table = SanTable::new([entry(0, "10.0.7.1", 24, 2)], false);
        assert_eq!(ask(&table, "10.0.7.99:1"), Some((0, "10.0.7.1".into())));
        for outside in ["10.0.8.1:1", "[fd00::1]:1", "192.0.2.1:1", "224.0.0.1:1"] {
            assert_eq!(ask(&table, outside), None, "{outside}");
        }
    }

    #[test]
    fn a_routed_subnet_is_reached_from_the_address_that_the_kernel_takes() {
        let entries = [entry(0, "10.0.7.1", 24, 2), entry(1, "10.0.8.1", 24, 3)];
        let routed = vec!["10.9.0.0/16".parse().unwrap()];
        let table = SanTable::new(entries, false).routed(routed);
        let ask = |destination: &str, bound: Option<&str>, preferred: &str| {
            let query = RouteQuery {
                destination: destination.parse().unwrap(),
                bound: bound.map(|ip| ip.parse().unwrap()),
                preferred: Some(preferred.parse().unwrap()),
            };
            table.route(&query).map(|entry| entry.provider)
        };
        assert_eq!(ask("10.9.3.3:1", None, "10.0.8.1"), Some(1));
        assert_eq!(ask("10.9.3.3:1", Some("10.0.7.1"), "10.0.8.1"), Some(0));
        // The kernel's way is not a SAN device's.
        assert_eq!(ask("10.9.3.3:1", None, "192.0.2.1"), None);
        assert_eq!(ask("10.8.3.3:1", None, "10.0.8.1"), None);
        assert_eq!(ask("[fd00::9]:1", None, "10.0.8.1"), None);
        // A subnet of a device's own is not routed.
        assert_eq!(ask("10.0.7.9:1", None, "10.0.8.1"), Some(0));
    }

    #[test]
    fn wsd_006_the_longest_prefix_decides_whatever_the_order() {
        let wide = entry(0, "10.0.0.1", 8, 2);
        let narrow = entry(1, "10.0.7.1", 24, 3);
        for entries in [[wide.clone(), narrow.clone()], [narrow, wide]] {
            let table = SanTable::new(entries, false);
            assert_eq!(ask(&table, "10.0.7.9:1").unwrap().0, 1);
            assert_eq!(ask(&table, "10.9.9.9:1").unwrap().0, 0);
        }
    }

    #[test]
    fn prefixes_of_every_length_match_by_their_bits() {
        let table = SanTable::new([entry(0, "10.0.7.1", 32, 2)], false);
        assert!(ask(&table, "10.0.7.1:1").is_some());
        assert!(ask(&table, "10.0.7.2:1").is_none());
        let table = SanTable::new([entry(0, "10.0.7.1", 0, 2)], false);
        assert!(ask(&table, "192.0.2.7:1").is_some());
        let table = SanTable::new([entry(0, "10.0.7.1", 31, 2)], false);
        assert!(ask(&table, "10.0.7.0:1").is_some());
        assert!(ask(&table, "10.0.7.2:1").is_none());
        let table = SanTable::new([entry(0, "fd00:0:0:1::1", 65, 2)], false);
        assert!(ask(&table, "[fd00:0:0:1:7fff::2]:1").is_some());
        assert!(ask(&table, "[fd00:0:0:1:8000::2]:1").is_none());
    }

    #[test]
    fn loopback_is_never_on_the_san_unless_asked_for() {
        let entries = [entry(0, "127.0.0.1", 8, 1), entry(0, "::1", 128, 1)];
        let table = SanTable::new(entries.clone(), false);
        assert!(table.entries().is_empty());
        assert_eq!(ask(&table, "127.0.0.1:1"), None);
        // A default-route prefix must not let loopback in by the back door.
        let table = SanTable::new([entry(0, "10.0.7.1", 0, 2)], false);
        assert_eq!(ask(&table, "127.0.0.1:1"), None);
        let table = SanTable::new(entries, true);
        assert_eq!(ask(&table, "127.9.9.9:1"), Some((0, "127.0.0.1".into())));
        assert_eq!(ask(&table, "[::1]:1"), Some((0, "::1".into())));
    }

    #[test]
    fn an_address_of_our_own_goes_through_its_own_nic() {
        let table = SanTable::new(
            [entry(0, "10.0.7.1", 24, 2), entry(0, "10.0.7.2", 24, 3)],
            false,
        );
        assert_eq!(ask(&table, "10.0.7.2:1").unwrap().1, "10.0.7.2");
        assert_eq!(ask(&table, "10.0.7.1:1").unwrap().1, "10.0.7.1");
        assert_eq!(table.own("10.0.7.2".parse().unwrap()).unwrap().ifindex, 3);
        assert!(table.own("10.0.7.3".parse().unwrap()).is_none());
    }

    #[test]
    fn the_bound_address_is_binding_and_the_kernels_choice_a_preference() {
        let table = SanTable::new(
            [entry(0, "10.0.7.1", 24, 2), entry(0, "10.0.7.2", 24, 3)],
            false,
        );
        let route = |bound: Option<&str>, preferred: Option<&str>| {
            table
                .route(&RouteQuery {
                    destination: "10.0.7.9:1".parse().unwrap(),
                    bound: bound.map(|ip| ip.parse().unwrap()),
                    preferred: preferred.map(|ip| ip.parse().unwrap()),
                })
                .map(|entry| entry.ifindex)
        };
        assert_eq!(route(None, None), Some(2));
        assert_eq!(route(None, Some("10.0.7.2")), Some(3));
        assert_eq!(route(None, Some("192.0.2.1")), Some(2));
        assert_eq!(route(Some("10.0.7.2"), Some("10.0.7.1")), Some(3));
        let own = |preferred: &str| {
            table.route(&RouteQuery {
                destination: "10.0.7.2:1".parse().unwrap(),
                bound: None,
                preferred: Some(preferred.parse().unwrap()),
            })
        };
        assert_eq!(own("10.0.7.1").unwrap().ifindex, 2);
        assert_eq!(own("192.0.2.1").unwrap().ifindex, 3);
        assert_eq!(route(Some("192.0.2.1"), None), None);
        assert_eq!(route(Some("0.0.0.0"), None), Some(2));
    }

    #[test]
    fn link_local_subnets_are_told_apart_by_their_interface() {
        let table = SanTable::new(
            [entry(0, "fe80::1", 64, 2), entry(1, "fe80::2", 64, 3)],
            false,
        );
        assert_eq!(ask(&table, "[fe80::9%3]:1").unwrap().0, 1);
        assert_eq!(ask(&table, "[fe80::9%2]:1").unwrap().0, 0);
        assert_eq!(ask(&table, "[fe80::9%4]:1"), None);
    }

    #[test]
    fn every_address_of_the_loopback_is_its_devices() {
        let lo = [entry(0, "127.0.0.1", 8, 1), entry(0, "::1", 128, 1)];
        let table = SanTable::new(lo.clone(), true);
        let own = |table: &SanTable, ip: &str| {
            let entry = table.own(ip.parse().unwrap());
            entry.map(|entry| entry.ip.to_string())
        };
        assert_eq!(own(&table, "127.0.0.2").unwrap(), "127.0.0.1");
        assert_eq!(own(&table, "127.255.0.9").unwrap(), "127.0.0.1");
        assert_eq!(own(&table, "::1").unwrap(), "::1");
        assert_eq!(own(&table, "10.0.7.1"), None);
        let from = |ip: &str| {
            let entry = table.route(&RouteQuery {
                destination: "127.0.0.9:1".parse().unwrap(),
                bound: Some(ip.parse().unwrap()),
                preferred: None,
            });
            entry.is_some()
        };
        assert!(from("127.0.0.3"));
        assert!(!from("10.0.7.1"));
        // One that is named goes before, and one that stands for itself alone takes no other.
        let two = [lo[0].clone(), entry(1, "127.0.0.2", 32, 1)];
        assert_eq!(
            own(&SanTable::new(two.clone(), true), "127.0.0.2").unwrap(),
            "127.0.0.2"
        );
        assert_eq!(
            own(&SanTable::new(two[1..].to_vec(), true), "127.0.0.3"),
            None
        );
        assert_eq!(own(&SanTable::new(lo, false), "127.0.0.2"), None);
        // A network elsewhere is not one host's.
        let wire = SanTable::new([entry(0, "10.0.7.1", 24, 2)], true);
        assert_eq!(own(&wire, "10.0.7.2"), None);
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let table = SanTable::new([entry(0, "::ffff:10.0.7.1", 24, 2)], false);
        assert_eq!(ask(&table, "[::ffff:10.0.7.9]:1").unwrap().1, "10.0.7.1");
        assert!(table.serves(0, false) && !table.serves(0, true));
    }

    #[test]
    fn what_cannot_be_a_subnet_is_left_out() {
        let table = SanTable::new(
            [
                entry(0, "10.0.7.1", 33, 2),
                entry(0, "0.0.0.0", 0, 2),
                entry(0, "224.0.0.1", 4, 2),
            ],
            false,
        );
        assert_eq!(table.entries(), []);
    }
}
