//! A stream that may move: the application's calls, which wait, over what never does (`mover.rs`).
//!
//! One lock for the stream, never held while a thread waits. One thread at a time reads and one
//! writes. Whoever empties a stopped queue pair keeps others from reading: bytes that a read has taken
//! from it and not yet counted come before.
//!
//! While the queue pair carries, calls that wait poll its lane themselves, reads take messages past the
//! stream's lock, and whoever polls tells the watcher (`stream/telling.rs`).

mod member;
mod reading;
mod telling;

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use san_base::{Deadline, Signal};
use san_provider::LaneHandle;
use san_stream::{Config, Engine, Event, RING, Role, Route as StreamRoute, State, Thresholds};
use socket2::Socket;

use self::reading::ReadSide;
use super::mover::{Around, Mover, Past, Phase, Writing};
use super::queue_pair::{Feed, QueuePair, Reader};
use super::request::Ends;
use super::service::{Member, Service};
use super::tcp_side::TcpSide;
use crate::carrier::bulk::open_to_peer;
use crate::carrier::info::{StreamInfo, StreamState};
use crate::carrier::mark::TcpMark;
use crate::carrier::timeout::{Timeouts, Waits, left};
use crate::carrier::{Buffers, Carrier, IdleMemory, MemoryKeeper, fill};
use crate::counters::TcpCounters;
use crate::readiness::{Events, Watcher};
use crate::route::not_moved::NotMoved;

/// The longest that a write waits for room before it looks again.
const SLICE: Duration = Duration::from_millis(200);
/// How long a writer waits for acknowledgements that nobody announces.
const ROOM: Duration = Duration::from_millis(1);
/// How long whoever empties a queue pair waits for the thread that polls it.
const DRAIN: Duration = Duration::from_millis(1);

/// Bytes of the largest message: what every peer of this protocol takes.
const MESSAGE: usize = 4096;

/// What carries a stream that may move, and since when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Carrying {
    /// The bytes go over the SAN.
    pub(crate) is_san: bool,
    pub(crate) since: Instant,
    /// How often it changed to the SAN, and back.
    pub(crate) ups: u64,
    pub(crate) downs: u64,
}

/// Who has the kernel's descriptor of a stream, and has to know which calls the kernel may serve.
pub(crate) trait Follower: Send + Sync {
    /// The phase may be another one. No lock is held.
    fn followed(self: Arc<Self>);

    /// The application has closed the stream. Its descriptor may stay open for a while.
    fn closed(self: Arc<Self>) {}

    /// Whether other processes have the descriptor, too. Then [`Follower::wants_tcp`] is asked from time
    /// to time.
    fn is_shared(&self) -> bool {
        false
    }

    /// Whether one of those is about to use it.
    fn wants_tcp(&self) -> bool {
        false
    }
}

/// A stream that may move between TCP and a queue pair.
pub(crate) struct MovingStream {
    around: Around,
    ends: Ends,
    role: Role,
    this: Weak<Self>,
    keeper: Arc<dyn MemoryKeeper>,
    mover: Mutex<Mover>,
    reading: Mutex<ReadSide>,
    /// Bytes that were read past the lock, all told. The reader alone writes it.
    read: AtomicU64,
    /// The reader has to look at the stream; one that waits is called off.
    look: AtomicBool,
    /// There may be room for the writer that waits.
    room: AtomicBool,
    writing: Mutex<()>,
    /// What a read, or a write, that waits is woken by.
    read_wake: OnceLock<Signal>,
    write_wake: OnceLock<Signal>,
    receives_over: AtomicBool,
    /// The application has closed it, and the thread sees it off.
    is_left: AtomicBool,
    timeouts: Timeouts,
    counters: Arc<TcpCounters>,
    mark: TcpMark,
    carrying: RwLock<Carrying>,
    /// The change that is under way, for the log.
    change: Mutex<tracing::Span>,
    watcher: Mutex<Option<(Arc<dyn Watcher>, u64)>>,
    /// A [`Phase`].
    phase: AtomicU8,
    follower: Mutex<Option<Weak<dyn Follower>>>,
}

