//! The queue pair's side: it comes, messages go out and in, and it is emptied when it stops.

use std::io::IoSliceMut;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rustix::io::Errno;
use san_provider::{MemoryHandle, Operation, SharedMemory, Socket as SpiSocket, TransferError};
use san_stream::{Event, Keep, Kind, Refusal, Ring, Source, State};

use super::{Around, Idle, Mover};
use crate::carrier::bulk::Rings;
use crate::san::socket::ProviderSocket;
use crate::upgrade::key::ExcursionKey;
use crate::upgrade::queue_pair::{Left, Mail, Posted, QueuePair};

impl Mover {
    /// The queue pair that was dialled or accepted.
    pub(in crate::upgrade) fn connected(
        &mut self,
        around: &Around,
        socket: ProviderSocket,
        key: ExcursionKey,
        generation: u16,
    ) {
        if self.pair.is_some() || self.drains {
            return;
        }
        around.feed.clear();
        let Some(pair) = QueuePair::new(socket, &around.feed) else {
            return self.tell(around, Event::Refused(Refusal::NotNow));
        };
        self.engine.set_may_offer(pair.takes_bulk());
        self.pair = Some(pair);
        self.pairs += 1;
        around.feed.set_tcp_stirs(true);
        self.tell(
            around,
            Event::QpUp {
                key,
                generation,
                counts: None,
            },
        );
        if !matches!(self.engine.state(), State::Proving | State::Cutting) {
            self.forget_pair(around);
            return;
        }
        around.service.counters.moves_begun.raise();
        self.is_held = true;
    }

    /// The queue pair is used from now on.
    pub(in crate::upgrade) fn begin(&mut self, around: &Around) {
        if !std::mem::take(&mut self.is_held) {
            return;
        }
        let Some(data) = self.pair.as_ref().map(|pair| pair.data.clone()) else {
            return;
        };
        // What came before the sink was there comes first.
        while let Ok(message) = data.try_receive() {
            let kind = message.kind();
            self.message(around, kind, &message);
        }
        self.progress(around);
    }

    pub(super) fn forget_pair(&mut self, around: &Around) {
        let rings = self.bulk.queue_pair_gone();
        if let Some(pair) = self.pair.take() {
            self.left.push(Left { pair, rings });
            around.service.attend(around.token);
        }
        self.drains = false;
        self.is_stalled = false;
        self.opens_ring = false;
        around.feed.clear();
    }

    /// Takes in what came past the messages.
    pub(super) fn take_mail(&mut self, around: &Around) {
        loop {
            match around.feed.next() {
                Ok(Some(Mail::Control(kind, bytes))) => self.control(around, kind, bytes),
                Ok(Some(Mail::Ended(operation, result))) => {
                    self.read_ended(around, operation, result);
                }
                Ok(None) => break,
                Err(()) => {
                    tracing::warn!("a peer floods a stream with control messages");
                    around.feed.clear();
                    self.tell(around, Event::QpBroken);
                }
            }
        }
        if around.feed.was_ready() {
            self.news.watcher = true;
            // What waited goes out now: who waits for room hears of it.
            self.news.writer = true;
        }
    }

    fn control(&mut self, around: &Around, kind: u8, bytes: Box<[u8]>) {
        self.tell(
            around,
            Event::QpMessage {
                kind,
                bytes: &bytes,
            },
        );
        match Kind::from_number(kind) {
            Some(Kind::Offer) if self.engine.has_bulk() => {
                self.bulk.offered(bytes);
                self.news.reader = true;
                self.news.watcher = true;
            }
            Some(Kind::Done) => {
                if let Some(length) = bytes.first_chunk() {
                    let length = u32::from_be_bytes(*length);
                    around.service.counters.bulk_sent.add(length.into());
                }
                self.news.writer = true;
                self.news.watcher = true;
            }
            _ => {}
        }
    }

    fn read_ended(&mut self, around: &Around, operation: Operation, result: Result<usize, i32>) {
        let Some(read) = self.bulk.read_ended(operation) else {
            return;
        };
        match result {
            Ok(_) => {
                let (position, length) = (read.position, read.length);
                self.tell(around, Event::ReadDone { position, length });
                self.news.reader = true;
                self.news.watcher = true;
            }
            Err(errno) if errno == Errno::FAULT.raw_os_error() => {
                // It has offered what it has not opened.
                around.service.counters.violations_bulk.raise();
                self.tell(around, Event::WantDown { for_good: true });
            }
            Err(_) => self.broken(around),
        }
    }

