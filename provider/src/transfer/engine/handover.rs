//! The moving of one end of a connection to another process, as the data path has a part in it
//! (duties 116, 119, 121).
//!
//! The end that moves asks, last after everything that it sends, and gathers what arrived. The other
//! end stops sending, answers, and waits; a new queue pair takes the place of the old one, under the
//! same operations. What the answer is, and who comes with it, is decided in `duplicate/`.
//!
//! What the end that stays had posted before its answer has arrived when somebody comes with the
//! secret of that answer: the transport keeps the order. So operations whose completions say
//! otherwise, because the other end was faster to go than to acknowledge, are undecided until then.

use super::post::{Answer, Post};
use super::{Arrived, Body, Ending, Engine, Link, Operation, Outcome, PROBE, Payloads, Unfinished};
use crate::error::DuplicateError;
use crate::wire::{Immediate, Resumption, Violation};

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
pub(crate) struct Handover<P: Payloads> {
    step: Step<P::Buffer>,
    /// Who waits for its end.
    waker: Option<P::Waker>,
    /// What the device gave back as failed, and what the peer may have.
    undecided: Vec<Operation>,
    /// Both have asked: this end says no to the other when there is a place on the send queue.
    owes_no: bool,
}

enum Step<B> {
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
    /// The answer goes out when there is a place on the send queue; `None`: no.
    Answering(Option<Answer<B>>),
    /// The answer was yes, and is out: the peer comes back from elsewhere.
    Answered,
}

