//! The connections of a lane by the numbers of their queue pairs, the mail about them, and the
//! handing out of completions.
//!
//! The table belongs to whoever has the polling role; others leave changes as mail. What a completion
//! means is the [`Member`]'s affair.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::queue::SegQueue;
use parking_lot::MutexGuard;
use san_base::ByNumber;
use verbs_shim::{Completion, CompletionBatch, RegisteredBuffer, SharedReceiveQueue};

use super::poller::See;
use crate::transfer::engine::Ending;

/// A connection, as its lane knows it.
pub(crate) trait Member: Sized {
    /// What its lock protects.
    type State;

    /// The number of its queue pair.
    fn qp_num(&self) -> u32;

    fn lock(&self) -> MutexGuard<'_, Self::State>;

    /// A receive completed.
    fn received(&self, state: &mut Self::State, completion: &Completion, buffer: RegisteredBuffer);

    /// Something completed, on its queue pair as far as is known, and nothing else came. It may be a message of
    /// its own in `srq`, with no other before it. If `see` takes that by its kind and bytes, all that follows is
    /// done. `srq` is locked while `see` reads. `false`: nothing was done.
    fn received_alone(
        &self,
        completion: &Completion,
        srq: &SharedReceiveQueue,
        see: &mut impl See<Self, Self::State>,
    ) -> bool;

    /// These completed on its queue pair, as far as is known, and nothing else came. If all of them are sends
    /// that succeeded and nothing follows from them, all is done. `false`: nothing was done.
    fn sent_alone(&self, completions: &[Completion]) -> bool;

    /// A send completed.
    fn sent(&self, state: &mut Self::State, completion: &Completion);

    /// All that was there for it has been handed over: does what follows, and lets the lock go.
    fn release(self: &Arc<Self>, state: MutexGuard<'_, Self::State>);

    /// Everything that had arrived when it ended has been handed over.
    fn finish(self: &Arc<Self>, ending: Ending);

    /// Nothing can complete for it any more.
    fn leave(&self);

    /// Asks the peer whether it is there, if nothing has moved since the last call.
    fn probe(&self);
}

/// How the table changes.
#[derive(Debug)]
pub(crate) enum Change<M> {
    /// Before anything can complete on its queue pair.
    Add(Arc<M>),
    /// After its queue pair is gone.
    Remove(Arc<M>),
    /// It has another queue pair: the one of this number is gone, and nothing has completed yet on
    /// the new one.
    Renumber(Arc<M>, u32),
}

/// Who has which queue pair. The device chooses the numbers.
type Table<M> = ByNumber<Arc<M>>;

/// What the holder of the polling role has.
pub(crate) struct Members<M> {
    pub(super) table: Table<M>,
    pub(super) batch: CompletionBatch,
    /// The one that had the last completion; most have the next one as well.
    last: Option<Arc<M>>,
    last_number: u32,
    /// Connections that are no longer in the table, and still have their place.
    pub(super) leaving: Vec<Arc<M>>,
}

impl<M> Default for Members<M> {
    fn default() -> Self {
        Self {
            table: Table::default(),
            batch: CompletionBatch::new(),
            last: None,
            last_number: 0,
            leaving: Vec::new(),
        }
    }
}

impl<M: Member> Members<M> {
    pub(super) fn insert(&mut self, member: Arc<M>) {
        self.last = None;
        self.table.insert(member.qp_num(), member);
    }

    /// The number may be another connection's by now.
    pub(super) fn remove(&mut self, qp_num: u32, member: &Arc<M>) {
        self.last = None;
        let found = self.table.get(&qp_num);
        if found.is_some_and(|found| Arc::ptr_eq(found, member)) {
            self.table.remove(&qp_num);
        }
    }

    pub(super) fn drain(&mut self) -> Vec<Arc<M>> {
        self.last = None;
        self.table.drain().map(|(_, member)| member).collect()
    }

    /// What mostly has come is one message, for who waits: hands that out. `false`: it is something else.
    #[inline(always)]
    pub(super) fn hand_out_one(
        &self,
        srq: &SharedReceiveQueue,
        see: &mut impl See<M, M::State>,
    ) -> bool {
        // Of several, who waits takes all that fit when they are there.
        if let [only] = self.batch.iter().as_slice()
            && let Some(member) = &self.last
        {
            return member.received_alone(only, srq, see);
        }
        false
    }

