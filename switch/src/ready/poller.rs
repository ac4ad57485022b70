//! An event loop for Rust programs: connections over the SAN and over TCP, listeners, and any other
//! descriptors, in one wait.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;
use san_base::{Signal, timespec};

use super::event_loop::{self, EventLoop};
use super::hub::Source;
use super::interest::Interest as Told;
use super::watched::{Site, Watched, events, flags};
use crate::net::connection::Connection;
use crate::net::listener::Listener;
use crate::readiness::Events;
use crate::upgrade::stream::MovingStream;

/// Events that one wait asks the kernel for at most.
const ROOM: usize = 256;

/// Waits for many connections, listeners and other descriptors at once.
///
/// Each has a token of the caller's. One thread waits; others may add and remove meanwhile.
///
/// ```
/// use san_switch::{Interest, ListenOptions, PolledEvent, Poller, Switch, SwitchConfig};
/// use std::time::Duration;
///
/// let switch = Switch::new(SwitchConfig::from_env()?)?;
/// let listener = switch.listen("127.0.0.1:0".parse()?, ListenOptions::default())?;
/// let poller = Poller::new()?;
/// poller.add_listener(&listener, 1)?;
///
/// let _client = switch.connect(listener.local_addr(), &Default::default())?;
/// let mut events = Vec::new();
/// poller.wait(&mut events, Some(Duration::from_secs(10)))?;
/// assert_eq!(events[0].token, 1);
/// let server = std::sync::Arc::new(listener.accept()?);
/// poller.add(&server, 2, Interest::READABLE)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Poller {
    epoll: OwnedFd,
    looped: Arc<EventLoop>,
    moving: Mutex<Moving>,
    waker: Arc<Signal>,
}

/// The connections of a poller that may move, by their tokens.
#[derive(Default)]
struct Moving {
    all: HashMap<u64, Arc<Watched>>,
    /// With so many, those that are gone are looked for.
    most: usize,
}

/// A sleep on a poller's descriptor: see [`Poller::stand_by`]. Dropping it ends the sleep.
#[must_use = "the descriptor tells only while this lives"]
pub struct StandBy<'a>(
    #[expect(dead_code, reason = "it ends by being dropped")] event_loop::StandBy<'a>,
);

/// Ends a [`Poller::wait`] from another thread. Clones wake the same poller.
#[derive(Debug, Clone)]
pub struct Waker(Arc<Signal>);

/// What is told of one connection or descriptor, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    events: Events,
    mode: EventFlags,
}

/// What [`Poller::wait`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PolledEvent {
    /// The token under which it was added.
    pub token: u64,
    /// What it is ready for.
    pub events: Events,
}

impl Interest {
    /// A receive would not wait, told as long as that is so.
    pub const READABLE: Self = Self::level(Events::READABLE);
    /// A send would not wait, told as long as that is so.
    pub const WRITABLE: Self = Self::level(Events::WRITABLE);
    /// Both.
    pub const BOTH: Self = Self::level(Events::READABLE.union(Events::WRITABLE));

    /// These events, told as long as they hold. Errors and hang-ups are always told.
    pub const fn level(events: Events) -> Self {
        Self {
            events,
            mode: EventFlags::empty(),
        }
    }

    /// The same, told when it begins to hold, and when more comes.
    #[must_use]
    pub const fn edge(self) -> Self {
        Self {
            mode: EventFlags::ET,
            ..self
        }
    }

    /// The same, told once, until [`Poller::modify`].
    #[must_use]
    pub const fn one_shot(self) -> Self {
        Self {
            mode: EventFlags::ONESHOT,
            ..self
        }
    }

    fn flags(self) -> EventFlags {
        flags(self.events) | self.mode
    }
}

/// The token of the waker, which [`Poller::add`] refuses.
const WAKER: u64 = u64::MAX;