impl MovingStream {
    /// A stream over a TCP connection that has just been made.
    pub(crate) fn new(
        service: &Arc<Service>,
        socket: Socket,
        ends: Ends,
        role: Role,
        thresholds: Thresholds,
        timeout: Option<Duration>,
        keeper: Arc<dyn MemoryKeeper>,
    ) -> Arc<Self> {
        let config = Config {
            is_keyed: service.key().is_set(),
            // The peer of each queue pair says what it takes.
            may_offer: false,
            max_message: MESSAGE,
            receive_buffer: RING,
            thresholds,
            ..Config::new(role, StreamRoute::Upgrade)
        };
        let now = Instant::now();
        service.add(|token| {
            Arc::new_cyclic(|this: &Weak<Self>| Self {
                around: Around {
                    token,
                    service: Arc::clone(service),
                    feed: Arc::new(Feed::new(Weak::clone(this) as Weak<dyn Reader>)),
                    tcp: TcpSide::new(socket),
                },
                ends,
                role,
                this: Weak::clone(this),
                keeper,
                mover: Mutex::new(Mover::new(Engine::new(config, now))),
                reading: Mutex::default(),
                read: AtomicU64::new(0),
                look: AtomicBool::new(false),
                room: AtomicBool::new(false),
                writing: Mutex::new(()),
                read_wake: OnceLock::new(),
                write_wake: OnceLock::new(),
                receives_over: AtomicBool::new(false),
                is_left: AtomicBool::new(false),
                timeouts: Timeouts::new(timeout),
                counters: Arc::default(),
                mark: TcpMark::default(),
                carrying: RwLock::new(Carrying {
                    is_san: false,
                    since: now,
                    ups: 0,
                    downs: 0,
                }),
                change: Mutex::new(tracing::Span::none()),
                watcher: Mutex::new(None),
                phase: AtomicU8::new(Phase::Kernel as u8),
                follower: Mutex::new(None),
            })
        })
    }

    /// Has this one follow the stream from now on, and gives back who did before. What the phase is already
    /// the new one has to look for afterwards.
    pub(crate) fn follow(&self, follower: Option<Weak<dyn Follower>>) -> Option<Arc<dyn Follower>> {
        let before = std::mem::replace(&mut *self.follower.lock(), follower);
        before.and_then(|before| before.upgrade())
    }

    fn follower(&self) -> Option<Arc<dyn Follower>> {
        self.follower.lock().as_ref().and_then(Weak::upgrade)
    }

    /// Whether what the kernel's socket is ready for says nothing of the stream.
    pub(crate) fn is_away(&self) -> bool {
        // The kernel knows nothing of a reading half that is shut.
        self.phase() == Phase::Away || self.receives_over.load(Ordering::SeqCst)
    }

