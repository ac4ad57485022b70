//! Calls that start transfers and ask for their results.
//!
//! They check, start, and return (duty 93). Only a call that is told to wait waits.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use verbs_shim::RegisteredBuffer;

use super::connection::{After, Connection, Data, Link};
use super::message::Message;
use super::operation::{
    Completion, Direction, Ending, Look, Operation, Outcome, OverlappedResult, SendJob,
};
use super::rdma::Fence;
use crate::error::{ResultError, TransferError};
use crate::event::EventObject;
use crate::sync::lock;

/// The bytes of a message to send.
#[derive(Debug)]
pub(crate) enum Payload<'a> {
    /// Copied before the call returns.
    Bytes(&'a [u8]),
    /// Sent from where they are.
    Buffer(RegisteredBuffer),
}

impl Payload<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Buffer(buffer) => buffer.len(),
        }
    }
}

impl Connection {
    /// A registered buffer to fill and send.
    pub(crate) fn send_buffer(&self) -> Result<RegisteredBuffer, TransferError> {
        if let Some(buffer) = self.lane.send_buffer()? {
            return Ok(buffer);
        }
        // Finished sends may hold some.
        self.lane.poll_if_free();
        self.lane.send_buffer()?.ok_or_else(|| {
            let data = lock(&self.data);
            // Who has sends under way is told when it may go on.
            match data.sends.is_empty() && data.on_wire == 0 {
                true => TransferError::NoBuffers,
                false => TransferError::WouldBlock,
            }
        })
    }

