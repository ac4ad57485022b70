//! A connection as a source of a poller's loop.
//!
//! # Why no wake-up is lost while a connection moves
//! A connection that may move is in the kernel's set or in the loop beside it (`registrations.rs`), and the stream
//! tells its follower of each change. So at any moment somebody tells of it, or is about to:
//! - The stream changes its phase under its lock, and calls [`Follower::followed`] after that. Of two
//!   threads that come at a time the later one finds what the other one has done, since the phase is asked
//!   for with the registrations locked.
//! - Whatever came before the change is found by it: a loop looks at a source that enters, and the kernel
//!   at a descriptor.
//! - What comes between the phase and the change of registrations is not lost, but late: the registration that is still
//!   there says something that a call does not find, or nothing.
//! - Who sleeps in the set is woken: by the kernel when a descriptor is added that is ready, by the doorbell
//!   when a source enters the loop. He arms its lane before he sleeps again (`event_loop.rs`).
//! - The new lane is the loop's before the first message comes: the stream uses its queue pair only after the
//!   follower was called (`upgrade/stream/member.rs`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use san_provider::LaneHandle;

use super::event_loop::EventLoop;
use super::fdinfo::registered;
use super::hub::{Hub, Source};
use super::registrations::{self, Registrations};
use crate::carrier::Carrier;
use crate::net::connection::Connection;
use crate::readiness::{Events, Watcher};
use crate::upgrade::stream::{Follower, MovingStream};

/// A connection that is not always on TCP, and who hears of it. The connection keeps it as its watcher.
pub(crate) struct Watched {
    of: Of,
    is_gone: AtomicBool,
    hub: Hub,
}

enum Of {
    /// It is on the SAN.
    Lasting(Weak<Connection>),
    /// It may move, and is in a poller until it is closed or another poller's.
    Moving(Weak<MovingStream>, Registrations<Site>),
}

impl Watched {
    /// Has this connection, which is on the SAN, tell a hub of its own.
    pub(super) fn start(connection: &Arc<Connection>) -> Arc<Self> {
        let watched = Self::new(Of::Lasting(Arc::downgrade(connection)));
        connection.set_polling_watcher(Arc::clone(&watched) as Arc<dyn Watcher>);
        watched
    }

    /// Follows this connection, whose stream may move. Whoever did so before does not any more.
    pub(super) fn follow(connection: &Connection, stream: &Arc<MovingStream>) -> Arc<Self> {
        let watched = Self::new(Of::Moving(Arc::downgrade(stream), Registrations::default()));
        let weak = Arc::downgrade(&watched);
        if let Some(before) = stream.follow(Some(weak as Weak<dyn Follower>)) {
            before.closed();
        }
        connection.set_polling_watcher(Arc::clone(&watched) as Arc<dyn Watcher>);
        Arc::clone(&watched).followed();
        watched
    }

    fn new(of: Of) -> Arc<Self> {
        Arc::new(Self {
            of,
            is_gone: AtomicBool::new(false),
            hub: Hub::default(),
        })
    }

    /// Whether it is closed, or in another poller.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Acquire)
    }

    /// Adds it to a set, told by the token.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub(super) fn add(self: &Arc<Self>, site: Site, flags: EventFlags) -> io::Result<()> {
        let token = site.token;
        let source = Arc::clone(self) as Arc<dyn Source>;
        self.registrations()?.add(&source, site, (flags, token))
    }

    /// Changes what is told of it there.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub(super) fn modify(&self, site: &Site, flags: EventFlags) -> io::Result<()> {
        self.registrations()?.modify(site, (flags, site.token))
    }

    /// Takes it out of there.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub(super) fn delete(&self, site: &Site) -> io::Result<()> {
        self.registrations()?.delete(site)
    }

    fn registrations(&self) -> io::Result<&Registrations<Site>> {
        match &self.of {
            Of::Lasting(_) => Err(Errno::NOENT.into()),
            Of::Moving(_, registrations) => Ok(registrations),
        }
    }
}

impl Watcher for Watched {
    fn changed(&self, _token: u64, _events: Events) {
        self.hub.tell();
    }
}

