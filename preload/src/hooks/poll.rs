//! poll and ppoll.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::{Duration, Instant};

use libc::{nfds_t, pollfd, sigset_t, size_t, timespec};
use san_switch::program::{Held, Poll, poll as poll_streams};

use crate::held::{Called, call, held};
use crate::inside::{Answer, inside, is_inside};
use crate::kernel::borrowed;
use crate::next;
use crate::table::TABLE;
use crate::time::to_timespec;

/// A timeout in milliseconds; negative is none.
pub(super) fn milliseconds(timeout: c_int) -> Option<Duration> {
    u64::try_from(timeout).ok().map(Duration::from_millis)
}

/// # Safety
/// It is null, or the caller's, as ppoll(2) asks.
pub(super) unsafe fn of_timespec(timeout: *const timespec) -> Option<Duration> {
    // SAFETY: the caller says so.
    let timeout = unsafe { timeout.as_ref() }?;
    let seconds = u64::try_from(timeout.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(timeout.tv_nsec).unwrap_or(0);
    Some(Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds))
}

pub(super) fn outcome(result: c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(next::errno()))
}

/// Waits as ppoll(2), with streams among the descriptors; `Pass`: there are none.
///
/// # Safety
/// The mask is null or the caller's.
pub(super) unsafe fn poll_all(
    fds: &mut [pollfd],
    timeout: Option<Duration>,
    mask: *const sigset_t,
) -> Answer<usize> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut left = timeout;
    loop {
        // SAFETY: the caller says so.
        match unsafe { poll_once(fds, left, mask) } {
            Answer::Done(Some(ready)) => return Answer::Done(ready),
            Answer::Done(None) => {}
            Answer::Failed => return Answer::Failed,
            Answer::Pass if left == timeout => return Answer::Pass,
            // What was a stream's is the kernel's now, and so is the rest of the time.
            Answer::Pass => {
                let time = left.map(to_timespec);
                let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
                // SAFETY: the list and the time are there, and the mask is as the caller says.
                let ready =
                    unsafe { next::ppoll(fds.as_mut_ptr(), fds.len() as nfds_t, time, mask) };
                return usize::try_from(ready).map_or(Answer::Failed, Answer::Done);
            }
        }
        left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    }
}

/// As [`poll_all`]; `None`: a connect has gone to TCP, and the list has to be looked at anew.
///
/// # Safety
/// As for [`poll_all`].
unsafe fn poll_once(
    fds: &mut [pollfd],
    timeout: Option<Duration>,
    mask: *const sigset_t,
) -> Answer<Option<usize>> {
    let mut passing = Vec::new();
    let mut found = Vec::with_capacity(fds.len());
    for one in fds.iter() {
        let mut held = held(one.fd);
        if let Some(Held::Stream(stream)) = held.as_deref()
            && stream.is_upgrading()
        {
            match call(one.fd, |_| Ok(Some(()))) {
                Called::Done(()) => {}
                Called::Failed => return Answer::Failed,
                // It stays the kernel's until this wait is over.
                Called::Pass(one) => {
                    passing.push(one);
                    held = None;
                }
            }
        }
        found.push(held);
    }
    if found.iter().all(Option::is_none) {
        if passing.is_empty() {
            return Answer::Pass;
        }
        let timeout = timeout.map(to_timespec);
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: the list is the caller's, the time is local, and the mask is as the caller says.
        let ready = unsafe { next::ppoll(fds.as_mut_ptr(), fds.len() as nfds_t, timeout, mask) };
        return usize::try_from(ready).map_or(Answer::Failed, |ready| Answer::Done(Some(ready)));
    }
    inside(|| {
        let mut streams = Vec::new();
        let mut places = Vec::new();
        let mut kernels = fds.to_vec();
        for (place, held) in found.iter().enumerate() {
            match held.as_deref() {
                Some(Held::Stream(stream)) => {
                    streams.push(Poll::new(stream, fds[place].events));
                    places.push(place);
                    kernels[place].fd = -1;
                }
                Some(Held::Listening(listening)) => {
                    let readiness = borrowed(fds[place].fd).and_then(|fd| listening.readiness(fd));
                    if let Some(readiness) = readiness {
                        kernels[place].fd = readiness.as_raw_fd();
                    }
                }
                _ => {}
            }
        }
        let own = kernels.len();
        let mut wait = |extra: &[BorrowedFd<'_>], timeout: Option<Duration>| {
            kernels.truncate(own);
            for place in &places {
                // Whoever is on TCP is waited for there; what it is ready for the stream says.
                let is_on_tcp = matches!(
                    found[*place].as_deref(), Some(Held::Stream(stream)) if stream.is_on_tcp()
                );
                kernels[*place].fd = if is_on_tcp { fds[*place].fd } else { -1 };
            }
            kernels.extend(extra.iter().map(|fd| pollfd {
                fd: fd.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            }));
            let timeout = timeout.map(to_timespec);
            let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
            // SAFETY: the list and the time are local, and the mask is as the caller says.
            outcome(unsafe {
                next::ppoll(kernels.as_mut_ptr(), kernels.len() as nfds_t, timeout, mask)
            })?;
            for place in &places {
                kernels[*place].revents = 0;
            }
            Ok(kernels[..own].iter().filter(|one| one.revents != 0).count())
        };
        let Some(ready) = poll_streams(&mut streams, timeout, &mut wait)? else {
            return Ok(Some(None));
        };
        for (one, kernel) in fds.iter_mut().zip(&kernels) {
            one.revents = kernel.revents;
        }
        for (place, stream) in places.into_iter().zip(&streams) {
            fds[place].revents = stream.found();
        }
        Ok(Some(Some(ready)))
    })
}

