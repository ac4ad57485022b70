//! Where the sockets of processes lie: `$XDG_RUNTIME_DIR/san` or else `/tmp/san-UID`, in it
//! `PID-N.sock` for the Nth switch of a process.
//!
//! The directory is its user's alone, or it is not used: in `/tmp` anybody may have made it. Sockets
//! of processes that were killed stay; the next process that starts takes them away.

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::process::Pid;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Entries of a directory that are looked at, at most.
const MOST_ENTRIES: usize = 4096;

/// The directories that a process of ours would use, the best one first.
pub(super) fn own_directories() -> Vec<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime.filter(|path| path.is_absolute());
    let mut all: Vec<PathBuf> = runtime.into_iter().map(|path| path.join("san")).collect();
    all.push(shared_directory(uid));
    all
}

/// The directories where a process of this user may have its socket.
pub(super) fn directories_of(uid: u32) -> Vec<PathBuf> {
    let mut all = own_directories();
    for other in [
        PathBuf::from(format!("/run/user/{uid}/san")),
        shared_directory(uid),
    ] {
        if !all.contains(&other) {
            all.push(other);
        }
    }
    all
}

/// Makes the directory, or checks that the one there is ours alone.
pub(super) fn prepare(directory: &Path) -> io::Result<()> {
    match rustix::fs::mkdir(directory, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    check(directory, rustix::process::geteuid().as_raw())
}

/// Whether the directory is this user's alone.
pub(super) fn check(directory: &Path, uid: u32) -> io::Result<()> {
    let stat = rustix::fs::lstat(directory)?;
    let foreign = |why: &str| {
        let text = format!("{} {why}", directory.display());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return foreign("is no directory");
    }
    if stat.st_uid != uid {
        return foreign("belongs to somebody else");
    }
    if stat.st_mode & 0o077 != 0 {
        return foreign("is open to others");
    }
    Ok(())
}

/// The sockets in a directory with the processes they are named after.
pub(super) fn sockets(directory: &Path) -> Vec<(u32, PathBuf)> {
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
    for (pid, path) in sockets(directory) {
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

fn shared_directory(uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/san-{uid}"))
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

    #[test]
    fn a_directory_that_others_may_write_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let base = std::env::temp_dir().join(format!("san-place-{}", std::process::id()));
        prepare(&base).unwrap();
        prepare(&base).unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&base, open).unwrap();
        let error = prepare(&base).unwrap_err();
        assert!(error.to_string().contains("open to others"), "{error}");
        std::fs::remove_dir(&base).unwrap();
        std::os::unix::fs::symlink("/tmp", &base).unwrap();
        let error = prepare(&base).unwrap_err();
        assert!(error.to_string().contains("no directory"), "{error}");
        std::fs::remove_file(&base).unwrap();
        let error = check(Path::new("/proc"), rustix::process::geteuid().as_raw() + 1);
        assert!(error.unwrap_err().to_string().contains("somebody else"));
    }
}
