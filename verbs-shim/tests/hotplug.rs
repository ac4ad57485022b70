//! Devices that come and go. A program of its own, since the kernel lets go of an rxe device only
//! when the processes that had it open have ended.

mod support;

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{SOON, any_port, fabric, next_event};
use verbs_shim::{CmId, Device, Event};

fn tool(script: &str) {
    let status = Command::new("sh").args(["-ec", script]).status().unwrap();
    assert!(status.success(), "{script}: {status}");
}

fn find(name: &str) -> Option<Device> {
    fabric()
        .devices()
        .unwrap()
        .into_iter()
        .find(|d| d.name() == name)
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_device_that_comes_late_and_goes_early() {
    let ip: IpAddr = "10.98.7.1".parse().unwrap();
    let before = fabric().devices().unwrap();
    assert!(find("rxe_late").is_none());
    let channel = fabric().event_channel().unwrap();
    let id = CmId::new(&channel).unwrap();
    assert!(id.bind(any_port(ip)).is_err());

    tool(
        "ip link add late0 type veth peer name late1; ip addr add 10.98.7.1/24 dev late0
         ip link set late0 up; ip link set late1 up; rdma link add rxe_late type rxe netdev late0",
    );
    let device = find("rxe_late").expect("the new device is in the list");
    assert!(before.iter().all(|d| *d != device));
    assert!(
        before.iter().all(|d| find(d.name()).as_ref() == Some(d)),
        "handles stay equal"
    );
    let addresses = || device.addresses().unwrap();
    let until = Instant::now() + SOON;
    while !addresses()
        .iter()
        .any(|a| a.ip == ip && a.netdev == "late0")
    {
        assert!(Instant::now() < until, "{:?}", addresses());
        std::thread::sleep(Duration::from_millis(20));
    }
    id.bind(any_port(ip)).unwrap();
    assert_eq!(id.device().as_ref(), Some(&device));
    let pd = device.alloc_pd().unwrap();

    // Ends when this process has ended.
    let gone = "rdma link delete rxe_late; ip link delete late0";
    drop(Command::new("sh").args(["-c", gone]).spawn().unwrap());
    match next_event(&channel) {
        Event::DeviceRemoval { id: token } => assert_eq!(token, id.token()),
        other => panic!("{other:?}"),
    }
    drop((id, pd));
    while find("rxe_late").is_some() {
        assert!(Instant::now() < until, "a device that goes is still listed");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(device.name(), "rxe_late");
}
