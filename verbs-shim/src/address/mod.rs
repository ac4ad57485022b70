//! Which IP addresses belong to which RDMA device, and when that changes.
//!
//! It lists and watches; which subnets they stand for is for the caller to say.

mod netlink;
mod sysfs;

use std::net::IpAddr;

pub use self::netlink::AddressWatch;
pub(crate) use self::sysfs::{gids, hw_counters, name_of};
use crate::backend;
use crate::error::Result;

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

pub(crate) fn of_device(device: &dyn backend::Device) -> Result<Vec<InterfaceAddress>> {
    let mut netdevs = Vec::new();
    for port in 1..=device.limits()?.ports {
        let gids = device.gids(port)?;
        netdevs.extend(gids.into_iter().filter_map(|gid| gid.netdev));
    }
    netdevs.extend(sysfs::ipoib_netdevs(device.name()));
    netdevs.sort_unstable();
    netdevs.dedup();
    let mut found = Vec::new();
    let all = netlink::addresses()?;
    for netdev in netdevs {
        // An interface that has gone meanwhile has no addresses.
        let Some(ifindex) = sysfs::ifindex(&netdev) else {
            continue;
        };
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
