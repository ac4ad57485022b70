//! Credits: how many messages each side may still send, and when credits go back (duty 92).
//!
//! A data message costs a credit; a credit stands for a posted receive. Credits go back in the
//! immediate data of data messages, or in a credit message of their own. A credit message costs no
//! credit: every side keeps one receive more than the credits it gave, for exactly one credit
//! message at a time. The next one may follow when the peer has shown that it took in the last:
//! by sending a data message that it could not have sent before.
//!
//! There is no deadlock. Suppose that a side may not send its next credit message yet. Then its peer
//! has not shown that it took in the last one. So the peer has not used the credits of that message,
//! and can still send.
//!
//! A receive that is free again goes through two steps: it is *owed* until it is posted, *untold*
//! until the peer has its credit. Receives are posted in chains, which costs one call of the driver.
//!
//! This file counts. It posts no receive and sends no message.

use crate::wire::{Immediate, Violation};

/// More than anybody can have receives posted for.
const MOST: u64 = 0xffff;

/// Messages after which a window has grown, if it can.
const YOUNG: u64 = 16;

/// A window of so many receives is not small.
const LARGE: u32 = 8;

/// Receives that one call of the driver posts.
const MOST_CHAINED: u32 = 16;

/// The credits of one connection, both ways.
#[derive(Debug)]
pub(crate) struct Credits {
    /// Credits the peer gave, all told.
    given_by_peer: u64,
    /// Data messages sent, all told.
    sent: u64,
    /// Credits that data messages leave to those past the inbox once [`YOUNG`] messages were sent.
    reserve: u64,
    /// `given_by_peer` before the peer's last credit message.
    before_their_last: Option<u64>,
    /// Receives set aside for this connection, without the one for credit messages.
    window: u32,
    most_window: u32,
    /// What follows from the window: so many receives are worth a call of the driver, so many that wait
    /// to be given are worth a credit message.
    chain: u32,
    enough: u32,
    /// Credits given to the peer, all told.
    given: u64,
    /// Data messages received, all told.
    received: u64,
    /// Receives that are free, and not posted again yet.
    owed: u32,
    /// Receives that are posted again, and whose credits the peer does not have yet.
    untold: u32,
    /// `given` before our last credit message.
    before_our_last: Option<u64>,
    /// One of those that are owed or untold was a message past the inbox: the peer may need the credit
    /// for the next one, whatever waits here.
    owes_control: bool,
    /// So many messages may come and be let go at once before any of the questions about the window and
    /// about giving credits back has another answer than no; 0: that is not known.
    calm: u32,
}

impl Credits {
    /// A connection with `window` receives set aside, all of them given with the negotiation.
    pub(crate) fn new(window: u32, most_window: u32) -> Self {
        Self {
            given_by_peer: 0,
            sent: 0,
            reserve: 0,
            before_their_last: None,
            window,
            most_window: most_window.max(window),
            chain: chain(window),
            enough: enough(window),
            given: u64::from(window),
            received: 0,
            owed: 0,
            untold: 0,
            before_our_last: None,
            owes_control: false,
            calm: 0,
        }
    }

    /// The same connection on a new queue pair: all receives that are free are given with the
    /// negotiation, the peer starts anew, and what is held here goes on being held.
    pub(crate) fn renewed(&self) -> Self {
        let free = self.window - self.held().min(self.window);
        Self {
            given: u64::from(free),
            reserve: self.reserve,
            ..Self::new(self.window, self.most_window)
        }
    }

    /// Whether a data message may be sent.
    #[inline]
    pub(crate) fn may_send(&self) -> bool {
        // Asked each time: no credits may come after the one that makes the connection old.
        let reserve = self.reserve & u64::from(self.sent >= YOUNG);
        self.sent + reserve < self.given_by_peer
    }

    /// Whether a message that goes past the inbox may be sent.
    pub(crate) fn may_send_control(&self) -> bool {
        self.sent < self.given_by_peer
    }

    /// Whether data messages leave a credit to those that go past the inbox. Of a young connection they
    /// do not: its window grows, and so credits come back whatever is read.
    pub(crate) fn reserve(&mut self, wanted: bool) {
        self.reserve = u64::from(wanted);
    }

