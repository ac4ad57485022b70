//! Opening, and what is said of devices.

mod support;

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use support::{SOON, addr_a, addr_b, any_port, fabric, is_soft, readable};
use verbs_shim::{
    AddressWatch, CmId, Device, Fabric, FabricKind, LinkLayer, OpenError, PortState, SoftConfig,
};

/// With a kernel that has RDMA it opens, without one the error says so; never a crash.
#[test]
fn open_says_what_is_missing() {
    let kernel_has_it = std::fs::exists("/sys/class/infiniband").unwrap_or(false);
    match Fabric::rdma() {
        Ok(fabric) => {
            assert!(kernel_has_it);
            assert_eq!(fabric.kind(), FabricKind::Rdma);
        }
        Err(e @ OpenError::LibraryMissing { .. }) => assert!(e.to_string().contains("rdma-core")),
        Err(e @ OpenError::NoKernelSupport { .. }) => {
            assert!(!kernel_has_it, "{e}");
            assert!(e.to_string().contains("ib_uverbs"));
        }
        Err(e) => assert!(kernel_has_it, "{e}"),
    }
}

fn device_of(ip: IpAddr) -> Device {
    let devices = fabric().devices().unwrap();
    let has = |d: &&Device| d.addresses().unwrap().iter().any(|a| a.ip == ip);
    devices
        .iter()
        .find(has)
        .unwrap_or_else(|| panic!("no device with {ip}"))
        .clone()
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn devices_and_their_addresses() {
    let (a, b) = (device_of(addr_a()), device_of(addr_b()));
    assert_eq!(a == b, is_soft());
    assert_eq!(a.guid() == b.guid(), is_soft());
    for (device, ip) in [(&a, addr_a()), (&b, addr_b())] {
        let addresses = device.addresses().unwrap();
        let here = addresses.iter().find(|x| x.ip == ip).unwrap();
        assert!((8..=30).contains(&here.prefix_len), "{here:?}");
        assert!(std::fs::exists(format!("/sys/class/net/{}", here.netdev)).unwrap());
        assert!(here.ifindex > 0);
        // IPv6 link-local at the least.
        assert!(addresses.iter().any(|x| x.ip.is_ipv6()), "{addresses:?}");
        assert!(
            addresses.iter().all(|x| !x.ip.is_loopback()),
            "{addresses:?}"
        );
    }
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn limits_ports_and_gids() {
    for device in [device_of(addr_a()), device_of(addr_b())] {
        let limits = device.limits().unwrap();
        assert!(limits.max_qp > 16 && limits.max_qp_wr >= 64, "{limits:?}");
        assert!(
            limits.max_cqe >= 256 && limits.max_sge >= 2 && limits.max_mr > 16,
            "{limits:?}"
        );
        assert!(limits.max_inline >= 64, "{limits:?}");
        assert_eq!(device.limits().unwrap(), limits);
        for port in 1..=limits.ports {
            let attr = device.port(port).unwrap();
            assert_eq!(attr.state, PortState::Active);
            assert_eq!(attr.link_layer, LinkLayer::Ethernet);
            assert!(
                attr.active_mtu >= 1024 && attr.active_mtu <= attr.max_mtu,
                "{attr:?}"
            );
            assert!(attr.max_message_size >= 1 << 20);
            let gids = device.gids(port).unwrap();
            assert!(
                gids.iter().any(|g| g.gid.to_ipv4_mapped().is_some()),
                "{gids:?}"
            );
            assert!(gids.iter().all(|g| g.netdev.is_some()), "{gids:?}");
        }
        assert_eq!(
            device.port(limits.ports + 1).unwrap_err().errno(),
            libc_einval()
        );
    }
}

fn libc_einval() -> i32 {
    rustix::io::Errno::INVAL.raw_os_error()
}

/// Ids on one device share its context, so its protection domains serve them all.
#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn an_id_names_the_device_of_the_list() {
    let channel = fabric().event_channel().unwrap();
    for ip in [addr_a(), addr_b()] {
        let id = CmId::new(&channel).unwrap();
        assert_eq!(id.device(), None);
        id.bind(any_port(ip)).unwrap();
        assert_eq!(id.device(), Some(device_of(ip)));
        assert_eq!(id.port(), 1);
    }
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn an_address_that_comes_and_goes_is_noticed() {
    let (netdev, device) = interface_and_device();
    let ip: IpAddr = "10.99.7.9".parse().unwrap();
    let has = || {
        device
            .addresses()
            .unwrap()
            .iter()
            .any(|a| a.ip == ip && a.prefix_len == 24)
    };
    let watch = AddressWatch::new().unwrap();
    watch.drain();
    assert!(!has());
    ip_tool(&["addr", "add", "10.99.7.9/24", "dev", &netdev]);
    assert!(readable(&watch.as_fd(), SOON) && watch.drain());
    assert!(has());
    ip_tool(&["addr", "del", "10.99.7.9/24", "dev", &netdev]);
    assert!(readable(&watch.as_fd(), SOON) && watch.drain());
    assert!(!has());
    std::thread::sleep(Duration::from_millis(300));
    watch.drain();
    assert!(!watch.drain());
}

/// The interface of the first address, and a device that has what the interface has.
fn interface_and_device() -> (String, Device) {
    let device = device_of(addr_a());
    let addresses = device.addresses().unwrap();
    let first = addresses.iter().find(|a| a.ip == addr_a()).unwrap();
    let netdev = first.netdev.clone();
    if !is_soft() {
        return (netdev, device);
    }
    // The soft fabric follows the host when it was not told its addresses.
    let following = Fabric::soft(&SoftConfig::default()).unwrap();
    (netdev, following.devices().unwrap().swap_remove(0))
}

fn ip_tool(args: &[&str]) {
    tool("ip", args);
}

fn tool(name: &str, args: &[&str]) {
    let status = Command::new(name)
        .args(args)
        .status()
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(status.success(), "{name} {args:?}: {status}");
}
