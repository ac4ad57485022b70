//! A byte stream over one SAN connection: the shell of `stream`'s engine.
//!
//! A small write goes out at once as one message. Everything else is staged, and goes out in larger
//! pieces as the connection takes them; bulk is read by the peer (`../bulk.rs`). Reads take messages as they
//! come. What a message means, and what goes out when, is the engine's business, whose shell is
//! `state.rs`; credits, buffers and the wire are the provider's.
//!
//! # Locks
//! The stream has one lock, which nobody holds while he waits. Who reads has another one, also while he
//! waits: a second one would find nothing. The provider tells from whichever thread polls, perhaps one
//! that has the stream's lock right now: what it tells is mail, which is read by whoever lets the lock go.
//! Nobody is called with a lock held.

mod close;
mod mail;
pub(crate) mod moves;
mod read;
mod state;
mod urgent;
mod write;

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

// Without poison: to look for it costs as much as the lock.
use parking_lot::Mutex;
use san_base::Deadline;
use san_provider::{DataPath, LaneHandle, Socket as SpiSocket, TransferError};
use san_stream::{Config, Kind};
use socket2::Socket;

pub(crate) use self::close::CloseStep;
use self::mail::Mail;
use self::moves::Arrival;
use self::read::Reading;
use self::state::{News, State};
use super::{Buffers, Carrier, IdleMemory, MemoryKeeper};
use crate::carrier::info::{StreamInfo, StreamState};
use crate::carrier::timeout::{Timeouts, Waits};
use crate::counters::SwitchCounters;
use crate::readiness::{Events, Watcher};
use crate::san::provider::{MARKS, MOVES, STREAMS};
use crate::san::socket::ProviderSocket;

/// The stream.
pub(crate) struct SanCarrier {
    socket: ProviderSocket,
    /// Its data path; none if it was closed before it got here.
    data: Option<DataPath>,
    /// The application's descriptor (duty 10). It is not connected.
    companion: Socket,
    peer: SocketAddr,
    /// The peer can wait for this end while that moves to another process.
    peer_rests: bool,
    counters: Arc<SwitchCounters>,
    this: Weak<Self>,
    keeper: Arc<dyn MemoryKeeper>,
    state: Mutex<State>,
    /// What the provider has told while somebody had the lock.
    mail: Mutex<Vec<Mail>>,
    has_mail: AtomicBool,
    reading: Mutex<Reading>,
    /// Plain bytes that were read, all told. The reader alone writes it.
    read: AtomicU64,
    /// Bytes that a peek has kept.
    peeked: AtomicUsize,
    /// The reader has to look at the stream; one that waits is called off.
    look: AtomicBool,
    reading_shut: AtomicBool,
    /// There may be room for the writer that waits, or the end that somebody waits for.
    room: AtomicBool,
    /// Who waits for room: one at a time.
    waiting_to_write: Mutex<()>,
    watcher: Mutex<Option<(Arc<dyn Watcher>, u64)>>,
    linger: Mutex<Option<Duration>>,
    timeouts: Timeouts,
    /// Bytes of the largest message, by the negotiation.
    message_limit: usize,
}

/// What a stream is made of.
pub(crate) struct Parts {
    pub(crate) socket: ProviderSocket,
    pub(crate) companion: Socket,
    pub(crate) peer: SocketAddr,
    pub(crate) counters: Arc<SwitchCounters>,
    pub(crate) keeper: Arc<dyn MemoryKeeper>,
}

impl SanCarrier {
    pub(crate) fn new(
        socket: ProviderSocket,
        companion: Socket,
        peer: SocketAddr,
        timeout: Option<Duration>,
        counters: Arc<SwitchCounters>,
        keeper: Arc<dyn MemoryKeeper>,
    ) -> Arc<Self> {
        let begin = |config| Ok(Arrival::nothing(State::new(config)));
        let parts = Parts {
            socket,
            companion,
            peer,
            counters,
            keeper,
        };
        let carrier = Self::with(parts, Timeouts::new(timeout), begin);
        carrier.unwrap_or_else(|never: std::convert::Infallible| match never {})
    }

