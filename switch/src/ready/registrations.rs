//! The registrations of a connection in epoll sets, while the connection may move.
//!
//! On TCP they are the kernel's, as the program has made them. While the connection is away they are in
//! the loops that stand beside the sets, since the kernel's descriptor says nothing then. One lock is
//! held for each change, so that a registration is never in neither. One shot that has been fired is in neither:
//! the kernel has no way to be given it.

use std::io;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::event_loop::EventLoop;
use super::hub::Source;
use super::interest::Interest;

/// Where a connection is in an epoll set: by the kernel's descriptor, or in the loop beside the set.
pub(crate) trait Site: PartialEq {
    /// epoll_ctl(2): EPOLL_CTL_ADD.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    fn add(&self, flags: EventFlags, data: u64) -> io::Result<()>;

    /// epoll_ctl(2): EPOLL_CTL_MOD.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    fn modify(&self, flags: EventFlags, data: u64) -> io::Result<()>;

    /// epoll_ctl(2): EPOLL_CTL_DEL.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    fn delete(&self) -> io::Result<()>;

    /// What the kernel has there.
    fn registered(&self) -> Option<EventFlags>;

    /// The loop beside the set.
    ///
    /// # Errors
    /// EINVAL where there can be none; EMFILE.
    fn looped(&self) -> io::Result<Arc<EventLoop>>;

    /// The connection's key in that loop.
    fn key(&self) -> u64;
}

/// All registrations of one connection.
pub(crate) struct Registrations<S>(Mutex<State<S>>);

struct State<S> {
    all: Vec<Registration<S>>,
    is_away: bool,
}

struct Registration<S> {
    site: S,
    flags: EventFlags,
    data: u64,
    /// Its one shot has been fired on TCP.
    is_spent: bool,
    /// While it is away.
    looped: Weak<EventLoop>,
}

impl<S> Default for Registrations<S> {
    fn default() -> Self {
        Self(Mutex::new(State {
            all: Vec::new(),
            is_away: false,
        }))
    }
}

impl<S: Site> Registrations<S> {
    /// EPOLL_CTL_ADD.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub(crate) fn add(
        &self,
        source: &Arc<dyn Source>,
        site: S,
        (flags, data): (EventFlags, u64),
    ) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.has_spent(&site) {
            return Err(Errno::EXIST.into());
        }
        let mut registration = Registration {
            site,
            flags,
            data,
            is_spent: false,
            looped: Weak::new(),
        };
        match state.is_away {
            true => registration.enter(source)?,
            false => registration.site.add(flags, data)?,
        }
        state.all.retain(|one| one.site != registration.site);
        state.all.push(registration);
        Ok(())
    }

    /// EPOLL_CTL_MOD.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub(crate) fn modify(&self, site: &S, (flags, data): (EventFlags, u64)) -> io::Result<()> {
        let mut state = self.0.lock();
        let is_away = state.is_away;
        let Some(registration) = state.all.iter_mut().find(|one| one.site == *site) else {
            return site.modify(flags, data);
        };
        match registration.looped.upgrade() {
            Some(looped) => looped.modify(site.key(), Interest::new(flags, data))?,
            // It could not go; or the loop is gone, and its set with it.
            None if is_away => drop(site.modify(flags, data)),
            None if registration.is_spent => {
                // The kernel has nothing to be changed, so it would not say so.
                let spent = Interest::spent(registration.flags, registration.data);
                spent.check_changed(&Interest::new(flags, data))?;
                site.add(flags, data)?;
            }
            None => site.modify(flags, data)?,
        }
        (registration.flags, registration.data, registration.is_spent) = (flags, data, false);
        Ok(())
    }

    /// EPOLL_CTL_DEL.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub(crate) fn delete(&self, site: &S) -> io::Result<()> {
        let mut state = self.0.lock();
        let Some(at) = state.all.iter().position(|one| one.site == *site) else {
            return site.delete();
        };
        let is_away = state.is_away;
        let registration = state.all.swap_remove(at);
        match registration.looped.upgrade() {
            Some(looped) => looped.remove(site.key()).map(drop),
            None if registration.is_spent => Ok(()),
            None if is_away => {
                let _ = site.delete();
                Ok(())
            }
            None => site.delete(),
        }
    }

    /// Has the registrations where they belong now. `is_away` is asked with the registrations locked, so of two changes
    /// of the connection the later one counts, whoever tells of it first. `false`: a registration could not be
    /// moved, and the connection has to come back to TCP.
    pub(crate) fn follow(&self, source: &Arc<dyn Source>, is_away: impl Fn() -> bool) -> bool {
        let mut state = self.0.lock();
        let is_away = is_away();
        if state.is_away == is_away {
            // It may have another queue pair by now, and that another lane.
            for registration in &state.all {
                if let Some(looped) = registration.looped.upgrade() {
                    looped.see_lane(registration.site.key());
                }
            }
            return true;
        }
        state.is_away = is_away;
        let mut is_whole = true;
        state.all.retain_mut(|registration| match is_away {
            true => registration.go(source, &mut is_whole),
            false => registration.come_back(),
        });
        is_whole
    }

    /// Takes these registrations out. `is_kept`: the kernel does not forget them by itself.
    pub(crate) fn close(&self, which: impl Fn(&S) -> bool, is_kept: bool) {
        let mut state = self.0.lock();
        state.all.retain(|registration| {
            if !which(&registration.site) {
                return true;
            }
            match registration.looped.upgrade() {
                // It may have left already.
                Some(looped) => drop(looped.remove(registration.site.key())),
                None if is_kept => drop(registration.site.delete()),
                None => {}
            }
            false
        });
    }
}

