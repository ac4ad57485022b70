//! Calls that receive messages, and that ask for the result of an operation.

use std::io::IoSliceMut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::sync::Unparker;
use parking_lot::MutexGuard;
use verbs_shim::RegisteredBuffer;

use super::{Connection, State};
use crate::error::{ResultError, TransferError};
use crate::transfer::Lane;
use crate::transfer::engine::{
    Arrived, Direction, Inbox, Look, Notification, Operation, Outcome, Receipt, Received,
};
use crate::transfer::lane::{See, Wanted};
use crate::transfer::message::{Message, OverlappedResult};

type Taken = Result<Arrived<RegisteredBuffer>, TransferError>;

impl Connection {
    /// Starts to receive a message. One that is here already is taken at once.
    pub(crate) fn start_receive(
        &self,
        completion: Notification,
    ) -> Result<Operation, TransferError> {
        let mut state = self.lock_state();
        let operation = state.engine.start_receive(completion)?;
        self.work_and_settle(state);
        Ok(operation)
    }

    /// A message that is here, or would be after one look at the device.
    pub(crate) fn try_receive(self: &Arc<Self>) -> Result<Message, TransferError> {
        let mut wanted = NextMessage::of(self);
        let taken = wanted.check(None).or_else(|| {
            self.lane.poll_once();
            wanted.check(None)
        });
        let taken = taken.unwrap_or(Err(TransferError::WouldBlock));
        taken.map(|arrived| Message::new(arrived, self))
    }

    /// A message that is here, or comes within `wait`.
    pub(crate) fn receive_within(
        self: &Arc<Self>,
        wait: Duration,
    ) -> Result<Message, TransferError> {
        let taken = self.lane.wait(wait, &mut NextMessage::of(self));
        let taken = taken.unwrap_or(Err(TransferError::WouldBlock));
        taken.map(|arrived| Message::new(arrived, self))
    }

    /// Copies what is here, or comes within `wait`, into `buffers`: the bytes of as many messages of
    /// one kind as there are and fit. `called_off`, followed by [`Connection::wake`], ends the wait.
    // Always: whoever calls it does little else, and to save the registers once more would cost a tenth of it.
    #[inline(always)]
    pub(crate) fn receive_into(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        wait: Duration,
        called_off: &AtomicBool,
    ) -> Receipt {
        let mut wanted = NextBytes {
            connection: self,
            buffers,
            receipt: Receipt::Nothing,
            called_off,
        };
        // Who waits looks at first, too.
        if !self.may_have_something() || wanted.check_under_lock(None).is_none() {
            let _ = self.lane.wait(wait, &mut wanted);
        }
        wanted.receipt
    }

    /// Why nothing was received, if nothing was.
    pub(crate) fn explain(&self, receipt: Receipt) -> Result<Received, TransferError> {
        match receipt {
            Receipt::Of(received) => Ok(received),
            Receipt::Over => {
                let over = self.check_going_on().err();
                Err(over.unwrap_or(TransferError::WouldBlock))
            }
            Receipt::Nothing => Err(TransferError::WouldBlock),
        }
    }

    /// Waits until `flag` is set and [`Connection::wake`] was called after that; at most `wait`. What is
    /// sent is looked at, too.
    pub(crate) fn wait_for(&self, flag: &AtomicBool, wait: Duration) -> bool {
        let _interest = SendInterest::new(self);
        let mut wanted = Flagged {
            connection: self,
            flag,
        };
        self.lane.wait(wait, &mut wanted).is_some()
    }

    /// Polls the lane once, if no other thread does.
    pub(crate) fn poll(&self) {
        self.lane.poll_once();
    }

    /// Why the connection is over, if it is.
    pub(crate) fn check_going_on(&self) -> Result<(), TransferError> {
        self.lock_state().engine.check()
    }

    /// What waits to be received.
    pub(crate) fn inbox(&self) -> Inbox {
        self.lock_state().engine.inbox()
    }

