//! The moving of one end of a connection to another process, as the data path has a part in it
//! (duties 116, 119, 121).
//!
//! The end that moves asks, last after everything that it sends, and gathers what arrived. The
//! other end stops sending, answers, and waits; a new queue pair takes the place of the old one,
//! under the same operations. What the answer is, and who comes with it, is decided in
//! `duplicate/`; here nothing waits but the one call that asks.
//!
//! What the end that stays had posted before its answer has arrived when somebody comes with the
//! secret of that answer: the transport keeps the order. So operations whose completions say
//! otherwise, because the other end was faster to go than to acknowledge, are undecided until then.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::sync::Unparker;
use verbs_shim::{CmId, Operation as Verb, RegisteredBuffer, SendRequest, VerbsError};

use super::calls::Interest;
use super::connection::{After, Connection, Data, Link, queue_pair};
use super::dispatch::Change;
use super::messages::NOBODYS;
use super::operation::{Arrived, Body, Ending, Operation, Outcome, Pending};
use crate::cm_thread::Command;
use crate::error::DuplicateError;
use crate::sync::lock;
use crate::wire::{Hello, Immediate, Resumption, Violation};

/// A message that moves with its connection: it came, and nobody has asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Carried {
    pub(crate) kind: u8,
    pub(crate) bytes: Box<[u8]>,
}

/// What an end takes along.
#[derive(Debug)]
pub(crate) struct Departure {
    pub(crate) resumption: Resumption,
    pub(crate) messages: Vec<Carried>,
}

/// A move under way.
#[derive(Debug)]
pub(super) struct Move {
    step: Step,
    /// The thread in [`Connection::depart`], if it sleeps.
    waiter: Option<Unparker>,
    /// What the device gave back as failed, and what the peer may have.
    undecided: Vec<Operation>,
}

#[derive(Debug)]
enum Step {
    /// This end leaves, and asks when everything before is out.
    Leaving,
    /// It has asked.
    Asked,
    /// The answer was yes.
    Told(Resumption),
    /// The answer was no.
    Denied,
    /// The peer has asked.
    PeerAsked,
    /// The answer goes out when there is a place on the send queue.
    Answering(Option<Resumption>, Option<RegisteredBuffer>),
    /// The answer was yes, and is out: the peer comes back from elsewhere.
    Answered,
}

impl Move {
    fn new(step: Step) -> Option<Box<Self>> {
        Some(Box::new(Self {
            step,
            waiter: None,
            undecided: Vec::new(),
        }))
    }

    /// Whether this end is the one that moves.
    pub(super) fn is_ours(&self) -> bool {
        matches!(
            self.step,
            Step::Leaving | Step::Asked | Step::Told(_) | Step::Denied
        )
    }
}

impl Connection {
    /// Leaves: waits until everything that was sent has arrived, the peer has said where it waits,
    /// and everything that it had sent is here. Then every receive that waits ends with 0 bytes
    /// (duty 116), and the connection is of no use here.
    pub(crate) fn depart(self: &Arc<Self>, wait: Duration) -> Result<Departure, DuplicateError> {
        self.begin_departure()?;
        let _interest = Interest::new(self);
        let departed = self
            .lane
            .wait(wait, |waiter| self.departed(waiter.cloned()));
        departed.unwrap_or_else(|| self.give_up_departure())
    }

    fn begin_departure(self: &Arc<Self>) -> Result<(), DuplicateError> {
        let mut after = After::default();
        let mut data = lock(&self.data);
        data.check_departure()?;
        if data.moving.is_some() {
            return Err(match data.check_outgoing() {
                Ok(()) => DuplicateError::PeerMoves,
                Err(_) => DuplicateError::Moved,
            });
        }
        if !data.peer_takes_moves {
            return Err(DuplicateError::PeerCannot);
        }
        if !self.lane.grow_window(0, 1)? {
            return Err(DuplicateError::NoReceive);
        }
        if self.lane.post_receives(1) == 0 {
            self.lane.ledger.release(1);
            return Err(DuplicateError::NoReceive);
        }
        data.reserved += 1;
        data.answer_receive = true;
        data.moving = Move::new(Step::Leaving);
        self.pump(&mut data, &mut after);
        self.release(data, after);
        Ok(())
    }

