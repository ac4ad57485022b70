//! The scoreboard: what is known of every packet between the oldest one not
//! acknowledged and the next one to be sent.
//!
//! What it does: takes in acknowledgements, READ responses and the peer's word
//! on what it keeps, and finds what is lost. Two rules find it:
//!
//! - *Behind what was carried out.* The responder carries requests out in order.
//!   When an answer to a later packet is here, or one that was asked for later,
//!   the answer to an earlier RDMA READ is lost.
//! - *Behind what is kept.* A packet that the peer of our kind does not list,
//!   and that was sent before one that it has, is lost.
//!
//! Both wait for [`REORDER`] packets or a short time, since networks reorder.
//! The order of sending, not the PSN, decides, so that a lost retransmission is
//! found like a lost original.
//!
//! What it does not do: time, and packets themselves.

use crate::rc::psn::Seq;

/// How many later packets must have arrived before one counts as lost.
const REORDER: u64 = 3;

/// Slots of a window that has not been used yet; a power of two.
const FIRST_SLOTS: usize = 8;

/// What became of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fate {
    /// Sent, nothing known. For an RDMA READ: its response is awaited.
    #[default]
    InFlight,
    /// To be sent again.
    Lost,
    /// The peer keeps it until a missing one arrives.
    Kept,
    /// Carried out; for an RDMA READ: its response is here.
    Done,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// The moment of its last sending, counted in packets.
    order: u64,
    /// The send request it belongs to.
    wqe: u32,
    fate: Fate,
    /// Whether it stands for a packet of a READ response.
    read: bool,
    /// Whether an RDMA READ request began here.
    begins: bool,
}

#[derive(Debug)]
pub(super) struct Window {
    slots: Box<[Slot]>,
    /// The oldest that is not [`Fate::Done`].
    una: Seq,
    next: Seq,
    /// All below that are no RDMA READ are [`Fate::Done`].
    acked: Seq,
    in_flight: u32,
    lost: u32,
    /// None below is [`Fate::Lost`].
    first_lost: Seq,
    orders: u64,
    /// The latest packet known to be carried out, and its order.
    executed: (Seq, u64),
    /// The latest order of a packet known to have arrived.
    arrived: u64,
    /// The latest order of an RDMA READ request that was answered.
    answered: u64,
    /// The end of what the peer keeps.
    kept_end: Seq,
    /// Packets that were learnt to have arrived since it was last asked.
    news: u32,
}

impl Window {
    /// From `start` on. Memory grows with use.
    pub(super) fn new(start: Seq) -> Self {
        Self {
            slots: vec![Slot::default(); FIRST_SLOTS].into_boxed_slice(),
            una: start,
            next: start,
            acked: start,
            in_flight: 0,
            lost: 0,
            first_lost: start,
            orders: 1,
            executed: (start - 1, 0),
            arrived: 0,
            answered: 0,
            kept_end: start,
            news: 0,
        }
    }

    pub(super) fn una(&self) -> Seq {
        self.una
    }

    pub(super) fn next(&self) -> Seq {
        self.next
    }

    /// Sequence numbers not acknowledged.
    pub(super) fn len(&self) -> u32 {
        // Never more than there are slots.
        (self.next - self.una) as u32
    }