    /// Who serves the application's calls now.
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Kernel,
            1 => Phase::Connecting,
            _ => Phase::Away,
        }
    }

    /// Leaves the socket to the application if nothing of a change is under way, and `taken`, which is
    /// told all that the stream has carried, says so.
    /// Nothing is read or written here until [`MovingStream::passed`].
    pub(crate) fn release(&self, taken: impl FnOnce(Past) -> bool) -> bool {
        self.with(|mover, _| mover.release(taken))
    }

    /// The application uses the stream, after this went over the socket itself.
    pub(crate) fn passed(&self, past: &Past) {
        self.with(|mover, around| mover.passed(around, past));
    }

    /// Whether the watcher that comes polls the lane, or has a loop do it.
    pub(crate) fn watcher_polls(&self, polls: bool) {
        let feed = &self.around.feed;
        feed.watcher_polls.store(polls, Ordering::Release);
    }

    /// Whether the feed hears of each message.
    fn hear_of_each(&self, wanted: bool) {
        let feed = &self.around.feed;
        feed.is_watched.store(wanted, Ordering::Release);
        self.look_at(|mover| {
            if let Some(pair) = &mover.pair {
                pair.data.tell_each(wanted);
                pair.listen(feed);
            }
        });
    }

    /// Whether it will never move again.
    pub(crate) fn is_for_good(&self) -> bool {
        self.look_at(|mover| mover.engine.state()) == State::TcpForGood
    }

    /// Why it is not on the SAN.
    pub(crate) fn why_on_tcp(&self) -> NotMoved {
        let has_moved = self.carrying().ups > 0;
        self.look_at(|mover| {
            let engine = &mover.engine;
            match engine.state() {
                State::Ended | State::Broken(_) => NotMoved::Ended,
                State::TcpForGood if engine.received().1 || mover.is_closed() => NotMoved::Ended,
                State::TcpForGood => NotMoved::NeedsTcp,
                // It stands there until the peer dials.
                State::Inviting => NotMoved::Unanswered,
                State::Dialling | State::Proving | State::Cutting => NotMoved::UnderWay,
                State::Leaving if has_moved => NotMoved::CameBack,
                State::Leaving => NotMoved::Unfinished,
                State::Tcp | State::San | State::SanOnly if has_moved => NotMoved::CameBack,
                _ if mover.was_answered() => NotMoved::Unfinished,
                State::Tcp | State::San | State::SanOnly => match engine.dials() {
                    0 => NotMoved::Short,
                    _ => NotMoved::Unanswered,
                },
            }
        })
    }

    /// How long its host is left alone, if it is: nobody is dialled before.
    pub(crate) fn pause(&self) -> Option<Duration> {
        self.look_at(|mover| mover.engine.pause(Instant::now()))
    }

    /// Whether it has dialled its peer in vain since it was on the SAN, if it ever was.
    pub(crate) fn was_dialled(&self) -> bool {
        self.look_at(|mover| mover.engine.dials() > 0)
    }

    /// Whether it has had a queue pair, if only for a moment.
    pub(crate) fn was_answered(&self) -> bool {
        self.look_at(Mover::was_answered)
    }

    /// The thread `san-stream` is to look at it.
    pub(crate) fn attend_soon(&self) {
        self.around.service.attend(self.around.token);
    }

    /// What it counts.
    pub(crate) fn counters(&self) -> &Arc<TcpCounters> {
        &self.counters
    }

    pub(crate) fn carrying(&self) -> Carrying {
        *self.carrying.read()
    }

    fn send_by(&self, bytes: &[u8], deadline: Deadline) -> io::Result<usize> {
        if bytes.is_empty() {
            return self.with(|mover, _| mover.check_open()).map(|()| 0);
        }
        let _writing = self.writing.lock();
        // As TCP: a write that may wait takes all its bytes, and one that fails says how many it took.
        let mut written = 0;
        loop {
            let rest = bytes.get(written..).unwrap_or_default();
            // What changes from here on sets it again.
            self.room.store(false, Ordering::SeqCst);
            let (wrote, ring) = self.with(|mover, around| {
                let wrote = mover.write(around, rest);
                (wrote, mover.ring_to_open())
            });
            if let Some((socket, memory, pair)) = ring {
                // It waits for the transport, so nobody has the lock meanwhile.
                match open_to_peer(&socket, &memory) {
                    Ok((ring, handle)) => self.with(|mover, around| {
                        mover.ring_opened(around, pair, ring, handle);
                    }),
                    // Everything goes by messages.
                    Err(error) => tracing::debug!(%error, "bulk cannot be opened to the peer"),
                }
            }
            let waited = match wrote {
                Writing::Wrote(n) => {
                    self.counters.messages_sent.raise();
                    self.counters.bytes_sent.add(n as u64);
                    written += n;
                    if written == bytes.len() {
                        return Ok(written);
                    }
                    continue;
                }
                Writing::Failed(error) if written == 0 => return Err(error),
                Writing::Failed(_) => {
                    self.with(|mover, _| mover.untell());
                    return Ok(written);
                }
                Writing::AwaitTcp => self.wait(&self.write_wake, Some(PollFlags::OUT), deadline),
                Writing::Await => self.wait(&self.write_wake, None, deadline),
                Writing::AwaitSoon | Writing::AwaitRoom { .. } if deadline.is_over() => {
                    Err(Errno::AGAIN.into())
                }
                Writing::AwaitRoom { data, is_told } => {
                    let most = if is_told { SLICE } else { ROOM };
                    let _ = data.wait_for(&self.room, left(deadline).min(most));
                    Ok(())
                }
                Writing::AwaitSoon => {
                    let soon = Deadline::after(left(deadline).min(ROOM));
                    match self.wait(&self.write_wake, None, soon) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                        outcome => outcome,
                    }
                }
            };
            match waited {
                Err(_) if written > 0 => return Ok(written),
                waited => waited?,
            }
        }
    }

    /// Waits until the thread `san-stream` or another call has changed something, or TCP is ready.
    fn wait(
        &self,
        wake: &OnceLock<Signal>,
        tcp: Option<PollFlags>,
        deadline: Deadline,
    ) -> io::Result<()> {
        if deadline.is_over() {
            return Err(Errno::AGAIN.into());
        }
        let Some(signal) = wake.get() else {
            let _ = wake.set(Signal::new()?);
            // What changed before the signal was there is looked at again.
            return Ok(());
        };
        let mut fds = vec![PollFd::new(signal, PollFlags::IN)];
        if let Some(flags) = tcp {
            fds.push(PollFd::new(&self.around.tcp, flags));
        }
        match poll(&mut fds, deadline.timespec().as_ref()) {
            Ok(0) => return Err(Errno::AGAIN.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        signal.reset();
        Ok(())
    }

    /// Back to TCP.
    pub(crate) fn move_to_tcp(&self, stay: bool) {
        self.with(|mover, around| {
            mover.tell(around, Event::WantDown { for_good: stay });
            mover.progress(around);
        });
    }

    /// Goes to TCP for good, and leaves the socket to the caller: nothing is read or written here after this.
    /// Returns the bytes that come before those on the socket.
    ///
    /// # Errors
    /// ETIMEDOUT: bytes of a change are left.
    pub(crate) fn leave(&self, deadline: Deadline) -> io::Result<Vec<u8>> {
        const LOOK: Duration = Duration::from_millis(1);
        loop {
            self.move_to_tcp(true);
            if let Some(ahead) = self.with(|mover, _| mover.leave()) {
                return Ok(ahead);
            }
            if deadline.is_over() {
                return Err(Errno::TIMEDOUT.into());
            }
            self.attend_soon();
            std::thread::sleep(LOOK);
        }
    }

    /// Whether our stream is ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.mover.lock().is_closed()
    }

    /// One that another process had, with bytes that it has read ahead. It stays on TCP.
    pub(crate) fn taken_up(&self, ahead: &[u8], has_ended: bool) {
        self.with(|mover, around| {
            mover.unread(ahead);
            mover.tell(around, Event::WantDown { for_good: true });
            if has_ended {
                mover.tell(around, Event::Close);
                mover.progress(around);
            }
        });
    }

    /// Whether its calls wait not at all, and how long receives and sends wait otherwise.
    pub(crate) fn wait_times(&self) -> (bool, Option<Duration>, Option<Duration>) {
        let Timeouts { send, receive } = &self.timeouts;
        (receive.is_nonblocking(), receive.wanted(), send.wanted())
    }

    /// The application has closed it. Whether it may go at once.
    pub(crate) fn close(self: &Arc<Self>) {
        if let Some(follower) = self.follow(None) {
            follower.closed();
        }
        let (is_plain, token) = self.with(|mover, around| {
            let was_plain = mover.is_plain() && mover.pair.is_none();
            let owes_unread = mover.owes_unread();
            if was_plain && !owes_unread {
                // The kernel sees the rest off, and tells a reset from an end by itself.
                return (true, around.token);
            }
            let is_reset = around.tcp.socket().linger().ok().flatten() == Some(Duration::ZERO);
            if was_plain && is_reset {
                return (true, around.token);
            }
            mover.close(around, is_reset);
            (mover.is_through(), around.token)
        });
        let service = &self.around.service;
        if is_plain {
            service.remove(token);
        } else {
            // The thread hears of what the peer still says.
            self.is_left.store(true, Ordering::Release);
            self.watcher_polls(false);
            self.hear_of_each(true);
            service.keep(token, Arc::clone(self) as Arc<dyn Member>);
        }
    }
}