impl Follower for Watched {
    fn followed(self: Arc<Self>) {
        let Of::Moving(stream, registrations) = &self.of else {
            return;
        };
        let Some(stream) = stream.upgrade() else {
            return;
        };
        let source = Arc::clone(&self) as Arc<dyn Source>;
        if !registrations.follow(&source, || stream.is_away()) {
            tracing::debug!("a connection comes back to TCP: its poller cannot follow");
            stream.move_to_tcp(true);
        }
        self.hub.tell();
    }

    fn closed(self: Arc<Self>) {
        self.is_gone.store(true, Ordering::Release);
        if let Of::Moving(_, registrations) = &self.of {
            registrations.close(|_| true, true);
        }
    }
}

impl Source for Watched {
    fn events(&self) -> EventFlags {
        let events = match &self.of {
            Of::Lasting(connection) => connection.upgrade().map(|one| one.events()),
            Of::Moving(stream, _) => stream.upgrade().map(|one| one.events()),
        };
        events.map_or(EventFlags::empty(), flags)
    }

    fn hub(&self) -> &Hub {
        &self.hub
    }

    fn lane(&self) -> Option<LaneHandle> {
        match &self.of {
            Of::Lasting(connection) => connection.upgrade()?.lane(),
            Of::Moving(stream, _) => stream.upgrade()?.lane(),
        }
    }
}

/// Where a poller has a connection that may move.
pub(super) struct Site {
    looped: Weak<EventLoop>,
    stream: Weak<MovingStream>,
    token: u64,
}

impl Site {
    pub(super) fn new(looped: &Arc<EventLoop>, stream: &Arc<MovingStream>, token: u64) -> Self {
        Self {
            looped: Arc::downgrade(looped),
            stream: Arc::downgrade(stream),
            token,
        }
    }

    /// Has the kernel do something with the descriptor of the stream in the poller's set.
    fn kernel<T>(
        &self,
        call: impl FnOnce(BorrowedFd<'_>, BorrowedFd<'_>) -> T,
    ) -> Result<T, Errno> {
        let looped = self.looped.upgrade().ok_or(Errno::BADF)?;
        let stream = self.stream.upgrade().ok_or(Errno::BADF)?;
        Ok(call(looped.epoll(), stream.tcp_socket()))
    }
}

impl PartialEq for Site {
    fn eq(&self, other: &Self) -> bool {
        self.token == other.token && self.looped.ptr_eq(&other.looped)
    }
}

impl registrations::Site for Site {
    fn add(&self, flags: EventFlags, data: u64) -> io::Result<()> {
        let data = EventData::new_u64(data);
        Ok(self.kernel(|epoll, fd| epoll::add(epoll, fd, data, flags))??)
    }

    fn modify(&self, flags: EventFlags, data: u64) -> io::Result<()> {
        let data = EventData::new_u64(data);
        Ok(self.kernel(|epoll, fd| epoll::modify(epoll, fd, data, flags))??)
    }

    fn delete(&self) -> io::Result<()> {
        Ok(self.kernel(|epoll, fd| epoll::delete(epoll, fd))??)
    }

    fn registered(&self) -> Option<EventFlags> {
        let found = self.kernel(|epoll, fd| registered(epoll.as_raw_fd(), fd.as_raw_fd()));
        found.ok().flatten().map(|(flags, _)| flags)
    }

    fn looped(&self) -> io::Result<Arc<EventLoop>> {
        Ok(self.looped.upgrade().ok_or(Errno::INVAL)?)
    }

    fn key(&self) -> u64 {
        self.token
    }
}

/// Each event in our words and in epoll's.
const WORDS: [(Events, EventFlags); 6] = [
    (Events::READABLE, EventFlags::IN),
    (Events::WRITABLE, EventFlags::OUT),
    (Events::READ_CLOSED, EventFlags::RDHUP),
    (Events::HANG_UP, EventFlags::HUP),
    (Events::ERROR, EventFlags::ERR),
    (Events::PRIORITY, EventFlags::PRI),
];

/// The same in epoll's words. The numbers are those of poll(2), too.
pub(crate) fn flags(events: Events) -> EventFlags {
    let holding = WORDS.into_iter().filter(|(one, _)| events.contains(*one));
    holding.map(|(_, flag)| flag).collect()
}

/// What epoll has told, in our words.
pub(super) fn events(flags: EventFlags) -> Events {
    let holding = WORDS.into_iter().filter(|(_, flag)| flags.contains(*flag));
    holding.map(|(one, _)| one).collect()
}
