//! Memory windows of type 2: a part of a region, opened to the peer of one queue pair under a key
//! of its own, and withdrawn alone.
//!
//! A window never outlives its queue pair as an opening: it is withdrawn before the queue pair is
//! destroyed, whoever still holds the handle. It caches nothing and asks nobody who the peer is.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::backend;
use crate::error::Result;
use crate::memory::MemoryRegion;
use crate::types::{Access, RemoteMemory};

/// A part of a region that the peer of one queue pair can reach. Withdrawn when dropped.
pub struct MemoryWindow {
    pub(super) shared: Arc<WindowShared>,
    remote: RemoteMemory,
    len: usize,
    access: Access,
}

/// When a window is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// Now.
    Done,
    /// When the request that was posted for it has completed, with the token that was given. Its
    /// completion has to be claimed as any other.
    Posted,
}

pub(crate) struct WindowShared {
    /// None once it is withdrawn.
    backend: Mutex<Option<Box<dyn backend::MemoryWindow>>>,
    /// Deregistered after the window.
    _region: Arc<MemoryRegion>,
}

impl MemoryWindow {
    pub(super) fn new(
        backend: Box<dyn backend::MemoryWindow>,
        region: &Arc<MemoryRegion>,
        (addr, len): (u64, usize),
        access: Access,
    ) -> Self {
        Self {
            remote: RemoteMemory {
                addr,
                rkey: backend.rkey(),
            },
            shared: Arc::new(WindowShared {
                backend: Mutex::new(Some(backend)),
                _region: Arc::clone(region),
            }),
            len,
            access,
        }
    }

    /// What the peer has to be told.
    #[must_use]
    pub fn remote(&self) -> RemoteMemory {
        self.remote
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the peer may do.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Closes it. When this returned `Ok` its key opens nothing any more, and no access by it is
    /// under way. Not before its binding is done: a queue pair that finds the window gone goes to
    /// the error state.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn withdraw(&self) -> Result<()> {
        self.shared.withdraw()
    }
}

impl WindowShared {
    pub(super) fn withdraw(&self) -> Result<()> {
        let mut backend = self.backend.lock();
        let Some(window) = &*backend else {
            return Ok(());
        };
        window.withdraw()?;
        *backend = None;
        Ok(())
    }
}

impl Drop for WindowShared {
    fn drop(&mut self) {
        if let Err(error) = self.withdraw() {
            // Its region cannot be deregistered either, and stays where it is.
            tracing::error!(%error, "a memory window could not be withdrawn");
        }
    }
}

impl fmt::Debug for MemoryWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the key: whoever reads a log should not be able to use it.
        f.debug_struct("MemoryWindow")
            .field("len", &self.len)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}
