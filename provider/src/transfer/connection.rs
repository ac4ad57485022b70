//! One connection's data path: its queue pair, its credits, its operations, and its own small
//! lock.
//!
//! From outside come calls to send and receive (`calls.rs`), from the lane come completions
//! (`messages.rs`), from the CM thread come beginning and end. Nothing here waits, and nothing is
//! called out to under the lock: whom to wake and what to tell is collected and done after it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crossbeam::sync::Unparker;
use verbs_shim::{CmId, PreparedQp, QpCaps, QueuePair, VerbsError};

use super::credits::Credits;
use super::dispatch::Change;
use super::lane::Lane;
use super::message::Message;
use super::moving::Move;
use super::operation::{
    Arrived, Body, Direction, Ending, Operation, OperationTable, Outcome, OverlappedResult,
    Pending, Told, Transferred,
};
use super::rdma::MAX_SEGMENTS;
use crate::cm_thread::{Command, Control};
use crate::config::ProviderConfig;
use crate::event::EventObject;
use crate::memory::{MemoryStore, Registrations};
use crate::progress::{Progress, Upcall};
use crate::statistics::ConnectionStats;
use crate::sync::lock;
use crate::upcalls::SwitchHandle;
use crate::wire::Hello;

pub(crate) struct Connection {
    pub(super) lane: Arc<Lane>,
    progress: Arc<Progress>,
    pub(super) control: Arc<Control>,
    /// The token of the CM id. It and the queue pair's number change when the peer moves.
    pub(super) token: AtomicU64,
    pub(super) qp_num: AtomicU32,
    /// Bytes that were granted inline.
    pub(super) inline: usize,
    /// Bytes that a message of the peer's may have; the size of every buffer.
    pub(super) receive_limit: u32,
    handle: OnceLock<SwitchHandle>,
    /// How long the opening of memory may take.
    pub(super) open_deadline: Duration,
    pub(crate) memory: Registrations,
    pub(super) data: Mutex<Data>,
}

pub(super) struct Data {
    pub(super) link: Link,
    /// Why it is over, if it is.
    pub(super) ending: Option<Ending>,
    pub(super) credits: Credits,
    pub(super) totals: Totals,
    /// Bytes that a message to the peer may have; 0 until the peer has said so.
    pub(super) send_limit: usize,
    /// Bytes that an RDMA operation may have; 0 until the peer has said so.
    pub(super) rdma_limit: usize,
    /// Messages that nobody has asked for yet (duty 92).
    pub(super) inbox: VecDeque<Arrived>,
    /// Receives that wait, oldest first.
    pub(super) receives: VecDeque<Operation>,
    /// Sends that wait for a credit or for a place on the send queue, oldest first.
    pub(super) sends: VecDeque<Operation>,
    pub(super) operations: OperationTable,
    /// Requests on the send queue.
    pub(super) on_wire: u32,
    /// Those of them since the last one that will make a completion.
    pub(super) unsignaled: u32,
    /// The request that is about to be posted waits for READs.
    pub(super) fence: bool,
    /// Receives set aside in the lane.
    pub(super) reserved: u32,
    /// One of this end, or of the peer, moves to another process.
    pub(super) moving: Option<Box<Move>>,
    /// The peer takes messages about moving.
    pub(super) peer_takes_moves: bool,
    /// A receive is posted for the peer's answer, beyond those of the credits.
    pub(super) answer_receive: bool,
    /// It has a place in the lane.
    has_place: bool,
    /// Buffers that the application still holds, and that were not set aside any more when the
    /// place was given back.
    kept: u32,
    pub(super) ready: Ready,
    /// Counted in the lane's `send_interest`.
    pub(super) watches_sends: bool,
    /// Counted in the lane's `async_interest`.
    pub(super) served_async: bool,
    /// Counted in the lane's `lazy_interest`.
    pub(super) served_lazily: bool,
}

/// What a connection counts by itself, under its lock.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    /// Data messages sent and received before the credits began anew.
    pub(super) sent_before: u64,
    pub(super) received_before: u64,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) credit_messages_sent: u64,
    pub(super) credit_messages_received: u64,
    pub(super) sends_delayed: u64,
    pub(super) messages_copied: u64,
    pub(super) rdma_reads: u64,
    pub(super) rdma_writes: u64,
    pub(super) rdma_bytes_read: u64,
    pub(super) rdma_bytes_written: u64,
}

