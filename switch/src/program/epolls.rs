//! A program's epoll sets with sockets of ours in them.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{Event, EventFlags};
use verbs_shim::fork::ForkGuard;

use super::Held;
use super::stream::Stream;
use crate::ready::event_loop::{EventLoop, kernels_alone};

/// What only the library can do: it has the table of numbers, and may name a descriptor by its number.
pub trait Kernel: Sync {
    /// epoll_ctl(2) of the kernel: adds `fd` with these flags and data.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    fn epoll_add(&self, epoll: RawFd, fd: RawFd, flags: u32, data: u64) -> io::Result<()>;

    /// epoll_ctl(2) of the kernel: takes `fd` out.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    fn epoll_delete(&self, epoll: RawFd, fd: RawFd) -> io::Result<()>;

    /// The epoll set under this number, in the table from now on.
    ///
    /// # Errors
    /// As epoll_ctl(2); EMFILE.
    fn epoll(&self, number: RawFd) -> io::Result<Arc<Held>>;

    /// The numbers under which the program has made epoll sets; some may be closed.
    fn epoll_numbers(&self) -> Vec<RawFd>;
}

/// What epoll_ctl(2) does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// EPOLL_CTL_ADD.
    Add,
    /// EPOLL_CTL_MOD.
    Modify,
    /// EPOLL_CTL_DEL.
    Delete,
}

/// An epoll set.
pub struct Epoll {
    looped: ForkGuard<Arc<EventLoop>>,
}

impl Epoll {
    /// The epoll set of this descriptor.
    ///
    /// # Errors
    /// EINVAL if it is none; EMFILE.
    pub fn new(epoll: BorrowedFd<'_>) -> io::Result<Self> {
        let looped = Arc::new(EventLoop::new(epoll)?);
        Ok(Self {
            looped: ForkGuard::new(looped),
        })
    }

    pub(super) fn looped(&self) -> &Arc<EventLoop> {
        &self.looped
    }

    /// epoll_wait(2); `kernel` is the kernel's. In a child that has inherited the set nothing of ours is
    /// told, but our descriptors are in it.
    ///
    /// # Errors
    /// As epoll_wait(2).
    pub fn wait(
        &self,
        events: &mut [Event],
        timeout: Option<Duration>,
        kernel: &mut dyn FnMut(&mut [Event], Option<Duration>) -> io::Result<usize>,
    ) -> io::Result<Option<usize>> {
        if ForkGuard::is_inherited(&self.looped) {
            return kernels_alone(events, timeout, kernel).map(Some);
        }
        self.looped.wait(events, timeout, kernel).map(Some)
    }
}

/// A program may put a socket into an epoll set before it connects it: the kernel's places for this
/// number become ours.
pub(super) fn take_over(kernel: &dyn Kernel, fd: RawFd, stream: &Stream) {
    for number in kernel.epoll_numbers() {
        let Some((flags, data)) = registered(number, fd) else {
            continue;
        };
        // The kernel knows whether it is true.
        if kernel.epoll_delete(number, fd).is_err() {
            continue;
        }
        let added = kernel.epoll(number).and_then(|held| match &*held {
            Held::Epoll(epoll) => stream.control(epoll, Operation::Add, fd, (flags, data)),
            _ => Ok(None),
        });
        if added.is_err() {
            // Better the kernel's word than none.
            let _ = kernel.epoll_add(number, fd, flags.bits(), data);
        }
    }
}

/// What the kernel has for `fd` in the epoll set of this number.
fn registered(epoll: RawFd, fd: RawFd) -> Option<(EventFlags, u64)> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).ok()?;
    text.lines().find_map(|line| parse(line, fd))
}

/// A line of an epoll set's fdinfo, `tfd: 5 events: 19 data: ff pos:0 ...`, if it is this descriptor's.
fn parse(line: &str, fd: RawFd) -> Option<(EventFlags, u64)> {
    let mut words = line.split_ascii_whitespace();
    let mut after = |name: &str| (words.next()? == name).then(|| words.next()).flatten();
    let number: RawFd = after("tfd:")?.parse().ok()?;
    let flags = u32::from_str_radix(after("events:")?, 16).ok()?;
    let data = u64::from_str_radix(after("data:")?, 16).ok()?;
    (number == fd).then_some((EventFlags::from_bits_retain(flags), data))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};

    use rustix::event::epoll;
    use san_base::Signal;

    use super::*;

    #[test]
    fn the_kernel_tells_what_it_has() {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let (one, other) = (Signal::new().unwrap(), Signal::new().unwrap());
        let flags = EventFlags::IN | EventFlags::ET | EventFlags::RDHUP;
        let data = 0xfedc_ba98_7654_3210;
        epoll::add(&set, one.as_fd(), epoll::EventData::new_u64(data), flags).unwrap();
        let (set, one, other) = (set.as_raw_fd(), one.as_raw_fd(), other.as_raw_fd());
        let (told, told_data) = registered(set, one).unwrap();
        assert!(told.contains(flags), "{told:?}");
        assert_eq!(told_data, data);
        assert_eq!(registered(set, other), None);
        assert_eq!(registered(one, one), None, "it is no epoll set");
    }
}
