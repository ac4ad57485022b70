//! What the lock of a stream over the SAN protects: its engine, and what carries out what the engine
//! asks for. Nothing here waits, and nothing calls out.

pub(crate) mod moves;
mod rings;

use std::io::{self, IoSliceMut};
use std::time::Instant;

use rustix::io::Errno;
use san_provider::{DataPath, MemoryHandle, Operation, Socket, TransferError};
use san_stream::{
    Action, Config, Engine, Event, Failure, Kind, Mac, Payloads, Post, RING, Role, Route, Source,
    State as Place, TAG, Write,
};

use crate::carrier::Buffers;
use crate::carrier::bulk::Bulk;

use super::urgent::Urgent;

/// A stream that lives on one queue pair keeps nothing of what it sent, and proves nothing.
#[derive(Debug)]
pub(super) struct Direct;

#[derive(Debug)]
pub(super) struct Nothing;

impl AsRef<[u8]> for Nothing {
    fn as_ref(&self) -> &[u8] {
        &[]
    }
}

impl Mac for Nothing {
    fn mac(&self, _: &[u8]) -> [u8; TAG] {
        [0; TAG]
    }
}

impl Payloads for Direct {
    type Piece = Nothing;
    type Key = Nothing;
}

/// Whom something concerns that has happened. They are told without the lock.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct News {
    /// Who receives has to look at the stream.
    pub(super) reader: bool,
    /// Who waits for room, or for the end.
    pub(super) writer: bool,
    /// The watcher.
    pub(super) watcher: bool,
    /// The connection is to be ended.
    pub(super) over: bool,
    /// There is memory to look after.
    pub(super) memory: bool,
    /// A ring is to be taken away from the peer.
    pub(super) ring: bool,
}

/// The stream, under its lock.
#[derive(Debug)]
pub(super) struct State {
    engine: Engine<Direct>,
    /// Now, for an engine that has no deadline.
    epoch: Instant,
    /// A small message goes out at once: nothing is staged, and the stream is open. As it was when the
    /// engine was last asked.
    pub(super) plain: bool,
    /// Bytes that went out so, and that the engine does not know of yet.
    pub(super) plain_sent: usize,
    /// Plain bytes that were read and that the engine knows of.
    counted: u64,
    bulk: Bulk,
    /// Messages that the engine has given out and the provider did not take.
    waiting_control: Option<Post>,
    waiting: Option<Post>,
    /// The engine asks for the ring to be opened, which may take time.
    pub(super) opens_ring: bool,
    /// The end of our stream, once it is sent; and whether it has arrived.
    end: Option<Operation>,
    pub(super) has_end_arrived: bool,
    /// Our end was sent when the peer's came.
    pub(super) has_peer_ended_last: bool,
    /// The application writes no more.
    pub(super) is_closed: bool,
    /// The provider's connection is over: why.
    over: Option<i32>,
    /// The error that no call has said yet.
    pub(super) error: Option<i32>,
    /// Looks of the provider's thread are asked for.
    pub(super) wants_looks: bool,
    /// The peer's urgent byte.
    pub(super) urgent: Urgent,
    /// What had left and arrived when a close was last looked at.
    pub(super) seen_progress: (u64, u32),
    /// What became of the wish to move to another process (`moves.rs`).
    pub(super) may_move: Option<bool>,
    /// Another process is about to take the stream up, and nothing of it changes.
    pub(super) is_frozen: bool,
    /// It has.
    pub(super) has_moved: bool,
    /// Since when the peer moves.
    peer_moves_since: Option<Instant>,
    /// Memory to be taken away from the peer.
    ring_to_close: Option<MemoryHandle>,
    /// A writer opens the ring.
    is_opening: bool,
    pub(super) news: News,
}

impl State {
    pub(super) fn new(config: Config) -> Self {
        let epoch = Instant::now();
        Self::with(Engine::new(config, epoch), epoch)
    }

    /// What a stream over the SAN is to its engine.
    pub(super) fn config(max_message: usize, may_offer: bool, may_mark: bool) -> Config {
        Config {
            may_offer,
            may_mark,
            max_message,
            receive_buffer: RING,
            ..Config::new(Role::Connector, Route::Direct)
        }
    }