impl Carrier for MovingStream {
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.send_by(bytes, self.timeouts.send.deadline())
    }

    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        if let Some(outcome) = self.receive_plain(bytes) {
            return outcome;
        }
        self.receive_by(bytes, self.timeouts.receive.deadline())
    }

    fn receive_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        fill(buffers, |all, bytes| {
            // Only the first bytes are waited for.
            let deadline = match all {
                0 => self.timeouts.receive.deadline(),
                _ => Deadline::passed(),
            };
            self.receive_by(bytes, deadline)
        })
    }

    fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(n) = self.with(|mover, around| mover.peek(around, bytes)) {
                return Ok(n);
            }
            // All that a read would get at once.
            let mut next = [0; MESSAGE];
            let n = self.receive_by(&mut next, self.timeouts.receive.deadline())?;
            if n == 0 {
                return Ok(0);
            }
            self.with(|mover, _| mover.unread(&next[..n]));
        }
    }

    fn waits(&self) -> Waits<'_> {
        Waits::Ours(&self.timeouts)
    }

    fn end(&self) -> io::Result<()> {
        self.with(|mover, around| {
            mover.tell(around, Event::Close);
            mover.progress(around);
        });
        Ok(())
    }

    fn finish(&self, deadline: Deadline) -> io::Result<()> {
        self.end()?;
        loop {
            let (is_owed, failed) = self.with(|mover, around| {
                mover.progress(around);
                let failed = mover.engine.failure().map(|_| mover.failure());
                (mover.is_owed(), failed)
            });
            match failed {
                _ if !is_owed => return Ok(()),
                Some(error) => return Err(error),
                None => {}
            }
            if deadline.is_over() {
                return Err(Errno::AGAIN.into());
            }
            std::thread::sleep(ROOM.min(deadline.left().unwrap_or(ROOM)));
        }
    }

    fn shut(&self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Write {
            self.receives_over.store(true, Ordering::SeqCst);
        }
        if how != Shutdown::Read {
            self.end()?;
        }
        self.call_off();
        if let Some(follower) = self.follower() {
            follower.followed();
        }
        self.tell_watcher();
        Ok(())
    }

    fn events(&self) -> Events {
        let is_shut = self.receives_over.load(Ordering::Acquire);
        self.with(|mover, around| {
            mover.progress(around);
            mover.events(around, is_shut)
        })
    }

    fn set_watcher(&self, watcher: Option<(Arc<dyn Watcher>, u64)>) {
        let is_watched = watcher.is_some();
        *self.watcher.lock() = watcher;
        self.hear_of_each(is_watched);
        self.tell_watcher();
    }

    fn lane(&self) -> Option<LaneHandle> {
        self.look_at(|mover| mover.pair.as_ref().map(|pair| pair.data.lane()))
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(self.with(|mover, _| mover.take_error()))
    }

    fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        self.around.tcp.socket().set_linger(linger)
    }

    fn linger(&self) -> io::Result<Option<Duration>> {
        self.around.tcp.socket().linger()
    }

    fn info(&self) -> StreamInfo {
        let events = self.events();
        let carrying = self.carrying();
        let (has_ended, unsent, unacknowledged) = self.with(|mover, _| {
            let unacknowledged = mover.pair.as_ref().map(QueuePair::unacknowledged);
            (mover.is_closed(), mover.engine.unsent(), unacknowledged)
        });
        StreamInfo {
            state: if events.contains(Events::HANG_UP) {
                StreamState::Over
            } else {
                StreamState::of(has_ended, events.contains(Events::READ_CLOSED))
            },
            changes: (carrying.ups, carrying.downs),
            bytes_sent: self.counters.bytes_sent.value(),
            bytes_received: self.counters.bytes_received.value(),
            bytes_unsent: carrying.is_san.then_some(unsent),
            messages_unacknowledged: unacknowledged.filter(|_| carrying.is_san),
            ..StreamInfo::new(carrying.is_san)
        }
    }

    /// TCP has urgent data of its own: the stream is there from now on.
    fn send_urgent(&self, byte: u8) -> io::Result<()> {
        let deadline = self.timeouts.send.deadline();
        let _writing = self.writing.lock();
        loop {
            let tcp = match self.with(|mover, around| mover.write_urgent(around, byte)) {
                Writing::Wrote(n) => {
                    self.counters.messages_sent.raise();
                    self.counters.bytes_sent.add(n as u64);
                    return Ok(());
                }
                Writing::Failed(error) => return Err(error),
                Writing::AwaitTcp => Some(PollFlags::OUT),
                Writing::Await | Writing::AwaitSoon | Writing::AwaitRoom { .. } => None,
            };
            if deadline.is_over() {
                return Err(Errno::AGAIN.into());
            }
            let soon = Deadline::after(left(deadline).min(ROOM));
            match self.wait(&self.write_wake, tcp, soon) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => outcome?,
            }
        }
    }

    fn receive_urgent(&self) -> io::Result<u8> {
        let ahead = self.with(|mover, _| mover.ahead());
        let received = self.counters.bytes_received.value() + ahead;
        self.mark.take(self.around.tcp.socket(), received)
    }

    fn is_at_mark(&self) -> io::Result<bool> {
        if self.with(|mover, _| mover.ahead()) > 0 {
            return Ok(false);
        }
        let received = self.counters.bytes_received.value();
        self.mark.is_at(self.around.tcp.socket(), received)
    }

    fn bound(&self, buffers: Buffers) {
        self.with(|mover, _| {
            if let Some(bytes) = buffers.send {
                mover.engine.set_send_buffer(bytes as u64);
            }
            if let Some(bytes) = buffers.receive {
                mover.engine.set_receive_buffer(bytes as u64);
            }
        });
        self.wake();
    }

    fn tcp_socket(&self) -> BorrowedFd<'_> {
        self.around.tcp.as_fd()
    }
}

impl IdleMemory for MovingStream {
    fn let_go_if_idle(&self) -> bool {
        let counters = &self.counters;
        let carried = counters.bytes_sent.value() + counters.bytes_received.value();
        let (rings, is_over) =
            self.with(|mover, around| mover.let_go_if_idle(around, carried, Instant::now()));
        // They may take a call of the system each.
        if let Some((rings, socket)) = rings {
            rings.let_go(socket.as_ref());
        }
        is_over
    }
}

impl Drop for MovingStream {
    fn drop(&mut self) {
        self.around.service.remove(self.around.token);
        let (left, rings) = self.mover.get_mut().take_all();
        for one in left {
            one.close();
        }
        rings.let_go(None);
    }
}

impl fmt::Debug for MovingStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MovingStream")
            .field("mover", &self.mover)
            .field("ends", &self.ends)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// The ends of a TCP connection, by the role of ours.
pub(crate) fn ends(role: Role, local: SocketAddr, peer: SocketAddr) -> Ends {
    match role {
        Role::Connector => Ends {
            connector: local,
            acceptor: peer,
        },
        Role::Acceptor => Ends {
            connector: peer,
            acceptor: local,
        },
    }
}
