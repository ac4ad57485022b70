//! Which IP addresses belong to which RDMA device, and when that changes.
//!
//! It lists and watches; which subnets they stand for is for the caller to say.

mod netlink;
mod sysfs;

use std::net::IpAddr;

pub use self::netlink::AddressWatch;
pub(crate) use self::sysfs::gids;
use crate::device::Device;
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

pub(crate) fn of_device(device: &Device) -> Result<Vec<InterfaceAddress>> {
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