    fn with(engine: Engine<Direct>, epoch: Instant) -> Self {
        Self {
            engine,
            epoch,
            plain: true,
            plain_sent: 0,
            counted: 0,
            bulk: Bulk::default(),
            waiting_control: None,
            waiting: None,
            opens_ring: false,
            end: None,
            has_end_arrived: false,
            has_peer_ended_last: false,
            is_closed: false,
            over: None,
            error: None,
            wants_looks: false,
            urgent: Urgent::default(),
            seen_progress: (0, 0),
            may_move: None,
            is_frozen: false,
            has_moved: false,
            peer_moves_since: None,
            ring_to_close: None,
            is_opening: false,
            news: News::default(),
        }
    }

    /// Tells the engine what went the short way, before anything else is done with it. `read`: plain bytes
    /// that the reader has taken, all told.
    pub(super) fn catch_up(&mut self, read: u64) {
        let sent = std::mem::take(&mut self.plain_sent);
        if sent > 0 {
            self.engine.message_sent(sent, Nothing);
        }
        // Another thread may know of less than was told already.
        let more = read.saturating_sub(self.counted);
        if more > 0 {
            self.counted += more;
            self.engine
                .data(usize::try_from(more).unwrap_or(usize::MAX));
            self.act();
        }
    }

    /// Whether messages may go the short way from now on.
    pub(super) fn refresh(&mut self) {
        self.plain = self.over.is_none()
            && self.waiting.is_none()
            && matches!(self.engine.write(1, true), Write::Message(_));
    }

    pub(super) fn handle(&mut self, event: Event<'_, Nothing>) {
        self.engine.handle(event, self.epoch);
        self.act();
    }

