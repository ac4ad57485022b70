//! Counts the calls that are under way on a kernel's socket, so that it changes hands between calls.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use san_base::Deadline;

/// Nobody may come in.
const SHUT: u32 = 1 << 31;
/// Between two looks at whether the last call is over.
const LOOK: Duration = Duration::from_millis(1);

/// Where calls come in.
#[derive(Debug, Default)]
pub(crate) struct Gate(AtomicU32);

/// A call that is under way.
#[derive(Debug)]
pub(crate) struct Pass<'a>(&'a Gate);

impl Gate {
    /// # Errors
    /// ENOTCONN: the socket is another process's.
    pub(crate) fn enter(&self) -> io::Result<Pass<'_>> {
        let pass = Pass(self);
        if self.0.fetch_add(1, Ordering::Acquire) & SHUT != 0 {
            return Err(Errno::NOTCONN.into());
        }
        Ok(pass)
    }

    /// Shuts the gate between two calls. `false`: one was under way all the time.
    pub(crate) fn shut(&self, deadline: Deadline) -> bool {
        loop {
            let was_idle = self
                .0
                .compare_exchange(0, SHUT, Ordering::AcqRel, Ordering::Relaxed);
            if was_idle.is_ok() {
                return true;
            }
            if self.is_shut() || deadline.is_over() {
                return false;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Opens it again.
    pub(crate) fn open(&self) {
        self.0.fetch_and(!SHUT, Ordering::Release);
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.0.load(Ordering::Acquire) & SHUT != 0
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_shut_between_calls() {
        let gate = Gate::default();
        let pass = gate.enter().unwrap();
        assert!(!gate.shut(Deadline::passed()));
        drop(pass);
        assert!(gate.shut(Deadline::passed()));
        let error = gate.enter().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
        assert!(!gate.shut(Deadline::passed()), "it is");
        gate.open();
        drop(gate.enter().unwrap());
        assert!(gate.shut(Deadline::passed()));
    }
}
