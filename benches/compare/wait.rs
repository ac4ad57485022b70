//! Waiting for descriptors, with a deadline.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use san_base::Deadline;
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
    let deadline = Deadline::after(patience);
    loop {
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, deadline.timespec().as_ref()) {
            Ok(found) => return Ok(found > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
