//! The places of a program's connection in its epoll sets, while the connection may move.
//!
//! On TCP they are the kernel's, as the program has made them. While the connection is away they are in
//! the loops that stand beside the sets, since the kernel's descriptor says nothing then. One lock is
//! held for each change, so that a place is never in neither.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::event::epoll::EventFlags;

use super::epolls::{Kernel, Operation};
use super::fdinfo::registered;
use super::{Held, key, leave};
use crate::ready::event_loop::EventLoop;
use crate::ready::hub::Source;
use crate::ready::interest::Interest;

/// All places of one connection.
#[derive(Default)]
pub(super) struct Places(Mutex<State>);

#[derive(Default)]
struct State {
    all: Vec<Place>,
    is_away: bool,
}

struct Place {
    epoll: RawFd,
    fd: RawFd,
    flags: EventFlags,
    data: u64,
    /// While it is away.
    looped: Weak<EventLoop>,
}

impl Places {
    /// epoll_ctl(2).
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub(super) fn control(
        &self,
        kernel: &dyn Kernel,
        source: &Arc<dyn Source>,
        (epoll, operation, fd): (RawFd, Operation, RawFd),
        (flags, data): (EventFlags, u64),
    ) -> io::Result<()> {
        let mut state = self.0.lock();
        let at = |one: &Place| one.epoll == epoll && one.fd == fd;
        let known = state.all.iter().position(at);
        let away = state.is_away.then_some(known).flatten();
        match (operation, away) {
            (Operation::Add, _) => {
                let mut place = Place {
                    epoll,
                    fd,
                    flags,
                    data,
                    looped: Weak::new(),
                };
                match state.is_away {
                    true => place.enter(kernel, source)?,
                    false => kernel.epoll_add(epoll, fd, flags.bits(), data)?,
                }
                state.all.retain(|one| !at(one));
                state.all.push(place);
            }
            (Operation::Modify, None) => {
                kernel.epoll_modify(epoll, fd, flags.bits(), data)?;
            }
            (Operation::Modify, Some(place)) => {
                if let Some(looped) = state.all[place].looped.upgrade() {
                    looped.modify(key(fd), Interest::new(flags, data))?;
                }
            }
            (Operation::Delete, None) => {
                kernel.epoll_delete(epoll, fd)?;
                state.all.retain(|one| !at(one));
            }
            (Operation::Delete, Some(place)) => {
                if let Some(looped) = state.all.swap_remove(place).looped.upgrade() {
                    looped.remove(key(fd))?;
                }
            }
        }
        if operation == Operation::Modify
            && let Some(place) = known
        {
            (state.all[place].flags, state.all[place].data) = (flags, data);
        }
        Ok(())
    }

    /// Has the places where they belong now. `false`: one could not be moved, and the connection has to
    /// come back to TCP.
    pub(super) fn follow(
        &self,
        kernel: &dyn Kernel,
        source: &Arc<dyn Source>,
        is_away: impl Fn() -> bool,
    ) -> bool {
        let mut state = self.0.lock();
        let is_away = is_away();
        if state.is_away == is_away {
            return true;
        }
        state.is_away = is_away;
        let mut is_whole = true;
        state.all.retain_mut(|place| match is_away {
            true => place.go(kernel, source, &mut is_whole),
            false => place.come_back(kernel),
        });
        is_whole
    }

    /// The program has closed this number. `is_kept`: the kernel does not forget it by itself, since the
    /// stream has another descriptor of the socket.
    pub(super) fn closed(&self, kernel: &dyn Kernel, fd: RawFd, is_kept: bool) {
        let mut state = self.0.lock();
        let is_away = state.is_away;
        state.all.retain(|place| {
            if place.fd == fd {
                match place.looped.upgrade() {
                    Some(looped) if is_away => leave(&looped, fd),
                    _ if is_kept => drop(kernel.epoll_delete(place.epoll, fd)),
                    _ => {}
                }
            }
            place.fd != fd
        });
    }
}

impl Place {
    /// Puts it into the loop of its set.
    fn enter(&mut self, kernel: &dyn Kernel, source: &Arc<dyn Source>) -> io::Result<()> {
        let held = kernel.epoll(self.epoll)?;
        let Held::Epoll(epoll) = &*held else {
            return Err(rustix::io::Errno::INVAL.into());
        };
        let looped = epoll.own_loop().ok_or(rustix::io::Errno::INVAL)?;
        looped.add(key(self.fd), source, Interest::new(self.flags, self.data))?;
        self.looped = Arc::downgrade(looped);
        // Who sleeps in the set since before there was a loop hears nothing else.
        looped.ring();
        Ok(())
    }

    /// From the kernel to the loop; whether the place is there at all.
    fn go(&mut self, kernel: &dyn Kernel, source: &Arc<dyn Source>, is_whole: &mut bool) -> bool {
        if self.flags.contains(EventFlags::ONESHOT) {
            // Whether it has been fired already is the kernel's to know.
            match registered(self.epoll, self.fd) {
                Some((flags, _)) => self.flags = flags,
                None => return false,
            }
        }
        if kernel.epoll_delete(self.epoll, self.fd).is_err() {
            return false;
        }
        if self.enter(kernel, source).is_ok() {
            return true;
        }
        *is_whole = false;
        let flags = self.flags.bits();
        kernel
            .epoll_add(self.epoll, self.fd, flags, self.data)
            .is_ok()
    }

    /// From the loop to the kernel.
    fn come_back(&mut self, kernel: &dyn Kernel) -> bool {
        let looped = std::mem::take(&mut self.looped);
        let Some(looped) = looped.upgrade() else {
            // It could not go.
            return true;
        };
        let Ok(interest) = looped.remove(key(self.fd)) else {
            return false;
        };
        self.flags = interest.flags();
        let bits = match interest.is_spent() {
            true => EventFlags::ONESHOT.bits(),
            false => self.flags.bits(),
        };
        let given = kernel.epoll_add(self.epoll, self.fd, bits, self.data);
        if let Err(error) = &given {
            tracing::warn!(%error, fd = self.fd, "an epoll set does not hear of a connection");
        }
        given.is_ok()
    }
}
