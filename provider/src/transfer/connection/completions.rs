//! What completions mean for their connection, and posting what may go out next.
//!
//! Everything here runs under the connection's lock and allocates nothing once its queues have
//! grown to their use.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use rustix::io::Errno;
use verbs_shim::{
    Completion, QueuePair, ReadInPlace, RegisteredBuffer, RemoteMemory, SendFlags, SendRequest,
    SharedReceiveQueue, Verb, WcStatus,
};

use super::{Connection, Parts, Qp, State};
use crate::transfer::engine::{Came, Ending, Engine, Link, MessagePlan, NOBODYS, PROBE, Post};
use crate::transfer::lane::{Member, See};
use crate::wire::{Resumption, Violation};

/// Who waits, and perhaps for this message.
struct Waiting<'a, S> {
    see: &'a mut S,
    member: &'a Connection,
    kind: u8,
}

impl<S: See<Connection, State>> ReadInPlace for Waiting<'_, S> {
    #[inline(always)]
    fn read(&mut self, bytes: &[u8]) -> bool {
        self.see.take(self.member, self.kind, bytes)
    }
}

impl Member for Connection {
    type State = State;

    fn qp_num(&self) -> u32 {
        self.number()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    // Always: it is the middle of what a message passes through, and called in one place.
    #[inline(always)]
    fn received_alone(
        &self,
        completion: &Completion,
        srq: &SharedReceiveQueue,
        see: &mut impl See<Self, State>,
    ) -> bool {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if state.plain
            && completion.qp_num() == self.number()
            && let Some((credits, kind)) = state.engine.plain_data(completion.imm())
            && let Some(bytes) = srq.read(
                completion,
                &mut Waiting {
                    see,
                    member: self,
                    kind,
                },
            )
        {
            self.count_received(bytes);
            if !state.engine.data_was_read(credits, bytes) {
                self.look_after_credits(guard);
            }
            return true;
        }
        false
    }

    fn received(&self, state: &mut State, completion: &Completion, buffer: RegisteredBuffer) {
        state.plain = false;
        if state.engine.link() == Link::Down
            || completion.qp_num() != self.number()
            || !completion.is_success()
        {
            return self.received_in_vain(state, completion, buffer);
        }
        // A message proves that the peer knows of the connection, should its own word be late.
        if state.engine.link() == Link::Prepared {
            state.bring_up();
        }
        let bytes = buffer.len();
        match state.engine.message_came(completion.imm(), buffer) {
            None => {
                self.count_received(bytes);
                self.grow_window(state);
            }
            Some(other) => self.other_received(state, other),
        }
    }

    #[inline(always)]
    fn sent_alone(&self, completions: &[Completion]) -> bool {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let number = self.number();
        let is_simple = |completion: &Completion| {
            completion.qp_num() == number
                && completion.token() == NOBODYS
                && completion.is_success()
        };
        // Where a message could be posted before, nothing has waited for a place.
        if !state.plain || !state.engine.has_place() || !completions.iter().all(is_simple) {
            return false;
        }
        let Qp::Connected(qp) = &mut state.qp else {
            return false;
        };
        for completion in completions {
            match qp.complete_send(completion) {
                Some(freed) => state.engine.places_freed(freed),
                None => self.lane.counted().stray_completions.raise(),
            }
        }
        true
    }

    #[inline]
    fn sent(&self, state: &mut State, completion: &Completion) {
        state.plain = false;
        // The memory is free before its operation ends.
        let freed = match &mut state.qp {
            Qp::Connected(qp) => qp.complete_send(completion),
            Qp::Prepared(qp) => qp.complete_send(completion),
            Qp::Gone => None,
        };
        let Some(freed) = freed else {
            self.lane.counted().stray_completions.raise();
            return;
        };
        let failed = (!completion.is_success()).then(|| ending_of(completion));
        state
            .engine
            .request_completed(completion.token(), freed, failed);
    }

    fn release(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.engine.has_work() {
            self.pump(&mut state);
        }
        self.settle(state);
    }

    fn finish(self: &Arc<Self>, ending: Ending) {
        let mut state = self.lock_state();
        state.engine.finish(ending);
        self.settle(state);
    }

    fn leave(&self) {
        let mut state = self.lock_state();
        let held = state.engine.held();
        state.share.leave(held);
    }

    fn probe(&self) {
        self.probe_if(Engine::probe_is_due);
    }
}

impl Connection {
    /// By an RDMA WRITE of no bytes: the peer's transport answers it, no receive and no program of the
    /// peer's takes part. Of no bytes, address and key are not looked at (IBTA C9-88).
    fn probe_if(&self, may: impl FnOnce(&mut Engine<Parts>) -> bool) {
        let mut state = self.lock_state();
        let State { engine, qp, .. } = &mut *state;
        if let Qp::Connected(qp) = qp
            && may(engine)
        {
            let nowhere = RemoteMemory { addr: 0, rkey: 0 };
            let request = SendRequest::inline(PROBE, Verb::Write(nowhere), &[]);
            engine.post_other();
            if let Err(ending) = post(qp, request, true, false) {
                engine.post_failed(PROBE, ending);
            }
        }
        self.settle(state);
    }

