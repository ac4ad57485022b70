//! How endpoints of one host find each other although only one socket an address
//! can have UDP port 4791.
//!
//! What it does: a directory with a small file for each service that is listened
//! on, named by address and port, holding the UDP port of the endpoint that
//! listens. A lock on the file, not its existence, says that the listener lives:
//! the kernel drops the lock with the process. Who connects to an address of
//! this host looks there first, and falls back to port 4791. One more file tells
//! which endpoint has port 4791 of an address.
//!
//! The directory is `soft-roce` in `$XDG_RUNTIME_DIR`, or else
//! `/tmp/soft-roce-<uid>`, and is its user's alone ([`runtime_dir`]): endpoints of
//! different users meet at port 4791 only.
//!
//! What it does not do: reach other hosts. They know port 4791 alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use san_base::runtime_dir;

/// How long an endpoint waits for another that is in the middle of a change: it has bound its socket and
/// not yet said so, or it ends.
pub(crate) const PATIENCE: Duration = Duration::from_millis(200);
/// How long it waits for those who look for an entry. A look takes microseconds, but who looks may be without a
/// processor meanwhile: with a load of ten, three of them kept an entry for 200 ms.
const LOOKS: Duration = Duration::from_secs(2);
/// Between two looks.
pub(crate) const STEP: Duration = Duration::from_micros(500);

/// The directory.
#[derive(Clone, Debug)]
pub(crate) struct Rendezvous {
    dir: PathBuf,
}

/// What a file stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A service (address and port of RDMA_PS_TCP).
    Service(SocketAddr),
    /// Port 4791 of an address.
    Public(IpAddr),
}

/// An entry of ours; gone when dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    path: PathBuf,
    /// Holds the lock.
    _file: File,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // The lock is still held: nobody else can have taken the name over.
        let _ = fs::remove_file(&self.path);
    }
}

impl Rendezvous {
    /// The user's directory, made if it is not there.
    ///
    /// # Errors
    /// It cannot be made, or is not this user's alone.
    pub(crate) fn open() -> io::Result<Self> {
        let dir = runtime_dir::open("soft-roce")?;
        Ok(Self { dir })
    }

    /// A directory of the caller's choice.
    ///
    /// # Errors
    /// As [`Rendezvous::open`].
    pub(crate) fn at(dir: PathBuf) -> io::Result<Self> {
        runtime_dir::prepare(&dir)?;
        Ok(Self { dir })
    }

    /// Tells the others that `entry` is at UDP port `port`.
    ///
    /// # Errors
    /// `AddrInUse`: a living endpoint has the entry. Else what the file system says.
    pub(crate) fn register(&self, entry: Entry, port: u16) -> io::Result<Registration> {
        let path = self.path(entry);
        let until = Instant::now() + LOOKS;
        loop {
            let mut file = options().create(true).open(&path)?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                // It may have been removed between being opened and being locked.
                if is_at(&file, &path) {
                    file.set_len(0)?;
                    file.rewind()?;
                    write!(file, "{port}")?;
                    return Ok(Registration { path, _file: file });
                }
            } else if flock(&file, FlockOperation::NonBlockingLockShared).is_err() {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            // Somebody looks for the entry, and holds it for that long.
            drop(file);
            if Instant::now() >= until {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            thread::sleep(STEP);
        }
    }

    /// The UDP port at which `entry` is, if a living endpoint says so.
    pub(crate) fn find(&self, entry: Entry) -> Option<u16> {
        let mut file = options().open(self.path(entry)).ok()?;
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            // Nobody holds it: left behind.
            return None;
        }
        // Five digits at most, written at once.
        let mut text = [0; 8];
        let len = file.read(&mut text).ok()?;
        std::str::from_utf8(&text[..len]).ok()?.parse().ok()
    }

    fn path(&self, entry: Entry) -> PathBuf {
        self.dir.join(match entry {
            Entry::Service(addr) => format!("{}-{}", addr.ip().to_canonical(), addr.port()),
            Entry::Public(ip) => format!("{}-public", ip.to_canonical()),
        })
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(flags);
    options
}

/// Whether the file is still the one with that name.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => a.ino() == b.ino() && a.dev() == b.dev(),
        _ => false,
    }
}
