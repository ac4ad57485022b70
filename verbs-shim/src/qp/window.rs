//! Memory windows of type 2: a part of a region, opened to the peer of one queue pair under a key
//! of its own, and withdrawn alone.
//!
//! A window never outlives its queue pair as an opening: it is withdrawn before the queue pair is
//! destroyed, whoever still holds the handle. It caches nothing and asks nobody who the peer is.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::shared::QpShared;
use crate::backend;
use crate::error::{Result, VerbsError};
use crate::memory::{Access, MemoryRegion, RegionSlice};
use crate::work::{Pieces, RemoteMemory};

/// A part of a region that the peer of one queue pair can reach. Withdrawn when dropped.
pub struct MemoryWindow {
    shared: Arc<WindowShared>,
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
    fn new(
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

impl QpShared {
    pub(super) fn bind(
        &self,
        token: u32,
        slice: &RegionSlice,
        access: Access,
    ) -> Result<(MemoryWindow, Binding)> {
        const CALL: &str = "ibv_alloc_mw";
        let region = slice.region();
        let allowed = region.access();
        let writes = access.contains(Access::REMOTE_WRITE);
        let refused = if region.pd_serial() != self.pd.serial() {
            Some("memory of another protection domain")
        } else if slice.is_empty() {
            Some("a window of no bytes")
        } else if !writes && !access.contains(Access::REMOTE_READ) {
            Some("a window without remote rights")
        } else if !allowed.contains(Access::WINDOWS) {
            Some("a region without WINDOWS")
        } else if writes && !allowed.contains(Access::LOCAL_WRITE) {
            Some("a window to write in a region without LOCAL_WRITE")
        } else {
            None
        };
        if let Some(why) = refused {
            return Err(VerbsError::invalid(CALL, why));
        }
        let place = (slice.sge().addr, slice.len());
        let backend = self
            .backend
            .window(region.backend(), place.0, place.1 as u64, access)?;
        let needs_request = backend.needs_request();
        if needs_request && let Err(error) = self.post_bind(token, &*backend, slice) {
            if let Err(error) = backend.withdraw() {
                tracing::error!(%error, "a memory window is lost");
            }
            return Err(error);
        }
        let window = MemoryWindow::new(backend, region, place, access);
        let mut windows = self.windows.lock();
        windows.retain(|window| window.strong_count() > 0);
        windows.push(Arc::downgrade(&window.shared));
        let binding = match needs_request {
            true => Binding::Posted,
            false => Binding::Done,
        };
        Ok((window, binding))
    }

    /// Posts the request that opens a window.
    fn post_bind(
        &self,
        token: u32,
        window: &dyn backend::MemoryWindow,
        slice: &RegionSlice,
    ) -> Result<()> {
        let mut pieces = Pieces::new();
        pieces.push(slice.clone().into());
        let mut sends = self.sends.lock();
        let slot = sends
            .push_pieces(&mut pieces, true)
            .ok_or_else(|| VerbsError::from_errno("ibv_post_send", libc::ENOMEM))?;
        let wr_id = self.send_id.wr_id(token, slot);
        self.backend.post_bind(window, wr_id).map_err(|failure| {
            if failure.taken == 0 {
                sends.pop();
            }
            failure.error
        })
    }

    /// Withdraws the windows that are still open: none may be bound to a queue pair that is gone.
    pub(super) fn close_windows(&mut self) {
        for window in self
            .windows
            .get_mut()
            .drain(..)
            .filter_map(|window| window.upgrade())
        {
            if let Err(error) = window.withdraw() {
                tracing::error!(%error, "a memory window could not be withdrawn");
            }
        }
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
