//! Our device list against the one of `ibverbs`. Needs RDMA devices: run with `ci/rxe`.

use std::net::Ipv6Addr;

use verbs_shim::Fabric;

#[test]
fn the_devices_are_those_of_ibverbs() {
    let mut ours: Vec<(String, u64)> = Fabric::rdma()
        .expect("an RDMA fabric: run this with ci/rxe")
        .devices()
        .expect("our list")
        .iter()
        .map(|device| (device.name().to_owned(), device.guid()))
        .collect();
    let list = ibverbs::devices().expect("the list of ibverbs");
    let mut theirs: Vec<(String, u64)> = list
        .iter()
        .map(|device| {
            let name = device
                .name()
                .expect("a name")
                .to_str()
                .expect("plain letters")
                .to_owned();
            // ibverbs 0.9 takes the network's number for the host's: turn it back.
            (
                name,
                u64::from_be(u64::from(device.guid().expect("a GUID"))),
            )
        })
        .collect();
    ours.sort();
    theirs.sort();
    assert!(ours.len() >= 2, "two devices are needed, there is {ours:?}");
    assert_eq!(ours, theirs);
}

#[test]
fn the_guids_are_those_of_sysfs() {
    let fabric = Fabric::rdma().expect("an RDMA fabric: run this with ci/rxe");
    for device in fabric.devices().expect("our list") {
        let path = format!("/sys/class/infiniband/{}/node_guid", device.name());
        let text = std::fs::read_to_string(path).expect("the kernel's text of the GUID");
        let digits = text.trim().replace(':', "");
        assert_eq!(
            device.guid(),
            u64::from_str_radix(&digits, 16).expect("hexadecimal digits")
        );
    }
}

#[test]
fn the_gids_are_those_of_ibverbs() {
    let fabric = Fabric::rdma().expect("an RDMA fabric: run this with ci/rxe");
    let list = ibverbs::devices().expect("the list of ibverbs");
    for device in fabric.devices().expect("our list") {
        let other = list.iter().find(|other| {
            other
                .name()
                .is_some_and(|name| *name == c_name(device.name()))
        });
        let context = other.expect("the same device").open().expect("a context");
        let mut theirs: Vec<(u32, Ipv6Addr)> = context
            .gid_table()
            .iter()
            .map(|entry| {
                let halves = (entry.gid.subnet_prefix(), entry.gid.interface_id());
                (
                    entry.gid_index,
                    Ipv6Addr::from(u128::from(halves.0) << 64 | u128::from(halves.1)),
                )
            })
            .collect();
        let mut ours: Vec<(u32, Ipv6Addr)> = device
            .gids(1)
            .expect("our GIDs")
            .iter()
            .map(|gid| (gid.index, gid.gid))
            .collect();
        theirs.sort_unstable();
        ours.sort_unstable();
        assert!(!ours.is_empty(), "{} has no GID", device.name());
        assert_eq!(ours, theirs, "GIDs of {}", device.name());
    }
}

fn c_name(name: &str) -> std::ffi::CString {
    std::ffi::CString::new(name).expect("no zero byte")
}
