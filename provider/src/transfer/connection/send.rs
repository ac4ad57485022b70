//! Calls that send messages.

use std::io::IoSlice;

use parking_lot::MutexGuard;
use verbs_shim::{QueuePair, RegisteredBuffer, SendFlags, VerbsError};

use super::completions::{post_buffer, post_inline, refusal};
use super::{Connection, Fence, Qp, State};
use crate::error::TransferError;
use crate::transfer::engine::{Ending, FIRST_CONTROL_KIND, NOBODYS, Notification, Operation};

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
    pub(crate) fn buffer(&self) -> Result<RegisteredBuffer, TransferError> {
        if let Some(buffer) = self.lane.registered_buffer()? {
            return Ok(buffer);
        }
        // Finished sends may hold some.
        self.lane.poll_once();
        self.lane.registered_buffer()?.ok_or_else(|| {
            // Who has sends under way is told when it may go on.
            match self.lock_state().engine.has_nothing_under_way() {
                true => TransferError::NoBuffers,
                false => TransferError::WouldBlock,
            }
        })
    }

    /// A registered buffer with these bytes.
    fn filled(&self, parts: &[IoSlice<'_>]) -> Result<RegisteredBuffer, TransferError> {
        let mut buffer = self.buffer()?;
        buffer.set_len(length_of(parts));
        let mut at = 0;
        for part in parts {
            buffer[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Ok(buffer)
    }

    /// Starts to send a message.
    pub(crate) fn start_send(
        &self,
        payload: Payload<'_>,
        kind: u8,
        fence: Fence,
        completion: Notification,
    ) -> Result<Operation, TransferError> {
        // Before the lock is taken: it may have to be registered.
        let payload = match payload {
            Payload::Bytes(bytes) if bytes.len() > self.inline => {
                self.check_length(bytes.len())?;
                Payload::Buffer(self.filled(&[IoSlice::new(bytes)])?)
            }
            payload => payload,
        };
        let mut state = self.lock_state();
        if !state.engine.has_room_to_start() {
            state = self.after_a_look(state);
        }
        state.engine.check_send(payload.len())?;
        if !state.engine.has_operation_left() {
            return Err(TransferError::WouldBlock);
        }
        let fenced = fence == Fence::AfterReads;
        let started = if state.engine.can_send_now() {
            let operation = state.engine.start_posted(payload.len(), completion);
            let posted = self.post_now(&mut state, operation.token(), payload, kind, fenced);
            posted.map(|()| operation).map_err(|ending| {
                state.engine.cancel(operation);
                ending.into()
            })
        } else {
            self.queue(&mut state, payload, kind, fenced, completion)
        };
        self.settle(state);
        started
    }

    /// Sends a message if it can go out at once; no operation stands for it.
    #[inline]
    pub(crate) fn try_send(&self, bytes: &[u8], kind: u8) -> Result<(), TransferError> {
        match self.send_plainly(bytes, kind) {
            true => Ok(()),
            false => self.try_send_slowly(bytes, kind),
        }
    }

    /// The short way of [`Connection::try_send`]. `false`: the message did not go out.
    // Always: whoever calls it does little else, and to save the registers once more would cost a tenth of it.
    #[inline(always)]
    pub(crate) fn send_plainly(&self, bytes: &[u8], kind: u8) -> bool {
        if bytes.len() > self.inline {
            return false;
        }
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if !state.plain || !state.engine.can_send_plainly() {
            return false;
        }
        self.post_receives(state);
        let Qp::Connected(qp) = &mut state.qp else {
            return false;
        };
        let plan = state.engine.send_message(bytes.len(), kind, false);
        let immediate = plan.immediate;
        // Apart: most make no completion, and then less is to be found out.
        let posted = match plan.signaled {
            false => qp.post_inline_imm(NOBODYS, immediate, bytes, SendFlags::NONE),
            true => post_signaled(qp, immediate, bytes),
        };
        if let Err(error) = posted {
            self.not_sent(guard, immediate, bytes.len(), &error);
            return false;
        }
        self.count_sent(bytes.len());
        // Where all is plain it stays so.
        true
    }

    #[inline]
    fn count_sent(&self, bytes: usize) {
        let counters = self.lane.counted();
        counters.messages_sent.raise();
        counters.bytes_sent.add(bytes as u64);
    }

    #[cold]
    #[inline(never)]
    fn not_sent(
        &self,
        mut state: MutexGuard<'_, State>,
        immediate: u32,
        bytes: usize,
        error: &VerbsError,
    ) {
        let ending = match &state.qp {
            Qp::Connected(qp) => refusal(qp, error),
            _ => Ending::Reset,
        };
        state.engine.take_back(immediate, bytes);
        state.engine.break_with(ending);
        self.settle(state);
    }

    /// The rest of [`Connection::try_send`]: what the short way did not send.
    #[inline(never)]
    pub(crate) fn try_send_slowly(&self, bytes: &[u8], kind: u8) -> Result<(), TransferError> {
        let mut state = self.room_to_send(bytes.len(), kind)?;
        let payload = if bytes.len() <= self.inline {
            Payload::Bytes(bytes)
        } else if let Some(mut buffer) = self.lane.ready_buffer() {
            buffer.fill(bytes);
            Payload::Buffer(buffer)
        } else {
            // It has to be registered, or waited for.
            drop(state);
            let buffer = self.filled(&[IoSlice::new(bytes)])?;
            state = self.room_to_send(bytes.len(), kind)?;
            Payload::Buffer(buffer)
        };
        let posted = self.post_now(&mut state, NOBODYS, payload, kind, false);
        self.settle(state);
        posted.map_err(TransferError::from)
    }

    /// As [`Connection::try_send`], of bytes that lie in several places.
    pub(crate) fn try_send_gathered(
        &self,
        parts: &[IoSlice<'_>],
        kind: u8,
    ) -> Result<(), TransferError> {
        if let [only] = parts {
            return self.try_send(only, kind);
        }
        let length = length_of(parts);
        drop(self.room_to_send(length, kind)?);
        let buffer = self.filled(parts)?;
        let mut state = self.room_to_send(length, kind)?;
        let posted = self.post_now(&mut state, NOBODYS, Payload::Buffer(buffer), kind, false);
        self.settle(state);
        posted.map_err(TransferError::from)
    }

    /// As [`Connection::try_send`], of bytes that `fill` writes where they are sent from.
    pub(crate) fn try_send_filled(
        &self,
        length: usize,
        kind: u8,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), TransferError> {
        drop(self.room_to_send(length, kind)?);
        let mut buffer = self.buffer()?;
        buffer.set_len(length);
        fill(&mut buffer);
        let mut state = self.room_to_send(length, kind)?;
        let posted = self.post_now(&mut state, NOBODYS, Payload::Buffer(buffer), kind, false);
        self.settle(state);
        posted.map_err(TransferError::from)
    }

    /// Sends a message of no bytes if it can go out at once. The sink is told when the peer has it.
    pub(crate) fn try_send_told(&self, kind: u8) -> Result<Operation, TransferError> {
        let mut state = self.room_to_send(0, kind)?;
        if !state.engine.has_operation_left() {
            return Err(TransferError::WouldBlock);
        }
        let operation = state.engine.start_posted(0, Notification::SinkWhenPolled);
        let token = operation.token();
        let posted = self.post_now(&mut state, token, Payload::Bytes(&[]), kind, false);
        if posted.is_err() {
            state.engine.cancel(operation);
        }
        self.settle(state);
        posted.map(|()| operation).map_err(TransferError::from)
    }

    /// The lock, once a message of `length` bytes can go out at once.
    fn room_to_send(
        &self,
        length: usize,
        kind: u8,
    ) -> Result<MutexGuard<'_, State>, TransferError> {
        let can_send = |state: &State| match kind < FIRST_CONTROL_KIND {
            true => state.engine.can_send_now(),
            false => state.engine.can_send_control(),
        };
        let mut state = self.lock_state();
        if !can_send(&state) {
            // Completions and credits may be waiting to be seen.
            state = self.after_a_look(state);
        }
        state.engine.check_send(length)?;
        match can_send(&state) {
            true => Ok(state),
            false => {
                self.refused_to_send(state);
                Err(TransferError::WouldBlock)
            }
        }
    }

    /// The lock again, after a look for completions that nobody has seen yet.
    #[cold]
    pub(super) fn after_a_look<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
    ) -> MutexGuard<'a, State> {
        drop(state);
        self.lane.poll_once();
        self.lock_state()
    }

    /// Posts a message; the engine has said that it may go.
    fn post_now(
        &self,
        state: &mut State,
        token: u32,
        payload: Payload<'_>,
        kind: u8,
        fence: bool,
    ) -> Result<(), Ending> {
        self.post_receives(state);
        let State { engine, qp, .. } = state;
        let Qp::Connected(qp) = qp else {
            return Err(Ending::Reset);
        };
        let bytes = payload.len();
        let wanted = token != NOBODYS || matches!(payload, Payload::Buffer(_));
        let plan = engine.send_message(bytes, kind, wanted);
        let posted = match payload {
            Payload::Bytes(bytes) => post_inline(qp, token, plan, bytes, fence),
            Payload::Buffer(buffer) => post_buffer(qp, token, plan, buffer, fence),
        };
        match posted {
            Ok(()) => self.count_sent(bytes),
            Err(ending) => {
                engine.take_back(plan.immediate, bytes);
                engine.break_with(ending);
            }
        }
        posted
    }

    /// Queues a message, in a buffer. Nobody queues more than are left to the others, and nobody the last
    /// one, so that the buffers of those whose peers take nothing in are never all.
    fn queue(
        &self,
        state: &mut State,
        payload: Payload<'_>,
        kind: u8,
        fence: bool,
        completion: Notification,
    ) -> Result<Operation, TransferError> {
        if self.lane.buffers_left() <= state.engine.sends_waiting() + 1 {
            return Err(TransferError::WouldBlock);
        }
        let buffer = match payload {
            Payload::Buffer(buffer) => buffer,
            Payload::Bytes(bytes) => {
                // Not by polling for one: the lock is held.
                let mut buffer = self
                    .lane
                    .registered_buffer()?
                    .ok_or(TransferError::WouldBlock)?;
                buffer.fill(bytes);
                buffer
            }
        };
        self.lane.counted().sends_delayed.raise();
        Ok(state.engine.queue_message(buffer, kind, fence, completion))
    }

    fn check_length(&self, length: usize) -> Result<(), TransferError> {
        self.lock_state().engine.check_send(length)
    }

    /// Data messages that the transport may not have acknowledged yet.
    pub(crate) fn unacknowledged(&self) -> u32 {
        let state = self.lock_state();
        if state.engine.unacknowledged() == 0 {
            return 0;
        }
        self.after_a_look(state).engine.unacknowledged()
    }
}

#[inline(never)]
fn post_signaled(qp: &mut QueuePair, immediate: u32, bytes: &[u8]) -> Result<(), VerbsError> {
    qp.post_inline_imm(NOBODYS, immediate, bytes, SendFlags::SIGNALED)
}

fn length_of(parts: &[IoSlice<'_>]) -> usize {
    parts.iter().map(|part| part.len()).sum()
}
