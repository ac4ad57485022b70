//! epoll.

use std::ffi::c_int;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libc::{epoll_event, sigset_t, timespec};
use rustix::event::epoll::{Event, EventFlags};
use san_switch::program::{EpollOp, Held, Kernel, without_ours};

use super::poll::{milliseconds, number, of_timespec, outcome};
use crate::held::{Called, call, held};
use crate::inside::{Answer, inside, is_inside};
use crate::kernel::{LIBRARY, borrowed, remember_epoll};
use crate::next;
use crate::table::TABLE;

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
