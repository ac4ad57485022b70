//! One connection's data path as a value: credits, operations, the inbox, the send queue and the
//! hand-over to another process.
//!
//! It is told what happened: a call of the application, a message, a completion, an end. It answers
//! at once where a caller waits for the answer, and otherwise keeps what is to be done:
//! [`Engine::next_post`] for the queue pair, [`Engine::effects`] for everybody else. It posts
//! nothing, wakes nobody, reads no clock and takes no lock; `connection/` does, and keeps the one
//! lock that the engine lives under. Buffers, RDMA jobs and wakers are the shell's: the engine
//! stores them and gives them back.

mod credits;
mod handover;
mod incoming;
mod operation;
mod outgoing;
mod post;
mod send_queue;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod sim;

use std::collections::VecDeque;
use std::ops::Deref;

use arrayvec::ArrayVec;

use self::credits::Credits;
use self::handover::Handover;
pub(crate) use self::handover::{Carried, Departure};
pub(crate) use self::incoming::{Came, FIRST_CONTROL_KIND};
pub use self::incoming::{Inbox, Receipt, Received};
pub(crate) use self::operation::{Direction, Look, Outcome, Unfinished};
pub use self::operation::{Notification, Operation};
use self::operation::{OperationTable, Told};
pub(crate) use self::post::{Answer, MessagePlan, Post};
use self::send_queue::SendQueue;
use crate::error::TransferError;
use crate::wire::Violation;

/// The token of a request that no operation waits for. No operation has it: there are fewer of them
/// than indices.
pub(crate) const NOBODYS: u32 = u32::MAX;

/// The token of a probe: nobody waits for it either, but no second one goes out meanwhile.
pub(crate) const PROBE: u32 = NOBODYS - 1;

/// Free receive buffers that are kept to be posted again without a way through the pool.
const SPENT: usize = 16;

/// What the engine keeps for its shell, and does not look into.
pub(crate) trait Payloads {
    /// A message's bytes, in memory that the device can reach.
    type Buffer: Deref<Target = [u8]>;
    /// An RDMA operation that waits to be posted.
    type Rdma;
    /// Whom to wake when an operation ends.
    type Waker;
}

/// Why a connection, or an operation, is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Closed by its owner.
    Aborted,
    /// Ended by the peer, or by its death.
    Reset,
    /// The peer does not answer.
    TimedOut,
    /// The device is gone.
    NetDown,
    /// The peer broke the protocol.
    Protocol(Violation),
    /// A buffer of another device was given: the end of that operation only.
    ForeignBuffer,
    /// Handed to another process.
    Moved,
    /// The peer's memory is not open: what the operation says, and the connection is reset.
    RemoteAccess,
}

impl From<Ending> for TransferError {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Aborted => Self::Aborted,
            Ending::Reset => Self::Reset,
            Ending::TimedOut => Self::TimedOut,
            Ending::NetDown => Self::NetDown,
            Ending::Protocol(violation) => Self::Protocol { violation },
            Ending::ForeignBuffer => Self::ForeignBuffer,
            Ending::RemoteAccess => Self::RemoteAccess,
            Ending::Moved => Self::Moved,
        }
    }
}

/// A message that came.
#[derive(Debug)]
pub(crate) struct Arrived<B> {
    pub(crate) body: Body<B>,
    pub(crate) kind: u8,
    /// Bytes of it that were read already.
    pub(crate) read: usize,
}

/// Where the bytes of a message are.
#[derive(Debug)]
pub(crate) enum Body<B> {
    /// In the buffer that it arrived in, which is its connection's.
    Received(B),
    /// In memory of its own.
    Copied(Box<[u8]>),
}

impl<B: Deref<Target = [u8]>> Deref for Arrived<B> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let bytes: &[u8] = match &self.body {
            Body::Received(buffer) => buffer,
            Body::Copied(bytes) => bytes,
        };
        bytes.get(self.read..).unwrap_or_default()
    }
}

/// What may be done with the queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// Not established: receives only.
    Prepared,
    Up,
    /// Nothing new may go out: one of the ends moves.
    Held,
    /// Gone.
    Down,
}

/// Which messages would go out at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Writable {
    Nothing,
    /// Those that go past the inbox, to which the others leave the last credit.
    Control,
    All,
}

/// What a connection counts by itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Totals {
    /// Data messages sent and received before the credits began anew.
    sent_before: u64,
    received_before: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) credit_messages_sent: u64,
    pub(crate) credit_messages_received: u64,
    pub(crate) sends_delayed: u64,
    pub(crate) messages_copied: u64,
    pub(crate) rdma_reads: u64,
    pub(crate) rdma_writes: u64,
    pub(crate) rdma_bytes_read: u64,
    pub(crate) rdma_bytes_written: u64,
}

