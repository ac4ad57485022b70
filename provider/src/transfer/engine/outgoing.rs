//! What goes out: which message may go now, what waits, and what a completed request says.

use super::incoming::CARRIER;
use super::operation::SendJob;
use super::post::{MessagePlan, Post};
use super::{Direction, Ending, Engine, Link, Notification, Operation, Outcome, PROBE, Payloads};
use crate::error::TransferError;
use crate::wire::{Immediate, MessageType};

impl<P: Payloads> Engine<P> {
    /// Whether a data message could be posted now, if none waited before it.
    #[inline]
    fn may_post(&self) -> bool {
        self.link == Link::Up && self.credits.may_send() && self.queue.has_room()
    }

    /// Whether a data message that is no longer than the peer takes would go out at once, of an engine that
    /// [is plain](Engine::is_plain).
    #[inline]
    pub(crate) fn can_send_plainly(&self) -> bool {
        self.credits.may_send() && self.queue.has_room()
    }

    /// Whether the send queue has a place for a message.
    #[inline]
    pub(crate) fn has_place(&self) -> bool {
        self.queue.has_room()
    }

    /// A completion has freed `n` places on the send queue, and nobody waits for any of those requests.
    #[inline]
    pub(crate) fn places_freed(&mut self, n: u32) {
        self.queue.completed(n);
    }

    /// Whether a data message would go out at once.
    #[inline]
    pub(crate) fn can_send_now(&self) -> bool {
        self.sends.is_empty() && self.may_post()
    }

    /// Whether a message that goes past the inbox would go out at once.
    pub(crate) fn can_send_control(&self) -> bool {
        self.sends.is_empty()
            && self.link == Link::Up
            && self.credits.may_send_control()
            && self.queue.has_room()
    }

    /// Whether an RDMA operation would go out at once.
    pub(crate) fn can_rdma_now(&self) -> bool {
        self.sends.is_empty() && self.may_post_rdma()
    }

    fn may_post_rdma(&self) -> bool {
        self.link == Link::Up && self.queue.has_room()
    }

    /// Whether an RDMA operation or a bind could be posted now, whatever waits.
    pub(crate) fn may_bind(&self) -> bool {
        self.may_post_rdma() && self.operations.has_room(Direction::Send)
    }

    /// Whether one more send may be started; a completion that nobody has seen may make room.
    pub(crate) fn has_room_to_start(&self) -> bool {
        self.operations.has_room(Direction::Send) && self.queue.has_room()
    }

    pub(crate) fn has_operation_left(&self) -> bool {
        self.operations.has_room(Direction::Send)
    }

    pub(crate) fn sends_waiting(&self) -> usize {
        self.sends.len()
    }

    /// Whether sends wait for a place on the send queue.
    pub(crate) fn waits_for_place(&self) -> bool {
        !self.sends.is_empty() && !self.queue.has_room()
    }

    /// Whether nothing is under way or waits.
    pub(crate) fn has_nothing_under_way(&self) -> bool {
        self.sends.is_empty() && self.queue.is_empty()
    }

    /// Whether a message of `length` bytes can be sent, now or later.
    pub(crate) fn check_send(&self, length: usize) -> Result<(), TransferError> {
        self.check_outgoing()?;
        match self.send_limit {
            0 => Err(TransferError::NotConnected),
            limit if length > limit => Err(TransferError::MessageTooLong { length, limit }),
            _ => Ok(()),
        }
    }

    /// A message of `bytes` goes out at once; [`Engine::can_send_now`] said that it may. It makes a
    /// completion if somebody waits for it or it holds memory (`wanted`).
    // Always: it is a quarter of what a send costs here, and a call would be a quarter of it.
    #[inline(always)]
    pub(crate) fn send_message(&mut self, bytes: usize, kind: u8, wanted: bool) -> MessagePlan {
        let credits = self.credits.tell(false);
        self.credits.data_sent();
        self.totals.bytes_sent += bytes as u64;
        let immediate = Immediate {
            message: MessageType::Data,
            credits,
            kind,
        };
        MessagePlan {
            immediate: immediate.emit(),
            signaled: self.queue.posted(true, wanted),
            credits,
        }
    }