/// The queue pair, by what may be done with it.
pub(super) enum Link {
    /// Not established: receives only.
    Prepared(PreparedQp),
    Up(QueuePair),
    /// Nothing new may go out: one of the ends moves.
    Held(QueuePair),
    /// Gone.
    Down,
}

/// Events that follow the state of the connection, and their state now.
#[derive(Default)]
pub(super) struct Ready {
    pub(super) readable: Option<(EventObject, bool)>,
    pub(super) writable: Option<(EventObject, bool)>,
}

/// What is to be done when the lock is released.
#[derive(Default)]
pub(super) struct After {
    waiter: Option<Unparker>,
    more_waiters: Vec<Unparker>,
    broken: Option<Ending>,
    wake_progress: bool,
    kick: bool,
}

impl After {
    /// The connection is over, unless it was only one operation that could not be.
    pub(super) fn break_with(&mut self, ending: Ending) {
        match ending {
            Ending::ForeignBuffer => {}
            Ending::RemoteAccess => drop(self.broken.get_or_insert(Ending::Reset)),
            ending => drop(self.broken.get_or_insert(ending)),
        }
    }

    /// The thread that polls has to look at what has changed.
    pub(super) fn kick(&mut self) {
        self.kick = true;
    }

    pub(super) fn wake(&mut self, waiter: Unparker) {
        // One is what a message needs; the vector stays empty, so nothing is allocated for it.
        match self.waiter {
            None => self.waiter = Some(waiter),
            Some(_) => self.more_waiters.push(waiter),
        }
    }
}

/// What a connection is made of.
pub(crate) struct Parts<'a> {
    pub(crate) lane: Arc<Lane>,
    pub(crate) progress: &'a Arc<Progress>,
    pub(crate) control: &'a Arc<Control>,
    pub(crate) config: &'a ProviderConfig,
    pub(crate) memory: &'a Arc<MemoryStore>,
    pub(crate) id: &'a CmId,
}

impl Connection {
    /// Makes the queue pair and posts its receives, so that the credits of the negotiation are
    /// good (duty 29). The lane's place is the caller's to take, and the connection's to give
    /// back. `None`: the lane has no receives left.
    pub(crate) fn prepare(parts: Parts<'_>) -> Result<Option<Arc<Self>>, VerbsError> {
        let Parts {
            lane,
            progress,
            control,
            config,
            memory,
            id,
        } = parts;
        let window = u32::from(config.initial_window);
        let guard = Place {
            lane: Arc::clone(&lane),
            // One more, for credit messages.
            receives: window + 1,
        };
        lane.provide_buffers()?;
        let qp = queue_pair(&lane, id, config.inline_size)?;
        let posted = lane.post_receives(window + 1);
        if posted < window + 1 {
            lane.abandon(posted);
            return Ok(None);
        }
        let granted = qp.caps();
        let connection = Arc::new(Self {
            progress: Arc::clone(progress),
            control: Arc::clone(control),
            token: AtomicU64::new(id.token()),
            qp_num: AtomicU32::new(qp.qp_num()),
            inline: granted.inline as usize,
            receive_limit: config.max_message_size,
            handle: OnceLock::new(),
            open_deadline: config.connect_deadline,
            memory: Registrations::new(config.max_registrations, memory),
            data: Mutex::new(Data {
                link: Link::Prepared(qp),
                ending: None,
                credits: Credits::new(window, u32::from(config.max_window)),
                totals: Totals::default(),
                send_limit: 0,
                rdma_limit: 0,
                inbox: VecDeque::new(),
                receives: VecDeque::new(),
                sends: VecDeque::new(),
                operations: OperationTable::new(config.max_operations),
                on_wire: 0,
                unsignaled: 0,
                fence: false,
                reserved: window + 1,
                moving: None,
                peer_takes_moves: false,
                answer_receive: false,
                has_place: true,
                kept: 0,
                ready: Ready::default(),
                watches_sends: false,
                served_async: false,
                served_lazily: false,
            }),
            lane: Arc::clone(&lane),
        });
        guard.taken_over();
        lane.change(Change::Add(Arc::clone(&connection)));
        Ok(Some(connection))
    }

    pub(super) fn qp_num(&self) -> u32 {
        self.qp_num.load(Ordering::Relaxed)
    }

    pub(super) fn token(&self) -> u64 {
        self.token.load(Ordering::Relaxed)
    }

    pub(crate) fn device_name(&self) -> &str {
        let name = &self.lane.name;
        name.rsplit_once('/').map_or(name, |(device, _)| device)
    }

    /// What goes with its upcalls.
    pub(crate) fn set_handle(&self, handle: SwitchHandle) {
        let _ = self.handle.set(handle);
    }

