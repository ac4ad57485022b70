//! Calls that start transfers and ask for their results.
//!
//! They check, start, and return (duty 93). Only a call that is told to wait waits.

use std::sync::Arc;
use std::time::Duration;

use verbs_shim::RegisteredBuffer;

use super::connection::{After, Connection, Data, Link};
use super::message::Message;
use super::operation::{
    Completion, Direction, Ending, Look, Operation, Outcome, OverlappedResult, SendJob,
};
use crate::error::{ResultError, TransferError};
use crate::event::EventObject;
use crate::sync::lock;
use crate::time::Deadline;

/// The bytes of a message to send.
#[derive(Debug)]
pub(crate) enum Payload<'a> {
    /// Copied before the call returns.
    Bytes(&'a [u8]),
    /// Sent from where they are.
    Buffer(RegisteredBuffer),
}

impl Payload<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Buffer(buffer) => buffer.len(),
        }
    }
}

impl Connection {
    /// A registered buffer to fill and send.
    pub(crate) fn send_buffer(&self) -> Result<RegisteredBuffer, TransferError> {
        self.lane.send_buffer()?.ok_or(TransferError::NoBuffers)
    }

    /// Starts to send a message.
    pub(crate) fn start_send(
        self: &Arc<Self>,
        payload: Payload<'_>,
        kind: u8,
        completion: Completion,
    ) -> Result<Operation, TransferError> {
        // Before the lock is taken: it may have to be registered.
        let payload = match payload {
            Payload::Bytes(bytes) if bytes.len() > self.inline => {
                self.check_length(bytes.len())?;
                let mut buffer = self.send_buffer()?;
                buffer.fill(bytes);
                Payload::Buffer(buffer)
            }
            payload => payload,
        };
        let mut data = lock(&self.data);
        if !data.operations.has_room(Direction::Send) || self.is_send_queue_full(&data) {
            // Completions of earlier sends may be waiting to be seen.
            drop(data);
            self.lane.poll_if_free();
            data = lock(&self.data);
        }
        data.check()?;
        if data.send_limit == 0 {
            return Err(TransferError::NotConnected);
        }
        if payload.len() > data.send_limit {
            let (length, limit) = (payload.len(), data.send_limit);
            return Err(TransferError::MessageTooLong { length, limit });
        }
        if !data.operations.has_room(Direction::Send) {
            return Err(TransferError::WouldBlock);
        }
        let mut after = After::default();
        let started = if data.sends.is_empty() && self.may_post(&data) {
            self.post_now(&mut data, payload, kind, completion, &mut after)
        } else {
            self.queue(&mut data, payload, kind, completion)
        };
        self.release(data, after);
        started
    }

    fn post_now(
        self: &Arc<Self>,
        data: &mut Data,
        payload: Payload<'_>,
        kind: u8,
        completion: Completion,
        after: &mut After,
    ) -> Result<Operation, TransferError> {
        let operation = data.operations.post_send(payload.len(), completion);
        let posted = match payload {
            Payload::Bytes(bytes) => self.post_inline(data, operation, bytes, kind),
            Payload::Buffer(buffer) => self.post_buffer(data, operation, buffer, kind),
        };
        match posted {
            Ok(()) => Ok(operation),
            Err(ending) => {
                data.operations.cancel(operation);
                after.break_with(ending);
                Err(ending.into())
            }
        }
    }

    fn queue(
        &self,
        data: &mut Data,
        payload: Payload<'_>,
        kind: u8,
        completion: Completion,
    ) -> Result<Operation, TransferError> {
        let buffer = match payload {
            Payload::Buffer(buffer) => buffer,
            Payload::Bytes(bytes) => {
                let mut buffer = self.send_buffer()?;
                buffer.fill(bytes);
                buffer
            }
        };
        let operation = data
            .operations
            .queue_send(SendJob { buffer, kind }, completion);
        data.sends.push_back(operation);
        self.lane.counters.sends_delayed.raise();
        data.totals.sends_delayed += 1;
        Ok(operation)
    }

    /// Starts to receive a message. One that is here already is taken at once.
    pub(crate) fn start_receive(
        self: &Arc<Self>,
        completion: Completion,
    ) -> Result<Operation, TransferError> {
        let mut after = After::default();
        let mut data = lock(&self.data);
        if data.inbox.is_empty() {
            data.check()?;
        } else if matches!(data.link, Link::Down) {
            return Err(TransferError::NotSocket);
        }
        if !data.operations.has_room(Direction::Receive) {
            return Err(TransferError::WouldBlock);
        }
        let operation = data.operations.wait_receive(completion);
        match data.inbox.pop_front() {
            Some(arrived) => {
                let outcome = Outcome::Received(arrived);
                self.end_operation(&mut data, operation, outcome, &mut after);
            }
            None => data.receives.push_back(operation),
        }
        self.release(data, after);
        Ok(operation)
    }

