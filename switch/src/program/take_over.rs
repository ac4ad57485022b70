//! A socket that was in epoll sets before it was connected: its entries become a loop's.

use std::os::fd::RawFd;

use super::Held;
use super::epolls::{EpollOp, Kernel};
use super::stream::Stream;
use crate::ready::fdinfo::registered;

/// A program may put a socket into an epoll set before it connects it: the kernel's entries for this
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
            Held::Epoll(epoll) => stream.control(epoll, EpollOp::Add, fd, (flags, data)),
            _ => Ok(None),
        });
        if added.is_err() {
            // Better the kernel's word than none.
            let _ = kernel.epoll_add(number, fd, flags.bits(), data);
        }
    }
}