    /// How the departure ended, if it has.
    fn departed(
        self: &Arc<Self>,
        waiter: Option<Unparker>,
    ) -> Option<Result<Departure, DuplicateError>> {
        let mut data = lock(&self.data);
        if let Err(error) = data.check_departure() {
            return Some(Err(error));
        }
        let Some(moving) = &mut data.moving else {
            return Some(Err(DuplicateError::PeerMoves));
        };
        match moving.step {
            Step::Leaving | Step::Asked => {
                moving.waiter = waiter;
                return None;
            }
            Step::Told(resumption) => {
                let mut after = After::default();
                let messages = self.gather(&mut data, &mut after);
                self.release(data, after);
                let departure = Departure {
                    resumption,
                    messages,
                };
                return Some(Ok(departure));
            }
            Step::Denied => {}
            Step::PeerAsked | Step::Answering(..) | Step::Answered => {
                return Some(Err(DuplicateError::PeerMoves));
            }
        }
        let mut after = After::default();
        data.moving = None;
        data.let_go_on();
        self.pump(&mut data, &mut after);
        self.release(data, after);
        Some(Err(DuplicateError::PeerRefused))
    }

    /// The deadline is over.
    fn give_up_departure(self: &Arc<Self>) -> Result<Departure, DuplicateError> {
        if let Some(departed) = self.departed(None) {
            return departed;
        }
        let mut after = After::default();
        let mut data = lock(&self.data);
        let leaving = |moving: &Move| matches!(moving.step, Step::Leaving);
        if data.moving.as_deref().is_some_and(leaving) {
            data.moving = None;
            self.abandon_answer(&mut data);
            self.pump(&mut data, &mut after);
            self.release(data, after);
            return Err(DuplicateError::NotDrained);
        }
        drop(data);
        if let Some(departed) = self.departed(None) {
            return departed;
        }
        // The question is out and cannot be taken back.
        self.control
            .send(Command::Break(self.token(), Ending::Reset));
        Err(DuplicateError::PeerSilent)
    }

    /// Takes everything out of the connection.
    fn gather(self: &Arc<Self>, data: &mut Data, after: &mut After) -> Vec<Carried> {
        data.ending = Some(Ending::Moved);
        data.moving = None;
        for operation in std::mem::take(&mut data.receives) {
            self.end_operation(data, operation, Outcome::Emptied, after);
        }
        self.end_posted(data, after);
        let mut messages = Vec::with_capacity(data.inbox.len());
        for arrived in std::mem::take(&mut data.inbox) {
            let kind = arrived.kind;
            let bytes = match arrived.body {
                Body::Copied(bytes) => bytes,
                Body::Received(buffer) => {
                    let bytes = Box::from(&*buffer);
                    drop(buffer);
                    data.credits.freed();
                    bytes
                }
            };
            messages.push(Carried { kind, bytes });
        }
        after.kick();
        messages
    }

    /// Everything that was posted has arrived.
    fn end_posted(self: &Arc<Self>, data: &mut Data, after: &mut After) {
        for operation in data.operations.pending(Pending::All) {
            if let Some(bytes) = data.operations.posted_bytes(operation) {
                self.end_operation(data, operation, Outcome::Sent(bytes), after);
            }
        }
    }

    /// Messages that came along from another process: the first to be received.
    pub(crate) fn carry(&self, messages: Vec<Carried>) {
        let arrived = messages.into_iter().map(|message| Arrived {
            body: Body::Copied(message.bytes),
            kind: message.kind,
        });
        lock(&self.data).inbox.extend(arrived);
    }

    /// A message about moving came.
    pub(super) fn move_came(
        self: &Arc<Self>,
        data: &mut Data,
        kind: u8,
        buffer: RegisteredBuffer,
        after: &mut After,
    ) -> Result<(), (Ending, RegisteredBuffer)> {
        let came = match kind {
            Immediate::ASK => self.question_came(data, &buffer, after),
            _ => self.answer_came(data, kind, &buffer, after),
        };
        match came {
            // Not posted again: whose receive it was has it back in the count.
            Ok(()) => Ok(()),
            Err(violation) => Err((Ending::Protocol(violation), buffer)),
        }
    }

    fn question_came(
        self: &Arc<Self>,
        data: &mut Data,
        payload: &[u8],
        after: &mut After,
    ) -> Result<(), Violation> {
        if !payload.is_empty() {
            return Err(Violation::Move);
        }
        match data.moving.as_deref_mut() {
            None => {}
            Some(moving) if matches!(moving.step, Step::Leaving) => {
                if let Some(waiter) = moving.waiter.take() {
                    after.wake(waiter);
                }
                after.kick();
                self.abandon_answer(data);
            }
            // Both have asked: both say no, and the connection goes on.
            Some(moving) if matches!(moving.step, Step::Asked) => {
                data.credits.data_came()?;
                data.credits.freed();
                return match self.post_about_moving(data, Immediate::NO, &[], None) {
                    Ok(()) => Ok(()),
                    Err(ending) => {
                        after.break_with(ending);
                        Ok(())
                    }
                };
            }
            Some(_) => return Err(Violation::Move),
        }
        data.credits.data_came()?;
        data.credits.freed();
        if data.ending.is_none() {
            data.hold();
            data.moving = Move::new(Step::PeerAsked);
            self.control.send(Command::PeerMoves(self.token()));
        }
        Ok(())
    }

