//! The memory of bulk: opened to the peer, and let go when it is not used.

use san_provider::{DataPath, MemoryHandle};
use san_stream::{Event, Ring};

use super::State;
use crate::carrier::bulk::Rings;

impl State {
    /// The memory that the peer may read, if it is to be opened now; the caller does it.
    pub(in crate::carrier::san) fn ring_to_open(&mut self) -> Option<san_provider::SharedMemory> {
        let is_wanted = std::mem::take(&mut self.opens_ring) && self.over.is_none();
        let is_wanted = is_wanted && !self.is_opening;
        let memory = self.bulk.memory().filter(|_| is_wanted)?;
        self.is_opening = true;
        Some(memory)
    }

    /// It could not be.
    pub(in crate::carrier::san) fn ring_not_opened(&mut self) {
        self.is_opening = false;
    }

    pub(in crate::carrier::san) fn ring_opened(
        &mut self,
        data: &DataPath,
        ring: Ring,
        handle: MemoryHandle,
    ) {
        self.is_opening = false;
        self.opens_ring = false;
        self.bulk.opened(handle);
        self.handle(Event::RingOpened(ring));
        self.pump(data);
    }

    /// The rings, if they were not used for a while; and whether there is nothing left to look after.
    pub(in crate::carrier::san) fn let_go_if_idle(&mut self) -> (Option<Rings>, bool) {
        if self.has_peer_gone_for_long() {
            self.bulk.is_kept();
            return (None, false);
        }
        let is_in_use = self.waiting.is_some() || self.has_bulk() || self.opens_ring;
        if !self.bulk.is_idle() || is_in_use || !self.engine.close_ring() {
            return (None, false);
        }
        self.bulk.leave_alone();
        (Some(self.take_rings()), true)
    }

    pub(in crate::carrier::san) fn take_rings(&mut self) -> Rings {
        self.bulk.take_rings()
    }

    /// Memory of bulk is in use: it is looked after from now on.
    pub(super) fn note_use(&mut self) {
        self.news.memory |= self.bulk.note_use();
    }
}
