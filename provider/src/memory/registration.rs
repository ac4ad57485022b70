//! The registrations of one connection: handles, counts, and who may go.
//!
//! Registering the same memory for the same purpose again gives the same handle and counts; the
//! last deregistration counts (duty 100). Memory that an operation has is busy: every piece that is
//! queued or posted holds the registration's lease.
//!
//! A region comes from the provider's store and goes back there. It may be larger than what was
//! asked for, and have more rights; a registration never gives more than its purpose.
//!
//! It makes no regions and opens no windows; the calls in `calls.rs` do, with no lock held.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use verbs_shim::{
    Access, AppMemory, MemoryRegion, MemoryWindow, ProtectionDomain, RegionSlice, VerbsError,
};

use super::MemoryStore;
use super::handle::{MemoryAccess, MemoryHandle, Segment};
use super::store::{Registered, StoreUser};
use crate::counters::Counter;
use crate::error::{RegisterError, TransferError};
use crate::sync::lock;

/// What one registration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Purpose {
    pub(super) address: usize,
    pub(super) length: usize,
    pub(super) access: MemoryAccess,
    /// Open to the peer.
    pub(super) remote: bool,
}

/// A registration.
#[derive(Debug)]
pub(crate) struct Registration {
    // Withdrawn before its region goes.
    window: Option<MemoryWindow>,
    held: Held,
    purpose: Purpose,
    count: u32,
    lease: Arc<()>,
}

/// A region of the store's, in use.
#[derive(Debug)]
pub(super) struct Held {
    region: Registered<Arc<MemoryRegion>>,
    /// Where in it the memory begins that is meant.
    offset: usize,
    /// What was given, if the region was there already: its owner stays as long as this.
    memory: Option<AppMemory>,
}

/// The registrations of one connection.
#[derive(Debug)]
pub(crate) struct Registrations {
    store: Arc<MemoryStore>,
    user: Mutex<Option<StoreUser<Arc<MemoryRegion>>>>,
    owner: u64,
    limit: usize,
    table: Mutex<Table>,
    /// Registrations that were kept from an earlier use, and those that were made.
    found: Counter,
    made: Counter,
}

#[derive(Debug, Default)]
struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    known: HashMap<Purpose, u32>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    registration: Option<Registration>,
}

/// What was found, or made.
#[derive(Debug)]
pub(crate) struct Found {
    pub(super) handle: MemoryHandle,
    /// The key and the address that the peer needs.
    pub(super) opened: Option<verbs_shim::RemoteMemory>,
}

impl Purpose {
    pub(super) fn new(memory: &AppMemory, access: MemoryAccess, remote: bool) -> Self {
        Self {
            address: memory.addr().as_ptr() as usize,
            length: memory.len(),
            access,
            remote,
        }
    }
}

impl Held {
    /// A region of the domain for this memory: one that is kept, or a new one.
    pub(super) fn of(
        store: &Arc<MemoryStore>,
        domain: &ProtectionDomain,
        memory: AppMemory,
        access: Access,
    ) -> Result<Self, VerbsError> {
        let start = memory.addr().as_ptr() as usize;
        let range = start..start.saturating_add(memory.len());
        let mut given = Some(memory);
        let register = || {
            let memory = given
                .take()
                .ok_or_else(|| VerbsError::from_errno("ibv_reg_mr", Errno::INVAL.raw_os_error()))?;
            domain
                .try_register(memory, access)
                .map_err(|(error, memory)| {
                    given = Some(memory);
                    error
                })
        };
        let mut region = store.acquire(domain.serial(), &range, access, register, is_shortage)?;
        // Not every device minds the bounds of a window: what is opened is a region of its own.
        let kept = region.registration();
        let is_larger = kept.address() != start || kept.len() != range.len();
        if access.contains(Access::WINDOWS)
            && is_larger
            && let Some(memory) = given.take()
        {
            region = Registered::alone(domain.register(memory, access)?);
        }
        Ok(Self {
            offset: start - region.registration().address(),
            region,
            memory: given,
        })
    }