    /// Whether a send would go out at once, or fail at once.
    pub(crate) fn is_writable(&self) -> bool {
        self.lock_state().engine.is_writable()
    }

    /// The result of an operation; waits for it at most `wait`, if given (duty 96).
    pub(crate) fn overlapped_result(
        self: &Arc<Self>,
        operation: Operation,
        wait: Option<Duration>,
    ) -> Result<OverlappedResult, ResultError> {
        let direction = match self.lock_state().engine.look(operation) {
            Look::Done(outcome) => return Ok(OverlappedResult::new(operation, outcome, self)),
            Look::Unknown => return Err(ResultError::UnknownOperation),
            Look::Pending(direction) => direction,
        };
        let mut wanted = Ended {
            connection: self,
            operation,
            found: None,
        };
        let found = match wait {
            None => {
                self.lane.poll_once();
                wanted.check(None)
            }
            Some(wait) => {
                let _interest = (direction == Direction::Send).then(|| SendInterest::new(self));
                self.lane.wait(wait, &mut wanted)
            }
        };
        match found {
            Some(Some(outcome)) => Ok(OverlappedResult::new(operation, outcome, self)),
            Some(None) => Err(ResultError::UnknownOperation),
            None => Err(ResultError::Incomplete),
        }
    }

    /// Whether anything can be received, or the end be seen. Who polls, or has the polling role,
    /// knows of all that came before.
    pub(crate) fn may_have_something(&self) -> bool {
        self.readable.load(Ordering::Acquire)
    }

    fn work_and_settle(&self, mut state: MutexGuard<'_, State>) {
        if state.engine.has_work() {
            self.pump(&mut state);
        }
        self.settle(state);
    }
}

/// A thread that waits for the next message.
struct NextMessage<'a> {
    connection: &'a Connection,
    found: Option<Taken>,
}

impl<'a> NextMessage<'a> {
    fn of(connection: &'a Connection) -> Self {
        Self {
            connection,
            found: None,
        }
    }
}

impl See<Connection, State> for NextMessage<'_> {
    fn see(&mut self, member: &Connection, state: &mut State) {
        if std::ptr::eq(member, self.connection) && self.found.is_none() {
            self.found = state.engine.take_message();
        }
    }
}

impl Wanted<Lane> for NextMessage<'_> {
    type Found = Taken;

    fn seen(&mut self) -> Option<Taken> {
        self.found.take()
    }

    fn check(&mut self, waker: Option<&Unparker>) -> Option<Taken> {
        if waker.is_none() && !self.connection.may_have_something() {
            return None;
        }
        let mut state = self.connection.lock_state();
        let taken = state.engine.take_message();
        state.wait_for_arrival(taken.is_none(), waker);
        self.connection.work_and_settle(state);
        taken
    }
}

/// A thread that waits for bytes. What it finds stays here: to hand it through the poller costs more
/// than to find it.
struct NextBytes<'a, 'b> {
    connection: &'a Connection,
    buffers: &'a mut [IoSliceMut<'b>],
    receipt: Receipt,
    /// It waits no longer.
    called_off: &'a AtomicBool,
}

impl See<Connection, State> for NextBytes<'_, '_> {
    #[inline(always)]
    fn take(&mut self, member: &Connection, kind: u8, bytes: &[u8]) -> bool {
        if let [buffer] = &mut *self.buffers
            && let Some(place) = buffer.get_mut(..bytes.len())
            && std::ptr::eq(member, self.connection)
            && matches!(self.receipt, Receipt::Nothing)
            && !self.called_off.load(Ordering::Acquire)
        {
            place.copy_from_slice(bytes);
            self.receipt = Receipt::Of(Received {
                bytes: bytes.len(),
                kind,
                whole: true,
            });
            return true;
        }
        false
    }

    #[inline]
    fn see(&mut self, member: &Connection, state: &mut State) {
        if std::ptr::eq(member, self.connection) {
            self.read(state);
        }
    }
}

impl Wanted<Lane> for NextBytes<'_, '_> {
    type Found = ();

