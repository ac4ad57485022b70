//! Who owns which memory of a send queue between post and completion. A send queue completes in
//! order, so this is a ring.
//!
//! It is allocated once, and knows nothing of the fabric: the caller posts what it noted, and takes
//! it back if that fails.

use crate::memory::RegisteredBuffer;
use crate::work::{Piece, Pieces};

/// The requests of one send queue.
pub(crate) struct SendTable {
    slots: Box<[Slot]>,
    /// Of the place with the same number; empty but for [`State::Memory`].
    memory: Box<[Pieces]>,
    /// How many requests there may be.
    capacity: u32,
    /// The oldest that is not free.
    head: u32,
    /// From `head` to the newest, freed ones in between counted.
    len: u32,
    /// How many of the newest are neither signaled nor hold memory; of 65,536, which fill the largest
    /// queue, 0: then each is looked at.
    quiet: u16,
}

#[derive(Clone, Copy)]
struct Slot {
    state: State,
    /// Whether success makes a completion.
    signaled: bool,
    /// How many requests right before it are neither signaled nor hold memory, or fewer.
    quiet_before: u16,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// Holds no memory.
    Inline,
    Memory,
}

impl Slot {
    const FREE: Self = Self {
        state: State::Free,
        signaled: false,
        quiet_before: 0,
    };
}

impl SendTable {
    pub(crate) fn new(capacity: u32) -> Self {
        // A power of two, so that a place is found without a division or a comparison.
        let places = capacity.next_power_of_two();
        Self {
            slots: (0..places).map(|_| Slot::FREE).collect(),
            memory: (0..places).map(|_| Pieces::new()).collect(),
            capacity,
            head: 0,
            len: 0,
            quiet: 0,
        }
    }

    #[inline]
    fn index(&self, nth: u32) -> usize {
        (self.head + nth) as usize & (self.slots.len() - 1)
    }

    pub(crate) fn room(&self) -> u32 {
        self.capacity - self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Notes a request that holds no memory; `None`: no room.
    #[inline(always)]
    pub(crate) fn push_inline(&mut self, signaled: bool) -> Option<u16> {
        self.push(State::Inline, signaled)
    }

    /// Notes a request; `Err` gives the buffer back: no room.
    pub(crate) fn push_buffer(
        &mut self,
        buffer: RegisteredBuffer,
        signaled: bool,
    ) -> Result<u16, RegisteredBuffer> {
        let Some(slot) = self.push(State::Memory, signaled) else {
            return Err(buffer);
        };
        self.memory[usize::from(slot)].push(Piece::Buffer(buffer));
        Ok(slot)
    }

    /// Notes a request and takes its pieces; `None`, and they stay where they are: no room.
    pub(crate) fn push_pieces(&mut self, pieces: &mut Pieces, signaled: bool) -> Option<u16> {
        let slot = self.push(State::Memory, signaled)?;
        self.memory[usize::from(slot)] = std::mem::take(pieces);
        Some(slot)
    }

    // Always: what is known of a request where it is noted makes it half as long.
    #[inline(always)]
    fn push(&mut self, state: State, signaled: bool) -> Option<u16> {
        if self.len == self.capacity {
            return None;
        }
        let index = self.index(self.len);
        self.slots[index] = Slot {
            state,
            signaled,
            quiet_before: self.quiet,
        };
        self.len += 1;
        self.quiet = match state == State::Inline && !signaled {
            true => self.quiet.wrapping_add(1),
            false => 0,
        };
        Some(index as u16)
    }

    /// Takes the newest request back, which was not posted after all.
    pub(crate) fn pop(&mut self) -> Option<Pieces> {
        let newest = self.index(self.len.checked_sub(1)?);
        self.len -= 1;
        let place = std::mem::replace(&mut self.slots[newest], Slot::FREE);
        self.quiet = place.quiet_before;
        (place.state != State::Free).then(|| std::mem::take(&mut self.memory[newest]))
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
        let slot = usize::from(slot);
        let mask = self.slots.len() - 1;
        let place = self.slots.get_mut(slot)?;
        let nth = (slot.wrapping_sub(self.head as usize) & mask) as u32;
        if nth >= self.len {
            return None;
        }
        let was = std::mem::replace(place, Slot::FREE);
        if was.state == State::Free {
            return None;
        }
        if success && nth <= u32::from(was.quiet_before) {
            // All before it are done with it, and nothing of theirs has to be looked at.
            self.skip(nth + 1);
        } else if success {
            for earlier in 0..nth {
                self.free_unsignaled(self.index(earlier));
            }
        }
        while self.len > 0 && self.slots[self.head as usize].state == State::Free {
            self.skip(1);
        }
        Some(before - self.len)
    }

    /// The `n` oldest are free.
    fn skip(&mut self, n: u32) {
        self.head = self.index(n) as u32;
        self.len -= n;
    }

    fn free_unsignaled(&mut self, index: usize) {
        let place = &mut self.slots[index];
        if place.signaled {
            return;
        }
        if place.state == State::Memory {
            self.memory[index].clear();
        }
        *place = Slot::FREE;
    }
}