    /// A piece of the memory that is meant.
    pub(super) fn slice(&self, offset: usize, length: usize) -> Result<RegionSlice, VerbsError> {
        self.region
            .registration()
            .slice(self.offset + offset, length)
    }
}

/// Whether regions that nobody uses may be what is short: memory that may be locked, or places of
/// the device's.
fn is_shortage(error: &VerbsError) -> bool {
    [Errno::NOMEM, Errno::AGAIN, Errno::NOSPC, Errno::NOBUFS]
        .iter()
        .any(|errno| error.errno() == errno.raw_os_error())
}

impl Registrations {
    /// None yet, `limit` at most. Regions come from `store`.
    pub(crate) fn new(limit: u32, store: &Arc<MemoryStore>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            store: Arc::clone(store),
            user: Mutex::new(Some(store.user())),
            owner: NEXT.fetch_add(1, Ordering::Relaxed),
            limit: limit as usize,
            table: Mutex::default(),
            found: Counter::default(),
            made: Counter::default(),
        }
    }

    /// How many registrations were kept from an earlier use, and how many were made.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.found.value(), self.made.value())
    }

    pub(super) fn store(&self) -> &Arc<MemoryStore> {
        &self.store
    }

    /// Counts one more registration of what is registered already.
    pub(super) fn again(&self, purpose: &Purpose) -> Result<Option<Found>, RegisterError> {
        let mut table = lock(&self.table);
        if table.closed {
            return Err(RegisterError::NotSocket);
        }
        if let Some(&slot) = table.known.get(purpose)
            && let Some(found) = table.count_up(self.owner, slot)
        {
            return Ok(Some(found));
        }
        match table.len() >= self.limit {
            true => Err(RegisterError::TooMany { limit: self.limit }),
            false => Ok(None),
        }
    }

    /// Notes what was registered, unless another thread was faster: then that one counts.
    pub(super) fn add(
        &self,
        purpose: Purpose,
        held: Held,
        window: Option<MemoryWindow>,
    ) -> Result<Found, RegisterError> {
        match held.memory {
            Some(_) => self.found.raise(),
            None => self.made.raise(),
        }
        let mut table = lock(&self.table);
        // Regions and windows that are not kept go after the lock: destroying them takes time.
        let refused = match table.known.get(&purpose).copied() {
            _ if table.closed => Err(RegisterError::NotSocket),
            Some(slot) => table
                .count_up(self.owner, slot)
                .ok_or(RegisterError::NotSocket),
            None if table.len() >= self.limit => Err(RegisterError::TooMany { limit: self.limit }),
            None => {
                let opened = window.as_ref().map(MemoryWindow::remote);
                let (slot, generation) = table.insert(Registration {
                    held,
                    purpose,
                    count: 1,
                    lease: Arc::new(()),
                    window,
                });
                let handle = MemoryHandle {
                    owner: self.owner,
                    slot,
                    generation,
                };
                return Ok(Found { handle, opened });
            }
        };
        drop(table);
        drop((window, held));
        refused
    }

    /// Counts one registration less; the last one comes out (duty 102).
    pub(super) fn remove(
        &self,
        handle: MemoryHandle,
        remote: bool,
    ) -> Result<Option<Registration>, RegisterError> {
        let mut table = lock(&self.table);
        if table.closed {
            return Err(RegisterError::NotSocket);
        }
        let registration = table
            .find(self.owner, handle)
            .filter(|registration| registration.purpose.remote == remote)
            .ok_or(RegisterError::UnknownHandle)?;
        if registration.count > 1 {
            registration.count -= 1;
            return Ok(None);
        }
        if Arc::strong_count(&registration.lease) > 1 {
            return Err(RegisterError::InUse);
        }
        Ok(table.take(handle.slot))
    }

    /// Puts a registration back whose window could not be withdrawn: its handle is good again.
    pub(super) fn put_back(&self, handle: MemoryHandle, registration: Registration) {
        let mut table = lock(&self.table);
        if table.closed {
            return;
        }
        table.put_back(handle, registration);
    }

    /// A piece of registered memory for an operation, which is busy as long as the piece is there.
    pub(crate) fn slice(
        &self,
        segment: &Segment,
        needed: Access,
    ) -> Result<RegionSlice, TransferError> {
        let mut table = lock(&self.table);
        let registration = table
            .find(self.owner, segment.handle)
            .ok_or(TransferError::UnknownHandle)?;
        if !registration.purpose.access.local().contains(needed) {
            return Err(TransferError::NotAllowed);
        }
        let outside = || TransferError::OutOfBounds {
            offset: segment.offset as u64,
            length: segment.length as u64,
            limit: registration.purpose.length as u64,
        };
        // The region may be larger than what was registered.
        let end = segment.offset.checked_add(segment.length);
        if end.is_none_or(|end| end > registration.purpose.length) {
            return Err(outside());
        }
        let slice = registration
            .held
            .slice(segment.offset, segment.length)
            .map_err(|_| outside())?;
        Ok(slice.leased(Arc::clone(&registration.lease)))
    }

    /// What was open to the peer is not any more, since its queue pair is gone. The handles stay
    /// until they are deregistered; the same memory can be opened anew.
    pub(crate) fn forget_opened(&self) {
        lock(&self.table).known.retain(|purpose, _| !purpose.remote);
    }

    /// Nothing is registered from now on, and what was is let go. With the provider's last
    /// connection that is registered no longer; else the cache may keep it (duty 110).
    pub(crate) fn close(&self) {
        let mut table = lock(&self.table);
        table.closed = true;
        table.known.clear();
        let slots = std::mem::take(&mut table.slots);
        drop(table);
        drop(slots);
        let user = lock(&self.user).take();
        drop(user);
    }
}

