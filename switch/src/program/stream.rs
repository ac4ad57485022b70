//! A stream of the program's: being connected, or carried by the SAN.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::ops::Deref;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use san_provider::LaneHandle;
use verbs_shim::fork::{ForkGuard, Generation};

use super::epolls::{Epoll, EpollOp};
use super::inherited::carry_over;
use super::sites::Site;
use super::timeouts::{Timeouts, Wanted, of_connection};
use super::upgrading::{Host, Moving, Upgrading};
use super::{key, leave};
use crate::net::connection::Connection;
use crate::readiness::{Events, Watcher};
use crate::ready::event_loop::EventLoop;
use crate::ready::hub::{Hub, Source};
use crate::ready::interest::Interest;
use crate::ready::registrations::Registrations;
use crate::ready::watched::flags;
use crate::upgrade::stream::Follower;

/// A stream. Clones, which `dup` makes, are the same stream.
#[derive(Clone)]
pub struct Stream {
    state: Arc<StreamState>,
}

pub(super) struct StreamState {
    hub: Hub,
    /// It began on TCP, and may move.
    pub(super) upgrading: Option<Upgrading>,
    /// Its registrations in epoll sets then; `loops` is for the others.
    pub(super) registrations: Registrations<Site>,
    made: Generation,
    connection: OnceLock<ForkGuard<Arc<Connection>>>,
    is_nonblocking: AtomicBool,
    /// The connect came to TCP, and the number is the kernel's alone.
    is_kernels: AtomicBool,
    /// An end of the connect was told by another connect.
    is_told: AtomicBool,
    /// The connect has failed with this, or a write that had taken bytes before; told once. What is told of a
    /// connect stays in `failed`.
    pub(super) error: AtomicI32,
    failed: AtomicBool,
    /// SO_RCVTIMEO and SO_SNDTIMEO, as the socket has them.
    timeouts: Mutex<Timeouts>,
    /// The loops that it is in, and under which numbers.
    loops: Mutex<Vec<(Weak<EventLoop>, RawFd)>>,
}

/// The connection's watcher. It does not keep the stream.
struct Ears(Weak<StreamState>);

impl Watcher for Ears {
    fn changed(&self, _token: u64, _events: Events) {
        if let Some(state) = self.0.upgrade() {
            state.hub.tell();
        }
    }
}

/// The connection, for the time of a call.
pub(super) enum Call<'a> {
    Lasting(&'a Connection),
    Moving(Arc<ForkGuard<Moving>>),
}

impl Deref for Call<'_> {
    type Target = Connection;

    #[inline]
    fn deref(&self) -> &Connection {
        match self {
            Call::Lasting(connection) => connection,
            Call::Moving(moving) => &moving.connection,
        }
    }
}

impl Host for StreamState {
    fn prepare(self: Arc<Self>, connection: &Connection, fd: BorrowedFd<'_>, mode: bool) {
        self.is_nonblocking.store(mode, Ordering::Release);
        *self.timeouts.lock() = Timeouts::of(fd);
        self.set_up(connection);
    }
}

impl Follower for StreamState {
    fn followed(self: Arc<Self>) {
        let Some(upgrading) = &self.upgrading else {
            return;
        };
        let source: Arc<dyn Source> = Arc::clone(&self) as Arc<dyn Source>;
        let is_whole = self.registrations.follow(&source, || upgrading.is_away());
        if !is_whole && let Some(moving) = upgrading.moving().as_ref() {
            tracing::debug!("a connection comes back to TCP: one of its epoll sets cannot follow");
            moving.connection.move_to_tcp(true);
        }
        upgrading.followed();
        self.hub.tell();
    }

    fn is_shared(&self) -> bool {
        self.upgrading.as_ref().is_some_and(Upgrading::is_shared)
    }

    fn wants_tcp(&self) -> bool {
        self.upgrading.as_ref().is_some_and(Upgrading::wants_tcp)
    }
}

