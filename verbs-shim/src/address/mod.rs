//! Which IP addresses belong to which RDMA device, and when that changes.
//!
//! It lists and watches; which subnets they stand for is for the caller to say.

mod netlink;
mod sysfs;

use std::net::{IpAddr, Ipv6Addr};

pub use self::netlink::AddressWatch;
pub(crate) use self::sysfs::{gids, hw_counters, name_of};
use crate::error::Result;
use crate::types::Gid;

/// An IP address of a network interface that an RDMA device stands behind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InterfaceAddress {
    /// The address.
    pub ip: IpAddr,
    /// The length of its network's prefix.
    pub prefix_len: u8,
    /// The interface's name.
    pub netdev: String,
    /// The interface's index.
    pub ifindex: u32,
}

/// Those of the device `name`, whose ports have these GIDs.
pub(crate) fn of_device(name: &str, gids: Vec<Gid>) -> Result<Vec<InterfaceAddress>> {
    let mut netdevs: Vec<_> = gids.into_iter().filter_map(|gid| gid.netdev).collect();
    netdevs.extend(sysfs::ipoib_netdevs(name));
    netdevs.sort_unstable();
    netdevs.dedup();
    let mut found = Vec::new();
    let all = netlink::addresses()?;
    let links = netlink::links()?;
    for netdev in netdevs {
        // An interface that has gone meanwhile has no addresses.
        let Some(link) = links.iter().find(|link| link.name == netdev) else {
            continue;
        };
        let ifindex = link.ifindex;
        let here = all.iter().filter(|a| a.ifindex == ifindex);
        found.extend(here.map(|a| InterfaceAddress {
            ip: a.ip,
            prefix_len: a.prefix_len,
            netdev: netdev.clone(),
            ifindex,
        }));
    }
    Ok(found)
}

/// Takes the network interfaces off the GIDs that are not this network namespace's: the kernel
/// shows a device, with the names and indices of its own interfaces, in every namespace, where an
/// interface of the same name and index may be another one.
pub(crate) fn keep_own_netdevs(gids: &mut [Gid]) -> Result<()> {
    let mut names: Vec<_> = gids.iter().filter_map(|gid| gid.netdev.clone()).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return Ok(());
    }
    let links = netlink::links()?;
    let addresses = netlink::addresses()?;
    names.retain(|name| {
        let link = links.iter().find(|link| link.name == *name);
        link.is_some_and(|link| stands_behind(link, &addresses, gids))
    });
    for gid in gids {
        gid.netdev = gid.netdev.take().filter(|netdev| names.contains(netdev));
    }
    Ok(())
}

/// Whether one of the GIDs that name the interface is made of its hardware address, which a RoCE
/// port's first is and an iWARP port's only one, or is one of its IP addresses.
fn stands_behind(link: &netlink::Link, addresses: &[netlink::Address], gids: &[Gid]) -> bool {
    let here = addresses.iter().filter(|a| a.ifindex == link.ifindex);
    let mut known: Vec<Ipv6Addr> = here
        .map(|address| match address.ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        })
        .collect();
    if let Ok([a, b, c, d, e, f]) = <[u8; 6]>::try_from(&link.hardware[..]) {
        let of_roce = [
            0xFE,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            a ^ 2,
            b,
            c,
            0xFF,
            0xFE,
            d,
            e,
            f,
        ];
        let of_iwarp = [a, b, c, d, e, f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        known.extend([of_roce, of_iwarp].map(Ipv6Addr::from));
    }
    let mut named = gids
        .iter()
        .filter(|gid| gid.netdev.as_ref() == Some(&link.name));
    named.any(|gid| known.contains(&gid.gid))
}

/// All addresses of this host that a peer can use: link-local ones need a scope and are left out.
pub(crate) fn of_host() -> Result<Vec<InterfaceAddress>> {
    let usable = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    let names = sysfs::names();
    let name_of = |index| {
        let known = names.iter().find(|(n, _)| *n == index);
        known.map_or_else(|| format!("if{index}"), |(_, name)| name.clone())
    };
    let all = netlink::addresses()?.into_iter().filter(|a| usable(&a.ip));
    Ok(all
        .map(|a| InterfaceAddress {
            ip: a.ip,
            prefix_len: a.prefix_len,
            netdev: name_of(a.ifindex),
            ifindex: a.ifindex,
        })
        .collect())
}

/// What this host says of `ip`. An address that no interface names, such as 127.0.0.2, stands for
/// itself alone.
pub(crate) fn named(ip: IpAddr) -> InterfaceAddress {
    let of_host = of_host().unwrap_or_default();
    let known = of_host.into_iter().find(|address| address.ip == ip);
    known.unwrap_or_else(|| InterfaceAddress {
        ip,
        prefix_len: if ip.is_ipv4() { 32 } else { 128 },
        netdev: String::new(),
        ifindex: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gids(all: &[&str]) -> Vec<Gid> {
        let gid = |(index, gid): (usize, &&str)| Gid {
            index: index as u32,
            gid: gid.parse().unwrap(),
            kind: "RoCE v2".to_owned(),
            netdev: Some("eth0".to_owned()),
        };
        all.iter().enumerate().map(gid).collect()
    }

    #[test]
    fn an_interface_of_another_namespace_has_the_name_alone() {
        let link = |hardware: [u8; 6]| netlink::Link {
            ifindex: 2,
            name: "eth0".to_owned(),
            hardware: hardware.to_vec(),
        };
        let (own, other) = (link([0x52, 0x54, 0, 1, 2, 3]), link([6; 6]));
        let address = |ip: &str, ifindex| netlink::Address {
            ip: ip.parse().unwrap(),
            prefix_len: 24,
            ifindex,
        };
        let table = gids(&["fe80::5054:ff:fe01:203", "::ffff:10.0.7.1"]);
        assert!(stands_behind(&own, &[], &table), "no address was given yet");
        assert!(stands_behind(&other, &[address("10.0.7.1", 2)], &table));
        assert!(!stands_behind(&other, &[address("10.9.9.9", 2)], &table));
        assert!(!stands_behind(&other, &[address("10.0.7.1", 3)], &table));
        let iwarp = gids(&["5254:1:203::"]);
        assert!(stands_behind(&own, &[], &iwarp));
        assert!(!stands_behind(&other, &[], &iwarp));
        assert!(!stands_behind(&other, &[], &gids(&["::"])));
    }

    #[test]
    fn netdevs_that_are_not_here_are_taken_off() {
        let mut table = gids(&["fe80::5054:ff:fe01:203", "::ffff:127.0.0.1"]);
        table[0].netdev = Some("no-such-interface".to_owned());
        table[1].netdev = Some("lo".to_owned());
        keep_own_netdevs(&mut table).unwrap();
        assert_eq!(table[0].netdev, None);
        assert_eq!(table[1].netdev.as_deref(), Some("lo"));
    }
}
