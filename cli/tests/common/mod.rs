//! What several of these tests need.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// A loopback address that no other test uses, of this process or another: so nobody else has its UDP
/// port 4791, which one endpoint of the soft fabric in a host can have.
#[allow(dead_code, reason = "not every test program needs one")]
pub(crate) fn own_address() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let n = 100 + NEXT.fetch_add(1, Ordering::Relaxed) % 100;
    let pid = std::process::id();
    // Neither the network's first address nor its last.
    let (high, low) = (pid / 250 % 250, 1 + pid % 250);
    format!("127.{n}.{high}.{low}")
}

/// Stops a process, and waits until all of its threads stand still: the signal itself waits for nothing.
#[allow(dead_code, reason = "not every test program needs it")]
pub(crate) fn stop(pid: u32) {
    san_tests::program::must("kill", &["-STOP", &pid.to_string()]);
    let stands_still = |stat: String| {
        let state = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        state.trim_start().starts_with('T')
    };
    san_tests::time::eventually("the process stands still", Duration::from_secs(30), || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let mut stats = threads
            .flatten()
            .filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
        stats.all(stands_still)
    });
}

/// Lets it go on.
#[allow(dead_code, reason = "not every test program needs it")]
pub(crate) fn go_on(pid: u32) {
    san_tests::program::must("kill", &["-CONT", &pid.to_string()]);
}
