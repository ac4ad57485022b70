//! What the kernel says of RDMA devices under `/sys`.

use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::path::Path;

use crate::error::{Result, VerbsError};
use crate::types::Gid;

const INFINIBAND: &str = "/sys/class/infiniband";
const NET: &str = "/sys/class/net";

/// The GIDs in use on a port.
pub(crate) fn gids(device: &str, port: u8) -> Result<Vec<Gid>> {
    gids_below(
        &Path::new(INFINIBAND)
            .join(device)
            .join("ports")
            .join(port.to_string()),
    )
}

fn gids_below(port: &Path) -> Result<Vec<Gid>> {
    let fail = |source| VerbsError {
        call: "the GID table in /sys",
        source,
    };
    let mut gids = Vec::new();
    for entry in fs::read_dir(port.join("gids")).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let Some(index) = name.to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        // Reading an empty entry fails on some kernels, and gives zeros on others.
        let Some(gid) = read(&port.join("gids").join(&name)).and_then(|text| parse_gid(&text))
        else {
            continue;
        };
        let attr = |kind: &str| read(&port.join("gid_attrs").join(kind).join(&name));
        gids.push(Gid {
            index,
            gid,
            kind: attr("types").unwrap_or_default(),
            netdev: attr("ndevs").filter(|n| !n.is_empty()),
        });
    }
    gids.sort_unstable_by_key(|gid| gid.index);
    Ok(gids)
}

/// What a device counts at its first port, in the order of the names; empty where it tells nothing.
pub(crate) fn hw_counters(device: &str) -> Vec<(String, u64)> {
    let directory = Path::new(INFINIBAND)
        .join(device)
        .join("ports/1/hw_counters");
    let counter = |entry: fs::DirEntry| {
        let value = read(&entry.path())?.parse().ok()?;
        Some((entry.file_name().into_string().ok()?, value))
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut counters: Vec<_> = entries.filter_map(counter).collect();
    counters.sort_unstable();
    counters
}

/// The name of the network interface with this index, if there is one.
pub(crate) fn name_of(ifindex: u32) -> Option<String> {
    let found = names().into_iter().find(|(index, _)| *index == ifindex);
    found.map(|(_, name)| name)
}

/// The names of the network interfaces with their indices.
pub(crate) fn names() -> Vec<(u32, String)> {
    let entries = fs::read_dir(NET).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| Some((ifindex(&name)?, name)))
        .collect()
}

/// The network interfaces that run IP over InfiniBand on the device: its GIDs name none.
pub(crate) fn ipoib_netdevs(device: &str) -> Vec<String> {
    ipoib_below(Path::new(NET), device)
}

fn ipoib_below(net: &Path, device: &str) -> Vec<String> {
    const ARPHRD_INFINIBAND: &str = "32";
    let Ok(entries) = fs::read_dir(net) else {
        return Vec::new();
    };
    entries
        .filter_map(io::Result::ok)
        .filter(|entry| {
            let path = entry.path();
            read(&path.join("type")).as_deref() == Some(ARPHRD_INFINIBAND)
                && path.join("device/infiniband").join(device).exists()
        })
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// The index of a network interface, if there is one of that name.
pub(crate) fn ifindex(netdev: &str) -> Option<u32> {
    read(&Path::new(NET).join(netdev).join("ifindex"))?
        .parse()
        .ok()
}

fn read(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim_end().to_owned())
}

/// A GID as sysfs writes it; `None` for an unused entry (all zero), and for what is no GID.
fn parse_gid(text: &str) -> Option<Ipv6Addr> {
    let gid: Ipv6Addr = text.parse().ok()?;
    (!gid.is_unspecified()).then_some(gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gids_as_sysfs_writes_them() {
        let v4 = parse_gid("0000:0000:0000:0000:0000:ffff:0a00:0701").unwrap();
        assert_eq!(v4.to_ipv4_mapped(), Some([10, 0, 7, 1].into()));
        assert_eq!(
            parse_gid("fe80:0000:0000:0000:5054:00ff:fe12:3456"),
            Some("fe80::5054:ff:fe12:3456".parse().unwrap())
        );
        assert_eq!(parse_gid("0000:0000:0000:0000:0000:0000:0000:0000"), None);
        assert_eq!(parse_gid("nonsense"), None);
        assert_eq!(parse_gid(""), None);
    }

    fn tree(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("verbs-shim-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    fn put(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_port_with_gaps_in_its_table() {
        let port = tree("gids");
        let zero = "0000:0000:0000:0000:0000:0000:0000:0000\n";
        put(
            &port.join("gids/0"),
            "fe80:0000:0000:0000:5054:00ff:fe12:3456\n",
        );
        put(&port.join("gids/1"), zero);
        put(
            &port.join("gids/10"),
            "0000:0000:0000:0000:0000:ffff:0a00:0701\n",
        );
        put(&port.join("gids/x"), zero);
        put(&port.join("gid_attrs/types/0"), "IB/RoCE v1\n");
        put(&port.join("gid_attrs/types/10"), "RoCE v2\n");
        put(&port.join("gid_attrs/ndevs/10"), "eth0\n");
        let gids = gids_below(&port).unwrap();
        fs::remove_dir_all(&port).unwrap();
        assert_eq!(gids.iter().map(|g| g.index).collect::<Vec<_>>(), [0, 10]);
        assert_eq!(
            (gids[0].kind.as_str(), gids[0].netdev.as_deref()),
            ("IB/RoCE v1", None)
        );
        assert_eq!(
            (gids[1].kind.as_str(), gids[1].netdev.as_deref()),
            ("RoCE v2", Some("eth0"))
        );
    }

    #[test]
    fn no_such_port_is_an_error() {
        assert_eq!(
            gids_below(Path::new("/nonexistent")).unwrap_err().errno(),
            libc::ENOENT
        );
    }

    #[test]
    fn ipoib_interfaces_by_their_device() {
        let net = tree("net");
        put(&net.join("ib0/type"), "32\n");
        put(&net.join("ib0/device/infiniband/mlx5_0/x"), "");
        put(&net.join("ib1/type"), "32\n");
        put(&net.join("ib1/device/infiniband/mlx5_1/x"), "");
        put(&net.join("eth0/type"), "1\n");
        put(&net.join("eth0/device/infiniband/mlx5_0/x"), "");
        let found = ipoib_below(&net, "mlx5_0");
        fs::remove_dir_all(&net).unwrap();
        assert_eq!(found, ["ib0"]);
    }

    #[test]
    fn the_loopback_interface_has_an_index() {
        assert!(ifindex("lo").is_some_and(|n| n > 0));
        assert_eq!(ifindex("no-such-interface"), None);
        assert_eq!(ifindex("lo").and_then(name_of).as_deref(), Some("lo"));
        assert_eq!(name_of(0), None);
    }
}