    /// A receive is free again whose message went past the inbox.
    pub(crate) fn control_freed(&mut self) {
        self.owes_control = true;
    }

    /// A data message goes out.
    #[inline]
    pub(crate) fn data_sent(&mut self) {
        self.sent += 1;
    }

    /// The peer gave `n` credits: with the negotiation, or in a data message.
    #[inline]
    pub(crate) fn credits_came(&mut self, n: u16) -> Result<(), Violation> {
        let given = self.given_by_peer + u64::from(n);
        let unspent = given.saturating_sub(self.sent);
        if unspent > MOST {
            return Err(Violation::TooManyCredits(
                u32::try_from(unspent).unwrap_or(u32::MAX),
            ));
        }
        self.given_by_peer = given;
        Ok(())
    }

    /// A credit message came with `n` credits.
    pub(crate) fn credit_message_came(&mut self, n: u16) -> Result<(), Violation> {
        if self
            .before_their_last
            .is_some_and(|before| self.sent <= before)
        {
            return Err(Violation::EarlyCreditMessage);
        }
        self.before_their_last = Some(self.given_by_peer);
        self.credits_came(n)
    }

    /// A data message came with `n` credits.
    #[inline]
    pub(crate) fn data_came_with(&mut self, n: u16) -> Result<(), Violation> {
        self.credits_came(n)?;
        self.data_came()
    }

    /// A data message came.
    #[inline]
    pub(crate) fn data_came(&mut self) -> Result<(), Violation> {
        if self.received >= self.given {
            return Err(Violation::NoCredit);
        }
        self.calm = 0;
        self.received += 1;
        Ok(())
    }

    /// Whether a data message with `n` credits keeps to the protocol.
    #[inline]
    pub(crate) fn admits(&self, n: u16) -> bool {
        // What was sent was sent for credits that were given.
        let unspent = self.given_by_peer.wrapping_sub(self.sent);
        unspent.wrapping_add(n.into()) <= MOST && (self.calm > 0 || self.received < self.given)
    }

    /// A data message that [`Credits::admits`] has said yes to came with `n` credits, and its receive is
    /// free again. `true`: nothing follows from that, neither a larger window nor credits that have to go
    /// back.
    #[inline]
    pub(crate) fn passed(&mut self, n: u16) -> bool {
        self.given_by_peer += u64::from(n);
        self.received += 1;
        self.owed += 1;
        if self.calm == 0 {
            return false;
        }
        self.calm -= 1;
        true
    }

    /// Finds out for how many messages nothing more than to count is to be done; whether for one at least,
    /// and so for those that came already.
    #[inline]
    pub(crate) fn look_ahead(&mut self) -> bool {
        let outstanding = self.outstanding();
        // None of these, and fewer than half used up: as `must_return` and `wanted_growth` ask.
        let until_growth = match self.window < self.most_window {
            true => (outstanding * 2 + self.large()).saturating_sub(u64::from(self.window) + 1) / 2,
            false => u64::MAX,
        };
        let until_stuck = outstanding.saturating_sub(1);
        let back = self.owed + self.untold;
        let until_enough = self.enough.saturating_sub(back + 1);
        let least = until_growth.min(until_stuck).min(until_enough.into());
        self.calm = u32::try_from(least).unwrap_or(u32::MAX);
        self.calm > 0
    }

    /// 1 for a window that is posted again by halves, so that to have used half of it up is not much.
    #[inline]
    fn large(&self) -> u64 {
        u64::from(self.window >= LARGE)
    }

    /// A receive is free again.
    #[inline]
    pub(crate) fn freed(&mut self) {
        self.calm = 0;
        self.owed += 1;
    }

    /// By how much the window should grow: the peer has used half of it up, or more than that of a large one.
    #[inline(always)]
    pub(crate) fn wanted_growth(&self) -> u32 {
        if self.outstanding() * 2 + self.large() <= u64::from(self.window) {
            self.window.min(self.most_window - self.window)
        } else {
            0
        }
    }

