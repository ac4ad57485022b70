//! A network namespace without the NIC: the kernel shows the device there all the same, with the
//! index of its interface, which in there is another interface's.

mod support;

use std::process::Command;

use rustix::thread::UnshareFlags;
use support::fabric;

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.expect("ip");
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_device_has_no_address_where_its_interface_is_not() {
    let addresses = || -> Vec<_> {
        let devices = fabric().devices().unwrap();
        let all = devices
            .iter()
            .flat_map(|device| device.addresses().unwrap());
        all.collect()
    };
    let here = addresses();
    assert!(!here.is_empty());
    let inside = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: no table of descriptors is parted with, only this thread's view of networks.
            #[allow(unsafe_code)]
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            let taken = here
                .iter()
                .map(|address| (address.ifindex, &address.netdev));
            let mut taken: Vec<_> = taken.collect();
            taken.sort_unstable();
            taken.dedup();
            for (n, (index, name)) in taken.iter().enumerate() {
                ip(&format!(
                    "link add {name} index {index} type veth peer name peer{n} index {}",
                    100 + n
                ));
                ip(&format!("addr add 10.9.{n}.9/24 dev {name}"));
                ip(&format!("link set {name} up"));
            }
            let devices = fabric().devices().unwrap();
            for gid in devices.iter().flat_map(|device| device.gids(1).unwrap()) {
                assert_eq!(gid.netdev, None, "{gid:?}");
            }
            addresses()
        });
        thread.join().unwrap()
    });
    assert_eq!(inside, []);
    assert_eq!(addresses(), here);
}
