//! The part of a move to another process that waits, posts and makes queue pairs; the steps are in
//! `engine/handover.rs`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::sync::Unparker;
use verbs_shim::{CmId, VerbsError};

use super::completions::set_number;
use super::receive::SendInterest;
use super::{Connection, Qp, State, queue_pair};
use crate::error::DuplicateError;
use crate::transfer::Lane;
use crate::transfer::engine::{Answer, Carried, Departure, Ending};
use crate::transfer::lane::{Change, See, Wanted};
use crate::wire::{Hello, Resumption};

impl Connection {
    /// Leaves: waits until everything that was sent has arrived, the peer has said where it waits,
    /// and everything that it had sent is here. Then every receive that waits ends with 0 bytes
    /// (duty 116), and the connection is of no use here.
    pub(crate) fn depart(&self, wait: Duration) -> Result<Departure, DuplicateError> {
        self.begin_departure()?;
        let _interest = SendInterest::new(self);
        let mut wanted = Departed {
            connection: self,
            seen: false,
        };
        let departed = self.lane.wait(wait, &mut wanted);
        departed.unwrap_or_else(|| self.give_up_departure())
    }

    fn begin_departure(&self) -> Result<(), DuplicateError> {
        let mut state = self.lock_state();
        state.engine.check_leave()?;
        let receives = &self.lane.receives;
        if !receives.grow(0, 1)? {
            return Err(DuplicateError::NoReceive);
        }
        if receives.post(1, || None) == 0 {
            receives.ledger.release(1);
            return Err(DuplicateError::NoReceive);
        }
        state.share.reserve(1);
        state.engine.leave();
        self.pump(&mut state);
        self.settle(state);
        Ok(())
    }

    /// How the departure ended, if it has.
    fn departed(&self, waker: Option<Unparker>) -> Option<Result<Departure, DuplicateError>> {
        let mut state = self.lock_state();
        let departed = state.engine.departed(waker);
        if departed.is_some() {
            // Where the peer said no, the connection goes on.
            self.pump(&mut state);
        }
        self.settle(state);
        departed
    }

    /// The deadline is over.
    fn give_up_departure(&self) -> Result<Departure, DuplicateError> {
        if let Some(departed) = self.departed(None) {
            return departed;
        }
        let mut state = self.lock_state();
        if state.engine.stay() {
            self.pump(&mut state);
            self.settle(state);
            return Err(DuplicateError::NotDrained);
        }
        drop(state);
        if let Some(departed) = self.departed(None) {
            return departed;
        }
        // The question is out and cannot be taken back.
        self.break_now(Ending::Reset);
        Err(DuplicateError::PeerSilent)
    }

    /// Messages that came along from another process: the first to be received.
    pub(crate) fn carry(&self, messages: Vec<Carried>) {
        let mut state = self.lock_state();
        state.engine.carry(messages);
        self.settle(state);
    }

    /// The answer to the peer's question; `None`: no.
    pub(crate) fn answer(&self, answer: Option<Resumption>) {
        // Before the lock is taken: it may have to be registered.
        let answer = answer.and_then(|resumption| {
            if Resumption::LENGTH <= self.inline {
                let buffer = None;
                return Some(Answer { resumption, buffer });
            }
            let mut buffer = self.lane.registered_buffer().ok().flatten()?;
            buffer.fill(&resumption.emit());
            let buffer = Some(buffer);
            Some(Answer { resumption, buffer })
        });
        let mut state = self.lock_state();
        state.engine.answer(answer);
        self.pump(&mut state);
        self.settle(state);
    }

    /// Whether the peer has its answer, and is to come from elsewhere.
    pub(crate) fn awaits_peer(&self) -> bool {
        self.lock_state().engine.awaits_peer()
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
        let number = qp.qp_num();
        let mut state = self.lock_state();
        if !state.engine.may_renew()
            || (qp.caps().inline as usize) < self.inline
            || (hello.max_message_size as usize) < state.engine.send_limit()
            || !self.post_to_renew(&mut state)?
        {
            return Ok(None);
        }
        let credits = state.engine.renew();
        let old = std::mem::replace(&mut state.qp, Qp::Prepared(qp));
        let before = set_number(self, number);
        self.token.store(id.token(), Ordering::Relaxed);
        drop(state);
        // Its memory is free, and what is open to the peer closed, before any operation ends.
        drop(old);
        self.memory.forget_opened();
        self.lane.change(Change::Renumber(Arc::clone(self), before));
        let mut state = self.lock_state();
        state.engine.end_posted();
        self.settle(state);
        Ok(credits)
    }

    /// Posts the receives that are free and not posted; whether they all are.
    fn post_to_renew(&self, state: &mut State) -> Result<bool, VerbsError> {
        let receives = &self.lane.receives;
        let missing = match state.engine.receives_to_renew() {
            Some(missing) => missing,
            // Everything is held here, and a connection begins with a credit.
            None => {
                if !receives.grow(0, 1)? {
                    return Ok(false);
                }
                state.share.reserve(1);
                state.engine.grown(1);
                1
            }
        };
        // Those whose messages were read are of this connection, and are missed elsewhere.
        let posted = receives.post(missing, || state.engine.spent());
        if posted < missing {
            receives.abandon(posted);
        }
        Ok(posted == missing)
    }
}

/// The thread in [`Connection::depart`].
struct Departed<'a> {
    connection: &'a Connection,
    /// Something came for the connection.
    seen: bool,
}

impl See<Connection, State> for Departed<'_> {
    fn see(&mut self, member: &Connection, _: &mut State) {
        self.seen |= std::ptr::eq(member, self.connection);
    }
}

impl Wanted<Lane> for Departed<'_> {
    type Found = Result<Departure, DuplicateError>;

    fn seen(&mut self) -> Option<Self::Found> {
        std::mem::take(&mut self.seen)
            .then(|| self.connection.departed(None))
            .flatten()
    }

    fn check(&mut self, waker: Option<&Unparker>) -> Option<Self::Found> {
        self.connection.departed(waker.cloned())
    }
}
