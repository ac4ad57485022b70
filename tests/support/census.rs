//! What this process holds: verbs objects, descriptors, threads, memory, and what the kernel says it
//! holds of RDMA.
//!
//! A leak test takes a census before and asks afterwards whether everything is back where it was.
//! Tear-down may go on in other threads for a moment, so it asks for a while.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::time::Duration;

use verbs_shim::LiveObjects;

use crate::program;
use crate::time;

/// What a close may take that is not to wait: one that goes wrong waits for 120 seconds.
pub const SOON: Duration = Duration::from_secs(5);

/// Soon this process has no queue pair any more.
///
/// # Panics
/// If it has.
pub fn queue_pairs_are_gone() {
    time::eventually("the queue pairs are gone", SOON, || {
        verbs_shim::live_objects().qps == 0
    });
}

/// A count of what the process holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census {
    /// Verbs objects by the shim's own count.
    pub live: LiveObjects,
    /// Open descriptors.
    pub descriptors: BTreeMap<String, usize>,
    /// Threads by name.
    pub threads: BTreeMap<String, usize>,
    /// RDMA objects of this process by the kernel's count, where the `rdma` tool tells them: CM ids,
    /// queue pairs, memory regions and so on.
    pub kernel: BTreeMap<String, usize>,
}

impl Census {
    /// Counts.
    #[must_use]
    pub fn take() -> Self {
        Self {
            live: verbs_shim::live_objects(),
            descriptors: descriptors(),
            threads: named_threads(),
            kernel: kernel(),
        }
    }

    /// Fails unless everything is back where this census has it, in a reasonable time. Descriptors
    /// and threads may be fewer: some were about to go when it was taken.
    ///
    /// # Panics
    /// With both counts, if it is not.
    pub fn assert_back(&self) {
        let mut now = Self::take();
        let back = time::holds_within(Duration::from_secs(20), || {
            now = Self::take();
            let no_more = |now: &BTreeMap<_, _>, then: &BTreeMap<_, usize>| {
                now.iter().all(|(kind, n)| then.get(kind) >= Some(n))
            };
            (&now.live, &now.kernel) == (&self.live, &self.kernel)
                && no_more(&now.descriptors, &self.descriptors)
                && no_more(&now.threads, &self.threads)
        });
        assert!(
            back,
            "something was not given back\nbefore: {self}\nafter:  {now}"
        );
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            live,
            descriptors,
            threads,
            kernel,
        } = self;
        write!(
            f,
            "{live:?}, descriptors {descriptors:?}, threads {threads:?}, kernel {kernel:?}"
        )
    }
}

/// Memory of the process that is in use now, in bytes.
///
/// # Panics
/// Without /proc.
#[must_use]
pub fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("/proc/self/statm");
    let pages: usize = statm
        .split(' ')
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("resident pages");
    pages * 4096
}

/// Threads of this process, by name, without those of the harness, which come and go.
///
/// # Panics
/// Without /proc.
#[must_use]
pub fn threads() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task")
        .expect("/proc/self/task")
        .flatten()
    {
        // A thread may end between the listing and the reading.
        let Ok(name) = fs::read_to_string(task.path().join("comm")) else {
            continue;
        };
        let name = name.trim();
        if !time::is_harness(name) {
            *found.entry(name.to_owned()).or_default() += 1;
        }
    }
    found
}

/// The same, once those that were just started have their names: until then they have that of the
/// thread that started them, which is a test's.
///
/// # Panics
/// Without /proc.
#[must_use]
pub fn named_threads() -> BTreeMap<String, usize> {
    let mut found = threads();
    // A test may have threads of its own without a name: they are waited for in vain.
    time::holds_within(Duration::from_millis(300), || {
        found = threads();
        found.get("test").is_none_or(|n| *n == 1)
    });
    found
}

fn descriptors() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fd")
        .expect("/proc/self/fd")
        .flatten()
    {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        // socket:[1234] and pipe:[1234] are counted by what they are, not by which.
        let target = target.to_string_lossy();
        let kind = target.split(":[").next().unwrap_or_default().to_owned();
        // The listing's own descriptor.
        if !kind.starts_with("/proc/") {
            *found.entry(kind).or_default() += 1;
        }
    }
    found
}

/// What the kernel's resource tracking says: all devices together. Empty where the tool or the kernel
/// does not tell. CM ids, queue pairs and the like of kernel services are the same before and after.
fn kernel() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    let Some(text) = program::output_of("rdma", &["resource", "show"]) else {
        return found;
    };
    // One device a line: `0: rxe_a: pd 1 cq 1 qp 1 cm_id 0 mr 0 ctx 0 srq 0`.
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().skip(2).collect();
        for pair in words.chunks_exact(2) {
            if let Ok(count) = pair[1].parse::<usize>() {
                *found.entry(pair[0].to_owned()).or_default() += count;
            }
        }
    }
    found
}
