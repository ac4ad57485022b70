//! Where the sockets of processes lie: `$XDG_RUNTIME_DIR/san` or else `/tmp/san-UID`, in it
//! `PID-N.sock` for the Nth switch of a process.
//!
//! The directory is its user's alone, or it is not used (`san_base::runtime_dir`). Sockets of
//! processes that were killed stay; the next process that starts takes them away.

use rustix::io::Errno;
use rustix::process::Pid;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Entries of a directory that are looked at, at most.
const MOST_ENTRIES: usize = 4096;

/// The name of the directory where the sockets lie.
pub(super) const DIRECTORY: &str = "san";

/// The sockets in a directory with the processes they are named after.
pub(super) fn in_directory(directory: &Path) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let named = entries.flatten().take(MOST_ENTRIES).filter_map(|entry| {
        let pid = pid_of(entry.file_name().to_str()?)?;
        Some((pid, entry.path()))
    });
    let mut all: Vec<_> = named.collect();
    all.sort();
    all
}

/// The name of a socket.
pub(super) fn name(pid: u32, nth: u32) -> String {
    format!("{pid}-{nth}.sock")
}

/// Takes away the sockets of processes that are gone.
pub(super) fn clean(directory: &Path) {
    for (pid, path) in in_directory(directory) {
        // In a container the process may be there, and not to be seen: then it answers.
        if !is_there(pid) && is_dead(&path) {
            tracing::debug!(path = %path.display(), "a dead process's socket removed");
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// Whether nobody answers at this socket.
pub(super) fn is_dead(path: &Path) -> bool {
    let error = UnixStream::connect(path).err();
    error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Whether there is such a process.
pub(super) fn is_there(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(Errno::SRCH))
}

fn pid_of(name: &str) -> Option<u32> {
    let (pid, nth) = name.strip_suffix(".sock")?.split_once('-')?;
    nth.parse::<u32>().ok()?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_again() {
        assert_eq!(pid_of(&name(77, 3)), Some(77));
        for other in ["", "77.sock", "77-3", "x-3.sock", "77-x.sock", "-.sock"] {
            assert_eq!(pid_of(other), None, "{other}");
        }
    }
}
