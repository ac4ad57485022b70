//! Messages in and out: what a completion means for its connection, and what may be sent next.
//!
//! Everything here runs under the connection's lock and allocates nothing once its queues have
//! grown to their use.

use std::sync::Arc;

use rustix::io::Errno;
use verbs_shim::{
    Completion as WorkCompletion, Operation as Verb, Payload as Bytes, RegisteredBuffer,
    SendRequest, WcStatus,
};

use super::calls::Payload;
use super::connection::{After, Connection, Data, Link};
use super::operation::{Arrived, Body, Ending, Operation, Outcome};
use crate::sync::lock;
use crate::wire::{Immediate, MessageType, Violation};

/// The token of what no operation waits for. No operation has it: there are fewer of them than
/// indices.
pub(super) const NOBODYS: u32 = u32::MAX;

impl Connection {
    /// A receive completed.
    pub(super) fn received(
        self: &Arc<Self>,
        completion: &WorkCompletion,
        buffer: RegisteredBuffer,
    ) {
        let mut after = After::default();
        let mut data = lock(&self.data);
        if matches!(data.link, Link::Down) || completion.qp_num() != self.qp_num() {
            // Its receive counts as left over since the close, or since the peer moved.
            drop(data);
            self.lane.repost(buffer);
            return;
        }
        let taken = match completion.status() {
            WcStatus::Success => self.take_in(&mut data, completion, buffer, &mut after),
            status => Err((ending_of(status, completion), buffer)),
        };
        match taken {
            Ok(()) => self.pump(&mut data, &mut after),
            Err((ending, buffer)) => {
                // Posted again, so that what is counted as posted for the connection is.
                self.lane.repost(buffer);
                if data.ending.is_none() {
                    after.break_with(ending);
                }
            }
        }
        self.release(data, after);
    }

    fn take_in(
        self: &Arc<Self>,
        data: &mut Data,
        completion: &WorkCompletion,
        buffer: RegisteredBuffer,
        after: &mut After,
    ) -> Result<(), (Ending, RegisteredBuffer)> {
        let counters = &self.lane.counters;
        let immediate = completion
            .imm()
            .ok_or(Violation::NoImmediate)
            .and_then(Immediate::parse);
        let checked = immediate.and_then(|immediate| {
            match immediate.message {
                MessageType::Move => {}
                MessageType::Credit if !buffer.is_empty() => return Err(Violation::CreditMessage),
                MessageType::Credit => data.credits.credit_message_came(immediate.credits)?,
                MessageType::Data => {
                    data.credits.credits_came(immediate.credits)?;
                    data.credits.data_came()?;
                }
            }
            Ok(immediate)
        });
        let immediate = match checked {
            Ok(immediate) => immediate,
            Err(violation) => return Err((Ending::Protocol(violation), buffer)),
        };
        // A message proves that the peer knows of the connection, should its own word be late.
        data.bring_up();
        if immediate.message != MessageType::Data {
            if immediate.message == MessageType::Move {
                return self.move_came(data, immediate.kind, buffer, after);
            }
            counters.credit_messages_received.raise();
            data.totals.credit_messages_received += 1;
            self.lane.repost(buffer);
            return Ok(());
        }
        counters.messages_received.raise();
        counters.bytes_received.add(buffer.len() as u64);
        data.totals.bytes_received += buffer.len() as u64;
        self.grow_window(data);
        let arrived = Arrived {
            body: Body::Received(buffer),
            kind: immediate.kind,
        };
        match data.receives.pop_front() {
            Some(operation) => {
                let arrived = self.hand_out(data, arrived, after);
                self.end_operation(data, operation, Outcome::Received(arrived), after);
            }
            None => data.inbox.push_back(arrived),
        }
        Ok(())
    }

    /// A busy peer gets a larger window, if the lane has receives left.
    fn grow_window(&self, data: &mut Data) {
        let wanted = data.credits.wanted_growth();
        if wanted == 0 {
            return;
        }
        match self.lane.grow_window(data.credits.window(), wanted) {
            Ok(true) => {
                data.reserved += wanted;
                data.credits.grown(wanted);
                self.lane.counters.windows_grown.raise();
            }
            Ok(false) => {}
            Err(error) => tracing::debug!(lane = self.lane.name, %error, "window not enlarged"),
        }
    }

