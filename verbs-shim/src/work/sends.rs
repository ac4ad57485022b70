//! Who owns which memory of a send queue between post and completion. A send queue completes in
//! order, so this is a ring.
//!
//! It is allocated once, and knows nothing of the fabric: the caller posts what it noted, and takes
//! it back if that fails.

use crate::memory::RegisteredBuffer;
use crate::work::{Piece, Pieces};

/// The requests of one send queue.
pub(crate) struct SendTable {
    places: Box<[Place]>,
    /// Of the place with the same number; empty but for [`Place::Memory`].
    memory: Box<[Pieces]>,
    /// The oldest that is not free.
    head: u32,
    /// From `head` to the newest, freed ones in between counted.
    len: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Free,
    /// A request that holds no memory.
    Inline {
        signaled: bool,
    },
    Memory {
        signaled: bool,
    },
}

impl SendTable {
    pub(crate) fn new(capacity: u32) -> Self {
        Self {
            places: (0..capacity).map(|_| Place::Free).collect(),
            memory: (0..capacity).map(|_| Pieces::new()).collect(),
            head: 0,
            len: 0,
        }
    }

    fn capacity(&self) -> u32 {
        self.places.len() as u32
    }

    fn index(&self, nth: u32) -> usize {
        let index = self.head + nth;
        match index < self.capacity() {
            true => index as usize,
            false => (index - self.capacity()) as usize,
        }
    }

    pub(crate) fn room(&self) -> u32 {
        self.capacity() - self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Notes a request that holds no memory; `None`: no room.
    pub(crate) fn push_inline(&mut self, signaled: bool) -> Option<u16> {
        self.push(Place::Inline { signaled })
    }

    /// Notes a request; `Err` gives the buffer back: no room.
    pub(crate) fn push_buffer(
        &mut self,
        buffer: RegisteredBuffer,
        signaled: bool,
    ) -> Result<u16, RegisteredBuffer> {
        let Some(slot) = self.push(Place::Memory { signaled }) else {
            return Err(buffer);
        };
        self.memory[usize::from(slot)].push(Piece::Buffer(buffer));
        Ok(slot)
    }

    /// Notes a request and takes its pieces; `None`, and they stay where they are: no room.
    pub(crate) fn push_pieces(&mut self, pieces: &mut Pieces, signaled: bool) -> Option<u16> {
        let slot = self.push(Place::Memory { signaled })?;
        self.memory[usize::from(slot)] = std::mem::take(pieces);
        Some(slot)
    }

    fn push(&mut self, place: Place) -> Option<u16> {
        if self.len == self.capacity() {
            return None;
        }
        let index = self.index(self.len);
        self.places[index] = place;
        self.len += 1;
        Some(index as u16)
    }

    /// Takes the newest request back, which was not posted after all.
    pub(crate) fn pop(&mut self) -> Option<Pieces> {
        let newest = self.index(self.len.checked_sub(1)?);
        self.len -= 1;
        let place = std::mem::replace(&mut self.places[newest], Place::Free);
        (place != Place::Free).then(|| std::mem::take(&mut self.memory[newest]))
    }

    /// The request in `slot` has completed. If it succeeded, so have all before it, and those of
    /// them that were not signaled will never be heard of again: they are freed with it. For how
    /// many requests more there is room now; its memory is freed.
    pub(crate) fn complete(&mut self, slot: u16, success: bool) -> Option<u32> {
        let freed = self.free(slot, success)?;
        self.memory[usize::from(slot)].clear();
        Some(freed)
    }

    /// The same, and its memory comes back.
    pub(crate) fn claim(&mut self, slot: u16, success: bool) -> Option<(Pieces, u32)> {
        let freed = self.free(slot, success)?;
        Some((std::mem::take(&mut self.memory[usize::from(slot)]), freed))
    }

    /// Frees the place, those before it that are done with it, and the memory of the latter.
    fn free(&mut self, slot: u16, success: bool) -> Option<u32> {
        let before = self.len;
        let slot = u32::from(slot);
        let place = self.places.get_mut(slot as usize)?;
        if std::mem::replace(place, Place::Free) == Place::Free {
            return None;
        }
        if success {
            let nth = match slot >= self.head {
                true => slot - self.head,
                false => slot + self.capacity() - self.head,
            };
            for earlier in 0..nth {
                self.free_unsignaled(self.index(earlier));
            }
        }
        while self.len > 0 && self.places[self.head as usize] == Place::Free {
            self.head = self.index(1) as u32;
            self.len -= 1;
        }
        Some(before - self.len)
    }

    fn free_unsignaled(&mut self, index: usize) {
        match self.places[index] {
            Place::Inline { signaled: false } => {}
            Place::Memory { signaled: false } => self.memory[index].clear(),
            _ => return,
        }
        self.places[index] = Place::Free;
    }
}
