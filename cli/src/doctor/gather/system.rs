//! The kernel, the interfaces, the limits of this process, the clock.

use crate::doctor::facts::{
    Access, ClockFacts, FabricFacts, InterfaceFacts, KernelFacts, LimitFacts, MeetingPlaceFacts,
    ModuleFacts, NodeFacts, Purpose, WatchFacts,
};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};
use san_base::runtime_dir;
use san_switch::FabricChoice;
use std::path::{Path, PathBuf};
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

/// The directories in which the processes of this user meet; none is made.
pub(super) fn meeting_places(fabric: FabricChoice) -> Vec<MeetingPlaceFacts> {
    let statistics = meeting_place(Purpose::Statistics, &runtime_dir::own("san"));
    let soft = || meeting_place(Purpose::SoftFabric, &runtime_dir::own("soft-roce"));
    match fabric {
        FabricChoice::Soft => vec![statistics, soft()],
        _ => vec![statistics],
    }
}

/// The first directory that can be used, as a process that starts would find it.
fn meeting_place(purpose: Purpose, candidates: &[PathBuf]) -> MeetingPlaceFacts {
    let mut place = MeetingPlaceFacts {
        purpose,
        path: String::new(),
        problem: Some("there is no place for it".to_owned()),
    };
    for directory in candidates {
        place.path = directory.display().to_string();
        place.problem = unusable(directory);
        if place.problem.is_none() {
            break;
        }
    }
    place
}

fn unusable(directory: &Path) -> Option<String> {
    let uid = rustix::process::geteuid().as_raw();
    let error = match runtime_dir::check(directory, uid) {
        Ok(()) => return None,
        // It is made when it is needed.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let parent = directory.parent()?;
            let wanted = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
            std::io::Error::from(rustix::fs::access(parent, wanted).err()?)
        }
        Err(error) => error,
    };
    Some(error.to_string())
}

/// The first line of a small file of the kernel's; empty if there is none.
fn line(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_first_directory_that_can_be_used_is_taken_and_none_is_made() {
        let own = std::env::temp_dir().join(format!("san-doctor-{}", std::process::id()));
        std::fs::create_dir(&own).unwrap();
        let (open, fresh) = (own.join("open"), own.join("fresh"));
        std::fs::create_dir(&open).unwrap();
        let mode = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(&open, mode).unwrap();
        let place = |candidates: &[PathBuf]| meeting_place(Purpose::Statistics, candidates);
        let found = place(&[open.clone(), fresh.clone()]);
        assert_eq!(
            (found.path, found.problem),
            (fresh.display().to_string(), None)
        );
        assert!(!fresh.exists());
        let found = place(std::slice::from_ref(&open));
        assert!(found.problem.unwrap().contains("is open to others"));
        let nowhere = PathBuf::from("/no/such/place");
        assert!(place(&[nowhere]).problem.is_some());
        std::fs::remove_dir_all(&own).unwrap();
    }
}