    /// Has all that was sent before acknowledged soon, which may have no completion of its own.
    pub(crate) fn ask_for_arrival(&self) {
        self.probe_if(Engine::may_probe);
    }

    /// Something may follow from a message that was read: a larger window, or credits that have to go out by
    /// themselves.
    #[inline(never)]
    fn look_after_credits(&self, mut state: MutexGuard<'_, State>) {
        // Where more may come, nothing follows from what came.
        if state.engine.look_ahead() {
            return;
        }
        self.grow_window(&mut state);
        if state.engine.must_return_credits() {
            state.plain = false;
            self.pump(&mut state);
            self.settle(state);
        }
    }

    #[inline]
    fn count_received(&self, bytes: usize) {
        let counters = self.lane.counted();
        counters.messages_received.raise();
        counters.bytes_received.add(bytes as u64);
    }

    /// A receive that completed after the close or before the peer moved, or that failed.
    #[cold]
    #[inline(never)]
    fn received_in_vain(
        &self,
        state: &mut State,
        completion: &Completion,
        buffer: RegisteredBuffer,
    ) {
        let is_own = state.engine.link() != Link::Down && completion.qp_num() == self.number();
        // Posted again, so that what is counted as posted for the connection is; or its receive counts
        // as left over since the close, or since the peer moved.
        self.lane.receives.repost(buffer);
        if is_own {
            state.engine.receive_failed(ending_of(completion));
        }
    }

    /// What is not for the layer above, or goes there by another way, or breaks the protocol.
    #[inline(never)]
    fn other_received(&self, state: &mut State, came: Came<RegisteredBuffer>) {
        let counters = self.lane.counted();
        match came {
            Came::Credits(buffer) => {
                counters.credit_messages_received.raise();
                self.lane.receives.repost(buffer);
            }
            Came::Handover(buffer) => drop(buffer),
            Came::Control(kind, buffer) => {
                counters.messages_received.raise();
                counters.bytes_received.add(buffer.len() as u64);
                self.grow_window(state);
                Self::keep_control(state, kind, buffer);
            }
            Came::Wrong(violation, buffer) => {
                self.lane.receives.repost(buffer);
                state.engine.receive_failed(Ending::Protocol(violation));
            }
        }
    }

    /// A busy peer gets a larger window, if the lane has receives left.
    #[inline(always)]
    fn grow_window(&self, state: &mut State) {
        let wanted = state.engine.wanted_growth();
        if wanted > 0 {
            self.grow_window_by(state, wanted);
        }
    }

    #[cold]
    #[inline(never)]
    fn grow_window_by(&self, state: &mut State, wanted: u32) {
        match self.lane.receives.grow(state.engine.window(), wanted) {
            Ok(true) => {
                state.share.reserve(wanted);
                state.engine.grown(wanted);
                self.lane.counted().windows_grown.raise();
            }
            Ok(false) => {}
            Err(error) => tracing::debug!(lane = self.lane.name, %error, "window not enlarged"),
        }
    }

    /// Posts the receives that are due.
    #[inline]
    pub(super) fn post_receives(&self, state: &mut State) {
        let due = state.engine.receives_due();
        if due > 0 {
            self.post_due_receives(state, due);
        }
    }

    #[inline(never)]
    fn post_due_receives(&self, state: &mut State, due: u32) {
        let engine = &mut state.engine;
        let mut posted = match engine.has_spent() {
            false => self.lane.receives.post_spent(due),
            true => 0,
        };
        if posted < due {
            posted += self.post_more_receives(engine, due - posted);
        }
        engine.receives_posted(posted);
    }

    #[inline(never)]
    fn post_more_receives(&self, engine: &mut Engine<Parts>, due: u32) -> u32 {
        self.lane.receives.post(due, || engine.spent())
    }