    /// Starts to send a message.
    pub(crate) fn start_send(
        self: &Arc<Self>,
        payload: Payload<'_>,
        kind: u8,
        fence: Fence,
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
            data = self.after_a_look(data);
        }
        data.check_send(payload.len())?;
        if !data.operations.has_room(Direction::Send) {
            return Err(TransferError::WouldBlock);
        }
        let mut after = After::default();
        data.fence = fence == Fence::AfterReads;
        let started = if data.sends.is_empty() && self.may_post(&data) {
            self.post_now(&mut data, payload, kind, completion, &mut after)
        } else {
            self.queue(&mut data, payload, kind, completion)
        };
        self.release(data, after);
        started
    }

    /// Sends a message if it can go out at once; no operation stands for it.
    pub(crate) fn try_send(self: &Arc<Self>, bytes: &[u8], kind: u8) -> Result<(), TransferError> {
        let mut data = self.room_to_send(bytes.len())?;
        let payload = if bytes.len() > self.inline {
            // It may have to be registered.
            drop(data);
            let mut buffer = self.send_buffer()?;
            buffer.fill(bytes);
            data = self.room_to_send(bytes.len())?;
            Payload::Buffer(buffer)
        } else {
            Payload::Bytes(bytes)
        };
        let mut after = After::default();
        let posted = self.post_untold(&mut data, payload, kind);
        if let Err(ending) = posted {
            after.break_with(ending);
        }
        self.release(data, after);
        posted.map_err(TransferError::from)
    }

    /// The lock, once a message of `length` bytes can go out at once.
    fn room_to_send(&self, length: usize) -> Result<MutexGuard<'_, Data>, TransferError> {
        let mut data = lock(&self.data);
        let may_go = |data: &Data| data.sends.is_empty() && self.may_post(data);
        if !may_go(&data) {
            // Completions and credits may be waiting to be seen.
            data = self.after_a_look(data);
        }
        data.check_send(length)?;
        match may_go(&data) {
            true => Ok(data),
            false => Err(TransferError::WouldBlock),
        }
    }

    /// The lock again, after a look for completions that nobody has seen yet.
    pub(super) fn after_a_look<'a>(&'a self, data: MutexGuard<'a, Data>) -> MutexGuard<'a, Data> {
        drop(data);
        self.lane.poll_if_free();
        lock(&self.data)
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

    /// Queues a message, in a buffer. Nobody queues more than are left to the others, so that the
    /// buffers of those whose peers take nothing in are never all.
    fn queue(
        &self,
        data: &mut Data,
        payload: Payload<'_>,
        kind: u8,
        completion: Completion,
    ) -> Result<Operation, TransferError> {
        let fence = std::mem::take(&mut data.fence);
        if self.lane.send_buffers_left() < data.sends.len() {
            return Err(TransferError::WouldBlock);
        }
        let buffer = match payload {
            Payload::Buffer(buffer) => buffer,
            Payload::Bytes(bytes) => {
                // Not by polling for one: the lock is held.
                let mut buffer = self.lane.send_buffer()?.ok_or(TransferError::WouldBlock)?;
                buffer.fill(bytes);
                buffer
            }
        };
        let job = SendJob {
            buffer,
            kind,
            fence,
        };
        let operation = data.operations.queue_send(job, completion);
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
                let arrived = self.hand_out(&mut data, arrived, &mut after);
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
        if let Some(taken) = self.take_message() {
            return taken;
        }
        self.lane.poll_if_free();
        self.take_message()
            .unwrap_or(Err(TransferError::WouldBlock))
    }

    /// A message that is here, or comes within `wait`.
    pub(crate) fn receive_within(
        self: &Arc<Self>,
        wait: Duration,
    ) -> Result<Message, TransferError> {
        if let Some(taken) = self.take_message() {
            return taken;
        }
        // Who polls sees what comes, and needs no operation to be told by.
        match self.lane.wait_if_free(wait, |_| self.take_message()) {
            Some(taken) => taken.unwrap_or(Err(TransferError::WouldBlock)),
            None => self.receive_by_operation(wait),
        }
    }

    /// A message that is here, unless receives wait, which come first; or why none will come.
    fn take_message(self: &Arc<Self>) -> Option<Result<Message, TransferError>> {
        let mut data = lock(&self.data);
        if !data.receives.is_empty() {
            return None;
        }
        match data.inbox.pop_front() {
            Some(arrived) => {
                let mut after = After::default();
                let arrived = self.hand_out(&mut data, arrived, &mut after);
                self.release(data, after);
                Some(Ok(Message::new(arrived, self)))
            }
            None => data.check().err().map(Err),
        }
    }

    fn receive_by_operation(self: &Arc<Self>, wait: Duration) -> Result<Message, TransferError> {
        let operation = self.start_receive(Completion::Poll)?;
        let outcome = match self.overlapped_result(operation, Some(wait)) {
            Ok(result) => result.outcome,
            // It may have ended since.
            Err(_) => match self.withdraw(operation) {
                Look::Done(outcome) => self.result(operation, outcome).outcome,
                Look::Pending(_) | Look::Unknown => return Err(TransferError::WouldBlock),
            },
        };
        match outcome {
            Ok(transferred) => transferred.message.ok_or(TransferError::WouldBlock),
            // The caller knows of no operation: its socket was closed, as if it had polled itself.
            Err(TransferError::Aborted) => Err(TransferError::NotSocket),
            Err(error) => Err(error),
        }
    }

    /// Takes a receive back that still waits.
    fn withdraw(&self, operation: Operation) -> Look {
        let mut data = lock(&self.data);
        let look = data.operations.take(operation);
        if matches!(look, Look::Pending(_)) {
            data.receives.retain(|waiting| *waiting != operation);
            data.operations.cancel(operation);
        }
        look
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
                self.lane
                    .wait(wait, |waiter| self.check(operation, waiter.cloned()))
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
    pub(super) fn check(&self) -> Result<(), TransferError> {
        match (self.ending, &self.link) {
            (Some(Ending::Aborted), _) | (_, Link::Down) => Err(TransferError::NotSocket),
            (Some(ending), _) => Err(ending.into()),
            (None, _) => Ok(()),
        }
    }

    /// Whether anything can be sent, written or read, now or later.
    pub(super) fn check_outgoing(&self) -> Result<(), TransferError> {
        self.check()?;
        match &self.moving {
            Some(moving) if moving.is_ours() => Err(TransferError::Moved),
            _ => Ok(()),
        }
    }

    /// Whether a message of `length` bytes can be sent, now or later.
    fn check_send(&self, length: usize) -> Result<(), TransferError> {
        self.check_outgoing()?;
        match self.send_limit {
            0 => Err(TransferError::NotConnected),
            limit if length > limit => Err(TransferError::MessageTooLong { length, limit }),
            _ => Ok(()),
        }
    }
}

/// A thread that waits for a send: the polling thread has to hear of send completions.
pub(super) struct Interest<'a>(&'a Connection);

impl<'a> Interest<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
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
