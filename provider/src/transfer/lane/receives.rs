//! The receives of a lane: how many are promised to whom, which buffers exist, and posting them to
//! the shared receive queue.
//!
//! A connection has a receive posted for every credit that it gives. What a closed connection leaves
//! posted is *surplus*: the next ones use it up.

use std::sync::atomic::{AtomicU32, Ordering};

use verbs_shim::{ProtectionDomain, RegisteredBuffer, SharedReceiveQueue, VerbsError};

use super::ledger::Ledger;
use super::pool::GrowingPool;

/// A receive's token says nothing: what matters is the connection it arrives on.
const RECEIVE: u32 = 0;

/// See the top of the file.
pub(crate) struct Receives {
    lane: String,
    srq: SharedReceiveQueue,
    pub(crate) ledger: Ledger,
    pool: GrowingPool,
    surplus: AtomicU32,
}

impl Receives {
    /// `pool` has buffers for as many receives as the ledger can promise, and as many again that are
    /// held of connections that are gone.
    pub(super) fn new(
        lane: &str,
        pd: &ProtectionDomain,
        depth: u32,
        ledger: Ledger,
        pool: GrowingPool,
    ) -> Result<Self, VerbsError> {
        Ok(Self {
            lane: lane.to_owned(),
            srq: pd.create_srq(depth)?,
            ledger,
            pool,
            surplus: AtomicU32::new(0),
        })
    }

    pub(crate) fn srq(&self) -> &SharedReceiveQueue {
        &self.srq
    }

    /// Sets `n` more receives aside for a connection that has `window`; `false`: there are not so
    /// many.
    pub(crate) fn grow(&self, window: u32, n: u32) -> Result<bool, VerbsError> {
        if !self.ledger.grow(window, n) {
            return Ok(false);
        }
        match self.provide_buffers() {
            Ok(()) => Ok(true),
            Err(error) => {
                self.ledger.release(n);
                Err(error)
            }
        }
    }

    /// Makes the buffers that were promised and are not there yet.
    pub(crate) fn provide_buffers(&self) -> Result<(), VerbsError> {
        self.pool.grow_to(self.ledger.buffers())
    }

    /// `n` receives stay posted that nobody was promised any more.
    pub(crate) fn abandon(&self, n: u32) {
        self.surplus.fetch_add(n, Ordering::AcqRel);
    }

    /// Posts `n` receives that were set aside, in chains: first from the surplus, then in the buffers
    /// that `own` gives, then those whose messages were read in their place, then in buffers of the
    /// pool. How many were posted. Own ones come first: to leave them and take what another connection
    /// has given back would leave that one without. For the same reason as many of them are freed as come
    /// from the surplus.
    #[inline]
    pub(crate) fn post(&self, n: u32, mut own: impl FnMut() -> Option<RegisteredBuffer>) -> u32 {
        let from_surplus = match self.surplus.load(Ordering::Acquire) {
            0 => 0,
            have => self.take_surplus(have, n),
        };
        for _ in 0..from_surplus {
            let _ = own();
        }
        let mut posted = 0;
        let spare = || self.take_from_pool();
        let result = self
            .srq
            .post_from(RECEIVE, n - from_surplus, own, spare, &mut posted);
        if let Err(error) = result {
            self.not_posted(&error);
        }
        from_surplus + posted
    }

    /// The short way of [`Receives::post`], for a connection that has no buffers of its own: what was read
    /// in its place is posted again. How many; fewer than `n` if there are not so many, or some of the
    /// surplus come first.
    #[inline]
    pub(crate) fn post_spent(&self, n: u32) -> u32 {
        if self.surplus.load(Ordering::Acquire) > 0 {
            return 0;
        }
        match self.srq.post_spent(RECEIVE, n) {
            Ok(posted) => posted,
            Err((posted, error)) => {
                self.not_posted(&error);
                posted
            }
        }
    }

    /// Where the buffers of a connection are in use, or it begins.
    #[cold]
    fn take_from_pool(&self) -> Option<RegisteredBuffer> {
        self.pool.take()
    }

    #[cold]
    fn not_posted(&self, error: &VerbsError) {
        tracing::warn!(lane = self.lane, %error, "a receive could not be posted");
    }

    /// Posts a receive whose message was taken in at once.
    pub(crate) fn repost(&self, buffer: RegisteredBuffer) {
        if let Err(error) = self.srq.post(RECEIVE, buffer) {
            self.not_posted(&error.error);
        }
    }

    #[cold]
    fn take_surplus(&self, mut have: u32, n: u32) -> u32 {
        while have > 0 {
            let take = have.min(n);
            match self.surplus.compare_exchange_weak(
                have,
                have - take,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return take,
                Err(now) => have = now,
            }
        }
        0
    }
}