    #[inline]
    fn seen(&mut self) -> Option<()> {
        let is_over = !matches!(self.receipt, Receipt::Nothing);
        (is_over || self.called_off.load(Ordering::Acquire)).then_some(())
    }

    #[inline]
    fn check(&mut self, waker: Option<&Unparker>) -> Option<()> {
        if waker.is_none() && !self.connection.may_have_something() {
            return self.seen();
        }
        self.check_under_lock(waker)
    }
}

impl NextBytes<'_, '_> {
    /// Reads what is here, unless it was called off before that came: then it may be somebody else's to
    /// say where it belongs.
    #[inline]
    fn read(&mut self, state: &mut State) {
        if self.seen().is_some() {
            return;
        }
        self.receipt = match state.engine.read_into(self.buffers) {
            Some(Ok(received)) => Receipt::Of(received),
            // It stays so.
            Some(Err(_)) => Receipt::Over,
            None => Receipt::Nothing,
        };
    }

    #[inline(never)]
    fn check_under_lock(&mut self, waker: Option<&Unparker>) -> Option<()> {
        let mut state = self.connection.lock_state();
        self.read(&mut state);
        state.wait_for_arrival(matches!(self.receipt, Receipt::Nothing), waker);
        self.connection.work_and_settle(state);
        self.seen()
    }
}

impl State {
    /// Has the waker told of the next message, if there is none now.
    fn wait_for_arrival(&mut self, waits: bool, waker: Option<&Unparker>) {
        if waits && let Some(waker) = waker {
            self.engine.tell_of_arrival(waker.clone());
        }
    }
}

/// A thread that waits for another to say so.
struct Flagged<'a> {
    connection: &'a Connection,
    flag: &'a AtomicBool,
}

impl See<Connection, State> for Flagged<'_> {
    fn see(&mut self, _: &Connection, _: &mut State) {}
}

impl Wanted<Lane> for Flagged<'_> {
    type Found = ();

    fn seen(&mut self) -> Option<()> {
        self.flag.load(Ordering::Acquire).then_some(())
    }

    fn check(&mut self, waker: Option<&Unparker>) -> Option<()> {
        if let Some(waker) = waker {
            let mut state = self.connection.lock_state();
            state.wait_for_arrival(true, Some(waker));
            self.connection.settle(state);
        }
        self.seen()
    }
}

/// A thread that waits for the end of an operation. `Some(None)`: there is no such operation, or
/// its result was taken by another thread.
struct Ended<'a> {
    connection: &'a Connection,
    operation: Operation,
    found: Option<Option<Outcome<RegisteredBuffer>>>,
}

impl Ended<'_> {
    fn look(
        &self,
        state: &mut State,
        waker: Option<Unparker>,
    ) -> Option<Option<Outcome<RegisteredBuffer>>> {
        match state.engine.look_or_wait(self.operation, waker) {
            Look::Done(outcome) => Some(Some(outcome)),
            Look::Unknown => Some(None),
            Look::Pending(_) => None,
        }
    }
}

impl See<Connection, State> for Ended<'_> {
    fn see(&mut self, member: &Connection, state: &mut State) {
        if std::ptr::eq(member, self.connection) && self.found.is_none() {
            self.found = self.look(state, None);
        }
    }
}

impl Wanted<Lane> for Ended<'_> {
    type Found = Option<Outcome<RegisteredBuffer>>;

    fn seen(&mut self) -> Option<Self::Found> {
        self.found.take()
    }

    fn check(&mut self, waker: Option<&Unparker>) -> Option<Self::Found> {
        let mut state = self.connection.lock_state();
        self.look(&mut state, waker.cloned())
    }
}

/// A thread that waits for a send: the polling thread has to hear of send completions.
pub(super) struct SendInterest<'a>(&'a Connection);

impl<'a> SendInterest<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        connection.lane.watch_sends(true);
        connection.lane.kick();
        Self(connection)
    }
}

impl Drop for SendInterest<'_> {
    fn drop(&mut self) {
        self.0.lane.watch_sends(false);
    }
}
