//! select and pselect.

use std::ffi::c_int;
use std::io;
use std::ptr;
use std::time::{Duration, Instant};

use libc::{fd_set, pollfd, sigset_t, timespec, timeval};

use super::poll::{number, of_timespec, poll_all};
use crate::inside::{Answer, inside, is_inside};
use crate::next;
use crate::table::TABLE;

/// What the three sets of select(2) ask, as poll(2) has it.
const READ: i16 = libc::POLLIN | libc::POLLHUP | libc::POLLERR;
const WRITE: i16 = libc::POLLOUT | libc::POLLERR;
const EXCEPT: i16 = libc::POLLPRI;

/// The sets of a select(2).
struct Sets([*mut fd_set; 3]);

impl Sets {
    /// # Safety
    /// The sets are null or the caller's, and `fd` is below FD_SETSIZE.
    unsafe fn asks(&self, set: usize, fd: c_int) -> bool {
        // SAFETY: the caller says so.
        !self.0[set].is_null() && unsafe { libc::FD_ISSET(fd, self.0[set]) }
    }

    /// The list for poll(2).
    ///
    /// # Safety
    /// As select(2) asks.
    unsafe fn list(&self, count: c_int) -> Vec<pollfd> {
        let mut list = Vec::new();
        for fd in 0..count.min(libc::FD_SETSIZE as c_int) {
            let asked = [libc::POLLIN, libc::POLLOUT, libc::POLLPRI];
            let mut events = 0;
            for (set, asked) in asked.into_iter().enumerate() {
                // SAFETY: the caller says so.
                if unsafe { self.asks(set, fd) } {
                    events |= asked;
                }
            }
            if events != 0 {
                let revents = 0;
                list.push(pollfd {
                    fd,
                    events,
                    revents,
                });
            }
        }
        list
    }

    /// Leaves in the sets what poll(2) has found; how many bits that are.
    ///
    /// # Safety
    /// As select(2) asks.
    unsafe fn tell(&self, list: &[pollfd]) -> io::Result<usize> {
        if list.iter().any(|one| one.revents & libc::POLLNVAL != 0) {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let mut told = 0;
        for one in list {
            for (set, found) in [READ, WRITE, EXCEPT].into_iter().enumerate() {
                // SAFETY: the caller says so.
                if !unsafe { self.asks(set, one.fd) } {
                    continue;
                }
                if one.revents & found != 0 {
                    told += 1;
                } else {
                    // SAFETY: the caller says so.
                    unsafe { libc::FD_CLR(one.fd, self.0[set]) };
                }
            }
        }
        Ok(told)
    }
}

/// # Safety
/// As pselect(2).
unsafe fn try_select(
    count: c_int,
    sets: [*mut fd_set; 3],
    timeout: Option<Duration>,
    mask: *const sigset_t,
) -> Option<c_int> {
    if TABLE.is_empty() || is_inside() {
        return None;
    }
    let sets = Sets(sets);
    // SAFETY: the caller keeps what pselect(2) asks.
    let mut list = unsafe { sets.list(count) };
    // SAFETY: as above.
    let answer = match unsafe { poll_all(&mut list, timeout, mask) } {
        // SAFETY: as above.
        Answer::Done(_) => inside(|| unsafe { sets.tell(&list) }.map(Some)),
        answer => answer,
    };
    number(answer)
}

/// # Safety
/// As select(2). The time that is left is written back.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn select(
    count: c_int,
    reads: *mut fd_set,
    writes: *mut fd_set,
    errors: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what select(2) asks.
        return unsafe { next::select(count, reads, writes, errors, timeout) };
    }
    let started = (!TABLE.is_empty()).then(Instant::now);
    // SAFETY: the caller keeps what select(2) asks.
    let time = unsafe { timeout.as_ref() }.map(|time| {
        let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
        seconds + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
    });
    // SAFETY: as above.
    let result = unsafe { try_select(count, [reads, writes, errors], time, ptr::null()) };
    if let Some(result) = result {
        if let (Some(time), Some(started)) = (time, started) {
            let left = time.saturating_sub(started.elapsed());
            let left = timeval {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_usec: left.subsec_micros().into(),
            };
            // SAFETY: the caller's own, which Linux writes, too.
            unsafe { *timeout = left };
        }
        return result;
    }
    // SAFETY: the caller keeps what select(2) asks.
    unsafe { next::select(count, reads, writes, errors, timeout) }
}

/// # Safety
/// As pselect(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn pselect(
    count: c_int,
    reads: *mut fd_set,
    writes: *mut fd_set,
    errors: *mut fd_set,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what pselect(2) asks.
        return unsafe { next::pselect(count, reads, writes, errors, timeout, mask) };
    }
    // SAFETY: the caller keeps what pselect(2) asks.
    let time = unsafe { of_timespec(timeout) };
    // SAFETY: as above.
    let result = unsafe { try_select(count, [reads, writes, errors], time, mask) };
    if let Some(result) = result {
        return result;
    }
    // SAFETY: as above.
    unsafe { next::pselect(count, reads, writes, errors, timeout, mask) }
}
