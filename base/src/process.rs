//! Which process: its number, and when it started, since numbers are given again.

use std::fs;

/// A process of this system, and no later one with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// In ticks since the system started.
    pub start: u64,
}

impl Process {
    /// The process with this number now; `None`: there is none.
    #[must_use]
    pub fn with_pid(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let start = start_time(&stat)?;
        Some(Self { pid, start })
    }

    /// This one.
    #[must_use]
    pub fn this() -> Option<Self> {
        Self::with_pid(std::process::id())
    }
}

/// Field 22 of /proc/PID/stat. The second is the program's name in parentheses, which may hold
/// spaces and parentheses itself.
fn start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let stat = "42 (a b) (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        assert_eq!(start_time(stat), Some(4711));
        assert_eq!(start_time("42 (short) S 1 2"), None);
        assert_eq!(start_time(""), None);
    }
}
