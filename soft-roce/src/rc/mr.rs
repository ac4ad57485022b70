//! Memory regions and windows: what a key opens, for whom, and how far.
//!
//! What it does: a table from keys to regions. Keys are 32 random bits, so that
//! a peer cannot guess the key of a region it was not told of, and a withdrawn
//! key opens nothing later by chance. Domain, queue pair, range and right are
//! checked at each use. When [`MrTable::deregister`] or an invalidation has
//! returned, no access is under way and none will begin.
//!
//! A window is a part of a region with a key of its own that the peer can be
//! told and that is withdrawn alone, by SEND with invalidate or by
//! [`MrTable::invalidate`]: a memory window of type 2 that is bound by call
//! and not through the send queue.
//!
//! What it does not do: pin or own memory; that is behind [`Memory`]. Atomics.

use std::collections::hash_map::Entry;
use std::ops::BitOr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use san_base::ByNumber;

use super::keys::KeySource;
use crate::memory::Memory;

/// A protection domain: what belongs to another one cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pd(pub u32);

/// What may be done with a region, or what a queue pair lets its peer do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Access(u8);

impl Access {
    /// Local reads only.
    pub const NONE: Self = Self(0);
    /// Receives and responses to RDMA READs may be placed here.
    pub const LOCAL_WRITE: Self = Self(1);
    /// The peer may write.
    pub const REMOTE_WRITE: Self = Self(2);
    /// The peer may read.
    pub const REMOTE_READ: Self = Self(4);

    /// Whether all of `other` is included.
    #[must_use]
    pub fn allows(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both together, where `|` cannot be used.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn is_remote(self) -> bool {
        self.0 & (Self::REMOTE_READ.0 | Self::REMOTE_WRITE.0) != 0
    }
}

impl BitOr for Access {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.plus(other)
    }
}

/// Why memory was not registered or bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The table is full.
    #[error("no room for more than {0} memory regions")]
    Full(usize),
    /// The range is not inside the memory, or ends past the last address.
    #[error("range outside the memory")]
    Range,
    /// The right needs one that is not there: remote write needs local write,
    /// a window's rights need the region's.
    #[error("access right without the one that it needs")]
    Access,
    /// The region is no longer registered.
    #[error("region already deregistered")]
    Gone,
}

/// Why memory was not deregistered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeregisterError {
    /// No region has this key.
    #[error("unknown key")]
    Unknown,
    /// Windows are still bound to it.
    #[error("memory windows are still bound to the region")]
    Busy,
}

/// A key, range, domain or right was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AccessDenied;

/// A registered region or a bound window.
pub struct MemoryRegion {
    key: u32,
    pd: Pd,
    /// The address that requests use for the first byte.
    va: u64,
    len: u64,
    /// Where in the memory the first byte is; not 0 in windows only.
    offset: u64,
    access: Access,
    window: Option<Window>,
    /// Every access holds the read lock.
    state: RwLock<State>,
}

struct State {
    /// None once access has ended.
    memory: Option<Arc<dyn Memory>>,
    /// Windows bound to this region.
    windows: usize,
}

struct Window {
    region: Arc<MemoryRegion>,
    /// The only queue pair whose peer may use it.
    qpn: u32,
}

impl std::fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the key: whoever reads a log should not be able to use it.
        f.debug_struct("MemoryRegion")
            .field("pd", &self.pd)
            .field("va", &self.va)
            .field("len", &self.len)
            .field("access", &self.access)
            .field("window", &self.window.is_some())
            .finish_non_exhaustive()
    }
}

impl MemoryRegion {
    /// The key for local use.
    #[must_use]
    pub fn lkey(&self) -> u32 {
        self.key
    }

    /// The key that a peer may be told.
    #[must_use]
    pub fn rkey(&self) -> u32 {
        self.key
    }

    /// The address of the first byte, as requests count.
    #[must_use]
    pub fn va(&self) -> u64 {
        self.va
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the key still opens it.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.state().memory.is_some()
    }

    /// Copies from `at` bytes behind the first one.
    pub(crate) fn read(&self, at: u64, out: &mut [u8]) -> Result<(), AccessDenied> {
        let state = self.state();
        let memory = state.memory.as_deref().ok_or(AccessDenied)?;
        self.check(at, out.len())?;
        memory.read(self.offset + at, out);
        Ok(())
    }