    fn answer_came(
        &self,
        data: &mut Data,
        kind: u8,
        payload: &[u8],
        after: &mut After,
    ) -> Result<(), Violation> {
        let Some(moving) = &mut data.moving else {
            return Err(Violation::Move);
        };
        if !matches!(moving.step, Step::Asked) {
            return Err(Violation::Move);
        }
        moving.step = match kind {
            Immediate::YES => Step::Told(Resumption::parse(payload).map_err(|_| Violation::Move)?),
            _ if payload.is_empty() => Step::Denied,
            _ => return Err(Violation::Move),
        };
        if let Some(waiter) = moving.waiter.take() {
            after.wake(waiter);
        }
        data.answer_receive = false;
        data.reserved -= 1;
        self.lane.ledger.release(1);
        Ok(())
    }

    /// The answer to the peer's question; `None`: no.
    pub(crate) fn answer(self: &Arc<Self>, answer: Option<Resumption>) {
        // Before the lock is taken: it may have to be registered.
        let buffer = match &answer {
            Some(answer) if Resumption::LENGTH > self.inline => {
                let mut buffer = self.lane.send_buffer().ok().flatten();
                if let Some(buffer) = &mut buffer {
                    buffer.fill(&answer.emit());
                }
                buffer
            }
            _ => None,
        };
        let answer = answer.filter(|_| Resumption::LENGTH <= self.inline || buffer.is_some());
        let mut after = After::default();
        let mut data = lock(&self.data);
        if let Some(moving) = &mut data.moving
            && matches!(moving.step, Step::PeerAsked)
        {
            moving.step = Step::Answering(answer, buffer);
            self.pump(&mut data, &mut after);
        }
        self.release(data, after);
    }

    /// Posts the question or the answer if it is time.
    #[cold]
    pub(super) fn pump_move(self: &Arc<Self>, data: &mut Data, after: &mut After) {
        let is_idle = data.sends.is_empty() && self.may_post(data);
        let has_room = data.on_wire < self.lane.send_depth;
        let Some(moving) = &mut data.moving else {
            return;
        };
        let posted = match &mut moving.step {
            Step::Leaving if is_idle => {
                moving.step = Step::Asked;
                let posted = self.post_about_moving(data, Immediate::ASK, &[], None);
                data.credits.data_sent();
                data.hold();
                posted
            }
            Step::Answering(answer, buffer) if has_room => match (*answer, buffer.take()) {
                (Some(answer), buffer) => {
                    moving.step = Step::Answered;
                    self.post_about_moving(data, Immediate::YES, &answer.emit(), buffer)
                }
                (None, _) => {
                    data.moving = None;
                    let posted = self.post_about_moving(data, Immediate::NO, &[], None);
                    data.let_go_on();
                    if posted.is_ok() {
                        self.pump(data, after);
                    }
                    posted
                }
            },
            _ => Ok(()),
        };
        if let Err(ending) = posted {
            after.break_with(ending);
        }
    }

    /// Question and yes come after what is under way, READs too.
    fn post_about_moving(
        &self,
        data: &mut Data,
        kind: u8,
        payload: &[u8],
        buffer: Option<RegisteredBuffer>,
    ) -> Result<(), Ending> {
        let verb = Verb::SendWithImm(Immediate::about_moving(kind).emit());
        let mut request = match buffer {
            Some(buffer) => SendRequest::piece(NOBODYS, verb, buffer),
            None => SendRequest::inline(NOBODYS, verb, payload),
        };
        request.fence = kind != Immediate::NO;
        self.post(data, request)
    }

    /// Whether the peer has its answer, and is to come from elsewhere.
    pub(crate) fn awaits_peer(&self) -> bool {
        lock(&self.data).awaits_peer()
    }