impl Poller {
    /// A poller with nothing in it.
    ///
    /// # Errors
    /// EMFILE, ENFILE or ENOMEM.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let looped = Arc::new(EventLoop::new(epoll.as_fd())?);
        let waker = Arc::new(Signal::new()?);
        let data = EventData::new_u64(WAKER);
        epoll::add(&epoll, waker.as_fd(), data, EventFlags::IN)?;
        Ok(Self {
            epoll,
            looped,
            moving: Mutex::default(),
            waker,
        })
    }

    /// Adds a connection. It is in one poller at a time, and goes with its last handle; its token may
    /// be used again after [`Poller::remove`].
    ///
    /// A connection that may move ([`RouteChoice::Upgrade`](crate::RouteChoice::Upgrade)) is followed from TCP
    /// to the SAN and back, with its token and its interest. What holds after a move is told anew, an edge
    /// too; one shot that was told is not told again.
    ///
    /// # Errors
    /// EEXIST for a token that is in use, EINVAL for `u64::MAX`; over TCP what epoll_ctl(2) says.
    pub fn add(
        &self,
        connection: &Arc<Connection>,
        token: u64,
        interest: Interest,
    ) -> io::Result<()> {
        check(token)?;
        if let Some(stream) = connection.moving() {
            let mut moving = self.moving.lock();
            if self.looped.has(token) || moving.has(token) {
                return Err(Errno::EXIST.into());
            }
            let watched = Watched::follow(connection, stream);
            moving.insert(token, &watched);
            drop(moving);
            let added = watched.add(self.site(stream, token), interest.flags());
            if added.is_err() {
                self.moving.lock().all.remove(&token);
                stream.follow(None);
                connection.set_watcher(None);
            }
            return added;
        }
        if connection.lane().is_none() {
            return self.add_fd(&connection.companion_fd(), token, interest);
        }
        if self.looped.has(token) || self.moving.lock().has(token) {
            return Err(Errno::EXIST.into());
        }
        let watched: Arc<dyn Source> = Watched::start(connection);
        let told = Told::new(interest.flags(), token);
        self.looped.add(token, &watched, told)
    }

    /// Adds a listener: readable when accept would not wait.
    ///
    /// # Errors
    /// EINVAL for `u64::MAX`; what epoll_ctl(2) says.
    pub fn add_listener(&self, listener: &Listener, token: u64) -> io::Result<()> {
        self.add_fd(&listener.readiness(), token, Interest::READABLE)
    }

    /// Adds another descriptor.
    ///
    /// # Errors
    /// EINVAL for `u64::MAX`; what epoll_ctl(2) says.
    pub fn add_fd(&self, fd: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        check(token)?;
        let data = EventData::new_u64(token);
        Ok(epoll::add(&self.epoll, fd, data, interest.flags())?)
    }

    /// Changes what is told of a connection, and tells it anew.
    ///
    /// # Errors
    /// ENOENT; over TCP what epoll_ctl(2) says.
    pub fn modify(
        &self,
        connection: &Connection,
        token: u64,
        interest: Interest,
    ) -> io::Result<()> {
        if let Some(stream) = connection.moving() {
            let watched = self.moving.lock().watched(token)?;
            return watched.modify(&self.site(stream, token), interest.flags());
        }
        if connection.lane().is_some() {
            return self
                .looped
                .modify(token, Told::new(interest.flags(), token));
        }
        self.modify_fd(&connection.companion_fd(), token, interest)
    }

    /// Changes what is told of a descriptor.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub fn modify_fd(&self, fd: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        check(token)?;
        let data = EventData::new_u64(token);
        Ok(epoll::modify(&self.epoll, fd, data, interest.flags())?)
    }

    /// Tells nothing of a connection any more.
    ///
    /// # Errors
    /// ENOENT; over TCP what epoll_ctl(2) says.
    pub fn remove(&self, connection: &Connection, token: u64) -> io::Result<()> {
        if let Some(stream) = connection.moving() {
            let mut moving = self.moving.lock();
            let watched = moving.watched(token)?;
            moving.all.remove(&token);
            drop(moving);
            stream.follow(None);
            connection.set_watcher(None);
            return watched.delete(&self.site(stream, token));
        }
        if connection.lane().is_none() {
            return self.remove_fd(&connection.companion_fd());
        }
        connection.set_watcher(None);
        self.looped.remove(token).map(drop)
    }

    fn site(&self, stream: &Arc<MovingStream>, token: u64) -> Site {
        Site::new(&self.looped, stream, token)
    }

    /// Tells nothing of a descriptor any more; for a listener that of [`Listener::readiness`].
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub fn remove_fd(&self, fd: &impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Waits until something is ready, the time is over or a [`Waker`] wakes; `events` holds what is
    /// ready, and nothing else.
    ///
    /// # Errors
    /// EINTR, when a signal was handled.
    pub fn wait(&self, events: &mut Vec<PolledEvent>, timeout: Option<Duration>) -> io::Result<()> {
        events.clear();
        let mut room = [nothing(); ROOM];
        let found = self.looped.wait(&mut room, timeout, &mut |room, timeout| {
            let timeout = timeout.map(timespec);
            Ok(epoll::wait(&self.epoll, room, timeout.as_ref())?)
        })?;
        for event in &room[..found] {
            let (data, flags) = (event.data, event.flags);
            match data.u64() {
                WAKER => drop(self.waker.reset()),
                token => events.push(PolledEvent {
                    token,
                    events: self::events(flags),
                }),
            }
        }
        Ok(())
    }

    /// Prepares a sleep on the poller's descriptor ([`AsFd`]) in another event loop, such as an
    /// asynchronous runtime's: until the result is dropped the descriptor becomes readable when
    /// [`Poller::wait`] may have something to tell. `None`: it may have now. Call [`Poller::wait`] with
    /// no time after each sleep.
    pub fn stand_by(&self) -> Option<StandBy<'_>> {
        self.looped.stand_by().map(StandBy)
    }

    /// What ends a wait of this poller from another thread.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.waker))
    }
}

impl Moving {
    /// # Errors
    /// ENOENT.
    fn watched(&self, token: u64) -> io::Result<Arc<Watched>> {
        let watched = self.all.get(&token).filter(|one| !one.is_gone());
        Ok(watched.map(Arc::clone).ok_or(Errno::NOENT)?)
    }

    fn has(&self, token: u64) -> bool {
        self.watched(token).is_ok()
    }

    fn insert(&mut self, token: u64, watched: &Arc<Watched>) {
        if self.all.len() >= self.most {
            self.all.retain(|_, one| !one.is_gone());
            self.most = (2 * self.all.len()).max(64);
        }
        self.all.insert(token, Arc::clone(watched));
    }
}

impl Waker {
    /// Ends the wait, or the next one if there is none.
    pub fn wake(&self) {
        self.0.set();
    }
}

impl AsFd for Poller {
    /// The epoll set. It tells of connections over the SAN only during a [`Poller::stand_by`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl fmt::Debug for StandBy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StandBy")
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Poller")
            .field(&self.epoll.as_raw_fd())
            .finish()
    }
}

fn nothing() -> Event {
    Event {
        flags: EventFlags::empty(),
        data: EventData::new_u64(0),
    }
}

fn check(token: u64) -> io::Result<()> {
    match token {
        WAKER => Err(Errno::INVAL.into()),
        _ => Ok(()),
    }
}
