//! A connection: a byte stream over the SAN or over TCP, which the caller uses alike (duties 1,
//! 10, 17).
//!
//! It knows which way was taken and why. What carries it is in `carrier/`. The addresses come from
//! a cache of its own (duty 49).

use std::fmt;
use std::io::{self, IoSliceMut, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use san_base::Deadline;
use san_provider::LaneHandle;
use san_stream::Role;
use socket2::{SockRef, Socket, TcpKeepalive};

use super::registry::{ConnectionInfo, Counted};
use super::rooms::Lease;
use crate::carrier::gate::{Gate, Pass};
use crate::carrier::info::StreamInfo;
use crate::carrier::san::{CloseStep, SanCarrier};
use crate::carrier::tcp::TcpCarrier;
use crate::carrier::{Buffers, Carrier, MemoryKeeper};
use crate::companion::plan::canonical;
use crate::readiness::{Events, Watcher};
use crate::route::fallback::{FallbackReason, NotTried, Route};
use crate::san::provider::StartedProvider;
use crate::san::socket::ProviderSocket;
use crate::tcp;
use crate::upgrade::stream::{self, MovingStream};

/// How long a close waits itself: a peer that keeps up has taken everything in by then, and no other
/// thread is needed.
const CLOSE_GRACE: Duration = Duration::from_millis(5);

/// A connected stream. All calls take `&self`: one thread may send while another receives.
/// Dropping it closes it as TCP does: the call returns within milliseconds, and what was sent still
/// arrives, as long as the peer takes it in and the switch lives. A program that ends right after its
/// last byte calls [`Connection::finish`] first.
///
/// It is no descriptor: over the SAN there is none that tells when the stream is ready, and one
/// that told something else would mislead an event loop.
///
/// ```compile_fail,E0277
/// fn watch(descriptor: impl std::os::fd::AsFd) {}
/// fn look(connection: &san_switch::Connection) {
///     watch(connection);
/// }
/// ```
pub struct Connection {
    pub(super) carrier: Carried,
    info: Arc<ConnectionInfo>,
    closes_in_background: AtomicBool,
    /// Calls that are under way on the kernel's socket, while that can go to another process.
    pub(super) gate: Gate,
    /// The provider stays started while a connection of its lives.
    pub(super) lease: Lease,
}

/// What carries it.
pub(super) enum Carried {
    San(Arc<SanCarrier>),
    Tcp(TcpCarrier),
    Moving(Arc<MovingStream>),
}

/// What a connect or an accept has brought about.
pub(super) enum Established {
    /// Over the SAN. The device is looked up by the local address where the caller does not know
    /// it.
    San {
        provider: Arc<StartedProvider>,
        socket: ProviderSocket,
        device: Option<String>,
        peer: SocketAddr,
        companion: Socket,
    },
    /// Over TCP.
    Tcp {
        socket: Socket,
        local: SocketAddr,
        peer: SocketAddr,
        why: Option<FallbackReason>,
        /// It may move to the SAN; this is our end of it.
        may_move: Option<Role>,
    },
}

impl Connection {
    /// What is connected becomes what the application holds: the one place where that happens.
    pub(super) fn open(established: Established, lease: Lease, buffers: Buffers) -> Self {
        let timeout = lease.config.io_timeout;
        let (local, peer, route, counted, carrier): (_, _, _, _, Carried) = match established {
            Established::San {
                provider,
                socket,
                device,
                peer,
                companion,
            } => {
                let local = socket.local_addr();
                let device = device.unwrap_or_else(|| {
                    let table = lease.routes.table();
                    let entry = table.own(local.ip());
                    entry.map_or_else(String::new, |entry| entry.device.clone())
                });
                let route = Route::San {
                    provider: provider.name.clone(),
                    device,
                };
                let counted = Counted::San(socket.data().clone());
                let counters = Arc::clone(&lease.counters);
                let keeper = Arc::clone(&lease.closing) as Arc<dyn MemoryKeeper>;
                let carrier = SanCarrier::new(socket, companion, peer, timeout, counters, keeper);
                (local, peer, route, counted, Carried::San(carrier))
            }
            Established::Tcp {
                socket,
                local,
                peer,
                why,
                may_move,
            } => {
                let way = may_move.and_then(|role| Some((role, lease.way(local, peer)?)));
                if let Some((role, san)) = way {
                    let moving = Self::open_moving(lease, socket, (local, peer), role, san);
                    moving.carrier().bound(buffers);
                    return moving;
                }
                // It may move, but the SAN has no way there.
                let why = match why {
                    Some(FallbackReason::NotTried(NotTried::NotMoved(_))) => {
                        Some(FallbackReason::NotTried(lease.why_not_there(local, peer)))
                    }
                    why => why,
                };
                let carrier = TcpCarrier::new(socket, timeout);
                let counted = Counted::Tcp(Arc::clone(carrier.counters()));
                (
                    local,
                    peer,
                    Route::Tcp { why },
                    counted,
                    Carried::Tcp(carrier),
                )
            }
        };
        let info = lease.connections.add(local, peer, route, counted);
        let connection = Self::assemble(carrier, info, lease);
        connection.carrier().bound(buffers);
        connection
    }

    pub(super) fn assemble(carrier: Carried, info: Arc<ConnectionInfo>, lease: Lease) -> Self {
        Self {
            carrier,
            info,
            closes_in_background: AtomicBool::new(false),
            gate: Gate::default(),
            lease,
        }
    }

    /// A connection of this TCP socket's, which may move to the SAN; `None`: the SAN has no way there. The
    /// socket's mode stays as it is.
    pub(crate) fn adopt(lease: Lease, socket: Socket, role: Role) -> io::Result<Option<Self>> {
        let unknown = || io::Error::from(rustix::io::Errno::NOTCONN);
        let local = tcp::local_addr(&socket)?;
        let peer = socket.peer_addr()?.as_socket().ok_or_else(unknown)?;
        let Some(san) = lease.way(local, peer) else {
            return Ok(None);
        };
        Ok(Some(Self::open_moving(
            lease,
            socket,
            (local, peer),
            role,
            san,
        )))
    }

    /// The stream that may move, if it is one.
    pub(crate) fn moving(&self) -> Option<&Arc<MovingStream>> {
        match &self.carrier {
            Carried::Moving(stream) => Some(stream),
            _ => None,
        }
    }

    /// A TCP connection that may move to the SAN.
    pub(super) fn open_moving(
        lease: Lease,
        socket: Socket,
        (local, peer): (SocketAddr, SocketAddr),
        role: Role,
        san: Route,
    ) -> Self {
        let stream = MovingStream::new(
            &lease.moving,
            socket,
            stream::ends(role, canonical(local), canonical(peer)),
            role,
            lease.config.thresholds(),
            lease.config.io_timeout,
            Arc::clone(&lease.closing) as Arc<dyn MemoryKeeper>,
        );
        let counted = Counted::Moving(Arc::clone(&stream), san);
        let info = lease
            .connections
            .add(local, peer, Route::Tcp { why: None }, counted);
        Self::assemble(Carried::Moving(stream), info, lease)
    }

    #[inline]
    fn carrier(&self) -> &dyn Carrier {
        match &self.carrier {
            Carried::San(carrier) => &**carrier,
            Carried::Tcp(carrier) => carrier,
            Carried::Moving(stream) => &**stream,
        }
    }

    /// The carrier, for a call that moves bytes or ends something: the kernel's socket changes hands between
    /// two of them. One over the SAN has locks for that.
    fn carrier_for_call(&self) -> io::Result<(&dyn Carrier, Option<Pass<'_>>)> {
        let pass = match &self.carrier {
            Carried::San(_) => None,
            Carried::Tcp(_) | Carried::Moving(_) => Some(self.gate.enter()?),
        };
        Ok((self.carrier(), pass))
    }

    /// Which way it goes now, and why.
    pub fn route(&self) -> &Route {
        self.info.route()
    }

    /// Whether the SAN carries it.
    pub fn is_san(&self) -> bool {
        self.info.is_san()
    }

    /// Whether it began on TCP ([`RouteChoice::Upgrade`](crate::RouteChoice::Upgrade)) and may change to the
    /// SAN and back: what tells that it is ready changes with it, and a [`Poller`](crate::Poller) follows.
    pub fn may_move(&self) -> bool {
        self.moving().is_some()
    }

    /// Our end.
    pub fn local_addr(&self) -> SocketAddr {
        self.info.local
    }

    /// The peer's end.
    pub fn peer_addr(&self) -> SocketAddr {
        self.info.peer
    }

    /// Sends bytes and says how many were taken, at least one unless there were none.
    ///
    /// # Errors
    /// ECONNRESET when the peer is gone, EPIPE after [`Connection::shutdown_write`], EAGAIN after
    /// the timeout, as TCP; ENOBUFS where there is no memory to stage bytes in.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.carrier {
            Carried::San(carrier) => carrier.send(bytes),
            _ => self.send_by_kernel(bytes),
        }
    }

    /// Apart: the way over the SAN needs nothing kept for the end of the call.
    #[inline(never)]
    fn send_by_kernel(&self, bytes: &[u8]) -> io::Result<usize> {
        let (carrier, _pass) = self.carrier_for_call()?;
        carrier.send(bytes)
    }

    /// Receives bytes; 0 means that the peer ended its stream.
    ///
    /// # Errors
    /// ECONNRESET when the peer went without ending its stream, EAGAIN after the timeout.
    pub fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match &self.carrier {
            Carried::San(carrier) => carrier.receive(bytes),
            _ => self.receive_by_kernel(bytes),
        }
    }

    #[inline(never)]
    fn receive_by_kernel(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let (carrier, _pass) = self.carrier_for_call()?;
        carrier.receive(bytes)
    }

    /// Receives bytes into several buffers, one after the other.
    ///
    /// # Errors
    /// As [`Connection::receive`].
    pub fn receive_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let (carrier, _pass) = self.carrier_for_call()?;
        carrier.receive_vectored(buffers)
    }

    /// Receives bytes that the next receive gets again.
    ///
    /// # Errors
    /// As [`Connection::receive`].
    pub fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let (carrier, _pass) = self.carrier_for_call()?;
        carrier.peek(bytes)
    }

    /// Whether calls give EAGAIN where they would wait. The timeouts count again once it is off.
    ///
    /// # Errors
    /// Over TCP what fcntl(2) says.
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        self.carrier().waits().set_nonblocking(on)
    }

    /// Sends a byte as urgent data (MSG_OOB). The peer is told of it at once, whatever it has not read yet:
    /// its stream is ready for [`Events::PRIORITY`]. On the SAN the byte waits behind what was sent before;
    /// a connection that may move goes back to TCP for good. Nobody gets a signal (SIGURG).
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub fn send_urgent(&self, byte: u8) -> io::Result<()> {
        let (carrier, _pass) = self.carrier_for_call()?;
        carrier.send_urgent(byte)
    }

    /// Takes the peer's urgent byte, whatever stands before it (MSG_OOB). It never waits. At most one byte
    /// is urgent: a later one takes its place, and the one before is then a byte of the stream like others.
    /// A receive ends before the urgent byte; the next one leaves it out, whether it was taken or not.
    ///
    /// # Errors
    /// EINVAL where no byte is urgent, it was taken already, or it stays in the stream; on TCP EAGAIN while
    /// the byte is announced and not here.
    pub fn receive_urgent(&self) -> io::Result<u8> {
        let (carrier, _pass) = self.carrier_for_call()?;
        carrier.receive_urgent()
    }

    /// Whether the urgent byte is next in the stream (sockatmark(3)).
    ///
    /// # Errors
    /// On TCP what the kernel says to a look at the socket.
    pub fn is_at_mark(&self) -> io::Result<bool> {
        self.carrier().is_at_mark()
    }

    /// Whether the urgent byte stays in the stream (SO_OOBINLINE). A receive ends before it still.
    ///
    /// # Errors
    /// On TCP what setsockopt(2) says.
    pub fn set_urgent_inline(&self, on: bool) -> io::Result<()> {
        self.carrier().set_urgent_inline(on)
    }

    /// What [`Connection::set_urgent_inline`] has set.
    ///
    /// # Errors
    /// On TCP what getsockopt(2) says.
    pub fn urgent_inline(&self) -> io::Result<bool> {
        self.carrier().urgent_inline()
    }

    /// Ends our stream: the peer reads what was sent and then the end. Receiving goes on.
    ///
    /// # Errors
    /// ENOTCONN or ECONNRESET when the peer is gone.
    pub fn shutdown_write(&self) -> io::Result<()> {
        let (carrier, _pass) = self.carrier_for_call()?;
        carrier.end()
    }

    /// Shuts the reading half, the writing half, or both, and ends the calls of other threads that wait
    /// for what cannot come any more: a receive gives 0, a send EPIPE. What had come before can still be
    /// received.
    ///
    /// # Errors
    /// ENOTCONN or ECONNRESET when the peer is gone.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        // It ends calls that wait, and so waits for none.
        if self.gate.is_shut() {
            return Err(rustix::io::Errno::NOTCONN.into());
        }
        self.carrier().shut(how)
    }

    /// What the connection is ready for now, as poll(2) would say. It never waits, and no call that waits
    /// keeps it from answering. Over the SAN it knows what came until the lane was last polled
    /// ([`LaneHandle::poll`]).
    pub fn events(&self) -> Events {
        self.carrier().events()
    }

    /// Has `watcher` hear, with this token, when the connection becomes ready for something; `None` ends
    /// that, but for a call that is under way in another thread. It hears nothing of what held before:
    /// look at [`Connection::events`] afterwards. Over TCP it is never called, since the descriptor
    /// tells. A connection in a [`Poller`](crate::Poller) has the poller's watcher, which this would replace.
    pub fn set_watcher(&self, watcher: Option<(Arc<dyn Watcher>, u64)>) {
        if let Some(moving) = self.moving() {
            moving.watcher_polls(false);
        }
        self.carrier().set_watcher(watcher);
    }

    /// As [`Connection::set_watcher`], for one that polls the lane when there is one, also if the connection
    /// moves to the SAN only later.
    pub(crate) fn set_polling_watcher(&self, watcher: Arc<dyn Watcher>) {
        if let Some(moving) = self.moving() {
            moving.watcher_polls(true);
        }
        self.carrier().set_watcher(Some((watcher, 0)));
    }

    /// The lane that an event loop polls for the connection, and whose descriptors it sleeps on; `None`
    /// over TCP, where the descriptor tells.
    pub fn lane(&self) -> Option<LaneHandle> {
        self.carrier().lane()
    }

    /// The error that no call has said yet, as SO_ERROR: it is said with this.
    ///
    /// # Errors
    /// Over TCP what getsockopt(2) says.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.carrier().take_error()
    }

    /// How long closing the connection waits for what is under way, as SO_LINGER: `None`, the default:
    /// milliseconds, and what is under way then still arrives. Zero: it is thrown away, and the peer's
    /// calls fail with ECONNRESET.
    ///
    /// # Errors
    /// Over TCP what setsockopt(2) says.
    pub fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        self.carrier().set_linger(linger)
    }

    /// What [`Connection::set_linger`] has set.
    ///
    /// # Errors
    /// Over TCP what getsockopt(2) says.
    pub fn linger(&self) -> io::Result<Option<Duration>> {
        self.carrier().linger()
    }

    /// Whether closing the connection returns at once, rather than wait some milliseconds for what is
    /// under way; that then belongs to a thread of the switch. It is for threads that must not wait, such
    /// as those of an asynchronous runtime. A time of [`Connection::set_linger`] comes first.
    pub fn set_close_in_background(&self, on: bool) {
        self.closes_in_background.store(on, Ordering::Relaxed);
    }

    pub(super) fn closes_in_background(&self) -> bool {
        self.closes_in_background.load(Ordering::Relaxed)
    }

    /// Ends our stream and waits until all of it is in the memory of the peer's host; `None` = as
    /// long as the peer lives. A process that ends right after this loses nothing. Over TCP there is
    /// nothing to wait for: the kernel goes on after the process has ended.
    ///
    /// It does not say that the peer's program has read the bytes: only an answer of its own does.
    ///
    /// # Errors
    /// ECONNRESET when the peer is gone and has not taken everything in; EAGAIN after the timeout:
    /// call it again to wait longer. As [`Connection::shutdown_write`] otherwise.
    pub fn finish(&self, timeout: Option<Duration>) -> io::Result<()> {
        let (carrier, _pass) = self.carrier_for_call()?;
        carrier.finish(Deadline::after(timeout))
    }

    /// How long [`Connection::receive`] waits; `None` = until something happens.
    ///
    /// # Errors
    /// EINVAL for a time of zero.
    pub fn set_receive_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.carrier().waits().set_receive(checked(timeout)?)
    }

    /// How long [`Connection::send`] waits; `None` = until something happens.
    ///
    /// # Errors
    /// EINVAL for a time of zero.
    pub fn set_send_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.carrier().waits().set_send(checked(timeout)?)
    }

    /// How long [`Connection::receive`] waits.
    ///
    /// # Errors
    /// Over TCP what getsockopt(2) says.
    pub fn receive_timeout(&self) -> io::Result<Option<Duration>> {
        self.carrier().waits().receive()
    }

    /// How long [`Connection::send`] waits.
    ///
    /// # Errors
    /// Over TCP what getsockopt(2) says.
    pub fn send_timeout(&self) -> io::Result<Option<Duration>> {
        self.carrier().waits().send()
    }

    /// What is known of the stream now, as TCP_INFO tells it of a TCP socket.
    pub fn info(&self) -> StreamInfo {
        self.carrier().info()
    }

    /// Whether the kernel asks an idle peer whether it is still there, after so long, as SO_KEEPALIVE and
    /// TCP_KEEPIDLE; `None`: it does not. On the SAN the provider asks each idle peer, whatever this says, three
    /// times in 20 seconds, and the option is kept for who reads it.
    ///
    /// # Errors
    /// What setsockopt(2) says: EINVAL for less than a second, or more than 32,767.
    pub fn set_keepalive(&self, idle: Option<Duration>) -> io::Result<()> {
        let fd = self.companion_fd();
        let socket = SockRef::from(&fd);
        match idle {
            None => socket.set_keepalive(false),
            Some(idle) => socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle)),
        }
    }

    /// What [`Connection::set_keepalive`] has set.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn keepalive(&self) -> io::Result<Option<Duration>> {
        let fd = self.companion_fd();
        let socket = SockRef::from(&fd);
        match socket.keepalive()? {
            true => socket.tcp_keepalive_time().map(Some),
            false => Ok(None),
        }
    }

    /// Bounds the bytes that wait to be sent, as SO_SNDBUF: a write takes what fits, and waits where nothing
    /// does. On the SAN that is what is staged here; those that were offered to the peer and not read
    /// count, those in messages that have left do not. It is rounded to 4 KiB at least and 256 KiB, the
    /// default, at most. On TCP the kernel doubles it.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_send_buffer_size(&self, bytes: usize) -> io::Result<()> {
        let buffers = Buffers {
            send: Some(bytes),
            receive: None,
        };
        self.set_buffers(buffers)
    }

    /// Bounds the bytes that wait to be received, as SO_RCVBUF. On the SAN that is bulk; up to 64 messages
    /// of 4,096 bytes may wait beside it, whatever it says. It is rounded as
    /// [`Connection::set_send_buffer_size`] says.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_receive_buffer_size(&self, bytes: usize) -> io::Result<()> {
        let buffers = Buffers {
            send: None,
            receive: Some(bytes),
        };
        self.set_buffers(buffers)
    }

    fn set_buffers(&self, buffers: Buffers) -> io::Result<()> {
        tcp::set_buffers(&SockRef::from(&self.companion_fd()), buffers)?;
        self.carrier().bound(buffers);
        Ok(())
    }

    /// Bytes that may wait to be sent, as they are in force: on TCP what the kernel says, which is twice what
    /// was asked for.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn send_buffer_size(&self) -> io::Result<usize> {
        match self.carrier().buffers() {
            Some((send, _)) => Ok(send),
            None => SockRef::from(&self.companion_fd()).send_buffer_size(),
        }
    }

    /// Bytes that may wait to be received, as they are in force: on TCP what the kernel says, which is twice
    /// what was asked for.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn receive_buffer_size(&self) -> io::Result<usize> {
        match self.carrier().buffers() {
            Some((_, receive)) => Ok(receive),
            None => SockRef::from(&self.companion_fd()).recv_buffer_size(),
        }
    }

    /// Has a connection that moved to the SAN ([`RouteChoice::Upgrade`](crate::RouteChoice::Upgrade)) go
    /// back to TCP, without losing a byte; `stay`: it does not move again. It returns at once. Whatever is
    /// on TCP stays there, and a connection that began on the SAN stays on the SAN.
    pub fn move_to_tcp(&self, stay: bool) {
        if let Carried::Moving(stream) = &self.carrier {
            stream.move_to_tcp(stay);
        }
    }

    /// The TCP socket that belongs to the connection (duty 10), for its options and its number.
    /// Over TCP it is the stream's own descriptor. Over the SAN it is not connected: `poll` and
    /// epoll see HUP on it at once, whatever the stream does, so it tells nothing about readiness.
    pub fn companion_fd(&self) -> BorrowedFd<'_> {
        self.carrier().tcp_socket()
    }
}