    /// The message of `bytes`, with this immediate data, was not posted after all.
    pub(crate) fn take_back(&mut self, immediate: u32, bytes: usize) {
        let (credits, _) = Immediate::parse_data(immediate).unwrap_or_default();
        self.credits.untell(credits);
        self.totals.bytes_sent -= bytes as u64;
        self.queue.take_back();
    }

    /// Starts an operation for a send of `bytes` that is about to be posted.
    pub(crate) fn start_posted(&mut self, bytes: usize, completion: Notification) -> Operation {
        self.operations.post_send(bytes, completion)
    }

    /// The operation could not be started after all.
    pub(crate) fn cancel(&mut self, operation: Operation) {
        self.operations.cancel(operation);
    }

    /// Queues a message.
    pub(crate) fn queue_message(
        &mut self,
        buffer: P::Buffer,
        kind: u8,
        fence: bool,
        completion: Notification,
    ) -> Operation {
        let job = SendJob {
            buffer,
            kind,
            fence,
        };
        let operation = self.operations.queue_send(job, completion);
        self.sends.push_back(operation);
        self.totals.sends_delayed += 1;
        operation
    }

    /// Queues an RDMA operation.
    pub(crate) fn queue_rdma(
        &mut self,
        bytes: usize,
        job: Box<P::Rdma>,
        completion: Notification,
    ) -> Operation {
        let operation = self.operations.queue_rdma(bytes, job, completion);
        self.sends.push_back(operation);
        operation
    }

    /// A request that is no message, and that somebody waits for, is about to be posted.
    pub(crate) fn post_other(&mut self) {
        self.queue.posted(false, true);
    }

    /// It was not posted after all.
    pub(crate) fn take_back_other(&mut self) {
        self.queue.take_back();
    }

    /// Whether to ask the peer if it is there: nothing has moved since the last call, and no answer is
    /// awaited. If so, a request with the token [`PROBE`] has to be posted.
    pub(crate) fn probe_is_due(&mut self) -> bool {
        let moved = self.credits.sent()
            + self.credits.received()
            + self.totals.credit_messages_sent
            + self.totals.credit_messages_received
            + self.totals.rdma_reads
            + self.totals.rdma_writes;
        std::mem::replace(&mut self.moved_at_probe, moved) == moved && self.may_probe()
    }

    /// Whether a request with the token [`PROBE`] can be posted now. If so, it has to be.
    pub(crate) fn may_probe(&mut self) -> bool {
        let may = self.may_post_rdma() && self.ending.is_none();
        may && !std::mem::replace(&mut self.probe_under_way, true)
    }

    /// An RDMA operation was posted.
    pub(crate) fn rdma_begun(&mut self, reads: bool, bytes: usize) {
        let totals = &mut self.totals;
        let (count, sum) = match reads {
            true => (&mut totals.rdma_reads, &mut totals.rdma_bytes_read),
            false => (&mut totals.rdma_writes, &mut totals.rdma_bytes_written),
        };
        *count += 1;
        *sum += bytes as u64;
    }

    /// Whether [`Engine::next_post`], or a receive to be posted, is worth a look.
    #[inline]
    pub(crate) fn has_work(&self) -> bool {
        !self.sends.is_empty()
            || self.handover.is_some()
            || self.credits.must_return(self.inbox.is_empty())
            || self.needs_carrier()
    }

    /// Whether credits have to go out by a message of their own that is no credit message: one more of
    /// those would be too early, and the peer may have nothing to say before it has credits.
    #[inline(always)]
    pub(super) fn needs_carrier(&self) -> bool {
        self.credits.wants_carrier() && self.control_aside && self.can_send_control()
    }

