//! The ledger of a lane: its places for connections, and the receives promised to them.
//!
//! Receives are promised as credits, or as the one receive for credit messages. Who takes a place
//! gets the receives of a new connection with it. A busy connection may have more, but
//!
//! - never those that the places that are free will need: whoever finds a place finds its receives;
//! - and no more, in all, than are left to others after it. So those who came first and hold what
//!   they have still leave something to those who come later.
//!
//! What the application holds of a connection that is gone is *kept*: it is not promised any more,
//! but its buffers are not there for others, who get new ones. There is a bound for these, too;
//! past it they go on counting as promised, and the lane has fewer places.
//!
//! It counts, without a lock. What is posted and which buffers exist is for
//! `receives.rs`.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[derive(Debug)]
pub(crate) struct Ledger {
    /// Connections above, promised receives below: they have to change at once.
    taken: AtomicU64,
    /// Buffers held of connections that are gone.
    kept: AtomicU32,
    places: u32,
    /// Receives that come with a place.
    each: u32,
    /// Receives that can be promised; buffers that can be kept.
    most: u32,
}

impl Ledger {
    /// As many places as asked for, if there are receives for them: `each` for a new connection,
    /// `most` in all, of which `spare` are nobody's.
    pub(crate) fn new(places: u32, each: u32, most: u32, spare: u32) -> Self {
        let each = each.max(1);
        Self {
            taken: AtomicU64::new(pack(0, spare)),
            kept: AtomicU32::new(0),
            places: places.min(most.saturating_sub(spare) / each).max(1),
            each,
            most,
        }
    }

    /// Takes a place, and the receives of a new connection.
    pub(crate) fn join(&self) -> bool {
        self.change(|connections, promised| {
            let then = (connections + 1, promised.checked_add(self.each)?);
            (then.0 <= self.places && then.1 <= self.most).then_some(then)
        })
    }

    /// Gives a place back, whose connection had `promised` receives, and the application still
    /// holds `held` buffers of them. Those that are kept: the others stay promised.
    pub(crate) fn leave(&self, promised: u32, held: u32) -> u32 {
        let kept = self.keep(held);
        let back = promised.saturating_sub(held - kept);
        self.change(|connections, all| {
            Some((connections.saturating_sub(1), all.saturating_sub(back)))
        });
        kept
    }

    /// Promises `n` more to a connection that has `window`.
    pub(crate) fn grow(&self, window: u32, n: u32) -> bool {
        self.change(|connections, promised| {
            let free_places = self.places.saturating_sub(connections);
            let then = promised.checked_add(n)?;
            let left = self
                .most
                .checked_sub(then)?
                .checked_sub(free_places.saturating_mul(self.each))?;
            (window.saturating_add(n) <= left).then_some((connections, then))
        })
    }

    /// `n` receives are not promised any more.
    pub(crate) fn release(&self, n: u32) {
        self.change(|connections, promised| Some((connections, promised.saturating_sub(n))));
    }

    /// `n` buffers that were kept are free.
    pub(crate) fn release_kept(&self, n: u32) {
        self.kept.fetch_sub(n, Ordering::AcqRel);
    }

    /// How many connections there are.
    pub(crate) fn connections(&self) -> u32 {
        unpack(self.taken.load(Ordering::Acquire)).0
    }

    /// Whether one more connection would have a place now.
    pub(crate) fn has_place(&self) -> bool {
        let (connections, promised) = unpack(self.taken.load(Ordering::Acquire));
        connections < self.places && promised.saturating_add(self.each) <= self.most
    }

    /// How many buffers there have to be.
    pub(crate) fn buffers(&self) -> u32 {
        let kept = self.kept.load(Ordering::Acquire);
        kept + unpack(self.taken.load(Ordering::Acquire)).1
    }

    #[cfg(test)]
    fn kept(&self) -> u32 {
        self.kept.load(Ordering::Relaxed)
    }

    /// Keeps as many of `held` as may be kept.
    fn keep(&self, held: u32) -> u32 {
        if held == 0 {
            return 0;
        }
        let mut kept = 0;
        let _ = self
            .kept
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
                kept = held.min(self.most.saturating_sub(now));
                Some(now + kept)
            });
        kept
    }

    fn change(&self, next: impl Fn(u32, u32) -> Option<(u32, u32)>) -> bool {
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
                let (connections, promised) = unpack(taken);
                next(connections, promised).map(|(c, p)| pack(c, p))
            })
            .is_ok()
    }
}

const fn pack(connections: u32, promised: u32) -> u64 {
    (connections as u64) << 32 | promised as u64
}

#[expect(clippy::cast_possible_truncation, reason = "each half fits")]
const fn unpack(taken: u64) -> (u32, u32) {
    ((taken >> 32) as u32, taken as u32)
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