/// What an engine is made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Receives set aside for the connection, now and at most.
    pub(crate) window: u32,
    pub(crate) most_window: u32,
    /// Operations at a time, for each direction.
    pub(crate) operations: u16,
    /// Requests that the send queue holds.
    pub(crate) send_depth: u32,
}

/// What the shell has to do for others once it has let the lock go; upcalls, whose order counts,
/// before.
pub(crate) struct Effects<P: Payloads> {
    /// There is something here.
    any: bool,
    pub(crate) waker: Option<P::Waker>,
    pub(crate) more_wakers: Vec<P::Waker>,
    pub(crate) upcalls: Vec<(Operation, Outcome<P::Buffer>)>,
    /// What the sink is told.
    pub(crate) ended: Vec<(Operation, Outcome<P::Buffer>)>,
    /// The connection is over.
    pub(crate) broken: Option<Ending>,
    /// Who polls has to look at what has changed.
    pub(crate) kick: bool,
    /// The peer asks whether it may move.
    pub(crate) peer_moves: bool,
    /// The receive for the peer's answer is not needed any more; whether it is still posted.
    pub(crate) answer_receive_over: Option<bool>,
    /// Messages that were given out as copies.
    pub(crate) copied: u32,
    /// A message waits that the layer above hears of though others wait.
    pub(crate) arrived: bool,
}

impl<P: Payloads> Default for Effects<P> {
    fn default() -> Self {
        Self {
            any: false,
            waker: None,
            more_wakers: Vec::new(),
            upcalls: Vec::new(),
            ended: Vec::new(),
            broken: None,
            kick: false,
            peer_moves: false,
            answer_receive_over: None,
            copied: 0,
            arrived: false,
        }
    }
}

impl<P: Payloads> Effects<P> {
    fn wake(&mut self, waker: P::Waker) {
        self.any = true;
        // One is what a message needs; the vector stays empty, so nothing is allocated for it.
        match self.waker {
            None => self.waker = Some(waker),
            Some(_) => self.more_wakers.push(waker),
        }
    }

    fn kick(&mut self) {
        self.any = true;
        self.kick = true;
    }
}

/// The data path of one connection.
pub(crate) struct Engine<P: Payloads> {
    link: Link,
    /// Why it is over, if it is.
    ending: Option<Ending>,
    /// Data messages whose requests failed: nobody knows whether they arrived.
    failed_messages: u32,
    credits: Credits,
    totals: Totals,
    /// Bytes that a message to the peer may have; 0 until the peer has said so.
    send_limit: usize,
    /// Bytes that an RDMA operation may have; 0 until the peer has said so.
    rdma_limit: usize,
    /// Messages that nobody has asked for yet (duty 92).
    inbox: VecDeque<Arrived<P::Buffer>>,
    /// Receives that wait, oldest first.
    receives: VecDeque<Operation>,
    /// Threads that wait for a message without an operation.
    arrival: Vec<P::Waker>,
    /// Sends that wait for a credit or for a place on the send queue, oldest first.
    sends: VecDeque<Operation>,
    operations: OperationTable<P>,
    queue: SendQueue,
    /// One of this end, or of the peer, moves to another process.
    handover: Option<Box<Handover<P>>>,
    /// The peer takes messages about moving.
    peer_takes_moves: bool,
    /// A receive is posted for the peer's answer, beyond those of the credits.
    answer_receive: bool,
    /// Messages of kinds for the layer above are given out as they come ([`Came::Control`]).
    control_aside: bool,
    /// The layer above hears of each message that waits.
    tell_each: bool,
    /// How much had moved when [`Engine::probe_is_due`] was last asked.
    moved_at_probe: u64,
    probe_under_way: bool,
    /// Buffers of receives that are owed.
    spent: ArrayVec<P::Buffer, SPENT>,
    effects: Effects<P>,
}