/// A caller's list.
///
/// # Safety
/// As poll(2) asks.
unsafe fn list<'a>(fds: *mut pollfd, count: nfds_t) -> &'a mut [pollfd] {
    if fds.is_null() {
        return &mut [];
    }
    // SAFETY: the caller says so.
    unsafe { std::slice::from_raw_parts_mut(fds, count as usize) }
}

#[expect(clippy::needless_pass_by_value, reason = "a call has one answer")]
pub(super) fn number(answer: Answer<usize>) -> Option<c_int> {
    match answer {
        Answer::Done(count) => Some(c_int::try_from(count).unwrap_or(c_int::MAX)),
        Answer::Failed => Some(-1),
        Answer::Pass => None,
    }
}

/// # Safety
/// As ppoll(2).
unsafe fn try_poll(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: Option<Duration>,
    mask: *const sigset_t,
) -> Option<c_int> {
    if TABLE.is_empty() || is_inside() {
        return None;
    }
    // SAFETY: the caller keeps what ppoll(2) asks.
    let fds = unsafe { list(fds, count) };
    // SAFETY: as above.
    number(unsafe { poll_all(fds, timeout, mask) })
}

/// # Safety
/// As poll(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what poll(2) asks.
        return unsafe { next::poll(fds, count, timeout) };
    }
    // SAFETY: the same.
    unsafe { poll_looking(fds, count, timeout) }
}

/// # Safety
/// As poll(2).
#[inline(never)]
unsafe fn poll_looking(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int {
    // SAFETY: the caller keeps what poll(2) asks.
    if let Some(result) = unsafe { try_poll(fds, count, milliseconds(timeout), ptr::null()) } {
        return result;
    }
    // SAFETY: as above.
    unsafe { next::poll(fds, count, timeout) }
}

/// # Safety
/// As poll(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn __poll_chk(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: c_int,
    room: size_t,
) -> c_int {
    if count as usize <= room / size_of::<pollfd>()
        // SAFETY: the caller keeps what poll(2) asks.
        && let Some(result) = unsafe { try_poll(fds, count, milliseconds(timeout), ptr::null()) }
    {
        return result;
    }
    // SAFETY: as above.
    unsafe { next::__poll_chk(fds, count, timeout, room) }
}

/// # Safety
/// As ppoll(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn ppoll(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what ppoll(2) asks.
        return unsafe { next::ppoll(fds, count, timeout, mask) };
    }
    // SAFETY: the same.
    unsafe { ppoll_looking(fds, count, timeout, mask) }
}

/// # Safety
/// As ppoll(2).
#[inline(never)]
unsafe fn ppoll_looking(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller keeps what ppoll(2) asks.
    let time = unsafe { of_timespec(timeout) };
    // SAFETY: as above.
    if let Some(result) = unsafe { try_poll(fds, count, time, mask) } {
        return result;
    }
    // SAFETY: as above.
    unsafe { next::ppoll(fds, count, timeout, mask) }
}

/// # Safety
/// As ppoll(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn __ppoll_chk(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
    room: size_t,
) -> c_int {
    // SAFETY: the caller keeps what ppoll(2) asks.
    let time = unsafe { of_timespec(timeout) };
    if count as usize <= room / size_of::<pollfd>()
        // SAFETY: as above.
        && let Some(result) = unsafe { try_poll(fds, count, time, mask) }
    {
        return result;
    }
    // SAFETY: as above.
    unsafe { next::__ppoll_chk(fds, count, timeout, mask, room) }
}
