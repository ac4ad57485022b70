//! Where the program has a connection that may move: a number of it in one of the program's epoll sets.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::epolls::Kernel;
use super::{Held, key};
use crate::ready::event_loop::EventLoop;
use crate::ready::fdinfo::registered;
use crate::ready::registrations;

/// A number of a connection in an epoll set.
pub(super) struct Site {
    kernel: &'static dyn Kernel,
    epoll: RawFd,
    fd: RawFd,
}

impl Site {
    pub(super) fn new(kernel: &'static dyn Kernel, epoll: RawFd, fd: RawFd) -> Self {
        Self { kernel, epoll, fd }
    }

    /// Whether it is this number's.
    pub(super) fn has(&self, fd: RawFd) -> bool {
        self.fd == fd
    }
}

impl PartialEq for Site {
    fn eq(&self, other: &Self) -> bool {
        (self.epoll, self.fd) == (other.epoll, other.fd)
    }
}

impl registrations::Site for Site {
    fn add(&self, flags: EventFlags, data: u64) -> io::Result<()> {
        self.kernel
            .epoll_add(self.epoll, self.fd, flags.bits(), data)
    }

    fn modify(&self, flags: EventFlags, data: u64) -> io::Result<()> {
        self.kernel
            .epoll_modify(self.epoll, self.fd, flags.bits(), data)
    }

    fn delete(&self) -> io::Result<()> {
        self.kernel.epoll_delete(self.epoll, self.fd)
    }

    fn registered(&self) -> Option<EventFlags> {
        registered(self.epoll, self.fd).map(|(flags, _)| flags)
    }

    fn looped(&self) -> io::Result<Arc<EventLoop>> {
        let held = self.kernel.epoll(self.epoll)?;
        let Held::Epoll(epoll) = &*held else {
            return Err(Errno::INVAL.into());
        };
        Ok(Arc::clone(epoll.own_loop().ok_or(Errno::INVAL)?))
    }

    fn key(&self) -> u64 {
        key(self.fd)
    }
}