    /// What mostly has completed are sends of one member that nobody waits for: hands those out. `false`: it is
    /// something else.
    #[inline(always)]
    pub(super) fn hand_out_sends(&self) -> bool {
        match &self.last {
            Some(member) => member.sent_alone(self.batch.iter().as_slice()),
            None => false,
        }
    }

    /// Hands the batch out: to each connection all of its completions that follow each other, under
    /// one lock. `srq` gives the buffers of receives; what belongs to nobody goes to `stray`.
    #[inline(never)]
    pub(super) fn hand_out_all(
        &mut self,
        srq: &SharedReceiveQueue,
        stray: impl Fn(Option<RegisteredBuffer>),
        see: &mut impl See<M, M::State>,
    ) {
        let claim = |completion: &Completion| srq.claim(completion);
        let mut rest = self.batch.iter().as_slice();
        while let Some(first) = rest.first() {
            let number = first.qp_num();
            if self.last_number != number || self.last.is_none() {
                self.last = find(&self.table, number);
                self.last_number = number;
            }
            let Some(member) = &self.last else {
                hand_to_nobody(first, &claim, &stray);
                rest = &rest[1..];
                continue;
            };
            let mut state = member.lock();
            while let [completion, behind @ ..] = rest
                && completion.qp_num() == number
            {
                rest = behind;
                if !completion.is_shared_recv() {
                    member.sent(&mut state, completion);
                    continue;
                }
                match claim(completion) {
                    Some(buffer) => member.received(&mut state, completion, buffer),
                    None => stray(None),
                }
            }
            see.see(member, &mut state);
            member.release(state);
        }
    }
}

#[inline(never)]
fn find<M>(table: &Table<M>, number: u32) -> Option<Arc<M>> {
    table.get(&number).cloned()
}

#[cold]
#[inline(never)]
fn hand_to_nobody(
    completion: &Completion,
    claim: &impl Fn(&Completion) -> Option<RegisteredBuffer>,
    stray: &impl Fn(Option<RegisteredBuffer>),
) {
    let buffer = completion.is_shared_recv().then(|| claim(completion));
    stray(buffer.flatten());
}

/// What others leave for the holder of the polling role.
pub(super) struct Mail<M> {
    pub(super) changes: SegQueue<Change<M>>,
    pub(super) endings: SegQueue<(Arc<M>, Ending)>,
    /// Twice as many as there are of both, of removals until their member has left; and [`Mail::BROKEN`].
    count: AtomicUsize,
}

impl<M> Default for Mail<M> {
    fn default() -> Self {
        Self {
            changes: SegQueue::new(),
            endings: SegQueue::new(),
            count: AtomicUsize::new(0),
        }
    }
}

impl<M> Mail<M> {
    /// Beside the count, so that who polls looks at one number.
    const BROKEN: usize = 1;
    const ONE: usize = 2;

    pub(super) fn change(&self, change: Change<M>) {
        self.count.fetch_add(Self::ONE, Ordering::SeqCst);
        self.changes.push(change);
    }

    pub(super) fn end(&self, member: Arc<M>, ending: Ending) {
        self.count.fetch_add(Self::ONE, Ordering::SeqCst);
        self.endings.push((member, ending));
    }

    pub(super) fn is_some(&self) -> bool {
        self.count.load(Ordering::SeqCst) >= Self::ONE
    }

    /// Whether there is any, or the lane is broken: whoever polls has to look.
    #[inline]
    pub(super) fn wants_a_look(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }

    /// The queues cannot be used any more. `false`: that is known.
    pub(super) fn set_broken(&self) -> bool {
        self.count.fetch_or(Self::BROKEN, Ordering::SeqCst) & Self::BROKEN == 0
    }

    pub(super) fn is_broken(&self) -> bool {
        self.count.load(Ordering::SeqCst) & Self::BROKEN != 0
    }

    /// One was carried out.
    pub(super) fn done(&self) {
        self.count.fetch_sub(Self::ONE, Ordering::SeqCst);
    }
}