    /// What the peer said in the negotiation.
    pub(crate) fn negotiated(&self, hello: &Hello) {
        let mut data = lock(&self.data);
        // What the peer takes, and what fits into a send buffer of ours.
        let limit = hello.max_message_size.min(self.receive_limit);
        data.send_limit = limit as usize;
        data.rdma_limit = hello.max_rdma_size.min(self.lane.rdma_limit) as usize;
        data.peer_takes_moves = hello.features.moving;
        let came = data.credits.credits_came(hello.credits);
        drop(data);
        if let Err(violation) = came {
            self.control
                .send(Command::Break(self.token(), Ending::Protocol(violation)));
        }
    }

    /// The peer knows of the connection: sends may go out.
    pub(crate) fn established(self: &Arc<Self>) {
        let mut after = After::default();
        let mut data = lock(&self.data);
        data.bring_up();
        self.pump(&mut data, &mut after);
        self.release(data, after);
    }

    /// What it has counted, and what is pending now.
    pub(crate) fn stats(&self) -> ConnectionStats {
        let (cache_hits, registrations) = self.memory.counts();
        let data = lock(&self.data);
        let totals = &data.totals;
        ConnectionStats {
            messages_sent: totals.sent_before + data.credits.sent(),
            messages_received: totals.received_before + data.credits.received(),
            bytes_sent: totals.bytes_sent,
            bytes_received: totals.bytes_received,
            credit_messages_sent: totals.credit_messages_sent,
            credit_messages_received: totals.credit_messages_received,
            rdma_reads: totals.rdma_reads,
            rdma_writes: totals.rdma_writes,
            rdma_bytes_read: totals.rdma_bytes_read,
            rdma_bytes_written: totals.rdma_bytes_written,
            sends_delayed: totals.sends_delayed,
            messages_copied: totals.messages_copied,
            cache_hits,
            registrations,
            sends_waiting: data.sends.len(),
            messages_waiting: data.inbox.len(),
            window: data.credits.window(),
        }
    }

    /// The connection is over: what arrived before is delivered, then every operation that waits
    /// fails.
    pub(crate) fn end(self: &Arc<Self>, ending: Ending) {
        self.lane.end(Arc::clone(self), ending);
    }

    /// Everything that arrived is delivered. What the device still has ends by its completion.
    pub(super) fn finish(self: &Arc<Self>, ending: Ending) {
        let mut after = After::default();
        let mut data = lock(&self.data);
        if data.ending.is_none() {
            data.ending = Some(ending);
            self.fail(&mut data, Pending::NotPosted, ending, &mut after);
        }
        self.release(data, after);
    }

    /// The owner is about to close: what the disconnect flushes was aborted.
    pub(crate) fn abort(&self) {
        lock(&self.data).ending = Some(Ending::Aborted);
    }

    /// Closes: the queue pair is destroyed, its memory freed, and only then every pending
    /// operation is told (duties 106, 113).
    pub(crate) fn close(self: &Arc<Self>) {
        let link = {
            let mut data = lock(&self.data);
            data.ending = Some(Ending::Aborted);
            std::mem::replace(&mut data.link, Link::Down)
        };
        if matches!(link, Link::Down) {
            return;
        }
        drop(link);
        // The memory is free before anybody hears of the end.
        {
            let mut data = lock(&self.data);
            data.operations.drop_jobs();
            for arrived in std::mem::take(&mut data.inbox) {
                if let Body::Received(buffer) = arrived.body {
                    drop(buffer);
                    data.credits.freed();
                }
            }
        }
        self.memory.close();
        self.lane.change(Change::Remove(Arc::clone(self)));
        let mut after = After::default();
        let mut data = lock(&self.data);
        data.ready = Ready::default();
        self.fail(&mut data, Pending::All, Ending::Aborted, &mut after);
        // What is posted for it stays posted, for others.
        self.lane.abandon(data.posted_receives());
        self.release(data, after);
    }

    /// A message as it is given to the application: in its buffer, or, where half of the window is
    /// in the application's hands already, as a copy whose receive is free again.
    pub(super) fn hand_out(
        self: &Arc<Self>,
        data: &mut Data,
        arrived: Arrived,
        after: &mut After,
    ) -> Arrived {
        let waiting = u32::try_from(data.inbox.len()).unwrap_or(u32::MAX);
        let held = data.credits.held().saturating_sub(waiting);
        if held * 2 <= data.credits.window().max(2) {
            return arrived;
        }
        let Body::Received(buffer) = arrived.body else {
            return arrived;
        };
        let body = Body::Copied(Box::from(&*buffer));
        drop(buffer);
        data.credits.freed();
        data.totals.messages_copied += 1;
        self.lane.counters.messages_copied.raise();
        self.pump(data, after);
        Arrived { body, ..arrived }
    }