    /// Copies to `at` bytes behind the first one.
    pub(crate) fn write(&self, at: u64, data: &[u8]) -> Result<(), AccessDenied> {
        let state = self.state();
        let memory = state.memory.as_deref().ok_or(AccessDenied)?;
        self.check(at, data.len())?;
        memory.write(self.offset + at, data);
        Ok(())
    }

    fn check(&self, at: u64, len: usize) -> Result<(), AccessDenied> {
        match at.checked_add(len as u64) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(AccessDenied),
        }
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        // Waits for the accesses under way.
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(memory: Arc<dyn Memory>) -> RwLock<Self> {
        RwLock::new(Self {
            memory: Some(memory),
            windows: 0,
        })
    }
}

/// Where an address lies: so far into that region.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) region: Arc<MemoryRegion>,
    pub(crate) offset: u64,
}

/// So many locks that connections hardly ever meet at one.
const SHARDS: usize = 16;

/// The table chooses the keys.
type Regions = ByNumber<Arc<MemoryRegion>>;
type Shard = RwLock<Regions>;

/// All regions and windows of a device.
#[derive(Debug)]
pub struct MrTable {
    shards: [Shard; SHARDS],
    keys: KeySource,
    capacity: usize,
    count: AtomicUsize,
}

impl MrTable {
    /// A table of at most `capacity` regions and windows.
    #[must_use]
    pub fn new(capacity: usize, keys: KeySource) -> Self {
        Self {
            shards: std::array::from_fn(|_| Shard::default()),
            keys,
            capacity,
            count: AtomicUsize::new(0),
        }
    }

    /// Regions and windows there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Registers all of `memory`, whose first byte requests call `va`.
    ///
    /// # Errors
    /// [`RegisterError`]: the table is full, the range passes the last address,
    /// remote write without local write.
    pub fn register(
        &self,
        pd: Pd,
        va: u64,
        memory: Arc<dyn Memory>,
        access: Access,
    ) -> Result<Arc<MemoryRegion>, RegisterError> {
        let len = memory.len();
        va.checked_add(len).ok_or(RegisterError::Range)?;
        // IBTA 11.2.8.2.
        if access.allows(Access::REMOTE_WRITE) && !access.allows(Access::LOCAL_WRITE) {
            return Err(RegisterError::Access);
        }
        self.insert(|key| MemoryRegion {
            key,
            pd,
            va,
            len,
            offset: 0,
            access,
            window: None,
            state: State::new(memory),
        })
    }

    /// Binds a window of `len` bytes from address `va` on to `region`, for the
    /// peer of queue pair `qpn` alone.
    ///
    /// # Errors
    /// [`RegisterError`]: the table is full, the range is not inside the region,
    /// the region lacks local write for remote write, or is gone.
    pub fn bind(
        &self,
        region: &Arc<MemoryRegion>,
        va: u64,
        len: u64,
        access: Access,
        qpn: u32,
    ) -> Result<Arc<MemoryRegion>, RegisterError> {
        let offset = va.checked_sub(region.va).ok_or(RegisterError::Range)?;
        match offset.checked_add(len) {
            Some(end) if end <= region.len => {}
            _ => return Err(RegisterError::Range),
        }
        if region.window.is_some()
            || !access.is_remote()
            || access.allows(Access::REMOTE_WRITE) && !region.access.allows(Access::LOCAL_WRITE)
        {
            return Err(RegisterError::Access);
        }
        // Held to the end, so that deregistration sees the window.
        let mut state = region.state_mut();
        let memory = state.memory.clone().ok_or(RegisterError::Gone)?;
        let window = self.insert(|key| MemoryRegion {
            key,
            pd: region.pd,
            va,
            len,
            offset: region.offset + offset,
            access,
            window: Some(Window {
                region: region.clone(),
                qpn,
            }),
            state: State::new(memory),
        })?;
        state.windows += 1;
        Ok(window)
    }