impl Source for StreamState {
    fn events(&self) -> EventFlags {
        if let Some(upgrading) = &self.upgrading {
            let moving = upgrading.moving();
            let events = moving.as_ref().map(|moving| moving.connection.events());
            return events.map_or(EventFlags::empty(), flags);
        }
        if let Some(connection) = self.connection.get() {
            return flags(connection.events());
        }
        match self.failed.load(Ordering::Acquire) {
            true => EventFlags::IN | EventFlags::OUT | EventFlags::HUP | EventFlags::ERR,
            false => EventFlags::empty(),
        }
    }

    fn hub(&self) -> &Hub {
        &self.hub
    }

    fn is_kernels(&self) -> bool {
        match &self.upgrading {
            Some(upgrading) => !upgrading.is_ours(),
            None => self.is_kernels.load(Ordering::Acquire),
        }
    }

    fn lane(&self) -> Option<LaneHandle> {
        match &self.upgrading {
            Some(upgrading) => upgrading.moving().as_ref()?.connection.lane(),
            None => self.connection.get()?.lane(),
        }
    }
}

impl StreamState {
    /// The connect is over, by this connection.
    pub(super) fn connected(self: &Arc<Self>, connection: Connection) {
        let connection = Arc::new(connection);
        carry_over(&connection, connection.companion_fd());
        self.set_up(&connection);
        // Who puts it into a loop holds the lock, too: it sees the lane either here or there.
        let loops = self.loops.lock();
        let _ = self.connection.set(ForkGuard::new(connection));
        for (looped, fd) in loops.iter() {
            if let Some(looped) = looped.upgrade() {
                looped.see_lane(key(*fd));
            }
        }
        drop(loops);
        self.hub.tell();
    }

    fn set_up(self: &Arc<Self>, connection: &Connection) {
        let _ = connection.set_nonblocking(self.is_nonblocking.load(Ordering::Acquire));
        let timeouts = *self.timeouts.lock();
        let _ = connection.set_receive_timeout(of_connection(timeouts.receive));
        let _ = connection.set_send_timeout(of_connection(timeouts.send));
        let ears: Arc<dyn Watcher> = Arc::new(Ears(Arc::downgrade(self)));
        connection.set_polling_watcher(ears);
    }

    /// The connect has failed.
    pub(super) fn fail(&self, errno: i32) {
        self.error.store(errno, Ordering::Release);
        self.failed.store(true, Ordering::Release);
        self.hub.tell();
    }

    /// The connect goes on over TCP: the number is the kernel's, and so is its place in epoll sets.
    /// `give` puts it there.
    pub(super) fn give_to_kernel(&self, give: impl Fn(&EventLoop, RawFd, Interest)) {
        self.is_kernels.store(true, Ordering::Release);
        for (looped, fd) in std::mem::take(&mut *self.loops.lock()) {
            if let Some(looped) = looped.upgrade()
                && let Ok(interest) = looped.remove(key(fd))
            {
                give(&looped, fd, interest);
            }
        }
        self.hub.tell();
    }
}

impl Stream {
    /// A stream that is being connected.
    pub(super) fn connecting(is_nonblocking: bool, timeouts: Timeouts) -> Self {
        Self::new(is_nonblocking, timeouts, None)
    }

    /// A stream on TCP that may move.
    pub(super) fn upgrading(upgrading: Upgrading) -> Self {
        Self::new(false, Timeouts::default(), Some(upgrading))
    }

    fn new(is_nonblocking: bool, timeouts: Timeouts, upgrading: Option<Upgrading>) -> Self {
        Self {
            state: Arc::new(StreamState {
                hub: Hub::default(),
                upgrading,
                registrations: Registrations::default(),
                made: Generation::now(),
                connection: OnceLock::new(),
                is_nonblocking: AtomicBool::new(is_nonblocking),
                is_kernels: AtomicBool::new(false),
                is_told: AtomicBool::new(false),
                error: AtomicI32::new(0),
                failed: AtomicBool::new(false),
                timeouts: Mutex::new(timeouts),
                loops: Mutex::default(),
            }),
        }
    }