    /// Nothing can complete for it any more: its place in the lane is another's, and so are its
    /// receives, but for the buffers that the application still holds.
    pub(super) fn leave(&self) {
        let mut data = lock(&self.data);
        if std::mem::take(&mut data.has_place) {
            let held = data.credits.held();
            data.kept = self.lane.ledger.leave(data.reserved, held);
            data.reserved = held - data.kept;
        }
    }

    /// A message is dropped: its receive is free.
    pub(super) fn let_go(self: &Arc<Self>) {
        let mut after = After::default();
        let mut data = lock(&self.data);
        data.credits.freed();
        if !data.has_place {
            self.give_back(&mut data);
            return;
        }
        self.pump(&mut data, &mut after);
        self.release(data, after);
    }

    /// Ends an operation, and notes whom to tell.
    pub(super) fn end_operation(
        self: &Arc<Self>,
        data: &mut Data,
        operation: Operation,
        outcome: Outcome,
        after: &mut After,
    ) {
        match data.operations.end(operation, outcome) {
            Told::Nobody => {}
            Told::Waiter(waiter) => after.wake(waiter),
            Told::Upcall(operation, outcome) => {
                let Some(handle) = self.handle.get().copied() else {
                    return;
                };
                // Under the lock, so that the upcalls of a connection keep their order.
                let connection = Arc::clone(self);
                self.progress.queue(Upcall::Complete {
                    connection,
                    handle,
                    operation,
                    outcome,
                });
                after.wake_progress = true;
            }
        }
    }

    /// One buffer of those that were still held when the place was given back is free.
    fn give_back(&self, data: &mut Data) {
        if data.kept > 0 {
            data.kept -= 1;
            self.lane.ledger.release_kept(1);
        } else if data.reserved > 0 {
            data.reserved -= 1;
            self.lane.ledger.release(1);
        }
    }

    fn fail(self: &Arc<Self>, data: &mut Data, which: Pending, ending: Ending, after: &mut After) {
        for operation in data.operations.pending(which) {
            self.end_operation(data, operation, Outcome::Failed(ending), after);
        }
        data.sends.clear();
        data.receives.clear();
        self.fail_move(data, ending, after);
        // Waiting threads may sleep in the completion channel.
        after.kick = true;
    }

    /// What the caller of an operation is told.
    pub(crate) fn result(
        self: &Arc<Self>,
        operation: Operation,
        outcome: Outcome,
    ) -> OverlappedResult {
        let outcome = match outcome {
            Outcome::Sent(bytes) => Ok(Transferred {
                bytes,
                message: None,
            }),
            Outcome::Received(arrived) => Ok(Transferred {
                bytes: arrived.body.len(),
                message: Some(Message::new(arrived, self)),
            }),
            Outcome::Emptied => Ok(Transferred {
                bytes: 0,
                message: None,
            }),
            Outcome::Failed(ending) => Err(ending.into()),
        };
        OverlappedResult { operation, outcome }
    }

    /// Releases the lock, and does what is to be done without it.
    pub(super) fn release(&self, mut data: MutexGuard<'_, Data>, mut after: After) {
        self.follow(&mut data, &mut after);
        drop(data);
        if let Some(waiter) = after.waiter {
            waiter.unpark();
        }
        for waiter in after.more_waiters {
            waiter.unpark();
        }
        if after.wake_progress {
            self.progress.wake();
        }
        if after.kick {
            self.lane.kick();
        }
        if let Some(ending) = after.broken {
            self.control.send(Command::Break(self.token(), ending));
        }
    }