impl<P: Payloads> Engine<P> {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            link: Link::Prepared,
            ending: None,
            failed_messages: 0,
            credits: Credits::new(settings.window, settings.most_window),
            totals: Totals::default(),
            send_limit: 0,
            rdma_limit: 0,
            inbox: VecDeque::new(),
            receives: VecDeque::new(),
            arrival: Vec::new(),
            sends: VecDeque::new(),
            operations: OperationTable::new(settings.operations),
            queue: SendQueue::new(settings.send_depth),
            handover: None,
            peer_takes_moves: false,
            answer_receive: false,
            control_aside: false,
            tell_each: false,
            moved_at_probe: u64::MAX,
            probe_under_way: false,
            spent: ArrayVec::new(),
            effects: Effects::default(),
        }
    }

    /// What the peer said in the negotiation: how long messages and RDMA operations may be, the
    /// credits that it gives, and whether it knows about moving.
    pub(crate) fn negotiated(
        &mut self,
        (send_limit, rdma_limit): (usize, usize),
        credits: u16,
        takes_moves: bool,
    ) -> Result<(), Violation> {
        self.send_limit = send_limit;
        self.rdma_limit = rdma_limit;
        self.peer_takes_moves = takes_moves;
        self.credits.credits_came(credits)
    }

    /// The queue pair may send from now on. `true`: it could not before.
    pub(crate) fn bring_up(&mut self) -> bool {
        let was_prepared = self.link == Link::Prepared;
        if was_prepared {
            self.link = Link::Up;
        }
        was_prepared
    }

    /// Everything that arrived is delivered: what waits fails. What the device still has ends by its
    /// completion.
    pub(crate) fn finish(&mut self, ending: Ending) {
        if self.ending.is_none() {
            self.ending = Some(ending);
            // Also if messages wait.
            self.effects.arrived = self.control_aside;
            self.fail(Unfinished::NotPosted, ending);
        }
    }

    /// The owner is about to close: what the disconnect flushes was aborted.
    pub(crate) fn abort(&mut self) {
        self.ending = Some(Ending::Aborted);
    }

    /// The queue pair is about to go. `false`: it has gone already.
    pub(crate) fn begin_close(&mut self) -> bool {
        self.ending = Some(Ending::Aborted);
        std::mem::replace(&mut self.link, Link::Down) != Link::Down
    }

    /// The queue pair is gone: lets go of all memory. Operations stay pending.
    pub(crate) fn drop_memory(&mut self) {
        self.operations.drop_jobs();
        while let Some(arrived) = self.inbox.pop_front() {
            if let Body::Received(buffer) = arrived.body {
                drop(buffer);
                self.credits.freed();
            }
        }
        self.spent.clear();
    }

    /// All memory is free: what is pending ends.
    pub(crate) fn end_close(&mut self) {
        self.fail(Unfinished::All, Ending::Aborted);
    }

    fn fail(&mut self, which: Unfinished, ending: Ending) {
        for operation in self.operations.pending(which) {
            self.end_operation(operation, Outcome::Failed(ending));
        }
        self.sends.clear();
        self.receives.clear();
        self.fail_handover(ending);
        self.wake_arrival();
        // Waiting threads may sleep in the completion channel.
        self.effects.kick();
    }

    /// Ends an operation, and notes whom to tell.
    fn end_operation(&mut self, operation: Operation, outcome: Outcome<P::Buffer>) {
        match self.operations.end(operation, outcome) {
            Told::Nobody => {}
            Told::Waiter(waker) => self.effects.wake(waker),
            Told::Upcall(operation, outcome) => {
                self.effects.any = true;
                self.effects.upcalls.push((operation, outcome));
            }
            Told::Sink(operation, outcome) => {
                self.effects.any = true;
                self.effects.ended.push((operation, outcome));
            }
        }
    }

    /// The connection is over, unless it was only one operation that could not be.
    pub(crate) fn break_with(&mut self, ending: Ending) {
        let ending = match ending {
            Ending::ForeignBuffer => return,
            Ending::RemoteAccess => Ending::Reset,
            ending => ending,
        };
        // What is posted after a message that failed would leave a gap before it, or come twice.
        if self.link == Link::Up {
            self.link = Link::Held;
        }
        self.effects.any = true;
        self.effects.broken.get_or_insert(ending);
    }

    /// What is to be done for others, if there is anything.
    pub(crate) fn effects(&mut self) -> Option<Effects<P>> {
        self.effects.any.then(|| std::mem::take(&mut self.effects))
    }

    /// Whether [`Engine::effects`] has something.
    #[inline]
    pub(crate) fn has_effects(&self) -> bool {
        self.effects.any
    }

    /// Whether the connection is about to be broken.
    pub(crate) fn is_breaking(&self) -> bool {
        self.effects.broken.is_some()
    }

    /// Whether somebody has to be served who does not wait: operations that end by upcall, or sends
    /// that are queued.
    #[inline]
    pub(crate) fn is_followed(&self) -> bool {
        self.operations.any_upcalls() || !self.sends.is_empty()
    }

    /// Whether messages come and go as simply as can be: nothing waits, neither here nor for others to be
    /// told, nobody asks for more than that, and it is not over.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.link == Link::Up
            && self.ending.is_none()
            && self.sends.is_empty()
            && self.receives.is_empty()
            && self.inbox.is_empty()
            && self.handover.is_none()
            && !self.tell_each
            && !self.operations.any_upcalls()
            && !self.effects.any
    }

    /// What an operation says, once.
    pub(crate) fn look(&mut self, operation: Operation) -> Look<P::Buffer> {
        self.operations.take(operation)
    }

    /// As [`Engine::look`]; if it is pending, `waker` is woken at its end.
    pub(crate) fn look_or_wait(
        &mut self,
        operation: Operation,
        waker: Option<P::Waker>,
    ) -> Look<P::Buffer> {
        let look = self.operations.take(operation);
        if matches!(look, Look::Pending(_)) {
            self.operations.set_waiter(operation, waker);
        }
        look
    }

    /// Whether transfers can be started.
    #[inline]
    pub(crate) fn check(&self) -> Result<(), TransferError> {
        match (self.ending, self.link) {
            (None, Link::Prepared | Link::Up | Link::Held) => Ok(()),
            (Some(Ending::Aborted), _) | (_, Link::Down) => Err(TransferError::NotSocket),
            (Some(ending), _) => Err(ending.into()),
        }
    }

    /// Whether anything can be sent, written or read, now or later.
    pub(crate) fn check_outgoing(&self) -> Result<(), TransferError> {
        self.check()?;
        match &self.handover {
            Some(handover) if handover.is_ours() => Err(TransferError::Moved),
            _ => Ok(()),
        }
    }

    #[inline]
    pub(crate) fn link(&self) -> Link {
        self.link
    }

    pub(crate) fn send_limit(&self) -> usize {
        self.send_limit
    }

    pub(crate) fn rdma_limit(&self) -> usize {
        self.rdma_limit
    }

    pub(crate) fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Data messages sent and received since the connection was made.
    pub(crate) fn messages(&self) -> (u64, u64) {
        (
            self.totals.sent_before + self.credits.sent(),
            self.totals.received_before + self.credits.received(),
        )
    }

    /// Sends that wait, messages that nobody has asked for, and receives set aside.
    pub(crate) fn waiting(&self) -> (usize, usize, u32) {
        (self.sends.len(), self.inbox.len(), self.credits.window())
    }

    pub(crate) fn window(&self) -> u32 {
        self.credits.window()
    }

    /// Data messages that the transport may not have acknowledged yet.
    pub(crate) fn unacknowledged(&self) -> u32 {
        self.queue.messages() + self.failed_messages
    }

    /// Operations under way that end by upcall.
    pub(crate) fn upcalls(&self, direction: Direction) -> u16 {
        self.operations.upcalls(direction)
    }

    /// Whether something can be received, or the end be seen.
    #[inline]
    pub(crate) fn is_readable(&self) -> bool {
        !self.inbox.is_empty() || self.ending.is_some()
    }

    /// Whether it has ended, or broken.
    pub(crate) fn is_over(&self) -> bool {
        self.ending.is_some()
    }

    /// Whether a send would go out at once, or fail at once.
    pub(crate) fn is_writable(&self) -> bool {
        self.writable() == Writable::All
    }

    /// What would go out at once, or fail at once.
    pub(crate) fn writable(&self) -> Writable {
        if self.ending.is_some() {
            return Writable::All;
        }
        match self.operations.has_room(Direction::Send) {
            true if self.can_send_now() => Writable::All,
            true if self.can_send_control() => Writable::Control,
            _ => Writable::Nothing,
        }
    }

    /// Receives that are posted for it: for credits, for a credit message, for an answer.
    pub(crate) fn posted_receives(&self) -> u32 {
        let outstanding = u32::try_from(self.credits.outstanding()).unwrap_or(0);
        outstanding + self.credits.untold() + 1 + u32::from(self.answer_receive)
    }

    /// Receives whose messages are in the application's hands or in the inbox.
    pub(crate) fn held(&self) -> u32 {
        self.credits.held()
    }

    /// Whether messages of kinds for the layer above, from now on, do not wait behind others.
    pub(crate) fn set_control_aside(&mut self, aside: bool) {
        self.control_aside = aside;
        self.credits.reserve(aside);
    }

    /// Whether the layer above hears of each message that waits, and not only of the first and of
    /// those that are no plain data.
    pub(crate) fn set_tell_each(&mut self, each: bool) {
        self.tell_each = each;
    }

    /// What waits to be received.
    pub(crate) fn inbox(&self) -> Inbox {
        Inbox {
            first: self.inbox.front().map(|arrived| arrived.kind),
            last: self.inbox.back().map(|arrived| arrived.kind),
            is_over: self.ending.is_some(),
        }
    }
}
