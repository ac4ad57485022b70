//! Opening memory windows: made, then bound by a request of the send queue.

use std::sync::Arc;

use super::shared::QpShared;
use super::window::{Binding, MemoryWindow};
use crate::backend;
use crate::error::{Result, VerbsError};
use crate::memory::RegionSlice;
use crate::types::Access;
use crate::work::Pieces;

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
}