    /// Brings the ready events, and what the lane is told of the connection's wishes, in line with
    /// its state.
    fn follow(&self, data: &mut Data, after: &mut After) {
        if data.is_plain() {
            return;
        }
        let readable = data.is_readable();
        let writable = data.is_writable(self.lane.send_depth);
        set_to(&mut data.ready.readable, readable);
        set_to(&mut data.ready.writable, writable);

        let up = !matches!(data.link, Link::Down);
        let blocked = !data.sends.is_empty() && data.is_send_queue_full(self.lane.send_depth);
        let watches = up
            && (blocked
                || data.operations.upcalls(Direction::Send) > 0
                || (data.ready.writable.is_some() && !writable));
        if watches != data.watches_sends {
            data.watches_sends = watches;
            self.lane.watch_sends(watches);
            after.kick |= watches;
            after.wake_progress |= watches;
        }
        let wanted = up
            && (data.ready.readable.is_some()
                || data.ready.writable.is_some()
                || data.operations.upcalls(Direction::Send) > 0
                || data.operations.upcalls(Direction::Receive) > 0);
        if wanted != data.served_async {
            data.served_async = wanted;
            self.lane.serve_async(wanted);
            after.wake_progress |= wanted;
        }
        // Whoever sent may not come back for long, and the credits that they need come without
        // anybody waiting for them.
        let lazily = up && !data.sends.is_empty();
        if lazily != data.served_lazily {
            data.served_lazily = lazily;
            self.lane.serve_lazily(lazily);
            after.wake_progress |= lazily && !self.progress.ticks();
        }
    }
}

/// A queue pair of the lane's on `id`.
pub(super) fn queue_pair(lane: &Lane, id: &CmId, inline: u32) -> Result<PreparedQp, VerbsError> {
    let caps = QpCaps {
        send_wr: lane.send_depth,
        recv_wr: 0,
        sge: u32::try_from(MAX_SEGMENTS).unwrap_or(1),
        inline,
    };
    id.create_qp(
        &lane.pd,
        caps,
        &lane.send_cq,
        &lane.recv_cq,
        Some(&lane.srq),
    )
}

fn set_to(event: &mut Option<(EventObject, bool)>, state: bool) {
    if let Some((event, was)) = event
        && *was != state
    {
        *was = state;
        if state {
            event.set();
        } else {
            event.reset();
        }
    }
}

impl Data {
    /// Whether something can be received, or the end be seen.
    fn is_readable(&self) -> bool {
        !self.inbox.is_empty() || self.ending.is_some()
    }

    /// Whether nobody follows its state, nor has to.
    fn is_plain(&self) -> bool {
        let watched = self.watches_sends || self.served_async || self.served_lazily;
        let watches = self.ready.readable.is_some()
            || self.ready.writable.is_some()
            || self.operations.upcalls(Direction::Send) > 0
            || self.operations.upcalls(Direction::Receive) > 0;
        !watched && !watches && self.sends.is_empty()
    }

    /// Whether a send would go out at once, or fail at once.
    fn is_writable(&self, send_depth: u32) -> bool {
        self.ending.is_some()
            || (matches!(self.link, Link::Up(_))
                && self.sends.is_empty()
                && self.credits.may_send()
                && self.operations.has_room(Direction::Send)
                && !self.is_send_queue_full(send_depth))
    }

    /// One place is kept for a credit message.
    pub(super) fn is_send_queue_full(&self, send_depth: u32) -> bool {
        self.on_wire + 1 >= send_depth
    }

    /// Receives that are posted for it: for credits, for a credit message, for an answer.
    pub(super) fn posted_receives(&self) -> u32 {
        let outstanding = u32::try_from(self.credits.outstanding()).unwrap_or(0);
        outstanding + 1 + u32::from(self.answer_receive)
    }

    /// The queue pair may send from now on.
    pub(super) fn bring_up(&mut self) {
        self.link = match std::mem::replace(&mut self.link, Link::Down) {
            Link::Prepared(qp) => Link::Up(qp.established()),
            other => other,
        };
    }
}

/// A place in a lane and the receives that come with it, until a connection has taken them over.
struct Place {
    lane: Arc<Lane>,
    receives: u32,
}

impl Place {
    fn taken_over(mut self) {
        self.receives = 0;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.receives > 0 {
            self.lane.ledger.leave(self.receives, 0);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Messages hold the connection, so all its receives are free or posted by now, or in
        // operations whose end nobody asked for.
        let data = self.data.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !matches!(data.link, Link::Down) {
            data.link = Link::Down;
            self.lane.abandon(data.posted_receives());
        }
        data.inbox.clear();
        data.operations = OperationTable::new(0);
        if data.watches_sends {
            self.lane.watch_sends(false);
        }
        if data.served_async {
            self.lane.serve_async(false);
        }
        if data.served_lazily {
            self.lane.serve_lazily(false);
        }
        if data.has_place {
            self.lane.ledger.leave(data.reserved, 0);
        } else {
            self.lane.ledger.release(data.reserved);
            self.lane.ledger.release_kept(data.kept);
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("qp_num", &self.qp_num())
            .field("lane", &self.lane.name)
            .finish_non_exhaustive()
    }
}
