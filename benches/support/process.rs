//! What a process holds, as the kernel sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a process holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    /// Resident memory, in KiB.
    pub resident_kib: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

impl Holdings {
    /// Of this process.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn now() -> io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        // The descriptor that lists the folder is one of them.
        let descriptors = std::fs::read_dir("/proc/self/fd")?
            .count()
            .saturating_sub(1);
        Ok(Self {
            resident_kib: field(&status, "VmRSS:"),
            descriptors: descriptors as u64,
            threads: field(&status, "Threads:"),
        })
    }
}

/// Resident memory of this process by what is mapped, in KiB: devices and files by name, and
/// anonymous mappings by their size, since a region of buffers is a mapping of its own.
///
/// # Errors
/// When /proc cannot be read.
pub fn resident_by_mapping() -> io::Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    let mut name = String::new();
    for line in std::fs::read_to_string("/proc/self/smaps")?.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((from, to)) = first.split_once('-') {
            let ends = [from, to].map(|end| u64::from_str_radix(end, 16).unwrap_or(0));
            name = match words.nth(4) {
                Some(name) => name.to_owned(),
                None => format!("anonymous, {} KiB", (ends[1] - ends[0]) >> 10),
            };
        } else if first == "Rss:" {
            let kib = words.next().and_then(|word| word.parse::<u64>().ok());
            *found.entry(name.clone()).or_default() += kib.unwrap_or(0);
        }
    }
    Ok(found)
}

/// Processor time that this process has used, all its threads together.
///
/// # Errors
/// When /proc cannot be read.
pub fn cpu_time() -> io::Result<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        // A thread may end between the listing and the reading.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        let word = text.split_whitespace().next();
        nanoseconds += word.and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Reads this program and its libraries once, so that no later start of it waits for a disk. In a
/// guest whose clock counts instructions, such a wait lets every timer run out at once.
///
/// # Errors
/// When /proc cannot be read.
pub fn read_ahead() -> io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let files = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]));
    for file in files.collect::<BTreeSet<_>>() {
        // A library that was replaced meanwhile is not there under its name.
        let _ = std::fs::read(file);
    }
    Ok(())
}

/// Kernel memory in slabs of the whole machine, in KiB.
///
/// # Errors
/// When /proc cannot be read.
pub fn kernel_slab_kib() -> io::Result<u64> {
    Ok(field(&std::fs::read_to_string("/proc/meminfo")?, "Slab:"))
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|rest| rest.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_is_one_more_descriptor() {
        let before = Holdings::now().unwrap();
        let file = std::fs::File::open("/proc/self/status").unwrap();
        let now = Holdings::now().unwrap();
        drop(file);
        // Other tests open files at the same time, and none of them closes ours.
        assert!(now.descriptors > 0 && before.resident_kib > 0 && before.threads > 0);
    }

    #[test]
    fn mappings_make_up_what_is_resident() {
        let mappings = resident_by_mapping().unwrap();
        assert!(mappings["[heap]"] > 0 && mappings["[stack]"] > 0);
        let own = std::env::current_exe().unwrap();
        assert!(mappings[own.to_str().unwrap()] > 0);
    }

    #[test]
    fn fields_are_found_by_name() {
        assert_eq!(field("VmPeak: 1 kB\nVmRSS:\t 2345 kB\n", "VmRSS:"), 2345);
        assert_eq!(field("VmPeak: 1 kB\n", "VmRSS:"), 0);
    }
}
