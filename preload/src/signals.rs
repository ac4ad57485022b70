//! What the program's signal handlers ask of calls that they interrupt.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::Duration;

use libc::{nfds_t, pollfd, sigset_t};
use rustix::event::PollFlags;
use san_switch::program::Sleep;

use crate::next;
use crate::time::to_timespec;

/// Signals of what the thread itself has done wrong: they interrupt no call.
const FAULTS: [c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGSYS,
];

/// Whether all handlers of the program have SA_RESTART. Which signal has interrupted a call nobody says; a
/// program with handlers of both kinds knows EINTR.
pub(crate) fn all_restart() -> bool {
    (1..=libc::SIGRTMAX()).all(|signal| FAULTS.contains(&signal) || restarts(signal))
}

/// Whether the signal has no handler, or one with SA_RESTART.
fn restarts(signal: c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the new action is null, and there is room for the old one.
    let told = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zero is an action, and libc has written a whole one or nothing.
    let action = unsafe { action.assume_init() };
    // libc keeps some numbers for itself.
    told != 0
        || matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
        || action.sa_flags & libc::SA_RESTART != 0
}

/// Bytes of a mask, as the kernel counts.
const MASK: usize = 8;

/// Signals are blocked in this thread; the mask that was there comes back.
pub(crate) struct HeldBack(sigset_t);

impl HeldBack {
    pub(crate) fn new() -> Self {
        let mut all = MaybeUninit::<sigset_t>::uninit();
        // SAFETY: there is room for a set.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        let mut before = MaybeUninit::<sigset_t>::zeroed();
        // SAFETY: the set was filled, and there is room for the other one.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
        // SAFETY: all zero is an empty set, and libc has written the mask.
        Self(unsafe { before.assume_init() })
    }

    /// ppoll(2) of the kernel, with the mask that was there before.
    fn sleep(
        &self,
        fds: &[(BorrowedFd<'_>, PollFlags)],
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let list = fds.iter().map(|(fd, flags)| pollfd {
            fd: fd.as_raw_fd(),
            events: flags.bits().cast_signed(),
            revents: 0,
        });
        let mut list: Vec<_> = list.collect();
        let mut timeout = timeout.map(to_timespec);
        let timeout = timeout.as_mut().map_or(ptr::null_mut(), ptr::from_mut);
        // libc's function would be a point where another thread may cancel this one, which must not leave
        // the switch on the way.
        // SAFETY: the list, the time and the mask are there, and the mask has the size that the kernel asks for.
        let ready = unsafe {
            libc::syscall(
                libc::SYS_ppoll,
                list.as_mut_ptr(),
                list.len() as nfds_t,
                timeout,
                &raw const self.0,
                MASK,
            )
        };
        match ready < 0 {
            true => Err(io::Error::from_raw_os_error(next::errno())),
            false => Ok(()),
        }
    }
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        // SAFETY: the mask is one that was in force.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// Has `wait` run so that signals are handled only while it sleeps.
pub(crate) fn held_back(wait: &mut dyn FnMut(Sleep<'_>) -> io::Result<()>) -> io::Result<()> {
    let held_back = HeldBack::new();
    wait(&|fds, timeout| held_back.sleep(fds, timeout))
}
