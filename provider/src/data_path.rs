//! A connection's data path by itself: the cheapest way to send and receive messages.
//!
//! The calls of [`Socket`] look the connection up each time. A [`DataPath`] has done so once. It starts
//! no operation and makes no upcall.

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use verbs_shim::fork::ForkGuard;

use crate::error::TransferError;
use crate::socket::Socket;
use crate::transfer::{
    Connection, Inbox, Lane, Message, Operation, PeerFeatures, ReadySink, Receipt, Received,
};

/// The data path of a connected socket. Cheap to clone; any thread may use it.
///
/// It does not keep the socket open: once that is closed, every call says `WSAENOTSOCK`.
#[derive(Debug, Clone)]
pub struct DataPath {
    connection: ForkGuard<Arc<Connection>>,
}

impl Socket {
    /// The data path of a connected socket.
    ///
    /// # Errors
    /// `WSAENOTCONN`, `WSAENOTSOCK`, `WSANOTINITIALISED`.
    pub fn data_path(&self) -> Result<DataPath, TransferError> {
        let connection = self.shared.connected()?;
        Ok(DataPath {
            connection: ForkGuard::new(connection),
        })
    }
}

impl DataPath {
    /// Sends `bytes` as one message if it can go out at once; see [`Socket::try_send`].
    ///
    /// # Errors
    /// `WSAEWOULDBLOCK`: it would have to wait. `WSAEMSGSIZE`: more than the peer takes.
    /// `WSAENOTCONN`, `WSAECONNRESET`, `WSAENOTSOCK`.
    // The short way is compiled into the caller, and only that: it saves few registers.
    #[inline(always)]
    pub fn try_send(&self, bytes: &[u8], kind: u8) -> Result<(), TransferError> {
        if !ForkGuard::is_inherited(&self.connection) && self.connection.send_plainly(bytes, kind) {
            return Ok(());
        }
        self.try_send_slowly(bytes, kind)
    }

    #[inline(never)]
    fn try_send_slowly(&self, bytes: &[u8], kind: u8) -> Result<(), TransferError> {
        self.connection()?.try_send_slowly(bytes, kind)
    }

    /// As [`DataPath::try_send`], of bytes that lie in several places: one message, in their order.
    ///
    /// # Errors
    /// As [`DataPath::try_send`].
    pub fn try_send_gathered(&self, parts: &[IoSlice<'_>], kind: u8) -> Result<(), TransferError> {
        self.connection()?.try_send_gathered(parts, kind)
    }

    /// A message that is here now.
    ///
    /// # Errors
    /// `WSAEWOULDBLOCK`: none is, or receives that were started come first. `WSAECONNRESET`: the peer
    /// ended the connection, and everything it had sent is received. `WSAENOTCONN`, `WSAENOTSOCK`.
    pub fn try_receive(&self) -> Result<Message, TransferError> {
        self.connection()?.try_receive()
    }

    /// A message that is here, or comes within `wait`.
    ///
    /// # Errors
    /// As [`DataPath::try_receive`].
    pub fn receive_within(&self, wait: Duration) -> Result<Message, TransferError> {
        self.connection()?.receive_within(wait)
    }

    /// Copies messages that are here, or come within `wait`, into `buffers`, one after the other. It
    /// takes as many messages of one kind as there are and fit; the rest of one that does not fit stays
    /// for the next call. Their receives are free again at once.
    ///
    /// # Errors
    /// As [`DataPath::try_receive`].
    pub fn receive_into(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        wait: Duration,
    ) -> Result<Received, TransferError> {
        static NEVER: AtomicBool = AtomicBool::new(false);
        self.receive_into_unless(buffers, wait, &NEVER)
    }

    /// As [`DataPath::receive_into`], but the wait ends when another thread sets `called_off` and then
    /// calls [`DataPath::wake`]. What comes after the flag was set is not read.
    ///
    /// # Errors
    /// As [`DataPath::try_receive`]; `WSAEWOULDBLOCK` also if it was called off.
    #[inline]
    pub fn receive_into_unless(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        wait: Duration,
        called_off: &AtomicBool,
    ) -> Result<Received, TransferError> {
        self.explain(self.receive_unless(buffers, wait, called_off))
    }

    /// As [`DataPath::receive_into_unless`], the shortest way: only [`DataPath::explain`] finds out why nothing
    /// came.
    #[inline(always)]
    pub fn receive_unless(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        wait: Duration,
        called_off: &AtomicBool,
    ) -> Receipt {
        match ForkGuard::is_inherited(&self.connection) {
            false => self.connection.receive_into(buffers, wait, called_off),
            true => Receipt::Over,
        }
    }

    /// What a receive says in full.
    ///
    /// # Errors
    /// As [`DataPath::receive_into_unless`].
    #[inline(never)]
    pub fn explain(&self, receipt: Receipt) -> Result<Received, TransferError> {
        match receipt {
            Receipt::Of(received) => Ok(received),
            other => self.connection()?.explain(other),
        }
    }

    /// Waits until another thread, or a [`ReadySink`], sets `flag` and then calls [`DataPath::wake`].
    /// The waiting thread polls the lane itself, if no other does. `false`: not within `wait`.
    #[must_use]
    pub fn wait_for(&self, flag: &AtomicBool, wait: Duration) -> bool {
        let connection = self.connection();
        connection.is_ok_and(|connection| connection.wait_for(flag, wait))
    }

    /// Has the threads in [`DataPath::receive_into_unless`] and [`DataPath::wait_for`] look at their
    /// flags.
    pub fn wake(&self) {
        if let Ok(connection) = self.connection() {
            connection.wake();
        }
    }

    /// Whether a message waits or the connection is over, as far as somebody has polled.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.connection().is_ok_and(|own| own.may_have_something())
    }