impl Registration {
    /// Ends the peer's access.
    pub(super) fn withdraw(&self) -> Result<(), VerbsError> {
        self.window.as_ref().map_or(Ok(()), MemoryWindow::withdraw)
    }
}

impl Table {
    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn find(&mut self, owner: u64, handle: MemoryHandle) -> Option<&mut Registration> {
        let slot = self.slots.get_mut(handle.slot as usize)?;
        match handle.owner == owner && handle.generation == slot.generation {
            true => slot.registration.as_mut(),
            false => None,
        }
    }

    fn count_up(&mut self, owner: u64, slot: u32) -> Option<Found> {
        let place = self.slots.get_mut(slot as usize)?;
        let registration = place.registration.as_mut()?;
        registration.count = registration.count.checked_add(1)?;
        Some(Found {
            handle: MemoryHandle {
                owner,
                slot,
                generation: place.generation,
            },
            opened: registration.window.as_ref().map(MemoryWindow::remote),
        })
    }

    fn insert(&mut self, registration: Registration) -> (u32, u32) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        self.known.insert(registration.purpose, slot);
        let place = &mut self.slots[slot as usize];
        place.generation = place.generation.wrapping_add(1);
        place.registration = Some(registration);
        (slot, place.generation)
    }

    fn take(&mut self, slot: u32) -> Option<Registration> {
        let registration = self.slots.get_mut(slot as usize)?.registration.take()?;
        // The same memory may have been opened anew since.
        if self.known.get(&registration.purpose) == Some(&slot) {
            self.known.remove(&registration.purpose);
        }
        self.free.push(slot);
        Some(registration)
    }

    fn put_back(&mut self, handle: MemoryHandle, registration: Registration) {
        // Nobody can have taken the slot's generation; the slot itself perhaps.
        let Some(slot) = self.slots.get_mut(handle.slot as usize) else {
            return;
        };
        if slot.registration.is_none() && slot.generation == handle.generation {
            self.known.insert(registration.purpose, handle.slot);
            slot.registration = Some(registration);
            self.free.retain(|&free| free != handle.slot);
        }
    }
}