    pub(super) fn is_empty(&self) -> bool {
        self.una == self.next
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub(super) fn has_lost(&self) -> bool {
        self.lost > 0
    }

    /// Whether `seq` is in the window.
    pub(super) fn contains(&self, seq: Seq) -> bool {
        (self.una..self.next).contains(&seq)
    }

    /// The send request that `seq`, in the window, belongs to.
    pub(super) fn wqe(&self, seq: Seq) -> u32 {
        self.slot(seq).wqe
    }

    /// Whether `seq`, in the window, stands for an awaited READ response.
    pub(super) fn awaits_response(&self, seq: Seq) -> bool {
        let slot = self.slot(seq);
        slot.read && slot.fate != Fate::Done
    }

    /// The next `n` numbers are sent, as one request. The caller sees to it
    /// that no more are under way than may be.
    pub(super) fn sent(&mut self, wqe: u32, n: u32, read: bool) {
        self.make_room((self.len() + n) as usize);
        for i in 0..u64::from(n) {
            let order = self.orders;
            *self.slot_mut(self.next + i) = Slot {
                order,
                wqe,
                fate: Fate::InFlight,
                read,
                begins: i == 0,
            };
        }
        self.next += u64::from(n);
        self.orders += u64::from(n);
        self.in_flight += n;
    }

    /// The first that is to be sent again.
    pub(super) fn first_lost(&mut self) -> Option<Seq> {
        if self.lost == 0 {
            return None;
        }
        let from = self.first_lost.max(self.una);
        let found = (from..self.next).find(|s| self.slot(*s).fate == Fate::Lost);
        self.first_lost = found.unwrap_or(self.next);
        found
    }

    /// What to send again for `seq`, which is lost: from where, and how many
    /// numbers. One, unless it stands for a part of an RDMA READ's response.
    ///
    /// With `exact` a part of a READ is as long as what is lost. Otherwise it
    /// goes from the first one missing to the end of what was asked for: some
    /// responders answer nothing before the place that was last asked for again
    /// (`rdma_rxe` moves its record of the READ there).
    ///
    /// Never more than one request asked for, so that the responder's count of
    /// READs under way is kept.
    pub(super) fn again(&self, seq: Seq, exact: bool) -> (Seq, u32) {
        let first = *self.slot(seq);
        if !first.read {
            return (seq, 1);
        }
        let mut from = seq;
        if !exact {
            let mut s = seq;
            while s > self.una && !self.slot(s).begins {
                s -= 1;
                if self.slot(s).fate != Fate::Done {
                    from = s;
                }
            }
        }
        let run = (seq + 1..self.next)
            .take_while(|s| {
                let slot = self.slot(*s);
                let wanted = !exact || slot.fate == Fate::Lost;
                wanted && slot.wqe == first.wqe && !slot.begins
            })
            .count() as u64;
        // Not longer than the window.
        (from, (seq + 1 + run - from) as u32)
    }

    /// `n` from `seq` on are sent again, as one request. What was not lost but
    /// is on its way keeps its order: its answer may still be the first one's.
    pub(super) fn resent(&mut self, seq: Seq, n: u32) {
        let order = self.orders;
        for s in seq..seq + u64::from(n) {
            let slot = self.slot_mut(s);
            if slot.fate == Fate::Lost {
                slot.order = order;
                slot.fate = Fate::InFlight;
                self.lost -= 1;
                self.in_flight += 1;
            }
        }
        self.orders += u64::from(n);
    }

    /// The responder has carried out all up to `seq`.
    pub(super) fn acknowledge(&mut self, seq: Seq) {
        if seq < self.una || seq >= self.next {
            return;
        }
        for s in self.acked.max(self.una)..=seq {
            if !self.slot(s).read {
                self.finish(s);
            }
        }
        self.acked = self.acked.max(seq + 1);
        self.execute(seq);
    }

    /// The response to `seq`, in the window, has arrived. Which implies that
    /// all before it was carried out.
    pub(super) fn respond(&mut self, seq: Seq) {
        if seq > self.una {
            self.acknowledge(seq - 1);
        }
        self.answered = self.answered.max(self.slot(seq).order);
        self.finish(seq);
        self.execute(seq);
    }

    /// The peer keeps `seq` until a missing one arrives.
    pub(super) fn keep(&mut self, seq: Seq) {
        if !self.contains(seq) || seq < self.acked {
            return;
        }
        let slot = *self.slot(seq);
        match slot.fate {
            Fate::InFlight => self.in_flight -= 1,
            Fate::Lost => self.lost -= 1,
            Fate::Kept | Fate::Done => return,
        }
        self.slot_mut(seq).fate = Fate::Kept;
        self.news += 1;
        self.arrived = self.arrived.max(slot.order);
        self.kept_end = self.kept_end.max(seq + 1);
    }

    /// Moves on to the oldest that is not done. Says how many packets were
    /// learnt to have arrived since it was last called.
    pub(super) fn advance(&mut self) -> u32 {
        while self.una < self.next && self.slot(self.una).fate == Fate::Done {
            self.una += 1;
        }
        std::mem::take(&mut self.news)
    }

    /// Looks for losses. With `force` the time for reordering is over. Says how
    /// many were found, and whether some are suspected that the time will tell.
    pub(super) fn detect(&mut self, force: bool) -> (u32, bool) {
        let before = self.lost;
        let mut suspected = false;
        let mut judge = |this: &mut Self, s: Seq, behind: u64| {
            if force || behind >= REORDER {
                this.lose(s);
            } else {
                suspected = true;
            }
        };
        let (seq, order) = self.executed;
        for s in self.una..=seq.min(self.next - 1) {
            let slot = *self.slot(s);
            if !slot.read || matches!(slot.fate, Fate::Lost | Fate::Done) {
                continue;
            }
            // Requests that arrive later are answered later, repeated or not.
            let later = order.max(self.answered);
            if slot.order < later && s < seq || slot.order < order {
                judge(self, s, later - slot.order);
            } else if slot.order == order {
                judge(self, s, seq - s);
            }
        }
        for s in self.una.max(seq + 1)..self.kept_end.min(self.next) {
            let slot = *self.slot(s);
            if slot.fate == Fate::InFlight && slot.order < self.arrived {
                judge(self, s, self.arrived - slot.order);
            }
        }
        (self.lost - before, suspected)
    }

    /// All from `seq` on must be sent again: the responder dropped them.
    pub(super) fn go_back(&mut self, seq: Seq) {
        for s in seq.max(self.una)..self.next {
            self.lose(s);
        }
    }

    /// Nothing was heard in time: all may be lost that the peer did not say it
    /// keeps. The oldest in any case, since its acknowledgement may be lost.
    pub(super) fn time_out(&mut self) {
        for s in self.una..self.next {
            let slot = *self.slot(s);
            if slot.fate != Fate::Kept || slot.read || s == self.una {
                self.lose(s);
            }
        }
    }

    /// `seq` must be sent again, whatever was known of it.
    pub(super) fn lose(&mut self, seq: Seq) {
        if !self.contains(seq) {
            return;
        }
        let slot = self.slot_mut(seq);
        match slot.fate {
            Fate::Lost | Fate::Done => return,
            Fate::InFlight => {
                slot.fate = Fate::Lost;
                self.in_flight -= 1;
            }
            Fate::Kept => slot.fate = Fate::Lost,
        }
        self.lost += 1;
        self.first_lost = self.first_lost.min(seq);
    }

    fn finish(&mut self, seq: Seq) {
        let slot = self.slot_mut(seq);
        let (fate, order) = (slot.fate, slot.order);
        slot.fate = Fate::Done;
        match fate {
            Fate::InFlight => self.in_flight -= 1,
            Fate::Lost => self.lost -= 1,
            Fate::Kept => {}
            Fate::Done => return,
        }
        // What is kept was news when the peer told of it.
        self.news += u32::from(fate != Fate::Kept);
        self.arrived = self.arrived.max(order);
    }

    fn execute(&mut self, seq: Seq) {
        if seq > self.executed.0 {
            self.executed = (seq, self.slot(seq).order);
        }
    }

    /// Room for `len` sequence numbers.
    fn make_room(&mut self, len: usize) {
        if len <= self.slots.len() {
            return;
        }
        let mut slots = vec![Slot::default(); len.next_power_of_two()].into_boxed_slice();
        for seq in self.una..self.next {
            slots[seq as usize & (slots.len() - 1)] = *self.slot(seq);
        }
        self.slots = slots;
    }

    fn slot(&self, seq: Seq) -> &Slot {
        &self.slots[seq as usize & (self.slots.len() - 1)]
    }

    fn slot_mut(&mut self, seq: Seq) -> &mut Slot {
        &mut self.slots[seq as usize & (self.slots.len() - 1)]
    }
}