    /// A message that is here, or would be after one look at the device.
    pub(crate) fn try_receive(self: &Arc<Self>) -> Result<Message, TransferError> {
        for attempt in 0..2 {
            let mut data = lock(&self.data);
            // Receives that were started come first.
            if data.receives.is_empty()
                && let Some(arrived) = data.inbox.pop_front()
            {
                self.release(data, After::default());
                return Ok(Message::new(arrived, self));
            }
            if data.receives.is_empty() {
                data.check()?;
            }
            drop(data);
            if attempt == 0 {
                self.lane.poll_if_free();
            }
        }
        Err(TransferError::WouldBlock)
    }

    /// The result of an operation; waits for it at most `wait`, if given (duty 96).
    pub(crate) fn overlapped_result(
        self: &Arc<Self>,
        operation: Operation,
        wait: Option<Duration>,
    ) -> Result<OverlappedResult, ResultError> {
        let direction = match self.look(operation)? {
            Look::Done(outcome) => return Ok(self.result(operation, outcome)),
            Look::Unknown => return Err(ResultError::UnknownOperation),
            Look::Pending(direction) => direction,
        };
        let found = match wait {
            None => {
                self.lane.poll_if_free();
                self.check(operation, None)
            }
            Some(wait) => {
                let _interest = (direction == Direction::Send).then(|| Interest::new(self));
                self.lane.wait(Deadline::after(wait), |waiter| {
                    self.check(operation, waiter.cloned())
                })
            }
        };
        match found {
            Some(Some(outcome)) => Ok(self.result(operation, outcome)),
            Some(None) => Err(ResultError::UnknownOperation),
            None => Err(ResultError::Incomplete),
        }
    }

    fn look(&self, operation: Operation) -> Result<Look, ResultError> {
        Ok(lock(&self.data).operations.take(operation))
    }

    /// `Some(None)`: there is no such operation, or its result was taken by another thread.
    fn check(
        &self,
        operation: Operation,
        waiter: Option<crossbeam::sync::Unparker>,
    ) -> Option<Option<Outcome>> {
        let mut data = lock(&self.data);
        match data.operations.take(operation) {
            Look::Done(outcome) => Some(Some(outcome)),
            Look::Unknown => Some(None),
            Look::Pending(_) => {
                data.operations.set_waiter(operation, waiter);
                None
            }
        }
    }

    /// An event that is set while something can be received, or while a send would go out at once.
    pub(crate) fn select_ready(&self, direction: Direction, event: Option<&EventObject>) {
        let mut data = lock(&self.data);
        // Begins as not set, so that it is set when it should be.
        let event = event.map(|event| (event.clone(), false));
        match direction {
            Direction::Receive => data.ready.readable = event,
            Direction::Send => data.ready.writable = event,
        }
        self.release(data, After::default());
    }

    /// Bytes that a message to the peer may have; 0 until the peer has said so.
    pub(crate) fn send_limit(&self) -> usize {
        lock(&self.data).send_limit
    }

    fn check_length(&self, length: usize) -> Result<(), TransferError> {
        match self.send_limit() {
            0 => lock(&self.data)
                .check()
                .and(Err(TransferError::NotConnected)),
            limit if length > limit => Err(TransferError::MessageTooLong { length, limit }),
            _ => Ok(()),
        }
    }

    fn is_send_queue_full(&self, data: &Data) -> bool {
        data.is_send_queue_full(self.lane.send_depth)
    }
}

impl Data {
    /// Whether transfers can be started.
    fn check(&self) -> Result<(), TransferError> {
        match (self.ending, &self.link) {
            (Some(Ending::Aborted), _) | (_, Link::Down) => Err(TransferError::NotSocket),
            (Some(ending), _) => Err(ending.into()),
            (None, _) => Ok(()),
        }
    }
}

/// A thread that waits for a send: the polling thread has to hear of send completions.
struct Interest<'a>(&'a Connection);

impl<'a> Interest<'a> {
    fn new(connection: &'a Connection) -> Self {
        connection.lane.watch_sends(true);
        connection.lane.kick();
        Self(connection)
    }
}

impl Drop for Interest<'_> {
    fn drop(&mut self) {
        self.0.lane.watch_sends(false);
    }
}