impl Drop for Connection {
    /// As TCP's close: it returns soon, and what was sent still arrives, then the end of the stream.
    fn drop(&mut self) {
        self.lease.connections.remove(&self.info);
        let carrier = match &self.carrier {
            Carried::San(carrier) => carrier,
            Carried::Tcp(_) => return,
            Carried::Moving(stream) => return stream.close(),
        };
        // It is another process's.
        if carrier.has_moved() {
            return;
        }
        let linger = carrier.lingers();
        if linger == Some(Duration::ZERO) || carrier.has_unread() {
            // As TCP: who reads no more tells the peer so, and what is under way is lost.
            carrier.abort();
            return;
        }
        let grace = match self.closes_in_background() {
            true => Duration::ZERO,
            false => CLOSE_GRACE,
        };
        let grace = Deadline::after(linger.unwrap_or(grace));
        match carrier.close_step(grace) {
            CloseStep::Done if carrier.wait_for_peer(grace) => {}
            CloseStep::Done => self.lease.closing.take_ended(Arc::clone(carrier)),
            CloseStep::Lost => self.lease.closing.lost(carrier),
            CloseStep::Advanced | CloseStep::Waiting => {
                self.lease.closing.take(Arc::clone(carrier));
            }
        }
    }
}

impl Read for &Connection {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.receive(bytes)
    }
}

impl Write for &Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Connection {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.receive(bytes)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("local", &self.info.local)
            .field("peer", &self.info.peer)
            .field("route", self.info.route())
            .finish_non_exhaustive()
    }
}

/// std's own rule for socket timeouts.
fn checked(timeout: Option<Duration>) -> io::Result<Option<Duration>> {
    if timeout == Some(Duration::ZERO) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a timeout of zero",
        ));
    }
    Ok(timeout)
}
