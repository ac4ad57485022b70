//! What the queue pair may still have: messages that the peer is not known to have taken.
//!
//! A reliable connection acknowledges a message when it lies in the peer's memory, and the peer
//! empties its receive queue before it tells its position. So nothing else has to be kept. Bytes
//! that were offered are different: they are safe when the peer says DONE, and until then
//! everything after them is kept too, because the peer cannot use it without them.

use std::collections::VecDeque;

/// Messages of the stream that may be kept at a time; no more go out meanwhile.
pub(crate) const MOST: usize = 64;

/// The number of a message that is not posted yet.
const WAITS: u64 = u64::MAX;

/// Where the bytes of a message are.
#[derive(Debug)]
enum Bytes<P> {
    /// With the message.
    Kept(P),
    /// In the staging ring, at their positions.
    Staged,
    /// The same, and so many of them are done.
    Offered { done: u32 },
    /// Nowhere: END.
    None,
}

#[derive(Debug)]
struct Sent<P> {
    /// Which message of this queue pair, from 1; [`WAITS`]: none yet.
    number: u64,
    from: u64,
    len: u32,
    bytes: Bytes<P>,
}

impl<P> Sent<P> {
    fn to(&self) -> u64 {
        self.from + u64::from(self.len)
    }

    /// All before this has arrived.
    fn safe(&self) -> u64 {
        match self.bytes {
            Bytes::Offered { done } => self.from + u64::from(done),
            _ => self.from,
        }
    }

    fn is_in_ring(&self) -> bool {
        matches!(self.bytes, Bytes::Staged | Bytes::Offered { .. })
    }
}