    /// Whether a message would go out at once, or the connection is over.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.connection().is_ok_and(|own| own.is_writable())
    }

    /// Polls the lane once, if no other thread does: what is said of this connection holds as of now.
    pub fn poll(&self) {
        if let Ok(connection) = self.connection() {
            connection.poll();
        }
    }

    /// Whether the connection goes on, as far as somebody has polled.
    ///
    /// # Errors
    /// Why it is over: `WSAECONNRESET` and others. What had come can still be received.
    pub fn check(&self) -> Result<(), TransferError> {
        self.connection()?.check_going_on()
    }

    /// What waits to be received, as far as somebody has polled.
    #[must_use]
    pub fn inbox(&self) -> Inbox {
        let nothing = Inbox {
            first: None,
            last: None,
            is_over: true,
        };
        self.connection()
            .map_or(nothing, |connection| connection.inbox())
    }

    /// As [`DataPath::try_send`], of `length` bytes that `fill` writes where they are sent from. The
    /// bytes that it is given are not those of another message, nor zero.
    ///
    /// # Errors
    /// As [`DataPath::try_send`].
    pub fn try_send_filled(
        &self,
        length: usize,
        kind: u8,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), TransferError> {
        self.connection()?.try_send_filled(length, kind, fill)
    }

    /// Sends a message of no bytes if it can go out at once. The sink is told when it, and everything
    /// that was sent before it, has arrived ([`ReadySink::ended`]), once somebody polls.
    ///
    /// # Errors
    /// As [`DataPath::try_send`].
    pub fn try_send_told(&self, kind: u8) -> Result<Operation, TransferError> {
        self.connection()?.try_send_told(kind)
    }

    /// Whether the thread `san-progress` looks at the lane every millisecond or so for this connection,
    /// while nobody else polls: for a layer above that waits for something, and nobody for the layer.
    pub fn want_looks(&self, wanted: bool) {
        if let Ok(connection) = self.connection() {
            connection.set_wants_looks(wanted);
        }
    }

    /// What the peer said of itself in the negotiation.
    #[must_use]
    pub fn peer(&self) -> PeerFeatures {
        self.connection()
            .map_or_else(|_| PeerFeatures::default(), |connection| connection.peer())
    }

    /// How many data messages the transport may not have acknowledged yet. What is not counted has
    /// arrived in the peer's memory.
    #[must_use]
    pub fn unacknowledged(&self) -> u32 {
        self.connection()
            .map_or(0, |connection| connection.unacknowledged())
    }

    /// Has [`DataPath::unacknowledged`] come to zero as soon as all that was sent has arrived. Messages
    /// without an operation have no completion each, so otherwise the last ones are heard of with the next
    /// that have one, or by the probe of an idle connection. Costs an RDMA WRITE of no bytes; one at a time
    /// is under way.
    pub fn ask_for_arrival(&self) {
        if let Ok(connection) = self.connection() {
            connection.ask_for_arrival();
        }
    }

    /// The lane of the connection: what it shares with others, and what an event loop polls.
    #[must_use]
    pub fn lane(&self) -> LaneHandle {
        let lane = ForkGuard::beside(&self.connection, self.connection.lane());
        LaneHandle { lane }
    }

    /// As [`DataPath::set_sink`], for a program whose own thread polls the lane ([`LaneHandle`]): the
    /// thread `san-progress` leaves the connection alone.
    pub fn set_polled_sink(&self, sink: Option<(Arc<dyn ReadySink>, u64)>) {
        if let Ok(connection) = self.connection() {
            connection.set_sink(sink, true);
        }
    }

    /// Has `sink` hear, with this token, when the connection becomes readable or writable; `None` ends
    /// that. From then on messages of kind 16 and above go to the sink as they come, and not to
    /// receives; those that wait go to it at once. The thread `san-progress` polls for it while nobody else does.
    pub fn set_sink(&self, sink: Option<(Arc<dyn ReadySink>, u64)>) {
        if let Ok(connection) = self.connection() {
            connection.set_sink(sink, false);
        }
    }

    /// Whether the sink hears of every message that waits. Else it hears of the first, and of those of
    /// another kind than 0.
    pub fn tell_each(&self, each: bool) {
        if let Ok(connection) = self.connection() {
            connection.set_tell_each(each);
        }
    }

    /// The connection, unless it is another process's, which this one was forked from.
    fn connection(&self) -> Result<&Arc<Connection>, TransferError> {
        match ForkGuard::is_inherited(&self.connection) {
            false => Ok(&self.connection),
            true => Err(TransferError::NotSocket),
        }
    }
}

