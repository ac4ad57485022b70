//! The kernel, the interfaces, the limits of this process, the clock.

use crate::doctor::facts::{
    Access, ClockFacts, FabricFacts, InterfaceFacts, KernelFacts, LimitFacts, ModuleFacts,
    NodeFacts, WatchFacts,
};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use verbs_shim::{MappingWatch, WatchError};

/// What RDMA needs of the kernel, and what is there where it is built in.
const MODULES: [(&str, &str); 3] = [
    ("ib_core", "/sys/class/infiniband"),
    ("ib_uverbs", "/sys/class/infiniband_verbs"),
    ("rdma_ucm", "/sys/class/misc/rdma_cm"),
];
const DEVICE_FILES: &str = "/dev/infiniband";
const MOST_FILES: usize = 64;
/// Readings of the clock that are timed together.
const READINGS: u32 = 2_000;

pub(super) fn kernel() -> KernelFacts {
    let uname = rustix::system::uname();
    let module = |(name, gives): (&'static str, &str)| ModuleFacts {
        name,
        present: Path::new("/sys/module").join(name).exists() || Path::new(gives).exists(),
    };
    KernelFacts {
        release: uname.release().to_string_lossy().into_owned(),
        modules: MODULES.map(module).into(),
        nodes: nodes(),
    }
}

/// The connection manager's file, there or not, and that of each device.
fn nodes() -> Vec<NodeFacts> {
    let mut paths = vec![format!("{DEVICE_FILES}/rdma_cm")];
    if let Ok(entries) = std::fs::read_dir(DEVICE_FILES) {
        let names = entries
            .flatten()
            .take(MOST_FILES)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with("uverbs"));
        let mut devices: Vec<String> = names.map(|name| format!("{DEVICE_FILES}/{name}")).collect();
        devices.sort();
        paths.append(&mut devices);
    }
    let node = |path: String| NodeFacts {
        access: access(&path),
        path,
    };
    paths.into_iter().map(node).collect()
}

fn access(path: &str) -> Access {
    let wanted = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
    match rustix::fs::access(path, wanted) {
        Ok(()) => Access::Usable,
        Err(Errno::NOENT | Errno::NOTDIR) => Access::Missing,
        Err(_) => Access::Denied,
    }
}

/// Those that the devices' addresses are on.
pub(super) fn interfaces(fabric: &FabricFacts) -> Vec<InterfaceFacts> {
    let addresses = fabric.devices.iter().flat_map(|device| &device.addresses);
    let mut names: Vec<&str> = addresses.map(|one| one.netdev.as_str()).collect();
    names.retain(|name| !name.is_empty());
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(interface).collect()
}

/// What the kernel says of an interface.
pub(super) fn interface(name: &str) -> InterfaceFacts {
    InterfaceFacts {
        name: name.to_owned(),
        mtu: of_interface(name, "mtu").parse().ok(),
        state: of_interface(name, "operstate"),
    }
}

fn of_interface(name: &str, file: &str) -> String {
    line(&format!("/sys/class/net/{name}/{file}"))
}

pub(super) fn limits() -> LimitFacts {
    let memlock = getrlimit(Resource::Memlock);
    let descriptors = getrlimit(Resource::Nofile);
    LimitFacts {
        memlock: memlock.current,
        memlock_exempt: capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK)),
        descriptors: descriptors.current,
        descriptors_hard: descriptors.maximum,
    }
}

pub(super) fn userfaultfd() -> WatchFacts {
    match MappingWatch::new() {
        Ok(_) => WatchFacts::Usable,
        Err(error @ WatchError::Unsupported { .. }) => WatchFacts::Unsupported(error.to_string()),
        Err(error) => WatchFacts::Denied(error.to_string()),
    }
}

pub(super) fn clock() -> ClockFacts {
    let of_source = |file: &str| {
        line(&format!(
            "/sys/devices/system/clocksource/clocksource0/{file}"
        ))
    };
    let began = Instant::now();
    for _ in 0..READINGS {
        std::hint::black_box(Instant::now());
    }
    let each = began.elapsed() / READINGS;
    ClockFacts {
        source: of_source("current_clocksource"),
        available: of_source("available_clocksource")
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
        read_ns: u64::try_from(each.as_nanos()).unwrap_or(u64::MAX),
        unix_seconds: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
    }
}

/// The first line of a small file of the kernel's; empty if there is none.
fn line(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}