/// Bytes that go out again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Again<'a> {
    Kept(&'a [u8]),
    /// So many in the ring.
    Staged(u64),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Retained<P> {
    sent: VecDeque<Sent<P>>,
    /// Messages posted on this queue pair, control included.
    posted: u64,
    acknowledged: u64,
    /// Offered bytes that are not done.
    offered: u64,
    /// Bytes of DATA that lie in the ring.
    staged: u64,
}

/// So many bytes of DATA in the ring are many: what waits for their acknowledgements fills it.
const MANY: u64 = 128 * 1024;

impl<P> Default for Retained<P> {
    fn default() -> Self {
        Self {
            sent: VecDeque::new(),
            posted: 0,
            acknowledged: 0,
            offered: 0,
            staged: 0,
        }
    }
}

impl<P: AsRef<[u8]>> Retained<P> {
    /// A new queue pair. The hot path allocates nothing, so it is done here.
    pub(crate) fn start(&mut self) {
        *self = Self {
            sent: std::mem::take(&mut self.sent),
            ..Self::default()
        };
        self.sent.clear();
        self.sent.reserve(MOST);
    }

    /// There is no queue pair any more.
    pub(crate) fn stop(&mut self) {
        if self.sent.is_empty() {
            self.sent = VecDeque::new();
        }
    }

    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.sent.len() < MOST
    }

    /// Whether much is kept, as far as is known.
    #[inline]
    pub(crate) fn is_crowded(&self) -> bool {
        self.sent.len() >= MOST / 2 || self.staged >= MANY
    }

    /// Whether an acknowledgement would let something go.
    pub(crate) fn waits_for_acknowledgement(&self) -> bool {
        let first = self.sent.front();
        first.is_some_and(|first| !matches!(first.bytes, Bytes::Offered { .. }))
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Offered bytes that the peer has not read.
    #[inline]
    pub(crate) fn offered(&self) -> u64 {
        self.offered
    }

    /// A message without bytes of the stream was posted.
    pub(crate) fn control(&mut self) {
        self.posted += 1;
    }

    #[inline]
    pub(crate) fn kept(&mut self, from: u64, len: u32, piece: P) {
        self.push(from, len, Bytes::Kept(piece));
    }

    pub(crate) fn staged(&mut self, from: u64, len: u32) {
        self.staged += u64::from(len);
        self.push(from, len, Bytes::Staged);
    }

    pub(crate) fn offer(&mut self, from: u64, len: u32) {
        self.offered += u64::from(len);
        self.push(from, len, Bytes::Offered { done: 0 });
    }

    pub(crate) fn end(&mut self, from: u64) {
        self.push(from, 0, Bytes::None);
    }

    #[inline]
    fn push(&mut self, from: u64, len: u32, bytes: Bytes<P>) {
        self.posted += 1;
        self.sent.push_back(Sent {
            number: self.posted,
            from,
            len,
            bytes,
        });
    }

    /// The message that was counted last was not posted. Others may go past it.
    pub(crate) fn not_posted(&mut self) {
        let number = self.posted;
        if let Some(last) = self.sent.back_mut().filter(|last| last.number == number) {
            last.number = WAITS;
        }
        self.posted = number.saturating_sub(1);
    }

    /// One that had waited was posted; `is_kept`: the last of those that are kept here.
    pub(crate) fn posted_late(&mut self, is_kept: bool) {
        self.posted += 1;
        if let Some(last) = self
            .sent
            .back_mut()
            .filter(|last| is_kept && last.number == WAITS)
        {
            last.number = self.posted;
        }
    }

    /// So many of the messages that were posted are not acknowledged.
    #[inline]
    pub(crate) fn unacknowledged(&mut self, count: u32) {
        let acknowledged = self.posted.saturating_sub(u64::from(count));
        if acknowledged > self.acknowledged {
            self.acknowledged = acknowledged;
            self.let_go();
        }
    }

    /// The peer has read so many offered bytes. `false`: more than there are.
    pub(crate) fn done(&mut self, mut length: u32) -> bool {
        if u64::from(length) > self.offered {
            return false;
        }
        self.offered -= u64::from(length);
        for sent in &mut self.sent {
            if let Bytes::Offered { done } = &mut sent.bytes {
                let more = length.min(sent.len - *done);
                *done += more;
                length -= more;
            }
        }
        self.let_go();
        true
    }

    /// What was offered and is not done belongs to nobody any more.
    pub(crate) fn withdraw(&mut self) {
        self.sent
            .retain(|sent| !matches!(sent.bytes, Bytes::Offered { .. }));
        self.offered = 0;
    }

    fn let_go(&mut self) {
        while let Some(first) = self.sent.front() {
            let is_gone = match first.bytes {
                Bytes::Offered { done } => done == first.len,
                _ => first.number <= self.acknowledged,
            };
            if !is_gone {
                break;
            }
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(first) = self.sent.pop_front()
            && matches!(first.bytes, Bytes::Staged)
        {
            self.staged -= u64::from(first.len);
        }
    }

    /// All before this has arrived, if `sent` is what was sent.
    pub(crate) fn safe(&self, sent: u64) -> u64 {
        self.sent.front().map_or(sent, Sent::safe)
    }

    /// The first position whose place in the ring is in use, or `unsent`, where what waits begins.
    pub(crate) fn ring_low(&self, unsent: u64) -> u64 {
        self.sent
            .iter()
            .find(|sent| sent.is_in_ring())
            .map_or(unsent, Sent::safe)
    }

    /// The peer has everything before `position`.
    pub(crate) fn resume(&mut self, position: u64) {
        while self
            .sent
            .front()
            .is_some_and(|first| first.to() <= position)
        {
            self.pop();
        }
    }

    /// What goes out again at `position`, if that was sent before.
    pub(crate) fn again(&self, position: u64) -> Option<Again<'_>> {
        let first = self.sent.iter().find(|sent| sent.to() > position)?;
        Some(match &first.bytes {
            Bytes::Kept(piece) => {
                let skip = usize::try_from(position - first.from).unwrap_or(usize::MAX);
                Again::Kept(piece.as_ref().get(skip..).unwrap_or_default())
            }
            _ => Again::Staged(first.to() - position),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledged_messages_go_in_order() {
        let mut kept = Retained::<&[u8]>::default();
        kept.start();
        kept.control();
        kept.kept(100, 3, b"abc");
        kept.kept(103, 2, b"de");
        kept.unacknowledged(2);
        assert_eq!(kept.safe(105), 100);
        kept.unacknowledged(1);
        assert_eq!(kept.safe(105), 103);
        assert_eq!(kept.again(104), Some(Again::Kept(b"e")));
        kept.unacknowledged(0);
        assert_eq!((kept.safe(105), kept.is_empty()), (105, true));
    }

    #[test]
    fn a_message_that_waits_is_not_taken_for_acknowledged() {
        let mut kept = Retained::<&[u8]>::default();
        kept.start();
        kept.kept(0, 3, b"abc");
        kept.kept(3, 2, b"de");
        kept.not_posted();
        // Control goes past it.
        kept.control();
        kept.unacknowledged(0);
        assert_eq!(kept.safe(5), 3);
        kept.posted_late(true);
        kept.unacknowledged(1);
        assert_eq!(kept.safe(5), 3);
        kept.unacknowledged(0);
        assert!(kept.is_empty());
        kept.control();
        kept.not_posted();
        kept.kept(5, 1, b"f");
        kept.posted_late(false);
        kept.unacknowledged(1);
        assert_eq!(kept.safe(6), 6, "the control message was posted last");
    }

    #[test]
    fn what_follows_an_offer_waits_for_done() {
        let mut kept = Retained::<&[u8]>::default();
        kept.start();
        kept.offer(0, 40_000);
        kept.staged(40_000, 10);
        kept.unacknowledged(0);
        assert_eq!(kept.safe(40_010), 0);
        assert!(kept.done(30_000));
        assert_eq!((kept.safe(40_010), kept.ring_low(40_010)), (30_000, 30_000));
        assert!(!kept.done(10_001));
        assert!(kept.done(10_000));
        assert!(kept.is_empty());
    }
}
