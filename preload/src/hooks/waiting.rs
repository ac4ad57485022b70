//! poll, select and epoll.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libc::{epoll_event, fd_set, nfds_t, pollfd, sigset_t, size_t, timespec, timeval};
use rustix::event::epoll::{Event, EventFlags};
use san_switch::program::{EpollOp, Held, Kernel, Poll, poll as poll_streams, without_ours};

use crate::held::{Called, call, held};
use crate::inside::{Answer, inside, is_inside};
use crate::kernel::{LIBRARY, borrowed, remember_epoll};
use crate::next;
use crate::table::TABLE;
use crate::time::to_timespec;

/// A timeout in milliseconds; negative is none.
fn milliseconds(timeout: c_int) -> Option<Duration> {
    u64::try_from(timeout).ok().map(Duration::from_millis)
}

/// # Safety
/// It is null, or the caller's, as ppoll(2) asks.
unsafe fn of_timespec(timeout: *const timespec) -> Option<Duration> {
    // SAFETY: the caller says so.
    let timeout = unsafe { timeout.as_ref() }?;
    let seconds = u64::try_from(timeout.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(timeout.tv_nsec).unwrap_or(0);
    Some(Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds))
}

fn outcome(result: c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(next::errno()))
}

/// Waits as ppoll(2), with streams among the descriptors; `Pass`: there are none.
///
/// # Safety
/// The mask is null or the caller's.
unsafe fn poll_all(
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
fn number(answer: Answer<usize>) -> Option<c_int> {
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

fn made(number: c_int) -> c_int {
    if crate::held::program().is_some() {
        remember_epoll(number);
    }
    number
}

/// # Safety
/// As epoll_create(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn epoll_create(size: c_int) -> c_int {
    // SAFETY: it asks nothing of memory.
    made(unsafe { next::epoll_create(size) })
}

/// # Safety
/// As epoll_create1(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn epoll_create1(flags: c_int) -> c_int {
    // SAFETY: it asks nothing of memory.
    made(unsafe { next::epoll_create1(flags) })
}

/// # Safety
/// As epoll_ctl(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn epoll_ctl(
    epoll: c_int,
    operation: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> c_int {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what epoll_ctl(2) asks.
        return unsafe { next::epoll_ctl(epoll, operation, fd, event) };
    }
    // SAFETY: the same.
    unsafe { epoll_ctl_looking(epoll, operation, fd, event) }
}

/// # Safety
/// As epoll_ctl(2).
#[inline(never)]
unsafe fn epoll_ctl_looking(
    epoll: c_int,
    operation: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> c_int {
    let Some(held) = held(fd) else {
        // SAFETY: the caller keeps what epoll_ctl(2) asks.
        return unsafe { next::epoll_ctl(epoll, operation, fd, event) };
    };
    let ours = match operation {
        libc::EPOLL_CTL_ADD => Some(EpollOp::Add),
        libc::EPOLL_CTL_MOD => Some(EpollOp::Modify),
        libc::EPOLL_CTL_DEL => Some(EpollOp::Delete),
        _ => None,
    };
    let interest = match event.is_null() || ours == Some(EpollOp::Delete) {
        true => (EventFlags::empty(), 0),
        // SAFETY: the caller's own, as epoll_ctl(2) asks.
        false => unsafe {
            let event = ptr::read_unaligned(event);
            (EventFlags::from_bits_retain(event.events), event.u64)
        },
    };
    if let (Held::Stream(stream), Some(ours)) = (&*held, ours)
        && stream.is_upgrading()
        && (!event.is_null() || ours == EpollOp::Delete)
    {
        // It may be another process's: then it comes back first.
        if let Called::Failed = call(fd, |_| Ok(Some(()))) {
            return -1;
        }
        remember_epoll(epoll);
        match inside(|| stream.control_moving(epoll, ours, fd, interest)) {
            Answer::Done(()) => return 0,
            Answer::Failed => return -1,
            Answer::Pass => {}
        }
    } else if let (Held::Stream(stream), Some(ours)) = (&*held, ours) {
        if event.is_null() && ours != EpollOp::Delete {
            next::set_errno(libc::EFAULT);
            return -1;
        }
        let answer = inside(|| match &*LIBRARY.epoll(epoll)? {
            Held::Epoll(looped) => stream.control(looped, ours, fd, interest),
            _ => Ok(None),
        });
        match answer {
            Answer::Done(()) => return 0,
            Answer::Failed => return -1,
            Answer::Pass => {}
        }
    }
    // SAFETY: the caller keeps what epoll_ctl(2) asks.
    let result = unsafe { next::epoll_ctl(epoll, operation, fd, event) };
    if result == 0
        && let (Held::Listening(listening), Some(ours)) = (&*held, ours)
        && let (Some(fd), Some(epoll)) = (borrowed(fd), borrowed(epoll))
    {
        let _ = inside(|| {
            listening.control(fd, epoll, ours, interest);
            Ok(Some(()))
        });
    }
    result
}

/// # Safety
/// As epoll_pwait(2).
unsafe fn try_wait(
    epoll: c_int,
    events: *mut epoll_event,
    room: c_int,
    timeout: Option<Duration>,
    mask: *const sigset_t,
) -> Option<c_int> {
    let held: Arc<Held> = held(epoll)?;
    let Held::Epoll(looped) = &*held else {
        return None;
    };
    let room = usize::try_from(room).ok().filter(|room| *room > 0)?;
    if events.is_null() {
        return None;
    }
    number(inside(|| {
        // SAFETY: the caller's own, as epoll_wait(2) asks; an `Event` is an epoll_event, and any bytes
        // are one.
        let events = unsafe { std::slice::from_raw_parts_mut(events.cast::<Event>(), room) };
        let mut kernel = |events: &mut [Event], timeout: Option<Duration>| {
            let room = c_int::try_from(events.len()).unwrap_or(c_int::MAX);
            let timeout = timeout.map_or(-1, in_milliseconds);
            let events = events.as_mut_ptr().cast::<epoll_event>();
            // SAFETY: the events are the caller's, and the mask is null or the caller's.
            outcome(unsafe { next::epoll_pwait(epoll, events, room, timeout, mask) })
        };
        looped.wait(events, timeout, &mut kernel)
    }))
}

/// When a wait ends that may have to go on.
type Until = Option<Option<Instant>>;

/// A wait in the kernel begins. `None`: no connection can come to it.
fn began(timeout: Option<Duration>) -> Until {
    (!TABLE.is_empty()).then(|| timeout.and_then(|time| Instant::now().checked_add(time)))
}

/// A connection may have moved while the kernel alone was asked: its loop has rung, of which the program
/// knows nothing. If that is all, the wait goes on.
///
/// # Safety
/// As epoll_pwait(2); `result` events were written.
unsafe fn without_bells(
    epoll: c_int,
    events: *mut epoll_event,
    room: c_int,
    mut result: c_int,
    until: Until,
    mask: *const sigset_t,
) -> c_int {
    let (Some(until), false) = (until, is_inside()) else {
        return result;
    };
    loop {
        let Some(came) = usize::try_from(result).ok().filter(|came| *came > 0) else {
            return result;
        };
        // SAFETY: so many were written, as the caller says; an `Event` is an epoll_event.
        let events_there = unsafe { std::slice::from_raw_parts_mut(events.cast::<Event>(), came) };
        let kept = without_ours(events_there, came);
        if kept > 0 {
            return c_int::try_from(kept).unwrap_or(c_int::MAX);
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // SAFETY: the caller says so.
        if let Some(result) = unsafe { try_wait(epoll, events, room, left, mask) } {
            return result;
        }
        let left = left.map_or(-1, in_milliseconds);
        // SAFETY: the caller says so.
        result = unsafe { next::epoll_pwait(epoll, events, room, left, mask) };
    }
}

/// Rounded up, so that a wait does not end too soon.
fn in_milliseconds(timeout: Duration) -> c_int {
    let rounded = timeout.as_nanos().div_ceil(1_000_000);
    c_int::try_from(rounded).unwrap_or(c_int::MAX)
}

/// # Safety
/// As epoll_wait(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn epoll_wait(
    epoll: c_int,
    events: *mut epoll_event,
    room: c_int,
    timeout: c_int,
) -> c_int {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what epoll_wait(2) asks.
        return unsafe { next::epoll_wait(epoll, events, room, timeout) };
    }
    // SAFETY: the same.
    unsafe { epoll_wait_looking(epoll, events, room, timeout) }
}