impl<S: Site> State<S> {
    fn has_spent(&self, site: &S) -> bool {
        let mut all = self.all.iter();
        all.any(|one| one.site == *site && one.is_spent)
    }
}

impl<S: Site> Registration<S> {
    /// Puts it into the loop of its set.
    fn enter(&mut self, source: &Arc<dyn Source>) -> io::Result<()> {
        let looped = self.site.looped()?;
        let interest = match self.is_spent {
            true => Interest::spent(self.flags, self.data),
            false => Interest::new(self.flags, self.data),
        };
        looped.add(self.site.key(), source, interest)?;
        self.is_spent = false;
        self.looped = Arc::downgrade(&looped);
        // Who sleeps in the set since before there was a loop hears nothing else.
        looped.ring();
        Ok(())
    }

    /// From the kernel to the loop; whether the registration is there at all.
    fn go(&mut self, source: &Arc<dyn Source>, is_whole: &mut bool) -> bool {
        if self.flags.contains(EventFlags::ONESHOT) && !self.is_spent {
            // Whether it has been fired already is the kernel's to know: then it has no events any more.
            match self.site.registered() {
                Some(flags) => self.is_spent = !flags.contains(EventFlags::ERR),
                None => return false,
            }
            if self.site.delete().is_err() {
                return false;
            }
        } else if !self.is_spent && self.site.delete().is_err() {
            return false;
        }
        if self.enter(source).is_ok() {
            return true;
        }
        *is_whole = false;
        self.is_spent || self.site.add(self.flags, self.data).is_ok()
    }

    /// From the loop to the kernel.
    fn come_back(&mut self) -> bool {
        let looped = std::mem::take(&mut self.looped);
        let Some(looped) = looped.upgrade() else {
            // It could not go.
            return true;
        };
        let Ok(interest) = looped.remove(self.site.key()) else {
            return false;
        };
        self.flags = interest.flags();
        self.is_spent = interest.is_spent();
        if self.is_spent {
            return true;
        }
        let given = self.site.add(self.flags, self.data);
        if let Err(error) = &given {
            tracing::warn!(%error, "an epoll set does not hear of a connection");
        }
        given.is_ok()
    }
}

#[cfg(test)]
#[path = "registrations_tests.rs"]
mod tests;