    /// Posts what may go out: receives, then what the engine says, until there is no more.
    #[inline(never)]
    pub(super) fn pump(&self, state: &mut State) {
        // What is posted for it has been counted as left over.
        if state.engine.link() == Link::Down {
            return;
        }
        loop {
            self.post_receives(state);
            let Some(post) = state.engine.next_post() else {
                return;
            };
            self.carry_out(state, post);
            if state.engine.is_breaking() {
                return;
            }
        }
    }

    fn carry_out(&self, state: &mut State, post: Post<Parts>) {
        let State { engine, qp, .. } = state;
        let Qp::Connected(qp) = qp else {
            return;
        };
        let counters = self.lane.counted();
        match post {
            Post::Message {
                token,
                buffer,
                fence,
                plan,
            } => {
                let bytes = buffer.len();
                match post_buffer(qp, token, plan, buffer, fence) {
                    Ok(()) => {
                        counters.messages_sent.raise();
                        counters.bytes_sent.add(bytes as u64);
                    }
                    Err(ending) => engine.message_failed(token, (plan, bytes), ending),
                }
            }
            Post::Rdma { token, job } => {
                if let Err(ending) = self.post_rdma(state, token, *job) {
                    state.engine.post_failed(token, ending);
                }
            }
            Post::Credits(plan) => match post_inline(qp, NOBODYS, plan, &[], false) {
                Ok(()) => counters.credit_messages_sent.raise(),
                Err(ending) => engine.post_failed(NOBODYS, ending),
            },
            Post::Handover {
                plan,
                fence,
                answer,
            } => {
                let bytes = answer.as_ref().map(|answer| answer.resumption.emit());
                let bytes = bytes
                    .as_ref()
                    .map_or(&[][..], |bytes: &[u8; Resumption::LENGTH]| bytes);
                let posted = match answer.and_then(|answer| answer.buffer) {
                    Some(buffer) => post_buffer(qp, NOBODYS, plan, buffer, fence),
                    None => post_inline(qp, NOBODYS, plan, bytes, fence),
                };
                if let Err(ending) = posted {
                    engine.post_failed(NOBODYS, ending);
                }
            }
        }
    }
}

/// Posts a message whose bytes travel in the work request.
#[inline(always)]
pub(super) fn post_inline(
    qp: &mut QueuePair,
    token: u32,
    plan: MessagePlan,
    bytes: &[u8],
    fence: bool,
) -> Result<(), Ending> {
    qp.post_inline_imm(token, plan.immediate, bytes, flags(plan, fence))
        .map_err(|error| refusal(qp, &error))
}

/// Posts a message from a registered buffer.
pub(super) fn post_buffer(
    qp: &QueuePair,
    token: u32,
    plan: MessagePlan,
    buffer: RegisteredBuffer,
    fence: bool,
) -> Result<(), Ending> {
    let verb = Verb::SendWithImm(plan.immediate);
    qp.post_buffer(token, verb, buffer, flags(plan, fence))
        .map_err(|refused| refusal(qp, &refused.error))
}

#[inline]
fn flags(plan: MessagePlan, fence: bool) -> SendFlags {
    let signaled = match plan.signaled {
        true => SendFlags::SIGNALED,
        false => SendFlags::NONE,
    };
    match fence {
        true => signaled | SendFlags::FENCED,
        false => signaled,
    }
}

/// Posts a request.
pub(super) fn post(
    qp: &QueuePair,
    mut request: SendRequest<'_>,
    signaled: bool,
    fence: bool,
) -> Result<(), Ending> {
    request.signaled = signaled;
    request.fence = fence;
    qp.post(request)
        .map_err(|refused| refusal(qp, &refused.error))
}

/// Why a request was not posted.
#[cold]
#[inline(never)]
pub(super) fn refusal(qp: &QueuePair, error: &verbs_shim::VerbsError) -> Ending {
    tracing::debug!(qp_num = qp.qp_num(), %error, "a send was not posted");
    match error.errno() == Errno::INVAL.raw_os_error() {
        true => Ending::ForeignBuffer,
        false => Ending::NetDown,
    }
}

/// What a failed work request says about the connection.
#[cold]
fn ending_of(completion: &Completion) -> Ending {
    match completion.status() {
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

/// The number is read by the thread that polls, and changes under the lock.
pub(super) fn set_number(connection: &Connection, number: u32) -> u32 {
    connection.qp_num.swap(number, Ordering::Relaxed)
}