    /// Starts the READs that the engine wants.
    pub(super) fn post_reads(&mut self, around: &Around) {
        let Some(pair) = self.pair.as_ref().filter(|_| !self.drains) else {
            return;
        };
        match self.bulk.post_reads(&mut self.engine, pair.spi()) {
            Ok(true) => self.note_use(),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "bulk cannot be read: the stream goes back to TCP");
                self.tell(around, Event::QpBroken);
            }
        }
    }

    pub(super) fn note_use(&mut self) {
        self.news.memory |= self.bulk.note_use();
    }

    /// The memory that the peer may read, if it is to be opened now: of which queue pair, and its number.
    pub(in crate::upgrade) fn ring_to_open(&mut self) -> Option<(SpiSocket, SharedMemory, u64)> {
        if !std::mem::take(&mut self.opens_ring) || self.drains {
            return None;
        }
        let socket = self.pair.as_ref()?.spi().clone();
        Some((socket, self.bulk.memory()?, self.pairs))
    }

    /// It is open. What is about a queue pair that is gone says nothing.
    pub(in crate::upgrade) fn ring_opened(
        &mut self,
        around: &Around,
        pair: u64,
        ring: Ring,
        handle: MemoryHandle,
    ) {
        if pair == self.pairs && self.pair.is_some() && !self.drains {
            self.bulk.opened(handle);
            self.tell(around, Event::RingOpened(ring));
            self.post(around);
        }
    }

    /// The rings, if they were not used for a while, and the socket that they are registered with; and
    /// whether there is nothing left to look after. A stream that has carried nothing for long goes back to
    /// TCP. `carried`: its bytes of both directions so far.
    pub(in crate::upgrade) fn let_go_if_idle(
        &mut self,
        around: &Around,
        carried: u64,
        now: Instant,
    ) -> (Option<(Rings, Option<SpiSocket>)>, bool) {
        self.acknowledge(around);
        self.leave_if_idle(around, carried, now);
        if self.idle.since < now
            && self.bulk.has_rings()
            && let Some(pair) = self.pair.as_ref().filter(|pair| pair.unacknowledged() > 0)
        {
            // The last messages, of whose arrival nobody would hear, hold the ring.
            pair.data.ask_for_arrival();
        }
        let is_in_use =
            self.engine.has_bulk() || self.opens_ring || self.drains || !self.left.is_empty();
        let may_go = self.bulk.has_rings() && self.bulk.is_idle() && !is_in_use;
        let rings = (may_go && self.engine.close_ring()).then(|| {
            self.kept.shrink_to_fit();
            self.aside.shrink_to_fit();
            let socket = self.pair.as_ref().map(|pair| pair.spi().clone());
            (self.bulk.take_rings(), socket)
        });
        let may_leave = self.pair.is_some() && around.service.idle.is_some();
        let is_over = !self.bulk.has_rings() && !may_leave;
        if is_over {
            self.bulk.leave_alone();
        }
        (rings, is_over)
    }

    /// Back to TCP, where a stream costs less, if it has carried nothing for long and owes nothing.
    fn leave_if_idle(&mut self, around: &Around, carried: u64, now: Instant) {
        let Some(most) = around.service.idle else {
            return;
        };
        let is_idle = self.is_on_san()
            && !self.is_closed()
            && !self.engine.received().1
            && !self.engine.has_unsent()
            && !self.owes_unread();
        if !is_idle || self.idle.carried != carried {
            self.idle = Idle {
                carried,
                since: now,
            };
        } else if now.saturating_duration_since(self.idle.since) >= most {
            tracing::debug!("an idle stream goes back to TCP");
            self.tell(around, Event::WantDown { for_good: false });
            self.progress(around);
        }
    }

    /// All of it, at the end.
    pub(in crate::upgrade) fn take_all(&mut self) -> (Vec<Left>, Rings) {
        let rings = self.bulk.queue_pair_gone();
        let mut left = std::mem::take(&mut self.left);
        left.extend(self.pair.take().map(|pair| Left { pair, rings }));
        (left, self.bulk.take_rings())
    }

    /// A message that is not taken straight into the application's buffer.
    pub(super) fn message(&mut self, around: &Around, kind: u8, bytes: &[u8]) {
        if kind != Kind::Data.number() {
            return self.no_data(around, kind, bytes);
        }
        match self.engine.data(bytes.len()) {
            Keep::Deliver => self.kept.extend(bytes),
            Keep::Aside => self.aside.extend(bytes),
            Keep::Drop => {}
        }
        self.act(around);
    }

    /// A message that brings no bytes.
    pub(super) fn no_data(&mut self, around: &Around, kind: u8, bytes: &[u8]) {
        if kind == Kind::Abort.number()
            && let Some(errno) = self.take_raw(around)
        {
            self.tcp_reset(around, errno);
        }
        self.tell(around, Event::QpMessage { kind, bytes });
    }

    /// Posts what the engine has for the queue pair.
    pub(super) fn post(&mut self, around: &Around) {
        self.post_until(around, false);
    }

    /// As [`Mover::post`]. A writer opens the ring when the engine asks for it, and what is bulk had better
    /// wait for that.
    pub(super) fn post_until(&mut self, around: &Around, ring_is_wanted: bool) {
        if self.drains {
            return;
        }
        // To ask polls the lane, and an acknowledgement that could have travelled with the next message goes
        // alone.
        if self.engine.needs_acknowledgements() {
            self.acknowledge(around);
        }
        while let Some(pair) = &mut self.pair
            && !(ring_is_wanted && self.opens_ring)
        {
            match pair.post_next(&mut self.engine, &self.bulk) {
                Posted::Yes => {}
                Posted::Nothing | Posted::Waits => break,
                Posted::Broken => return self.tell(around, Event::QpBroken),
            }
        }
        self.act(around);
        self.tell_wishes(around);
    }

    /// Tells the engine what has arrived.
    fn acknowledge(&mut self, around: &Around) {
        if let Some(pair) = self.pair.as_ref().filter(|_| !self.drains) {
            let unacknowledged = pair.unacknowledged();
            self.tell(around, Event::QpUnacknowledged(unacknowledged));
        }
    }

    /// What is to be done for the stream while its application is away.
    fn tell_wishes(&mut self, around: &Around) {
        let has_unsent = self.engine.has_unsent();
        let has_closed = self.is_closed() && self.engine.awaits_acknowledgements();
        let has_read = self.bulk.has_waiting_read();
        let Some(pair) = self.pair.as_mut().filter(|_| !self.drains) else {
            return;
        };
        if has_closed && !has_unsent {
            // The last messages have no completion of their own.
            pair.data.ask_for_arrival();
        }
        let waits = pair.has_pending();
        around.feed.wants_room.store(waits, Ordering::Release);
        pair.want_looks(has_unsent || has_closed || has_read || waits);
        // Acknowledgements are waited for, which nobody announces.
        let is_stalled = has_closed || has_unsent && !waits && self.engine.unread() == 0;
        if is_stalled && !std::mem::replace(&mut self.is_stalled, is_stalled) {
            around.service.attend(around.token);
        }
        self.is_stalled = is_stalled;
    }

    /// The queue pair gives no more.
    pub(in crate::upgrade) fn broken(&mut self, around: &Around) {
        if !self.drains && self.pair.is_some() {
            self.tell(around, Event::QpBroken);
        }
    }

    /// Takes in everything that the stopped queue pair had brought. The caller keeps others from
    /// reading. `false`: not all of it is here yet.
    pub(in crate::upgrade) fn drain(&mut self, around: &Around) -> bool {
        loop {
            // What passed a message comes before it.
            self.take_mail(around);
            self.take_landed(around);
            let Some(pair) = &self.pair else {
                break;
            };
            match pair.data.try_receive() {
                Ok(received) => {
                    self.take_mail(around);
                    self.take_landed(around);
                    let kind = received.kind();
                    self.message(around, kind, &received);
                }
                Err(TransferError::WouldBlock) => return false,
                // Another thread may still be about to leave what came past the messages: it says last
                // that the queue pair is over.
                Err(_) if !around.feed.is_over() => return false,
                Err(_) => break,
            }
        }
        self.take_mail(around);
        self.take_landed(around);
        if let Some(pair) = &self.pair {
            let unacknowledged = pair.unacknowledged();
            self.engine
                .handle(Event::QpUnacknowledged(unacknowledged), Instant::now());
        }
        self.forget_pair(around);
        self.tell(around, Event::QpDrained);
        self.progress(around);
        true
    }

    /// Takes in the peer's end. Bytes that come before it stay where they are.
    pub(super) fn take_end(&mut self, around: &Around) {
        let is_bytes = |kind| kind == Kind::Data.number();
        while self.is_on_san()
            && self.engine.source() == Source::Message
            && let Some(pair) = &self.pair
            && pair.data.inbox().first.is_some_and(|kind| !is_bytes(kind))
            && let Ok(received) = pair.data.try_receive()
        {
            let kind = received.kind();
            self.message(around, kind, &received);
        }
    }

    /// What has landed of a stopped queue pair is kept for the application: its memory goes.
    fn take_landed(&mut self, around: &Around) {
        while let Source::Landed { position, length } = self.engine.source() {
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
            let at = (position, length);
            let taken = self.bulk.deliver(at, &mut [IoSliceMut::new(&mut bytes)]);
            self.kept.extend(&bytes[..taken]);
            self.engine.landed_taken(taken as u64);
            self.act(around);
            if taken == 0 {
                return;
            }
        }
    }
}