/// A lane: the completion queues that a connection shares with others, for a program that polls them
/// in an event loop of its own.
///
/// The loop follows its connections by a [`ReadySink`], which hears of them whoever polls. Its round:
/// [`LaneHandle::poll`]; if there is nothing to do, [`LaneHandle::arm`]; if that says so, sleep on
/// [`LaneHandle::fds`] beside other descriptors, then [`LaneHandle::disarm`]. One thread at a time does
/// so. Between `arm` and `disarm` nothing is lost: what comes makes a descriptor readable, unless
/// another thread polls at that moment. Then that thread tells the sink, which has to wake the loop (by
/// a descriptor of the loop's own), and asks for notification again before it stops.
#[derive(Clone)]
pub struct LaneHandle {
    lane: ForkGuard<Arc<Lane>>,
}

impl LaneHandle {
    /// Polls until nothing is left, if no other thread does; how many completions that were.
    #[allow(clippy::must_use_candidate, reason = "it is called for what it does")]
    pub fn poll(&self) -> usize {
        self.own().map_or(0, Lane::poll_all)
    }

    /// Asks for notification, and polls once more. `true`: nothing came, and the caller may sleep; then
    /// [`LaneHandle::disarm`] has to follow as soon as it wakes. `false`: something came, or another
    /// thread sleeps on this lane in this way.
    #[must_use]
    pub fn arm(&self) -> bool {
        self.own().is_some_and(Lane::arm_outside)
    }

    /// The caller does not sleep any more. Whether something was announced meanwhile, and is to be polled.
    /// Without [`LaneHandle::arm`] before it, nothing happens.
    #[allow(clippy::must_use_candidate, reason = "it is called for what it does")]
    pub fn disarm(&self) -> bool {
        let armed = self.own().filter(|lane| lane.is_armed_outside());
        armed.is_some_and(Lane::disarm_outside)
    }

    /// Whether a thread is between [`LaneHandle::arm`] and [`LaneHandle::disarm`].
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.own().is_some_and(Lane::is_armed_outside)
    }

    /// Readable when there is something to poll, or to be put into an epoll set once: they stay the same.
    /// On the soft fabric its sockets are among them, so that no other thread has to read them.
    #[must_use]
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.lane.fds()
    }

    /// Whether both are the same lane.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.lane, &other.lane)
    }

    /// The lane, unless it is another process's, which this one was forked from.
    fn own(&self) -> Option<&Lane> {
        (!ForkGuard::is_inherited(&self.lane)).then_some(&**self.lane)
    }
}

impl fmt::Debug for LaneHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LaneHandle").field(&self.lane.name).finish()
    }
}
