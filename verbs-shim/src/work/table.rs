//! Who owns which buffer between post and completion. Sends live in a ring, since a send queue
//! completes in order; receives in a slab, since a shared receive queue does not.
//!
//! Both are allocated once. They know nothing of the fabric: the caller posts what they noted, and
//! takes it back if that fails.

use crate::memory::RegisteredBuffer;
use crate::work::Pieces;

/// The requests of one send queue.
pub(crate) struct SendTable {
    ring: Box<[Slot]>,
    /// The oldest that is not free.
    head: u32,
    /// From `head` to the newest, freed ones in between counted.
    len: u32,
}

#[derive(Default)]
enum Slot {
    #[default]
    Free,
    Posted {
        pieces: Pieces,
        signaled: bool,
    },
}

impl SendTable {
    pub(crate) fn new(capacity: u32) -> Self {
        Self {
            ring: (0..capacity).map(|_| Slot::Free).collect(),
            head: 0,
            len: 0,
        }
    }

    fn capacity(&self) -> u32 {
        self.ring.len() as u32
    }

    fn index(&self, nth: u32) -> usize {
        ((self.head + nth) % self.capacity()) as usize
    }

    pub(crate) fn room(&self) -> u32 {
        self.capacity() - self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Notes a request; `Err` gives the pieces back: no room.
    #[allow(clippy::result_large_err)] // the pieces travel back as they came, without allocation
    pub(crate) fn push(&mut self, pieces: Pieces, signaled: bool) -> Result<u16, Pieces> {
        if self.room() == 0 {
            return Err(pieces);
        }
        let index = self.index(self.len);
        self.ring[index] = Slot::Posted { pieces, signaled };
        self.len += 1;
        Ok(index as u16)
    }

    /// Takes the newest request back, which was not posted after all.
    pub(crate) fn pop(&mut self) -> Option<Pieces> {
        let newest = self.index(self.len.checked_sub(1)?);
        self.len -= 1;
        match std::mem::take(&mut self.ring[newest]) {
            Slot::Posted { pieces, .. } => Some(pieces),
            Slot::Free => None,
        }
    }

    /// The request in `slot` has completed. If it succeeded, so have all before it, and those of
    /// them that were not signaled will never be heard of again: they are freed with it. Besides
    /// its pieces: for how many requests more there is room now.
    pub(crate) fn claim(&mut self, slot: u16, success: bool) -> Option<(Pieces, u32)> {
        let before = self.len;
        let capacity = self.capacity();
        let slot = u32::from(slot);
        if slot >= capacity {
            return None;
        }
        let nth = (slot + capacity - self.head) % capacity;
        if nth >= self.len {
            return None;
        }
        let Slot::Posted { pieces, .. } = std::mem::take(&mut self.ring[slot as usize]) else {
            return None;
        };
        if success {
            for earlier in 0..nth {
                let index = self.index(earlier);
                if matches!(
                    self.ring[index],
                    Slot::Posted {
                        signaled: false,
                        ..
                    }
                ) {
                    self.ring[index] = Slot::Free;
                }
            }
        }
        while self.len > 0 && matches!(self.ring[self.head as usize], Slot::Free) {
            self.head = (self.head + 1) % capacity;
            self.len -= 1;
        }
        Some((pieces, before - self.len))
    }
}

/// The receives of one queue.
pub(crate) struct RecvTable {
    slots: Box<[Option<RegisteredBuffer>]>,
    free: Vec<u16>,
}

impl RecvTable {
    pub(crate) fn new(capacity: u32) -> Self {
        Self {
            slots: (0..capacity).map(|_| None).collect(),
            free: (0..capacity).rev().map(|n| n as u16).collect(),
        }
    }

    pub(crate) fn room(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Notes a receive; `Err` gives the buffer back: no room.
    pub(crate) fn push(&mut self, buffer: RegisteredBuffer) -> Result<u16, RegisteredBuffer> {
        match self.free.pop() {
            Some(slot) => {
                self.slots[usize::from(slot)] = Some(buffer);
                Ok(slot)
            }
            None => Err(buffer),
        }
    }

    /// The buffer of a receive that has completed, or was not posted after all.
    pub(crate) fn take(&mut self, slot: u16) -> Option<RegisteredBuffer> {
        let buffer = self.slots.get_mut(usize::from(slot))?.take()?;
        // Room for every slot was allocated at the start.
        self.free.push(slot);
        Some(buffer)
    }
}