    /// `n` more receives were set aside.
    pub(crate) fn grown(&mut self, n: u32) {
        self.calm = 0;
        self.window += n;
        self.chain = chain(self.window);
        self.enough = enough(self.window);
        self.owed += n;
    }

    /// How many receives are to be posted again now: none until they make a chain, or credits have
    /// to go out by themselves.
    #[inline(always)]
    pub(crate) fn receives_due(&self, drained: bool) -> u32 {
        let is_due = self.owed >= self.chain
            || (self.calm == 0 && self.owed > 0 && self.must_return(drained));
        if is_due { self.owed } else { 0 }
    }

    /// `n` of the receives that were due are posted.
    #[inline]
    pub(crate) fn posted(&mut self, n: u32) {
        let n = n.min(self.owed);
        self.owed -= n;
        self.untold += n;
    }

    /// Whether credits have to go out by themselves now: more than half of the window waits to be given
    /// (half of a small one), or the peer can send nothing and there is nothing left here (`drained`) by whose consumption more
    /// would.
    #[inline(always)]
    pub(crate) fn must_return(&self, drained: bool) -> bool {
        let back = self.owed + self.untold;
        let enough = back >= self.enough;
        let drained = drained || self.owes_control;
        let stuck = self.outstanding() == 0 && (back >= self.chain || drained && back > 0);
        (enough || stuck)
            && self
                .before_our_last
                .is_none_or(|before| self.received > before)
    }

    /// Whether credits should go out and no credit message may: the peer has not shown yet that it took in the
    /// last one, perhaps because that gave it the one credit that it leaves to messages past the inbox.
    #[inline(always)]
    pub(crate) fn wants_carrier(&self) -> bool {
        self.owed + self.untold >= self.enough
            && self
                .before_our_last
                .is_some_and(|before| self.received <= before)
    }

    /// A message goes out and gives the peer the credits for receives that are posted, a credit
    /// message if `alone`: how many it gives.
    #[inline]
    pub(crate) fn tell(&mut self, alone: bool) -> u16 {
        if alone {
            self.before_our_last = Some(self.given);
        }
        // What is below changes nothing then.
        if self.untold == 0 {
            return 0;
        }
        // No more than 16 bits.
        let n = self.untold.min(Immediate::MAX_CREDITS.into()) as u16;
        self.untold -= u32::from(n);
        self.given += u64::from(n);
        if self.owes_control {
            self.owes_control = self.owed + self.untold > 0;
        }
        // The peer has a chain of credits more: for the messages that it sends by them it is known now.
        self.look_ahead();
        n
    }

    /// A data message with `n` credits did not go out after all.
    pub(crate) fn untell(&mut self, n: u16) {
        self.calm = 0;
        self.untold += u32::from(n);
        self.given -= u64::from(n);
        self.sent -= 1;
    }

    /// Receives that are posted for credits that the peer does not have yet.
    pub(crate) fn untold(&self) -> u32 {
        self.untold
    }

    /// Receives whose messages came and were not let go yet.
    pub(crate) fn held(&self) -> u32 {
        let posted = u32::try_from(self.outstanding()).unwrap_or(u32::MAX);
        let not_held = posted.saturating_add(self.owed + self.untold);
        self.window.saturating_sub(not_held)
    }

    /// Credits that the peer can still use.
    #[inline]
    pub(crate) fn outstanding(&self) -> u64 {
        self.given - self.received
    }

    /// Data messages sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Data messages received so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Receives set aside, without the one for credit messages.
    pub(crate) fn window(&self) -> u32 {
        self.window
    }
}

/// So many receives are worth a call of the driver: half of the window, at most [`MOST_CHAINED`]; less of a
/// small one. With more, an exchange of single messages would make the window grow.
const fn chain(window: u32) -> u32 {
    match window {
        0..4 => 1,
        4..LARGE => 2,
        LARGE..32 => window / 2,
        _ => MOST_CHAINED,
    }
}

/// More than half of the window; half of a small one.
const fn enough(window: u32) -> u32 {
    window / 2 + (window != 2) as u32
}

#[cfg(test)]
#[path = "credits_tests.rs"]
mod tests;