/// # Safety
/// As epoll_wait(2).
#[inline(never)]
unsafe fn epoll_wait_looking(
    epoll: c_int,
    events: *mut epoll_event,
    room: c_int,
    timeout: c_int,
) -> c_int {
    let time = milliseconds(timeout);
    // SAFETY: the caller keeps what epoll_wait(2) asks.
    if let Some(result) = unsafe { try_wait(epoll, events, room, time, ptr::null()) } {
        return result;
    }
    let started = began(time);
    // SAFETY: as above.
    let result = unsafe { next::epoll_wait(epoll, events, room, timeout) };
    // SAFETY: as above, and the kernel has just written so many.
    unsafe { without_bells(epoll, events, room, result, started, ptr::null()) }
}

/// # Safety
/// As epoll_pwait(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn epoll_pwait(
    epoll: c_int,
    events: *mut epoll_event,
    room: c_int,
    timeout: c_int,
    mask: *const sigset_t,
) -> c_int {
    if TABLE.is_empty() {
        // SAFETY: the caller keeps what epoll_pwait(2) asks.
        return unsafe { next::epoll_pwait(epoll, events, room, timeout, mask) };
    }
    // SAFETY: the same.
    unsafe { epoll_pwait_looking(epoll, events, room, timeout, mask) }
}

/// # Safety
/// As epoll_pwait(2).
#[inline(never)]
unsafe fn epoll_pwait_looking(
    epoll: c_int,
    events: *mut epoll_event,
    room: c_int,
    timeout: c_int,
    mask: *const sigset_t,
) -> c_int {
    let time = milliseconds(timeout);
    // SAFETY: the caller keeps what epoll_pwait(2) asks.
    if let Some(result) = unsafe { try_wait(epoll, events, room, time, mask) } {
        return result;
    }
    let started = began(time);
    // SAFETY: as above.
    let result = unsafe { next::epoll_pwait(epoll, events, room, timeout, mask) };
    // SAFETY: as above, and the kernel has just written so many.
    unsafe { without_bells(epoll, events, room, result, started, mask) }
}

/// # Safety
/// As epoll_pwait2(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn epoll_pwait2(
    epoll: c_int,
    events: *mut epoll_event,
    room: c_int,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller keeps what epoll_pwait2(2) asks.
    let time = unsafe { of_timespec(timeout) };
    // SAFETY: as above.
    if let Some(result) = unsafe { try_wait(epoll, events, room, time, mask) } {
        return result;
    }
    let started = began(time);
    // SAFETY: as above.
    let result = unsafe { next::epoll_pwait2(epoll, events, room, timeout, mask) };
    // SAFETY: as above, and the kernel has just written so many.
    unsafe { without_bells(epoll, events, room, result, started, mask) }
}
