//! Waiting for descriptors, with a deadline.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use san_benches::Result;

/// Waits until `fd` is readable.
pub(crate) fn readable(fd: impl AsFd, patience: Duration) -> Result<()> {
    match readable_within(fd, patience)? {
        true => Ok(()),
        false => Err(format!("nothing happened in {patience:?}").into()),
    }
}

/// Waits until `fd` is readable; whether it is.
pub(crate) fn readable_within(fd: impl AsFd, patience: Duration) -> Result<bool> {
    let end = Instant::now() + patience;
    let mut left = patience;
    loop {
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs())?,
            tv_nsec: left.subsec_nanos().into(),
        };
        match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(found) => return Ok(found > 0),
            Err(Errno::INTR) => left = end.saturating_duration_since(Instant::now()),
            Err(error) => return Err(error.into()),
        }
    }
}