    /// A stream that `begin` makes, once it is known what the peer can do.
    fn with<E>(
        parts: Parts,
        timeouts: Timeouts,
        begin: impl FnOnce(Config) -> Result<Arrival, E>,
    ) -> Result<Arc<Self>, E> {
        let socket = &parts.socket;
        let data = socket.data().data_path().ok();
        let features = data.as_ref().map(DataPath::peer).unwrap_or_default();
        let takes_bulk = features.reads && features.layer & STREAMS != 0;
        let knows_marks = features.layer & MARKS != 0;
        let message_limit = socket.max_message_size();
        let arrival = begin(State::config(message_limit, takes_bulk, knows_marks))?;
        let carrier = Arc::new_cyclic(|this| SanCarrier {
            this: Weak::clone(this),
            keeper: parts.keeper,
            message_limit,
            data,
            socket: parts.socket,
            companion: parts.companion,
            peer: parts.peer,
            peer_rests: features.layer & MOVES != 0,
            counters: parts.counters,
            state: Mutex::new(arrival.state),
            mail: Mutex::default(),
            has_mail: AtomicBool::new(false),
            read: AtomicU64::new(0),
            peeked: AtomicUsize::new(arrival.reading.peeked.len()),
            reading: Mutex::new(arrival.reading),
            look: AtomicBool::new(false),
            reading_shut: AtomicBool::new(arrival.is_reading_shut),
            room: AtomicBool::new(false),
            waiting_to_write: Mutex::new(()),
            watcher: Mutex::new(None),
            linger: Mutex::new(arrival.linger),
            timeouts,
        });
        carrier.listen();
        Ok(carrier)
    }

    #[inline]
    fn data(&self) -> io::Result<&DataPath> {
        self.data
            .as_ref()
            .ok_or_else(|| io::Error::from_raw_os_error(TransferError::NotSocket.errno()))
    }

    fn spi(&self) -> &SpiSocket {
        self.socket.data()
    }

    /// The peer's address, for the log.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Has `watcher` know what holds now.
    fn tell_watcher(&self) {
        let watcher = self.watcher.lock().clone();
        if let Some((watcher, token)) = watcher {
            let (events, mut news) = self.events_and_news();
            // It hears of that now.
            news.watcher = false;
            self.tell(news);
            self.serve_mail();
            watcher.changed(token, events);
        }
    }

    /// What holds now, and what was found out with it, to be told.
    fn events_and_news(&self) -> (Events, News) {
        let Some(data) = &self.data else {
            let all = Events::READABLE | Events::WRITABLE | Events::READ_CLOSED | Events::HANG_UP;
            return (all, News::default());
        };
        let inbox = data.inbox();
        let (mut state, _) = self.lock();
        // A reader may have the end in hand, which is then neither in the inbox nor in the state. It finds
        // out itself how the stream ends. Only readers keep this lock for longer than the state's, so another
        // thread that looks is not taken for one.
        let nobody_reads = match inbox.is_over || state.error.is_some() {
            true => self.reading.try_lock(),
            false => None,
        };
        let peer_ended = state.is_at_end() || inbox.last == Some(Kind::End.number());
        if inbox.is_over && nobody_reads.is_some() {
            state.look_for_end(data);
        }
        let is_over = state.is_broken() || state.is_over() && !peer_ended;
        let read_closed = is_over || peer_ended || self.reading_shut.load(Ordering::Acquire);
        let write_closed = is_over || state.is_closed;
        let has_bytes = inbox.first.is_some() && !state.urgent.is_all(inbox, state.read_so_far())
            || self.peeked.load(Ordering::Acquire) > 0
            || matches!(state.source(), san_stream::Source::Landed { .. });
        let mut events = Events::empty();
        events.set(Events::READABLE, has_bytes || read_closed);
        events.set(Events::READ_CLOSED, read_closed);
        events.set(Events::HANG_UP, read_closed && write_closed);
        events.set(Events::WRITABLE, write_closed || state.has_ample_room());
        events.set(
            Events::ERROR,
            state.error.is_some() && nobody_reads.is_some(),
        );
        events.set(Events::PRIORITY, state.urgent.is_here());
        (events, self.settle(&mut state))
    }
}