    /// The peer has come with `id`: makes a queue pair there and puts it in place of the old one,
    /// which is gone when this returns. The credits that the peer gets; `None`: it cannot be.
    pub(crate) fn renew(
        self: &Arc<Self>,
        id: &CmId,
        hello: &Hello,
        inline: u32,
    ) -> Result<Option<u16>, VerbsError> {
        let qp = queue_pair(&self.lane, id, inline)?;
        let qp_num = qp.qp_num();
        let mut data = lock(&self.data);
        if data.ending.is_some()
            || !data.awaits_peer()
            || (qp.caps().inline as usize) < self.inline
            || (hello.max_message_size as usize) < data.send_limit
        {
            return Ok(None);
        }
        let Some(credits) = self.renew_credits(&mut data)? else {
            return Ok(None);
        };
        let old = std::mem::replace(&mut data.link, Link::Prepared(qp));
        let before = self.qp_num.swap(qp_num, Ordering::Relaxed);
        self.token.store(id.token(), Ordering::Relaxed);
        data.on_wire = 0;
        data.unsignaled = 0;
        data.fence = false;
        let moving = data.moving.take();
        drop(data);
        // Its memory is free, and what is open to the peer closed, before any operation ends.
        drop(old);
        self.memory.forget_opened();
        self.lane.change(Change::Renumber(Arc::clone(self), before));
        let mut after = After::default();
        let mut data = lock(&self.data);
        self.end_posted(&mut data, &mut after);
        self.release(data, after);
        drop(moving);
        Ok(Some(credits))
    }

    /// Posts the receives that are free and not posted, and counts anew.
    fn renew_credits(&self, data: &mut Data) -> Result<Option<u16>, VerbsError> {
        let mut credits = data.credits.renewed();
        if credits.outstanding() == 0 {
            // Everything is held here, and a connection begins with a credit.
            if !self.lane.grow_window(0, 1)? {
                return Ok(None);
            }
            data.reserved += 1;
            data.credits.grown(1);
            credits = data.credits.renewed();
        }
        let missing = credits.outstanding() - data.credits.outstanding();
        let missing = u32::try_from(missing).unwrap_or(u32::MAX);
        let posted = self.lane.post_receives(missing);
        if posted < missing {
            self.lane.abandon(posted);
            return Ok(None);
        }
        data.totals.sent_before += data.credits.sent();
        data.totals.received_before += data.credits.received();
        data.credits = credits;
        Ok(u16::try_from(data.credits.outstanding()).ok())
    }

    /// What was undecided has failed, and nobody waits for an answer any more.
    pub(super) fn fail_move(self: &Arc<Self>, data: &mut Data, ending: Ending, after: &mut After) {
        let Some(mut moving) = data.moving.take() else {
            return;
        };
        for operation in moving.undecided {
            self.end_operation(data, operation, Outcome::Failed(ending), after);
        }
        if let Some(waiter) = moving.waiter.take() {
            after.wake(waiter);
        }
    }

    /// The receive for the answer stays posted, for others.
    fn abandon_answer(&self, data: &mut Data) {
        if std::mem::take(&mut data.answer_receive) {
            self.lane.abandon(1);
            data.reserved -= 1;
            self.lane.ledger.release(1);
        }
    }
}

impl Data {
    fn check_departure(&self) -> Result<(), DuplicateError> {
        match (self.ending, &self.link) {
            (Some(Ending::Aborted), _) | (_, Link::Down) => Err(DuplicateError::NotSocket),
            (Some(Ending::Moved), _) => Err(DuplicateError::Moved),
            (Some(ending), _) => Err(DuplicateError::Ended { why: ending.into() }),
            (None, _) => Ok(()),
        }
    }

    /// Nothing new goes out from now on.
    fn hold(&mut self) {
        self.link = match std::mem::replace(&mut self.link, Link::Down) {
            Link::Up(qp) => Link::Held(qp),
            other => other,
        };
    }

    /// There is no move.
    fn let_go_on(&mut self) {
        self.link = match std::mem::replace(&mut self.link, Link::Down) {
            Link::Held(qp) => Link::Up(qp),
            other => other,
        };
    }

    fn awaits_peer(&self) -> bool {
        let answered = |moving: &Move| matches!(moving.step, Step::Answered);
        self.moving.as_deref().is_some_and(answered)
    }

    /// Whether a request that failed is decided about later.
    #[cold]
    pub(super) fn is_undecided(&mut self, token: u32) -> bool {
        if self.ending.is_some() || !self.awaits_peer() {
            return false;
        }
        if let Some(moving) = &mut self.moving
            && token != NOBODYS
        {
            moving.undecided.push(Operation::from_token(token));
        }
        true
    }
}
