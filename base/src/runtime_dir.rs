//! The directory in which the processes of one user meet: `$XDG_RUNTIME_DIR/NAME`, or else
//! `/tmp/NAME-UID`.
//!
//! It is its user's alone (mode 700), or it is not used: in `/tmp` anybody may have made it, or a
//! link of that name, before us. Whose user counts is the effective one. What lies in the directory
//! is the caller's business.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

/// The directories that a process of ours would use, the best one first.
#[must_use]
pub fn own(name: &str) -> Vec<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    candidates(name, uid, named())
}

/// What the environment says now counts from now on. For a library in a program that may change its
/// environment.
pub fn remember() {
    REMEMBERED.get_or_init(from_environment);
}

static REMEMBERED: OnceLock<Option<OsString>> = OnceLock::new();

fn named() -> Option<OsString> {
    REMEMBERED.get().cloned().unwrap_or_else(from_environment)
}

fn from_environment() -> Option<OsString> {
    std::env::var_os("XDG_RUNTIME_DIR")
}

/// The directories where a process of this user may be, seen from another process.
#[must_use]
pub fn of_user(name: &str, uid: u32) -> Vec<PathBuf> {
    let mut all = own(name);
    let session = PathBuf::from(format!("/run/user/{uid}")).join(name);
    for other in [session, shared(name, uid)] {
        if !all.contains(&other) {
            all.push(other);
        }
    }
    all
}

/// The first directory of our own that can be had, made if it is not there.
///
/// # Errors
/// What became of the last one: it cannot be made, or is not this user's alone.
pub fn open(name: &str) -> io::Result<PathBuf> {
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for directory in own(name) {
        match prepare(&directory) {
            Ok(()) => return Ok(directory),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Makes the directory, or checks that the one there is ours alone.
///
/// # Errors
/// `PermissionDenied` if it is not ours alone; else what mkdir(2) or lstat(2) says.
pub fn prepare(directory: &Path) -> io::Result<()> {
    match rustix::fs::mkdir(directory, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    check(directory, rustix::process::geteuid().as_raw())
}

/// Checks that the directory is this user's alone.
///
/// # Errors
/// `PermissionDenied` if it is not; else what lstat(2) says.
pub fn check(directory: &Path, uid: u32) -> io::Result<()> {
    // Not stat: a link is not followed, wherever it leads.
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

fn candidates(name: &str, uid: u32, runtime: Option<OsString>) -> Vec<PathBuf> {
    // The XDG rules have a relative path ignored.
    let runtime = runtime.map(PathBuf::from).filter(|path| path.is_absolute());
    let session = runtime.map(|path| path.join(name));
    session.into_iter().chain([shared(name, uid)]).collect()
}

fn shared(name: &str, uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/{name}-{uid}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A name in the system's directory for such things that nobody else has.
    fn fresh(what: &str) -> PathBuf {
        std::env::temp_dir().join(format!("san-base-{what}-{}", std::process::id()))
    }

    #[test]
    fn a_directory_that_is_open_to_others_is_not_used() {
        let directory = fresh("open");
        prepare(&directory).unwrap();
        prepare(&directory).unwrap();
        for mode in [0o701, 0o710, 0o750, 0o755, 0o777] {
            let open = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&directory, open).unwrap();
            let error = prepare(&directory).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert!(error.to_string().contains("open to others"), "{error}");
        }
        std::fs::remove_dir(&directory).unwrap();
    }

    #[test]
    fn a_link_is_no_directory() {
        let link = fresh("link");
        symlink("/tmp", &link).unwrap();
        let error = prepare(&link).unwrap_err();
        assert!(error.to_string().contains("no directory"), "{error}");
        std::fs::remove_file(&link).unwrap();
    }

    #[test]
    fn another_users_directory_is_not_used() {
        let stranger = rustix::process::geteuid().as_raw() + 1;
        let error = check(Path::new("/proc"), stranger).unwrap_err();
        assert!(error.to_string().contains("somebody else"), "{error}");
    }

    #[test]
    fn the_sessions_directory_comes_first_and_only_an_absolute_one() {
        let of = |runtime: Option<&str>| candidates("san", 7, runtime.map(OsString::from));
        let [session, shared] = ["/run/user/7/san", "/tmp/san-7"].map(PathBuf::from);
        assert_eq!(of(Some("/run/user/7")), [session, shared.clone()]);
        for none in [Some("run"), Some(""), None] {
            assert_eq!(of(none), std::slice::from_ref(&shared));
        }
    }
}