    /// A send completed.
    pub(super) fn sent(self: &Arc<Self>, completion: &WorkCompletion) {
        let mut after = After::default();
        let mut data = lock(&self.data);
        let claim = match &data.link {
            Link::Up(qp) | Link::Held(qp) => qp.claim(completion),
            Link::Prepared(qp) => qp.claim(completion),
            Link::Down => None,
        };
        let Some(claim) = claim else {
            self.lane.counters.stray_completions.raise();
            return;
        };
        data.on_wire = data.on_wire.saturating_sub(claim.freed);
        // The memory is free before its operation ends.
        drop(claim);
        let status = completion.status();
        let over = data.ending;
        let failure = (status != WcStatus::Success)
            .then(|| over.unwrap_or_else(|| ending_of(status, completion)));
        if failure.is_some() && data.is_undecided(completion.token()) {
            self.release(data, after);
            return;
        }
        // What close flushes ends when all memory is free, with everything else that is pending.
        let ends_by_close = failure == Some(Ending::Aborted);
        if completion.token() != NOBODYS && !ends_by_close {
            let operation = Operation::from_token(completion.token());
            let bytes = data.operations.posted_bytes(operation).unwrap_or(0);
            let outcome = failure.map_or(Outcome::Sent(bytes), Outcome::Failed);
            self.end_operation(&mut data, operation, outcome, &mut after);
        }
        match failure {
            Some(ending) if over.is_none() => after.break_with(ending),
            Some(_) => {}
            None => self.pump(&mut data, &mut after),
        }
        self.release(data, after);
    }

    /// Posts what may go out: queued messages as far as credits and places last, then credits by
    /// themselves if they have to go.
    pub(super) fn pump(self: &Arc<Self>, data: &mut Data, after: &mut After) {
        if data.ending.is_some() {
            return;
        }
        while let Some(&next) = data.sends.front() {
            let is_rdma = data.operations.is_queued_rdma(next);
            if !(self.may_post(data) || is_rdma && self.may_post_rdma(data)) {
                break;
            }
            let Some(operation) = data.sends.pop_front() else {
                break;
            };
            if let Some(job) = data.operations.unqueue_rdma(operation) {
                if !self.post_queued_rdma(data, operation, job, after) {
                    return;
                }
                continue;
            }
            let Some(job) = data.operations.unqueue(operation) else {
                continue;
            };
            data.fence = job.fence;
            if let Err(ending) = self.post_buffer(data, operation, job.buffer, job.kind) {
                self.end_operation(data, operation, Outcome::Failed(ending), after);
                after.kick();
                after.break_with(ending);
                if ending != Ending::ForeignBuffer {
                    return;
                }
            }
        }
        if data.moving.is_some() {
            self.pump_move(data, after);
        }
        if data.credits.must_return(data.inbox.is_empty())
            && matches!(data.link, Link::Up(_))
            && data.on_wire < self.lane.send_depth
        {
            let credits = self.post_owed_receives(data);
            if credits == 0 {
                return;
            }
            let immediate = Immediate {
                message: MessageType::Credit,
                credits,
                kind: 0,
            };
            let verb = Verb::SendWithImm(immediate.emit());
            match self.post(data, SendRequest::inline(NOBODYS, verb, &[])) {
                Ok(()) => {
                    data.credits.returned(credits, true);
                    self.lane.counters.credit_messages_sent.raise();
                    data.totals.credit_messages_sent += 1;
                }
                Err(ending) => {
                    self.lane.abandon(u32::from(credits));
                    after.break_with(ending);
                }
            }
        }
    }

    /// Whether a data message could be posted now.
    pub(super) fn may_post(&self, data: &Data) -> bool {
        matches!(data.link, Link::Up(_))
            && data.credits.may_send()
            && !data.is_send_queue_full(self.lane.send_depth)
    }

    /// Posts a message from a registered buffer.
    pub(super) fn post_buffer(
        &self,
        data: &mut Data,
        operation: Operation,
        buffer: RegisteredBuffer,
        kind: u8,
    ) -> Result<(), Ending> {
        let bytes = buffer.len();
        self.post_data(data, bytes, kind, |verb| {
            SendRequest::piece(operation.token(), verb, buffer)
        })
    }

