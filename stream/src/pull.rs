//! Bulk: the sender stages bytes in a ring and offers them, the receiver reads them by RDMA.
//!
//! The ring is addressed by positions of the stream, so an offer needs no allocation at its sender
//! and its receiver can check it: byte `position` lies at `position % length`. No offer crosses the
//! end of the ring. This module keeps the receiver's account; the sender's is `retained`.

use std::collections::VecDeque;

/// Bytes of a sender's staging ring.
pub const RING: u64 = 256 * 1024;

/// Staged bytes from which on they are offered and not sent.
pub const OFFER_FROM: u64 = 32 * 1024;

/// The most bytes of one READ.
pub const PIECE: u64 = 64 * 1024;

/// A usual offer, where so much is staged: half of the ring, so that the one half is filled while the other is
/// read. Each offer costs two messages, itself and DONE, and mostly a wake-up at each end.
pub(crate) const USUAL_OFFER: u64 = RING / 2;

/// The longest ring of a peer.
const MOST_RING: u64 = 1 << 30;

/// Offers that may be open at a time. A ring of 256 KiB has no more than 8 of 32 KiB.
const MOST_OFFERS: usize = 64;

/// What is wrong with an offer or a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullError {
    /// An offer without a ring.
    NoRing,
    /// Another ring while bytes in the one before are offered, or one whose length is 0 or too large.
    BadRing,
    /// An offer that begins where no byte can be: behind what came, or inside another offer.
    Misplaced,
    /// An offer of no byte beyond those that came with it, past the ring's end, or of more than the
    /// ring has.
    BeyondRing,
    /// DATA where offered bytes belong.
    DataInOffer,
}

/// A READ to be posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// The position of its first byte in the stream.
    pub position: u64,
    /// Where in the peer's ring it begins, in bytes.
    pub place: u64,
    /// How many bytes: at most [`PIECE`].
    pub length: u32,
}

/// An open offer. All positions: `from <= landed <= asked <= to`.
#[derive(Debug)]
struct Offer {
    from: u64,
    to: u64,
    /// READs are posted up to here.
    asked: u64,
    /// Bytes are here up to here.
    landed: u64,
    /// A READ of it is complete.
    had_read: bool,
}

impl Offer {
    /// The peer knows that everything before this was read.
    fn safe(&self) -> u64 {
        if self.had_read {
            self.landed
        } else {
            self.from
        }
    }
}

/// The receiver's account of one queue pair.
#[derive(Debug, Default)]
pub(crate) struct Landing {
    /// The length of the peer's ring; 0: none.
    ring: u64,
    offers: VecDeque<Offer>,
    /// Bytes that were read and that the peer was not told of.
    untold: u64,
}

/// Where the next byte comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// A message, of at most so many bytes.
    Message(u64),
    /// So many bytes that have landed; 0: they are under way.
    Landed(u64),
}

