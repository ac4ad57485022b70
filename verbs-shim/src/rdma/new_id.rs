//! Where CM ids come from: they are made on a channel, or come with a connect request.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::channel::{RdmaEventChannel, next_token};
use super::ffi::constants::*;
use super::id::RdmaCmId;
use crate::backend;
use crate::error::{Result, check_ptr, check_rdma};
use crate::types::Event;

impl backend::EventChannel for RdmaEventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }

    fn next(self: Arc<Self>) -> Result<Option<Event<Arc<dyn backend::CmId>>>> {
        let raw = self.read()?;
        Ok(raw.map(|raw| {
            let adopt =
                |id, token| -> Arc<dyn backend::CmId> { Arc::new(RdmaCmId::new(id, token, self)) };
            raw.into_event(adopt)
        }))
    }

    fn create_id(self: Arc<Self>) -> Result<Arc<dyn backend::CmId>> {
        let token = next_token();
        let mut id = std::ptr::null_mut();
        // SAFETY: the channel lives; the context is a number that the library only hands around.
        let ret = unsafe {
            (self.api.rdma_create_id)(
                self.channel.as_ptr(),
                &raw mut id,
                token as *mut c_void,
                RDMA_PS_TCP,
            )
        };
        check_rdma("rdma_create_id", ret)?;
        let id = check_ptr("rdma_create_id", id)?;
        Ok(Arc::new(RdmaCmId::new(id, token, self)))
    }
}