    /// A stream of a connection that there is.
    pub(super) fn of(connection: Connection, is_nonblocking: bool, timeouts: Timeouts) -> Self {
        let stream = Self::connecting(is_nonblocking, timeouts);
        stream.state.is_told.store(true, Ordering::Relaxed);
        stream.state.connected(connection);
        stream
    }

    pub(super) fn state(&self) -> &Arc<StreamState> {
        &self.state
    }

    pub(super) fn source(&self) -> Arc<dyn Source> {
        Arc::clone(&self.state) as Arc<dyn Source>
    }

    /// Whether it is another process's, which this one was forked from. Every call says ENOTCONN.
    pub fn is_inherited(&self) -> bool {
        self.state.upgrading.is_none() && self.state.made.is_past()
    }

    /// Whether it began on TCP, and may move: calls of the kernel's are between [`Stream::begin`] and
    /// [`Stream::end`].
    pub fn is_upgrading(&self) -> bool {
        self.state.upgrading.is_some()
    }

    /// Whether the number is the kernel's alone, since the connect went to TCP.
    pub fn is_kernels(&self) -> bool {
        self.state.is_kernels.load(Ordering::Acquire)
    }

    /// The connection; `None`: the call is the kernel's.
    pub(super) fn connection(&self) -> io::Result<Option<Call<'_>>> {
        if let Some(upgrading) = &self.state.upgrading {
            let moving = upgrading.moving().as_ref().map(Arc::clone);
            return Ok(moving.filter(|_| upgrading.is_ours()).map(Call::Moving));
        }
        if self.is_inherited() {
            return match self.is_kernels() {
                true => Ok(None),
                false => Err(Errno::NOTCONN.into()),
            };
        }
        if let Some(connection) = self.state.connection.get() {
            return Ok(Some(Call::Lasting(connection)));
        }
        if self.is_kernels() {
            return Ok(None);
        }
        if let Some(errno) = self.take_failure() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        match self.state.failed.load(Ordering::Acquire) {
            true => Err(Errno::NOTCONN.into()),
            false => Err(Errno::AGAIN.into()),
        }
    }

    pub(super) fn take_failure(&self) -> Option<i32> {
        if self.state.error.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let errno = self.state.error.swap(0, Ordering::AcqRel);
        (errno != 0).then_some(errno)
    }

    /// Another connect on it.
    ///
    /// # Errors
    /// EALREADY, EISCONN, or why the connect failed.
    pub fn connect_again(&self) -> io::Result<Option<()>> {
        if self.is_upgrading() {
            return Ok(None);
        }
        match self.connection() {
            Ok(None) => Ok(None),
            Ok(Some(_)) if !self.state.is_told.swap(true, Ordering::AcqRel) => Ok(Some(())),
            Ok(Some(_)) => Err(Errno::ISCONN.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Errno::ALREADY.into()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn is_nonblocking(&self) -> bool {
        self.state.is_nonblocking.load(Ordering::Acquire)
    }

    /// SO_RCVTIMEO or SO_SNDTIMEO; none: until something happens.
    pub(super) fn timeout(&self, wanted: Wanted) -> Option<Duration> {
        let timeouts = self.state.timeouts.lock();
        match wanted {
            Wanted::Bytes => timeouts.receive,
            Wanted::Room => timeouts.send,
        }
    }

    /// Ends one half or both.
    ///
    /// # Errors
    /// As shutdown(2).
    pub fn shutdown(&self, how: Shutdown) -> io::Result<Option<()>> {
        match self.connection() {
            Ok(None) => Ok(None),
            Ok(Some(connection)) => connection.shutdown(how).map(Some),
            Err(_) => Err(Errno::NOTCONN.into()),
        }
    }

    /// Our end. `None`: ask the kernel.
    ///
    /// # Errors
    /// None so far.
    pub fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        let connection = self.state.connection.get();
        Ok(connection.map(|connection| connection.local_addr()))
    }

    /// The peer's end. `None`: ask the kernel.
    ///
    /// # Errors
    /// ENOTCONN.
    pub fn peer_addr(&self) -> io::Result<Option<SocketAddr>> {
        if self.is_upgrading() {
            return Ok(None);
        }
        match self.state.connection.get() {
            Some(connection) => Ok(Some(connection.peer_addr())),
            None if self.is_kernels() => Ok(None),
            None => Err(Errno::NOTCONN.into()),
        }
    }

    /// SO_ERROR, which is read once; 0 is none. `None`: ask the kernel.
    ///
    /// # Errors
    /// None so far.
    pub fn take_error(&self) -> io::Result<Option<i32>> {
        if self.is_upgrading() {
            let Some(connection) = self.connection()?.filter(|_| !self.is_on_tcp()) else {
                return Ok(None);
            };
            return Ok(Some(number(connection.take_error()?)));
        }
        if self.is_kernels() {
            return Ok(None);
        }
        if let Some(connection) = self.state.connection.get() {
            if self.is_inherited() {
                return Ok(Some(0));
            }
            self.state.is_told.store(true, Ordering::Release);
            if let Some(errno) = self.take_failure() {
                return Ok(Some(errno));
            }
            return Ok(Some(number(connection.take_error()?)));
        }
        Ok(Some(self.take_failure().unwrap_or(0)))
    }

    /// Whether it is carried by the SAN.
    pub fn is_connected(&self) -> bool {
        self.state.connection.get().is_some()
    }

    /// The descriptor's mode was changed.
    ///
    /// # Errors
    /// None so far.
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        self.state.is_nonblocking.store(on, Ordering::Release);
        match self.connection() {
            Ok(Some(connection)) => connection.set_nonblocking(on),
            _ => Ok(()),
        }
    }

    /// SO_RCVTIMEO; zero is none.
    ///
    /// # Errors
    /// None so far.
    pub fn set_receive_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.state.timeouts.lock().receive = some(timeout);
        match self.connection() {
            Ok(Some(connection)) => connection.set_receive_timeout(of_connection(some(timeout))),
            _ => Ok(()),
        }
    }

    /// SO_SNDTIMEO; zero is none.
    ///
    /// # Errors
    /// None so far.
    pub fn set_send_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.state.timeouts.lock().send = some(timeout);
        match self.connection() {
            Ok(Some(connection)) => connection.set_send_timeout(of_connection(some(timeout))),
            _ => Ok(()),
        }
    }

    /// epoll_ctl(2) on it. `None`: ask the kernel.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn control(
        &self,
        epoll: &Epoll,
        operation: EpollOp,
        fd: RawFd,
        interest: (EventFlags, u64),
    ) -> io::Result<Option<()>> {
        let looped = epoll.looped();
        let told = Interest::new(interest.0, interest.1);
        let mut loops = self.state.loops.lock();
        if self.is_kernels() {
            return Ok(None);
        }
        match operation {
            EpollOp::Add => {
                looped.add(key(fd), &self.source(), told)?;
                loops.push((Arc::downgrade(looped), fd));
            }
            EpollOp::Modify => looped.modify(key(fd), told)?,
            EpollOp::Delete => {
                looped.remove(key(fd))?;
                loops.retain(|(one, number)| {
                    *number != fd || !std::ptr::eq(one.as_ptr(), Arc::as_ptr(looped))
                });
            }
        }
        Ok(Some(()))
    }

    /// The number is closed, or stands for something else from now on.
    pub fn number_closed(&self, fd: RawFd) {
        if let Some(upgrading) = &self.state.upgrading {
            let registrations = &self.state.registrations;
            return registrations.close(|site| site.has(fd), upgrading.had_aside());
        }
        self.state.loops.lock().retain(|(looped, number)| {
            if *number == fd
                && let Some(looped) = looped.upgrade()
            {
                leave(&looped, fd);
            }
            *number != fd
        });
    }
}

/// An error's number; 0 is none.
fn number(error: Option<io::Error>) -> i32 {
    error.map_or(0, |error| {
        error.raw_os_error().unwrap_or(Errno::IO.raw_os_error())
    })
}

fn some(timeout: Duration) -> Option<Duration> {
    (!timeout.is_zero()).then_some(timeout)
}