impl Landing {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.offers.is_empty()
    }

    pub(crate) fn ring(&mut self, length: u64) -> Result<(), PullError> {
        // What has landed needs no ring, whether it was taken or not.
        let is_open = self.offers.iter().any(|open| open.landed < open.to);
        if is_open || length == 0 || length > MOST_RING {
            return Err(PullError::BadRing);
        }
        self.ring = length;
        Ok(())
    }

    /// An offer, with `first` bytes in the message itself.
    pub(crate) fn offer(
        &mut self,
        read: u64,
        position: u64,
        length: u32,
        first: usize,
    ) -> Result<(), PullError> {
        if self.ring == 0 {
            return Err(PullError::NoRing);
        }
        let (length, first) = (u64::from(length), first as u64);
        let to = position.checked_add(length).ok_or(PullError::BeyondRing)?;
        // What was read its sender may overwrite.
        let oldest = self.offers.iter().find(|open| open.landed < open.to);
        let oldest = oldest.map_or(position, Offer::safe);
        if first >= length
            || position % self.ring + length > self.ring
            || to.saturating_sub(oldest) > self.ring
            || self.offers.len() == MOST_OFFERS
        {
            return Err(PullError::BeyondRing);
        }
        if position < self.offers.back().map_or(read, |last| last.to) {
            return Err(PullError::Misplaced);
        }
        let here = position + first;
        self.offers.push_back(Offer {
            from: position,
            to,
            asked: here,
            landed: here,
            had_read: false,
        });
        Ok(())
    }

    pub(crate) fn next(&self, position: u64) -> Next {
        match self.offers.front() {
            None => Next::Message(u64::MAX),
            Some(first) if position < first.from => Next::Message(first.from - position),
            Some(first) => Next::Landed(first.landed - position),
        }
    }

    /// The application has taken what had landed, up to `position`.
    pub(crate) fn taken(&mut self, position: u64) {
        if self
            .offers
            .front()
            .is_some_and(|first| position == first.to)
        {
            self.offers.pop_front();
        }
    }

    /// Bytes that have landed or are asked for, and that nobody has taken. What came with offers that
    /// are not read yet does not count: else many of them could keep the first one from being read.
    fn held(&self, position: u64) -> u64 {
        let held = |open: &Offer| open.asked.saturating_sub(open.from.max(position));
        let whole: u64 = self
            .offers
            .iter()
            .take_while(|open| open.asked == open.to)
            .map(held)
            .sum();
        whole
            + self
                .offers
                .iter()
                .find(|open| open.asked < open.to)
                .map_or(0, held)
    }

    /// The next READ, if the receiver may hold `bound` bytes.
    pub(crate) fn read(&mut self, position: u64, bound: u64) -> Option<Read> {
        let room = bound.checked_sub(self.held(position))?;
        let ring = self.ring;
        let offer = self
            .offers
            .iter_mut()
            .find(|offer| offer.asked < offer.to)?;
        // The receiver may keep them in a ring of its own, by their positions.
        let room = room.min(bound.checked_sub(offer.asked - position)?);
        // Rather a whole piece later than crumbs now; but an empty receiver takes what it may.
        let wanted = (offer.to - offer.asked).min(PIECE);
        let is_behind = offer.landed < offer.asked;
        let length = if room >= wanted { wanted } else { room };
        if length == 0 || (length < wanted && (is_behind || position < offer.asked)) {
            return None;
        }
        let read = Read {
            position: offer.asked,
            place: offer.asked % ring,
            length: u32::try_from(length).ok()?,
        };
        offer.asked += length;
        Some(read)
    }

    /// A READ is complete. Returns how many bytes the peer is to be told of now, those that had come with
    /// their offers among them: all that were read, when nothing else is under way or they are as many as a
    /// usual offer. Else the next READ tells of them.
    pub(crate) fn landed(&mut self, position: u64, length: u32) -> Option<u32> {
        let offer = self
            .offers
            .iter_mut()
            .find(|o| o.landed == position && position + u64::from(length) <= o.asked)?;
        let is_first = !offer.had_read;
        offer.had_read = true;
        offer.landed += u64::from(length);
        self.untold += if is_first {
            offer.landed - offer.from
        } else {
            u64::from(length)
        };
        if self.is_reading() && self.untold < (self.ring / 2).min(USUAL_OFFER) {
            return None;
        }
        u32::try_from(std::mem::take(&mut self.untold)).ok()
    }

    /// Whether READs are posted that are not complete.
    pub(crate) fn is_reading(&self) -> bool {
        self.offers.iter().any(|open| open.landed < open.asked)
    }

    /// The position up to which bytes are here, as far as this account goes: `position` is the reader's.
    pub(crate) fn reached(&self, position: u64) -> u64 {
        let open = self.offers.iter().find(|open| open.landed < open.to);
        let landed = self.offers.back().map_or(position, |last| last.to);
        open.map_or(landed, |open| open.landed)
    }

    /// What has not landed comes again, and from another ring. No READ is under way.
    pub(crate) fn rest(&mut self, position: u64) {
        let mut is_cut = false;
        self.offers.retain_mut(|open| {
            let is_behind = is_cut;
            is_cut |= open.landed < open.to;
            open.to = open.landed;
            open.asked = open.landed;
            !is_behind && open.to > position
        });
        self.ring = 0;
    }

    /// Pieces of the stream that have landed and were not taken: first and end. They are all that is left
    /// after [`Landing::rest`].
    pub(crate) fn pieces(&self, position: u64) -> impl Iterator<Item = (u64, u64)> {
        let piece = move |open: &Offer| (open.from.max(position), open.landed);
        self.offers.iter().map(piece)
    }

    /// A piece that has landed elsewhere, behind those before it.
    pub(crate) fn brought(&mut self, (from, to): (u64, u64)) {
        self.offers.push_back(Offer {
            from,
            to,
            asked: to,
            landed: to,
            had_read: true,
        });
    }

    /// The queue pair is gone.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_read_in_pieces_and_within_the_bound() {
        let mut landing = Landing::default();
        assert_eq!(landing.ring(RING), Ok(()));
        assert_eq!(landing.offer(0, 1000, 150_000, 4000), Ok(()));
        assert_eq!(landing.next(0), Next::Message(1000));
        assert_eq!(landing.next(1000), Next::Landed(4000));
        let first = landing.read(1000, 100_000).expect("room");
        assert_eq!(
            first,
            Read {
                position: 5000,
                place: 5000,
                length: 65_536
            }
        );
        assert_eq!(
            landing.read(1000, 100_000),
            None,
            "70 KB are held or under way"
        );
        assert_eq!(
            landing.landed(5000, 65_536),
            Some(69_536),
            "with what came in the offer"
        );
        assert_eq!(
            landing.read(70_536, 100_000).map(|read| read.length),
            Some(65_536)
        );
    }

    #[test]
    fn the_peer_is_told_of_many_reads_at_a_time() {
        let half = (RING / 2) as u32;
        let mut landing = Landing::default();
        assert_eq!(landing.ring(RING), Ok(()));
        assert_eq!(landing.offer(0, 0, half, 0), Ok(()));
        assert_eq!(landing.offer(0, RING / 2, half, 0), Ok(()));
        while landing.read(0, RING).is_some() {}
        let told: Vec<_> = (0..RING / PIECE)
            .map(|piece| landing.landed(piece * PIECE, PIECE as u32))
            .collect();
        assert_eq!(told, [None, Some(half), None, Some(half)]);
        assert_eq!(landing.landed(0, 1), None, "nobody reads that");
    }

    #[test]
    fn bad_offers_are_named() {
        let mut landing = Landing::default();
        assert_eq!(landing.offer(0, 0, 10, 0), Err(PullError::NoRing));
        assert_eq!(landing.ring(0), Err(PullError::BadRing));
        assert_eq!(landing.ring(1000), Ok(()));
        assert_eq!(landing.ring(1000), Ok(()), "it replaces the one before");
        assert_eq!(landing.offer(0, 900, 101, 0), Err(PullError::BeyondRing));
        assert_eq!(landing.offer(0, u64::MAX, 2, 0), Err(PullError::BeyondRing));
        assert_eq!(landing.offer(500, 499, 10, 0), Err(PullError::Misplaced));
        assert_eq!(landing.offer(500, 500, 10, 0), Ok(()));
        assert_eq!(landing.ring(1000), Err(PullError::BadRing));
        assert_eq!(landing.offer(500, 509, 10, 0), Err(PullError::Misplaced));
        assert_eq!(landing.offer(500, 1500, 400, 0), Err(PullError::BeyondRing));
    }

    #[test]
    fn another_ring_may_come_while_what_has_landed_is_not_taken() {
        let mut landing = Landing::default();
        assert_eq!(landing.ring(RING), Ok(()));
        assert_eq!(landing.offer(0, 0, 100, 40), Ok(()));
        assert_eq!(
            landing.ring(RING),
            Err(PullError::BadRing),
            "60 are not here"
        );
        landing.read(0, RING).expect("room");
        assert_eq!(landing.landed(40, 60), Some(100));
        assert_eq!(landing.ring(RING), Ok(()));
        assert_eq!(landing.next(0), Next::Landed(100));
    }

    #[test]
    fn what_rests_keeps_what_has_landed_and_nothing_else() {
        let mut landing = Landing::default();
        assert_eq!(landing.ring(RING), Ok(()));
        assert_eq!(landing.offer(0, 0, 100, 40), Ok(()));
        assert_eq!(landing.offer(0, 100, 100, 40), Ok(()));
        assert_eq!(landing.offer(0, 200, 100, 40), Ok(()));
        landing.read(0, RING).expect("room");
        landing.read(0, RING).expect("room");
        assert!(landing.is_reading());
        assert_eq!(landing.landed(40, 60), None, "the other READ tells");
        assert_eq!(landing.landed(140, 60), Some(200));
        assert!(!landing.is_reading());
        assert_eq!(landing.reached(0), 240);
        landing.rest(10);
        let pieces: Vec<_> = landing.pieces(10).collect();
        assert_eq!(pieces, [(10, 100), (100, 200), (200, 240)]);
        assert_eq!(landing.reached(10), 240);
    }
}