impl<P: Payloads> Handover<P> {
    fn new(step: Step<P::Buffer>) -> Option<Box<Self>> {
        Some(Box::new(Self {
            step,
            waker: None,
            undecided: Vec::new(),
            owes_no: false,
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

impl<P: Payloads> Engine<P> {
    /// Whether this end may leave now; the shell posts a receive for the answer in between.
    pub(crate) fn check_leave(&self) -> Result<(), DuplicateError> {
        self.check_departure()?;
        if self.handover.is_some() {
            return Err(match self.check_outgoing() {
                Ok(()) => DuplicateError::PeerMoves,
                Err(_) => DuplicateError::Moved,
            });
        }
        match self.peer_takes_moves {
            true => Ok(()),
            false => Err(DuplicateError::PeerCannot),
        }
    }

    /// Begins to leave: a receive is posted for the answer.
    pub(crate) fn leave(&mut self) {
        self.answer_receive = true;
        self.handover = Handover::new(Step::Leaving);
    }

    /// How the departure ended; `None`: not yet, and `waker` is woken when it has.
    pub(crate) fn departed(
        &mut self,
        waker: Option<P::Waker>,
    ) -> Option<Result<Departure, DuplicateError>> {
        if let Err(error) = self.check_departure() {
            return Some(Err(error));
        }
        let Some(handover) = &mut self.handover else {
            return Some(Err(DuplicateError::PeerMoves));
        };
        match handover.step {
            Step::Leaving | Step::Asked => {
                handover.waker = waker;
                None
            }
            Step::Denied if handover.owes_no => {
                handover.waker = waker;
                None
            }
            Step::Told(resumption) => {
                let messages = self.gather();
                Some(Ok(Departure {
                    resumption,
                    messages,
                }))
            }
            Step::Denied => {
                self.handover = None;
                self.go_on();
                Some(Err(DuplicateError::PeerRefused))
            }
            Step::PeerAsked | Step::Answering(_) | Step::Answered => {
                Some(Err(DuplicateError::PeerMoves))
            }
        }
    }

    /// Takes a departure back that has not asked yet; whether it could be.
    pub(crate) fn stay(&mut self) -> bool {
        let leaving = |handover: &Handover<P>| matches!(handover.step, Step::Leaving);
        let may_stay = self.handover.as_deref().is_some_and(leaving);
        if may_stay {
            self.handover = None;
            self.abandon_answer();
        }
        may_stay
    }

    fn check_departure(&self) -> Result<(), DuplicateError> {
        match (self.ending, self.link) {
            (Some(Ending::Aborted), _) | (_, Link::Down) => Err(DuplicateError::NotSocket),
            (Some(Ending::Moved), _) => Err(DuplicateError::Moved),
            (Some(ending), _) => Err(DuplicateError::Ended { why: ending.into() }),
            (None, _) => Ok(()),
        }
    }

    /// Takes everything out of the connection. Receives that wait end with 0 bytes (duty 116).
    fn gather(&mut self) -> Vec<Carried> {
        self.ending = Some(Ending::Moved);
        self.handover = None;
        while let Some(operation) = self.receives.pop_front() {
            self.end_operation(operation, Outcome::Emptied);
        }
        self.end_posted();
        let mut messages = Vec::with_capacity(self.inbox.len());
        while let Some(arrived) = self.inbox.pop_front() {
            let bytes = Box::from(&*arrived);
            messages.push(Carried {
                kind: arrived.kind,
                bytes,
            });
            if let Body::Received(buffer) = arrived.body {
                drop(buffer);
                self.credits.freed();
            }
        }
        self.wake_arrival();
        self.effects.kick();
        messages
    }

    /// Everything that was posted has arrived.
    pub(crate) fn end_posted(&mut self) {
        for operation in self.operations.pending(Unfinished::All) {
            if let Some(bytes) = self.operations.posted_bytes(operation) {
                self.end_operation(operation, Outcome::Sent(bytes));
            }
        }
    }

    /// Messages that came along from another process: the first to be received.
    pub(crate) fn carry(&mut self, messages: Vec<Carried>) {
        let arrived = messages.into_iter().map(|message| Arrived {
            body: Body::Copied(message.bytes),
            kind: message.kind,
            read: 0,
        });
        self.inbox.extend(arrived);
    }

    /// A message about moving came. Its receive is back in the count.
    pub(super) fn about_moving_came(&mut self, kind: u8, payload: &[u8]) -> Result<(), Violation> {
        match kind {
            Immediate::ASK => self.question_came(payload),
            _ => self.answer_came(kind, payload),
        }
    }

    fn question_came(&mut self, payload: &[u8]) -> Result<(), Violation> {
        if !payload.is_empty() {
            return Err(Violation::Move);
        }
        match self.handover.as_deref_mut() {
            None => {}
            Some(handover) if matches!(handover.step, Step::Leaving) => {
                if let Some(waker) = handover.waker.take() {
                    self.effects.wake(waker);
                }
                self.effects.kick();
                self.abandon_answer();
            }
            // Both have asked: both say no, and the connection goes on.
            Some(handover) if matches!(handover.step, Step::Asked) => {
                self.credits.data_came()?;
                self.credits.freed();
                handover.owes_no = true;
                return Ok(());
            }
            Some(_) => return Err(Violation::Move),
        }
        self.credits.data_came()?;
        self.credits.freed();
        if self.ending.is_none() {
            self.hold();
            self.handover = Handover::new(Step::PeerAsked);
            self.effects.any = true;
            self.effects.peer_moves = true;
        }
        Ok(())
    }

    fn answer_came(&mut self, kind: u8, payload: &[u8]) -> Result<(), Violation> {
        let Some(handover) = &mut self.handover else {
            return Err(Violation::Move);
        };
        if !matches!(handover.step, Step::Asked) {
            return Err(Violation::Move);
        }
        handover.step = match kind {
            Immediate::YES => Step::Told(Resumption::parse(payload).map_err(|_| Violation::Move)?),
            _ if payload.is_empty() => Step::Denied,
            _ => return Err(Violation::Move),
        };
        if let Some(waker) = handover.waker.take() {
            self.effects.wake(waker);
        }
        self.answer_receive = false;
        self.effects.any = true;
        self.effects.answer_receive_over = Some(false);
        Ok(())
    }

    /// The answer to the peer's question; `None`: no.
    pub(crate) fn answer(&mut self, answer: Option<Answer<P::Buffer>>) {
        if let Some(handover) = &mut self.handover
            && matches!(handover.step, Step::PeerAsked)
        {
            handover.step = Step::Answering(answer);
        }
    }

    /// The question or the answer, if it is time. Question and yes come after what is under way,
    /// READs too.
    #[cold]
    pub(super) fn next_about_moving(&mut self) -> Option<Post<P>> {
        let is_idle = self.can_send_now();
        let has_room = self.queue.has_any_room();
        let handover = self.handover.as_deref_mut()?;
        let (kind, answer) = match &mut handover.step {
            _ if handover.owes_no && has_room => {
                handover.owes_no = false;
                if let Some(waker) = handover.waker.take() {
                    self.effects.wake(waker);
                }
                self.effects.kick();
                (Immediate::NO, None)
            }
            Step::Leaving if is_idle => {
                handover.step = Step::Asked;
                self.credits.data_sent();
                self.hold();
                (Immediate::ASK, None)
            }
            Step::Answering(answer) if has_room => match answer.take() {
                Some(answer) => {
                    handover.step = Step::Answered;
                    (Immediate::YES, Some(answer))
                }
                None => {
                    self.handover = None;
                    self.go_on();
                    (Immediate::NO, None)
                }
            },
            _ => return None,
        };
        let holds_memory = answer
            .as_ref()
            .is_some_and(|answer| answer.buffer.is_some());
        Some(Post::Handover {
            plan: self.plan_other(Immediate::about_moving(kind), holds_memory),
            fence: kind != Immediate::NO,
            answer,
        })
    }

    /// Whether the peer has its answer, and is to come from elsewhere.
    pub(crate) fn awaits_peer(&self) -> bool {
        let answered = |handover: &Handover<P>| matches!(handover.step, Step::Answered);
        self.handover.as_deref().is_some_and(answered)
    }

    /// Whether the peer that has moved may take the connection up.
    pub(crate) fn may_renew(&self) -> bool {
        self.ending.is_none() && self.awaits_peer()
    }

    /// The receives that have to be posted for the same connection on a new queue pair; none at all
    /// are free: one more has to be set aside first ([`Engine::grown`]).
    pub(crate) fn receives_to_renew(&self) -> Option<u32> {
        let renewed = self.credits.renewed();
        if renewed.outstanding() == 0 {
            return None;
        }
        let posted = self.credits.outstanding() + u64::from(self.credits.untold());
        Some(u32::try_from(renewed.outstanding().saturating_sub(posted)).unwrap_or(u32::MAX))
    }

    /// A new queue pair is in place of the old one, all receives that are free are posted, and
    /// everything counts anew. The credits that the peer gets.
    pub(crate) fn renew(&mut self) -> Option<u16> {
        let renewed = self.credits.renewed();
        self.totals.sent_before += self.credits.sent();
        self.totals.received_before += self.credits.received();
        self.credits = renewed;
        self.link = Link::Prepared;
        self.queue.renew();
        self.failed_messages = 0;
        self.probe_under_way = false;
        self.handover = None;
        self.spent.clear();
        u16::try_from(self.credits.outstanding()).ok()
    }

    /// What was undecided has failed, and nobody waits for an answer any more.
    pub(super) fn fail_handover(&mut self, ending: Ending) {
        let Some(mut handover) = self.handover.take() else {
            return;
        };
        for operation in std::mem::take(&mut handover.undecided) {
            self.end_operation(operation, Outcome::Failed(ending));
        }
        if let Some(waker) = handover.waker.take() {
            self.effects.wake(waker);
        }
    }

    /// Whether a request that failed is decided about later.
    #[cold]
    pub(super) fn is_undecided(&mut self, token: u32) -> bool {
        if !self.may_renew() {
            return false;
        }
        if let Some(handover) = &mut self.handover
            && token < PROBE
        {
            handover.undecided.push(Operation::from_token(token));
        }
        true
    }

    /// The receive for the answer stays posted, for others.
    fn abandon_answer(&mut self) {
        if std::mem::take(&mut self.answer_receive) {
            self.effects.any = true;
            self.effects.answer_receive_over = Some(true);
        }
    }

    /// Nothing new goes out from now on.
    fn hold(&mut self) {
        if self.link == Link::Up {
            self.link = Link::Held;
        }
    }

    /// There is no move.
    fn go_on(&mut self) {
        if self.link == Link::Held {
            self.link = Link::Up;
        }
    }
}