impl Carrier for SanCarrier {
    #[inline]
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.write(bytes)
    }

    #[inline]
    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.read_one(bytes)
    }

    fn receive_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.read(buffers)
    }

    fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.look_at(bytes)
    }

    fn waits(&self) -> Waits<'_> {
        Waits::Ours(&self.timeouts)
    }

    fn end(&self) -> io::Result<()> {
        self.shut_writing()
    }

    fn finish(&self, deadline: Deadline) -> io::Result<()> {
        self.wait_for_arrival(deadline)
    }

    fn shut(&self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Write {
            self.reading_shut.store(true, Ordering::SeqCst);
            self.call_reader_off();
        }
        let ended = match how {
            Shutdown::Read => Ok(()),
            Shutdown::Write | Shutdown::Both => self.shut_writing(),
        };
        self.tell_watcher();
        ended
    }

    fn events(&self) -> Events {
        let (events, news) = self.events_and_news();
        self.tell(news);
        self.serve_mail();
        events
    }

    fn set_watcher(&self, watcher: Option<(Arc<dyn Watcher>, u64)>) {
        if let Some(data) = &self.data {
            data.tell_each(watcher.is_some());
        }
        *self.watcher.lock() = watcher;
    }

    fn lane(&self) -> Option<LaneHandle> {
        self.data.as_ref().map(DataPath::lane)
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        let (mut state, data) = self.lock();
        if let Some(data) = data {
            state.look_for_end(data);
        }
        let said = state.take_error();
        self.unlock(state);
        Ok(said)
    }

    fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        *self.linger.lock() = linger;
        Ok(())
    }

    fn linger(&self) -> io::Result<Option<Duration>> {
        Ok(*self.linger.lock())
    }

    fn send_urgent(&self, byte: u8) -> io::Result<()> {
        self.write_urgent(byte)
    }

    fn receive_urgent(&self) -> io::Result<u8> {
        self.take_urgent()
    }

    fn is_at_mark(&self) -> io::Result<bool> {
        SanCarrier::is_at_mark(self)
    }

    fn set_urgent_inline(&self, on: bool) -> io::Result<()> {
        self.set_inline(on);
        Ok(())
    }

    fn urgent_inline(&self) -> io::Result<bool> {
        Ok(self.is_inline())
    }

    fn info(&self) -> StreamInfo {
        let events = Carrier::events(self);
        let peeked = self.peeked.load(Ordering::Acquire) as u64;
        let (state, data) = self.lock();
        let info = StreamInfo {
            state: if events.contains(Events::HANG_UP) {
                StreamState::Over
            } else {
                StreamState::of(state.is_closed, events.contains(Events::READ_CLOSED))
            },
            bytes_sent: state.accepted(),
            bytes_received: state.read_so_far() - peeked,
            bytes_unsent: Some(state.unsent()),
            messages_unacknowledged: Some(data.map_or(0, DataPath::unacknowledged)),
            ..StreamInfo::new(true)
        };
        self.release(state);
        info
    }

    fn bound(&self, buffers: Buffers) {
        if buffers.send.or(buffers.receive).is_none() {
            return;
        }
        let (mut state, data) = self.lock();
        state.bound(buffers);
        if let Some(data) = data {
            state.post_reads(self.spi(), data);
            state.pump(data);
        }
        self.unlock(state);
    }

    fn buffers(&self) -> Option<(usize, usize)> {
        let (state, _) = self.lock();
        let buffers = state.buffers();
        self.release(state);
        Some(buffers)
    }

    fn tcp_socket(&self) -> BorrowedFd<'_> {
        self.companion.as_fd()
    }
}

impl IdleMemory for SanCarrier {
    fn let_go_if_idle(&self) -> bool {
        let (mut state, _) = self.lock();
        let (rings, is_over) = state.let_go_if_idle();
        self.unlock(state);
        // They may take a call of the system each.
        if let Some(rings) = rings {
            rings.let_go(Some(self.spi()));
        }
        is_over
    }
}

impl Drop for SanCarrier {
    fn drop(&mut self) {
        // First the device lets its memory go.
        self.socket.close();
        let rings = self.state.get_mut().take_rings();
        rings.let_go(Some(self.socket.data()));
    }
}

impl fmt::Debug for SanCarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SanCarrier")
            .field("socket", &self.socket)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}