    /// What is to be posted next: what waits, as far as credits and places last; then questions and
    /// answers about moving; then credits, if they have to go by themselves. Receives that are due
    /// have been posted before.
    pub(crate) fn next_post(&mut self) -> Option<Post<P>> {
        if self.ending.is_some() {
            return None;
        }
        if let Some(post) = self.next_waiting() {
            return Some(post);
        }
        if self.handover.is_some()
            && let Some(post) = self.next_about_moving()
        {
            return Some(post);
        }
        let must_return = self.credits.must_return(self.inbox.is_empty());
        if !must_return && self.needs_carrier() && self.credits.untold() > 0 {
            return Some(Post::Credits(self.send_message(0, CARRIER, false)));
        }
        if !must_return
            || self.credits.untold() == 0
            || self.link != Link::Up
            || !self.queue.has_any_room()
        {
            return None;
        }
        let credits = self.credits.tell(true);
        self.totals.credit_messages_sent += 1;
        let immediate = Immediate {
            message: MessageType::Credit,
            credits,
            kind: 0,
        };
        Some(Post::Credits(self.plan_other(immediate, false)))
    }

    /// The plan of a message that costs no credit.
    pub(super) fn plan_other(&mut self, immediate: Immediate, wanted: bool) -> MessagePlan {
        MessagePlan {
            immediate: immediate.emit(),
            signaled: self.queue.posted(false, wanted),
            credits: immediate.credits,
        }
    }

    fn next_waiting(&mut self) -> Option<Post<P>> {
        while let Some(&next) = self.sends.front() {
            let is_rdma = self.operations.is_queued_rdma(next);
            if !(self.may_post() || is_rdma && self.may_post_rdma()) {
                return None;
            }
            self.sends.pop_front();
            if let Some((_, job)) = self.operations.unqueue_rdma(next) {
                self.queue.posted(false, true);
                let token = next.token();
                return Some(Post::Rdma { token, job });
            }
            let Some(job) = self.operations.unqueue(next) else {
                continue;
            };
            let plan = self.send_message(job.buffer.len(), job.kind, true);
            return Some(Post::Message {
                token: next.token(),
                buffer: job.buffer,
                fence: job.fence,
                plan,
            });
        }
        None
    }

    /// What waited was not posted: its operation fails, and the connection with it unless the fault
    /// is the operation's own.
    pub(crate) fn post_failed(&mut self, token: u32, ending: Ending) {
        self.queue.take_back();
        if token < PROBE {
            self.end_operation(Operation::from_token(token), Outcome::Failed(ending));
        }
        self.effects.kick();
        self.break_with(ending);
    }

    /// A message that waited was not posted.
    pub(crate) fn message_failed(
        &mut self,
        token: u32,
        (plan, bytes): (MessagePlan, usize),
        ending: Ending,
    ) {
        self.credits.untell(plan.credits);
        self.totals.bytes_sent -= bytes as u64;
        self.post_failed(token, ending);
    }

    /// A request completed and freed `freed` places on the send queue; why it failed, if it did.
    /// Its memory is free.
    #[inline]
    pub(crate) fn request_completed(&mut self, token: u32, freed: u32, failed: Option<Ending>) {
        let before = self.queue.messages();
        self.queue.completed(freed);
        if failed.is_some() {
            // Whatever a failure frees, those before it too, may or may not have arrived.
            self.failed_messages += before - self.queue.messages();
        }
        let over = self.ending;
        let failure = failed.map(|why| over.unwrap_or(why));
        if failure.is_some() && self.is_undecided(token) {
            return;
        }
        if token == PROBE {
            self.probe_under_way = false;
        }
        // What close flushes ends when all memory is free, with everything else that is pending.
        let ends_by_close = failure == Some(Ending::Aborted);
        if token < PROBE && !ends_by_close {
            let operation = Operation::from_token(token);
            let bytes = self.operations.posted_bytes(operation).unwrap_or(0);
            let outcome = failure.map_or(Outcome::Sent(bytes), Outcome::Failed);
            self.end_operation(operation, outcome);
        }
        if let Some(ending) = failure
            && over.is_none()
        {
            self.break_with(ending);
        }
    }
}