    /// Does what the engine asks for.
    fn act(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::OpenRing => {
                    self.opens_ring = true;
                    self.news.writer = true;
                }
                Action::PeerRing(ring) => self.bulk.peer_opened(ring),
                Action::Urgent(byte) => {
                    self.urgent.reached(self.read_so_far() - 1, byte);
                    self.news.watcher = true;
                }
                Action::Mark { position, byte } => {
                    self.urgent.mark(position, byte, self.read_so_far());
                    self.news.watcher = true;
                }
                Action::CloseRing => self.close_ring(),
                Action::MayMove => self.answered(true),
                Action::MayNotMove => self.answered(false),
                Action::Reset => self.news.over = true,
                Action::Changed(Place::Broken(failure)) => self.failed(failure),
                _ => {}
            }
        }
    }

    fn failed(&mut self, failure: Failure) {
        // What the provider's end is to the application was noted when that came.
        if failure != Failure::Aborted && self.over.is_none() {
            self.error = Some(self.reset());
        }
        self.news.reader = true;
        self.news.writer = true;
        self.news.watcher = true;
    }

    /// As TCP: who has read the end can only fail to write.
    fn reset(&self) -> i32 {
        let errno = if self.is_at_end() {
            Errno::PIPE
        } else {
            Errno::CONNRESET
        };
        errno.raw_os_error()
    }

    /// The stream is over: nothing can be sent any more, and nothing comes.
    pub(super) fn is_broken(&self) -> bool {
        self.engine.failure().is_some()
    }

    /// Why the stream broke, if it did.
    pub(super) fn failure(&self) -> Option<Failure> {
        self.engine.failure()
    }

    /// Bytes of the peer's stream that were read, those that a peek keeps and urgent ones among them.
    pub(super) fn read_so_far(&self) -> u64 {
        self.engine.received().0
    }

    /// Bytes of the application's writes that were taken.
    pub(super) fn accepted(&self) -> u64 {
        self.engine.accepted()
    }

    /// Those of them that have not left, or were offered and not read.
    pub(super) fn unsent(&self) -> u64 {
        let waiting = self.waiting.as_ref().and_then(|post| post.staged);
        self.engine.unsent() + waiting.map_or(0, |staged| staged.length as u64)
    }

    /// The peer's stream has ended, and all of it was read.
    pub(super) fn is_at_end(&self) -> bool {
        self.engine.received().1
    }

    /// What a call says of a broken stream: its error once, and `then` ever after.
    pub(super) fn say<T>(&mut self, then: io::Result<T>) -> io::Result<T> {
        if self.has_moved {
            return Err(Errno::NOTCONN.into());
        }
        match self.error.take() {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => then,
        }
    }

    /// The error that no call has said, also of a connection that is over while bytes wait to be read.
    pub(super) fn take_error(&mut self) -> Option<io::Error> {
        self.error.take().map(io::Error::from_raw_os_error)
    }

    /// The provider has said that the connection is over. What had come is read first; if the peer's end
    /// is not among it, that is an error, which shows before.
    pub(super) fn note_over(&mut self, data: &DataPath, mut errno: i32) {
        if errno == Errno::FAULT.raw_os_error() {
            // What a READ of memory says that is not open.
            errno = Errno::CONNRESET.raw_os_error();
        }
        let has_end = self.is_at_end() || data.inbox().last == Some(Kind::End.number());
        if self.over.is_none() && !self.is_broken() && !has_end {
            self.error = Some(errno);
        }
        self.over.get_or_insert(errno);
        self.handle(Event::QpBroken);
        self.news.watcher = true;
        self.news.writer = true;
        self.news.reader = true;
    }

    /// All that had come was read, or cannot be any more.
    pub(super) fn drained(&mut self) {
        self.handle(Event::QpDrained);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// Bounds what is staged and held from now on.
    pub(super) fn bound(&mut self, buffers: Buffers) {
        if let Some(bytes) = buffers.send {
            self.engine.set_send_buffer(bytes as u64);
            self.news.writer = true;
            self.news.watcher = true;
        }
        if let Some(bytes) = buffers.receive {
            self.engine.set_receive_buffer(bytes as u64);
        }
    }

    /// How many bytes are staged, and how many held, at most.
    pub(super) fn buffers(&self) -> (usize, usize) {
        let (send, receive) = self.engine.buffers();
        let bytes = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        (bytes(send), bytes(receive))
    }

    // Writing.

    /// Whether a write would take at least a byte, or fail.
    pub(super) fn has_room(&self) -> bool {
        self.room(1) != Write::Full
    }

    /// Whether there is as much room as makes a watcher's writer worth waking: a third of the bound.
    pub(super) fn has_ample_room(&self) -> bool {
        let third = (self.buffers().0 / 3).max(1);
        match self.room(third) {
            Write::Stage { length, .. } => length >= third,
            other => other != Write::Full,
        }
    }

    fn room(&self, length: usize) -> Write {
        self.room_if(length, self.waiting.is_none())
    }

    fn room_to_stage(&self, length: usize) -> Write {
        self.room_if(length, false)
    }

    fn room_if(&self, length: usize, has_place: bool) -> Write {
        if self.over.is_some() {
            return Write::Closed;
        }
        if self.is_frozen {
            return Write::Full;
        }
        match self.engine.write(length, has_place) {
            // What waits lies in the ring still.
            Write::Stage { position, length } => {
                let staged = self.waiting.as_ref().and_then(|post| post.staged);
                let low = staged.map_or(position, |staged| staged.position);
                let bound = self.engine.buffers().0;
                let room = bound.saturating_sub(position - low);
                let room = usize::try_from(room).unwrap_or(0);
                match room.min(length) {
                    0 => Write::Full,
                    length => Write::Stage { position, length },
                }
            }
            other => other,
        }
    }

    /// Whether a write may be made at all.
    pub(super) fn check_open(&mut self) -> io::Result<()> {
        match self.room(1) {
            Write::Closed => self.closed(),
            _ => Ok(()),
        }
    }

    /// What a write says that cannot be.
    fn closed<T>(&mut self) -> io::Result<T> {
        self.say(Err(Errno::PIPE.into()))
    }

    /// Takes bytes of a write: how many. `None`: there is no room.
    pub(super) fn write(&mut self, data: &DataPath, bytes: &[u8]) -> io::Result<Option<usize>> {
        let mut room = self.room(bytes.len());
        if let Write::Message(n) = room {
            match data.try_send(&bytes[..n], Kind::Data.number()) {
                Ok(()) => {
                    self.engine.message_sent(n, Nothing);
                    return Ok(Some(n));
                }
                Err(TransferError::WouldBlock) => room = self.engine.write(n, false),
                Err(error) => {
                    self.note_over(data, error.errno());
                    room = Write::Closed;
                }
            }
        }
        match room {
            Write::Stage { position, length } => {
                self.stage(position, &bytes[..length])?;
                self.pump_until(data, true);
                Ok(Some(length))
            }
            Write::Full => Ok(None),
            _ => self.closed(),
        }
    }

    fn stage(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.bulk.put(position, bytes)?;
        self.note_use();
        self.engine.staged(bytes.len());
        Ok(())
    }

    /// Takes a byte that is urgent. `false`: there is no room.
    pub(super) fn write_urgent(&mut self, data: &DataPath, byte: u8) -> io::Result<bool> {
        match self.room_to_stage(1) {
            Write::Stage { position, .. } => {
                self.stage(position, &[byte])?;
                self.handle(Event::Urgent(byte));
                self.pump(data);
                Ok(true)
            }
            Write::Full => Ok(false),
            _ => self.closed().map(|()| false),
        }
    }

    /// Posts what may go out.
    pub(super) fn pump(&mut self, data: &DataPath) {
        self.pump_until(data, false);
    }

    /// As [`State::pump`]. A writer opens the ring when the engine asks for it, and what is bulk had
    /// better wait for that.
    fn pump_until(&mut self, data: &DataPath, ring_is_wanted: bool) {
        while self.over.is_none() && !(ring_is_wanted && self.opens_ring) {
            let control = self.waiting_control.take();
            if let Some(post) = control.or_else(|| self.engine.next_control()) {
                match data.try_send(&post.head, post.kind.number()) {
                    Ok(()) => continue,
                    Err(error) => {
                        self.waiting_control = Some(post);
                        return self.not_sent(data, &error);
                    }
                }
            }
            // While one of the ends moves, what waits goes on waiting.
            let may_go = !self.engine.is_resting();
            let waiting = if may_go { self.waiting.take() } else { None };
            let Some(post) = waiting.or_else(|| self.engine.next_message()) else {
                // It may have asked for the ring.
                return self.act();
            };
            if let Err(error) = self.post(data, &post) {
                self.waiting = Some(post);
                self.act();
                return self.not_sent(data, &error);
            }
            self.news.writer = true;
            self.act();
        }
    }

    fn not_sent(&mut self, data: &DataPath, error: &TransferError) {
        if !matches!(error, TransferError::WouldBlock | TransferError::NoBuffers) {
            self.note_over(data, error.errno());
        }
    }

    fn post(&mut self, data: &DataPath, post: &Post) -> Result<(), TransferError> {
        let number = post.kind.number();
        if post.kind == Kind::End {
            self.end = Some(data.try_send_told(number)?);
            return Ok(());
        }
        let Some(staged) = post.staged else {
            return data.try_send(&post.head, number);
        };
        let (head, bulk) = (&post.head, &self.bulk);
        data.try_send_filled(head.len() + staged.length, number, |place| {
            let (front, bytes) = place.split_at_mut(head.len());
            front.copy_from_slice(head);
            bulk.take(staged.position, bytes);
        })
    }

    /// The application writes no more.
    pub(super) fn close(&mut self, data: &DataPath) {
        self.is_closed = true;
        // A write that waits for room waits for nothing now.
        self.news.writer = true;
        self.handle(Event::Close);
        self.pump(data);
    }

    /// Bytes that were written and may not have arrived, but for those that the provider has; and the
    /// same as a number that changes with progress.
    pub(super) fn owes(&self) -> bool {
        let waits = |post: &Post| post.staged.is_some();
        self.waiting.as_ref().is_some_and(waits) || self.engine.has_unsent()
    }

    /// Whether anything waits that nobody may come back for.
    pub(super) fn is_busy(&self) -> bool {
        self.over.is_none()
            && (self.owes()
                || self.engine.is_resting()
                || self.waiting.is_some()
                || self.waiting_control.is_some()
                || self.bulk.has_waiting_read()
                || self.is_closed && !self.has_sent_end() && !self.is_broken())
    }

    /// A number that changes when something that was written leaves or arrives.
    pub(super) fn progress(&self) -> u64 {
        self.engine.progress()
            + u64::from(self.waiting.is_none())
            + u64::from(self.end.is_some())
            + u64::from(self.has_end_arrived)
    }

    pub(super) fn has_sent_end(&self) -> bool {
        self.end.is_some() || self.has_end_arrived
    }

    // Reading.

    /// A message for the reader: none of the stream's plain bytes.
    pub(super) fn message(&mut self, kind: u8, bytes: &[u8]) {
        let was_at_end = self.is_at_end();
        self.handle(Event::QpMessage { kind, bytes });
        if self.is_at_end() && !was_at_end {
            self.has_peer_ended_last = self.has_sent_end();
            // The connection's end may have been noted while the reader had the stream's end in hand.
            self.error = None;
        }
    }

    /// Where the reader finds its next bytes.
    pub(super) fn source(&self) -> Source {
        self.engine.source()
    }

    /// How many bytes the reader may take from messages.
    pub(super) fn message_limit(&self) -> usize {
        usize::try_from(self.engine.message_limit()).unwrap_or(usize::MAX)
    }

    /// Whether bytes were offered that the reader has not taken.
    pub(super) fn has_bulk(&self) -> bool {
        self.engine.has_bulk()
    }

    /// Copies bytes that have landed.
    pub(super) fn deliver(
        &mut self,
        socket: &Socket,
        data: &DataPath,
        at: (u64, u64),
        buffers: &mut [IoSliceMut<'_>],
    ) -> usize {
        let taken = self.bulk.deliver(at, buffers);
        self.engine.landed_taken(taken as u64);
        self.post_reads(socket, data);
        self.pump(data);
        taken
    }

    /// A control message came: kinds from 16 on.
    pub(super) fn control(&mut self, socket: &Socket, data: &DataPath, kind: u8, bytes: Box<[u8]>) {
        // What is offered from now on comes again.
        let is_void = self.engine.has_asked_for_rest();
        self.handle(Event::QpMessage {
            kind,
            bytes: &bytes,
        });
        if self.is_broken() {
            return;
        }
        match Kind::from_number(kind) {
            Some(Kind::Offer) if is_void => {}
            Some(Kind::Offer) => {
                self.bulk.offered(bytes);
                self.news.reader = true;
                self.news.watcher = true;
                self.post_reads(socket, data);
            }
            Some(Kind::Done | Kind::Resumed) => {
                self.note_peer_moves();
                self.news.writer = true;
                self.news.watcher = true;
            }
            Some(Kind::Suspend) => self.note_peer_moves(),
            _ => {}
        }
        self.pump(data);
    }

    /// Starts the READs that the engine wants.
    pub(super) fn post_reads(&mut self, socket: &Socket, data: &DataPath) {
        if self.over.is_some() {
            return;
        }
        match self.bulk.post_reads(&mut self.engine, socket) {
            Ok(true) => self.note_use(),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "bulk cannot be read: the connection ends");
                self.note_over(data, Errno::CONNRESET.raw_os_error());
                self.news.over = true;
            }
        }
    }

    /// An operation of this stream has ended.
    pub(super) fn ended(
        &mut self,
        socket: &Socket,
        data: &DataPath,
        operation: Operation,
        result: Result<usize, i32>,
    ) {
        if let Err(errno) = result {
            return self.note_over(data, errno);
        }
        if self.end == Some(operation) {
            self.has_end_arrived = true;
            self.news.writer = true;
            return self.handle(Event::QpUnacknowledged(0));
        }
        if let Some(read) = self.bulk.read_ended(operation) {
            self.handle(Event::ReadDone {
                position: read.position,
                length: read.length,
            });
            self.news.reader = true;
            self.news.watcher = true;
            self.post_reads(socket, data);
            self.pump(data);
        }
    }

    /// Something came, perhaps the end of the connection: who waits to write hears of it.
    pub(super) fn look_for_end(&mut self, data: &DataPath) {
        if self.over.is_none()
            && !self.is_frozen
            && let Err(error) = data.check()
        {
            self.note_over(data, error.errno());
        }
    }

    /// The provider would take a message again.
    pub(super) fn go_on(&mut self, socket: &Socket, data: &DataPath) {
        self.look_for_end(data);
        self.post_reads(socket, data);
        self.pump(data);
        self.news.watcher = true;
    }

    /// Gives the stream up: the peer is told by ABORT, if that can go out now, and by the end of the
    /// connection.
    pub(super) fn abort(&mut self, data: &DataPath) {
        self.handle(Event::Abort);
        if self.over.is_none() {
            let _ = data.try_send(&[], Kind::Abort.number());
        }
    }
}