    /// Posts a message whose bytes travel in the work request.
    pub(super) fn post_inline(
        &self,
        data: &mut Data,
        operation: Operation,
        bytes: &[u8],
        kind: u8,
    ) -> Result<(), Ending> {
        self.post_data(data, bytes.len(), kind, |verb| {
            SendRequest::inline(operation.token(), verb, bytes)
        })
    }

    /// Posts a message that no operation stands for.
    pub(super) fn post_untold(
        &self,
        data: &mut Data,
        payload: Payload<'_>,
        kind: u8,
    ) -> Result<(), Ending> {
        self.post_data(data, payload.len(), kind, |verb| match payload {
            Payload::Bytes(bytes) => SendRequest::inline(NOBODYS, verb, bytes),
            Payload::Buffer(buffer) => SendRequest::piece(NOBODYS, verb, buffer),
        })
    }

    fn post_data<'a>(
        &self,
        data: &mut Data,
        bytes: usize,
        kind: u8,
        request: impl FnOnce(Verb) -> SendRequest<'a>,
    ) -> Result<(), Ending> {
        let credits = self.post_owed_receives(data);
        let immediate = Immediate {
            message: MessageType::Data,
            credits,
            kind,
        };
        if let Err(ending) = self.post(data, request(Verb::SendWithImm(immediate.emit()))) {
            self.lane.abandon(u32::from(credits));
            return Err(ending);
        }
        data.credits.returned(credits, false);
        data.credits.data_sent();
        self.lane.counters.messages_sent.raise();
        self.lane.counters.bytes_sent.add(bytes as u64);
        data.totals.bytes_sent += bytes as u64;
        Ok(())
    }

    /// Posts the receives that are owed to the peer; as many credits may go out.
    fn post_owed_receives(&self, data: &Data) -> u16 {
        match data.credits.owed() {
            0 => 0,
            owed => u16::try_from(self.lane.post_receives(u32::from(owed))).unwrap_or(owed),
        }
    }

    /// Posts a request. One that holds no memory, and that nobody waits for, makes no completion if
    /// it succeeds, unless there were many like it: its place on the send queue comes back with the
    /// next one that does.
    pub(super) fn post(&self, data: &mut Data, mut request: SendRequest<'_>) -> Result<(), Ending> {
        request.fence |= std::mem::take(&mut data.fence);
        let (Link::Up(qp) | Link::Held(qp)) = &data.link else {
            return Err(Ending::Reset);
        };
        request.signaled = request.token != NOBODYS
            || matches!(request.payload, Bytes::Pieces(_))
            || data.unsignaled + 1 >= self.most_unsignaled();
        let signaled = request.signaled;
        match qp.post(request) {
            Ok(()) => {
                data.on_wire += 1;
                data.unsignaled = if signaled { 0 } else { data.unsignaled + 1 };
                Ok(())
            }
            Err(refused) => {
                let error = refused.error;
                tracing::debug!(qp_num = qp.qp_num(), %error, "a send was not posted");
                Err(match error.errno() == Errno::INVAL.raw_os_error() {
                    true => Ending::ForeignBuffer,
                    false => Ending::NetDown,
                })
            }
        }
    }

    /// Every so manieth request is signaled at least: twice in what a full send queue holds beside
    /// the place for a credit message, so that who waits for a place hears of one.
    fn most_unsignaled(&self) -> u32 {
        ((self.lane.send_depth - 1) / 2).max(1)
    }
}

/// What a failed work request says about the connection.
fn ending_of(status: WcStatus, completion: &WorkCompletion) -> Ending {
    match status {
        WcStatus::RetryExceeded | WcStatus::RnrRetryExceeded | WcStatus::ResponseTimeout => {
            Ending::TimedOut
        }
        WcStatus::LocalLength if completion.is_recv() => {
            let length = u32::try_from(completion.byte_len()).unwrap_or(u32::MAX);
            Ending::Protocol(Violation::TooLong(length))
        }
        WcStatus::RemoteAccess => Ending::RemoteAccess,
        WcStatus::Fatal => Ending::NetDown,
        _ => Ending::Reset,
    }
}