    /// Ends all access through a region's key. When this returns nobody reads
    /// or writes the memory through it any more, and the table's reference to
    /// the memory is gone.
    ///
    /// # Errors
    /// [`DeregisterError`]: no such region, or windows are bound to it.
    pub fn deregister(&self, key: u32) -> Result<(), DeregisterError> {
        let region = self.get(key).ok_or(DeregisterError::Unknown)?;
        if region.window.is_some() {
            return Err(DeregisterError::Unknown);
        }
        let mut state = region.state_mut();
        if state.windows != 0 {
            return Err(DeregisterError::Busy);
        }
        // None if another thread was faster.
        let memory = state.memory.take().ok_or(DeregisterError::Unknown)?;
        drop(state);
        self.write(key).remove(&key);
        self.count.fetch_sub(1, Ordering::Relaxed);
        // Last and under no lock: the owner's destructor is foreign code.
        drop(memory);
        Ok(())
    }

    /// Withdraws a window, on behalf of its own side. Afterwards its key opens
    /// nothing. Returns whether there was one; the peer may have been faster.
    pub fn invalidate(&self, key: u32) -> bool {
        self.withdraw_window(key, |_| true).is_ok()
    }

    /// Withdraws a window because the peer of `qpn` asks for it.
    pub(crate) fn invalidate_remote(&self, key: u32, pd: Pd, qpn: u32) -> Result<(), AccessDenied> {
        self.withdraw_window(key, |entry| {
            entry.pd == pd && entry.window.as_ref().is_some_and(|w| w.qpn == qpn)
        })
    }

    /// Resolves an entry of a scatter/gather list.
    pub(crate) fn local(
        &self,
        key: u32,
        pd: Pd,
        va: u64,
        len: u64,
        right: Access,
    ) -> Result<Span, AccessDenied> {
        let span = self.find(key, pd, va, len, right)?;
        if span.region.window.is_some() {
            return Err(AccessDenied);
        }
        Ok(span)
    }

    /// Resolves what the peer of `qpn` names.
    pub(crate) fn remote(
        &self,
        key: u32,
        pd: Pd,
        qpn: u32,
        (va, len): (u64, u64),
        right: Access,
    ) -> Result<Span, AccessDenied> {
        let span = self.find(key, pd, va, len, right)?;
        match &span.region.window {
            Some(window) if window.qpn != qpn => Err(AccessDenied),
            _ => Ok(span),
        }
    }

    fn find(
        &self,
        key: u32,
        pd: Pd,
        va: u64,
        len: u64,
        right: Access,
    ) -> Result<Span, AccessDenied> {
        let region = self.get(key).ok_or(AccessDenied)?;
        if region.pd != pd || !region.access.allows(right) {
            return Err(AccessDenied);
        }
        let offset = va.checked_sub(region.va).ok_or(AccessDenied)?;
        match offset.checked_add(len) {
            Some(end) if end <= region.len => Ok(Span { region, offset }),
            _ => Err(AccessDenied),
        }
    }

    fn withdraw_window(
        &self,
        key: u32,
        may: impl Fn(&MemoryRegion) -> bool,
    ) -> Result<(), AccessDenied> {
        let mut shard = self.write(key);
        let Entry::Occupied(entry) = shard.entry(key) else {
            return Err(AccessDenied);
        };
        if entry.get().window.is_none() || !may(entry.get()) {
            return Err(AccessDenied);
        }
        let entry = entry.remove();
        drop(shard);
        self.count.fetch_sub(1, Ordering::Relaxed);
        let memory = entry.state_mut().memory.take();
        if let Some(window) = &entry.window {
            window.region.state_mut().windows -= 1;
        }
        drop(memory);
        Ok(())
    }

    /// Makes an entry under a key that is free.
    fn insert(
        &self,
        make: impl FnOnce(u32) -> MemoryRegion,
    ) -> Result<Arc<MemoryRegion>, RegisterError> {
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.capacity {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Err(RegisterError::Full(self.capacity));
        }
        loop {
            let key = self.keys.next_u32();
            // 0 is what uninitialised memory sends; it never opens anything.
            if key == 0 {
                continue;
            }
            if let Entry::Vacant(place) = self.write(key).entry(key) {
                let region = Arc::new(make(key));
                place.insert(region.clone());
                return Ok(region);
            }
        }
    }

    fn get(&self, key: u32) -> Option<Arc<MemoryRegion>> {
        let shard = self.shard(key).read();
        let shard = shard.unwrap_or_else(PoisonError::into_inner);
        shard.get(&key).cloned()
    }

    fn shard(&self, key: u32) -> &Shard {
        &self.shards[key as usize % SHARDS]
    }

    fn write(&self, key: u32) -> RwLockWriteGuard<'_, Regions> {
        self.shard(key)
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
