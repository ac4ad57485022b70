//! Descriptors under high numbers.
//!
//! A program that was not written for this library has tables for as many numbers as it expects to get,
//! and may close a number twice: then it must not be ours by now.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Resource, getrlimit};

/// Numbers below it are the program's.
const LOW: u64 = 256;

static KEEPS_ASIDE: AtomicBool = AtomicBool::new(false);

/// From now on each [`Signal`](crate::Signal) is made under a high number.
pub fn keep_aside() {
    KEEPS_ASIDE.store(true, Ordering::Relaxed);
}

/// The same file under a high number, if there is one.
#[must_use]
pub fn aside(fd: OwnedFd) -> OwnedFd {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(LOW * 4);
    let least = (limit / 2).clamp(LOW, 1 << 19);
    let number = i32::try_from(least).unwrap_or(i32::MAX);
    rustix::io::fcntl_dupfd_cloexec(&fd, number).unwrap_or(fd)
}

pub(crate) fn aside_if_kept(fd: OwnedFd) -> OwnedFd {
    match KEEPS_ASIDE.load(Ordering::Relaxed) {
        true => aside(fd),
        false => fd,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_signal_keeps_out_of_the_programs_numbers() {
        let low = crate::Signal::new().unwrap();
        keep_aside();
        let high = crate::Signal::new().unwrap();
        assert!(
            low.as_raw_fd() < 256 && high.as_raw_fd() >= 256,
            "{low:?} {high:?}"
        );
        high.set();
        assert!(high.is_set() && !low.is_set());
    }
}
