//! Credits: how many messages each side may still send, and when credits go back (duty 92).
//!
//! A data message costs a credit; a credit stands for a posted receive. Credits go back in the
//! immediate data of data messages, or in a credit message of their own. A credit message costs no
//! credit: every side keeps one receive more than the credits it gave, for exactly one credit
//! message at a time. The next one may follow when the peer has shown that it took in the last:
//! by sending a data message that it could not have sent before.
//!
//! So nothing ever waits in a circle. A side whose credit message may not go out yet knows that its
//! peer still has a credit: had the peer used them all, it would have shown what is asked for.
//!
//! This file counts. It posts no receive and sends no message.

use crate::wire::{Immediate, Violation};

/// More than anybody can have receives posted for.
const MOST: u64 = 0xffff;

/// The credits of one connection, both ways.
#[derive(Debug)]
pub(crate) struct Credits {
    /// Credits the peer gave, all told.
    given_by_peer: u64,
    /// Data messages sent, all told.
    sent: u64,
    /// `given_by_peer` before the peer's last credit message.
    before_their_last: Option<u64>,
    /// Receives set aside for this connection, without the one for credit messages.
    window: u32,
    most_window: u32,
    /// Credits given to the peer, all told.
    given: u64,
    /// Data messages received, all told.
    received: u64,
    /// Receives that are free, but not given to the peer yet.
    owed: u32,
    /// `given` before our last credit message.
    before_our_last: Option<u64>,
}

impl Credits {
    /// A connection with `window` receives set aside, all of them given with the negotiation.
    pub(crate) fn new(window: u32, most_window: u32) -> Self {
        Self {
            given_by_peer: 0,
            sent: 0,
            before_their_last: None,
            window,
            most_window: most_window.max(window),
            given: u64::from(window),
            received: 0,
            owed: 0,
            before_our_last: None,
        }
    }

    /// The same connection on a new queue pair: all receives that are free are given with the
    /// negotiation, the peer starts anew, and what is held here goes on being held.
    pub(crate) fn renewed(&self) -> Self {
        let free = self.window - self.held().min(self.window);
        Self {
            given: u64::from(free),
            ..Self::new(self.window, self.most_window)
        }
    }

    /// Whether a data message may be sent.
    pub(crate) fn may_send(&self) -> bool {
        self.sent < self.given_by_peer
    }

    /// A data message goes out.
    pub(crate) fn data_sent(&mut self) {
        self.sent += 1;
    }

    /// The peer gave `n` credits: with the negotiation, or in a data message.
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

    /// A data message came.
    pub(crate) fn data_came(&mut self) -> Result<(), Violation> {
        if self.received >= self.given {
            return Err(Violation::NoCredit);
        }
        self.received += 1;
        Ok(())
    }

    /// A receive is free again.
    pub(crate) fn freed(&mut self) {
        self.owed += 1;
    }

    /// By how much the window should grow: the peer has used half of it up.
    pub(crate) fn wanted_growth(&self) -> u32 {
        if self.outstanding() * 2 <= u64::from(self.window) {
            self.window.min(self.most_window - self.window)
        } else {
            0
        }
    }

    /// `n` more receives were set aside.
    pub(crate) fn grown(&mut self, n: u32) {
        self.window += n;
        self.owed += n;
    }

    /// How many credits may go out with the next message.
    pub(crate) fn owed(&self) -> u16 {
        u16::try_from(self.owed)
            .unwrap_or(u16::MAX)
            .min(Immediate::MAX_CREDITS)
    }

    /// Whether credits have to go out by themselves now: half the window is owed, or the peer can
    /// send nothing and there is nothing left here (`drained`) by whose consumption more would be
    /// owed.
    pub(crate) fn must_return(&self, drained: bool) -> bool {
        let enough = self.owed >= (self.window / 2).max(1);
        let stuck = drained && self.owed > 0 && self.outstanding() == 0;
        (enough || stuck)
            && self
                .before_our_last
                .is_none_or(|before| self.received > before)
    }

    /// A message goes out with `n` of the owed credits, their receives posted; a credit message
    /// if `alone`.
    pub(crate) fn returned(&mut self, n: u16, alone: bool) {
        if alone {
            self.before_our_last = Some(self.given);
        }
        self.owed = self.owed.saturating_sub(u32::from(n));
        self.given += u64::from(n);
    }

    /// Receives whose messages came and were not let go yet.
    pub(crate) fn held(&self) -> u32 {
        let posted = u32::try_from(self.outstanding()).unwrap_or(u32::MAX);
        self.window.saturating_sub(posted.saturating_add(self.owed))
    }

    /// Credits that the peer can still use.
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

#[cfg(test)]
#[path = "credits_tests.rs"]
mod tests;
