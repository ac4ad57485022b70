//! Memory windows of type 2 of the rdma backend.
//!
//! Each is allocated for one opening and freed to withdraw it, which needs no request and so does
//! not wait for a send queue. Opening is a request, made in `qp.rs`.

use std::ffi::c_uint;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use super::ffi::constants::*;
use super::ffi::types::*;
use super::memory::{RdmaPd, once};
use crate::backend;
use crate::error::{Result, VerbsError, check_ibv, check_ptr};
use crate::live::{Alive, Kind};
use crate::types::Access;

pub(super) struct RdmaWindow {
    pd: Arc<RdmaPd>,
    mw: NonNull<ibv_mw>,
    dealloc: DeallocMw,
    pub(super) info: ibv_mw_bind_info,
    /// The key that it opens under.
    rkey: u32,
    alive: Mutex<Option<Alive>>,
}

// SAFETY: libibverbs allows any thread to use a memory window.
unsafe impl Send for RdmaWindow {}
// SAFETY: as above.
unsafe impl Sync for RdmaWindow {}

impl RdmaWindow {
    pub(super) fn new(
        pd: &Arc<RdmaPd>,
        mr: *mut ibv_mr,
        (addr, len): (u64, u64),
        access: Access,
    ) -> Result<Self> {
        const CALL: &str = "ibv_alloc_mw";
        let none = || VerbsError::from_errno(CALL, libc::EOPNOTSUPP);
        // SAFETY: the context is open, and its table does not change.
        let ops = unsafe { &(*pd.device.context()).ops };
        let alloc = ops.alloc_mw.ok_or_else(none)?;
        let dealloc = ops.dealloc_mw.ok_or_else(none)?;
        // SAFETY: the domain lives.
        let mw = unsafe { alloc(pd.as_ptr(), IBV_MW_TYPE_2) };
        let mw = check_ptr(CALL, mw)?;
        // SAFETY: the window was made above, and nobody else knows it, so nobody binds it meanwhile.
        let first = unsafe { (*mw.as_ptr()).rkey };
        Ok(Self {
            pd: Arc::clone(pd),
            mw,
            dealloc,
            info: ibv_mw_bind_info {
                mr,
                addr,
                length: len,
                mw_access_flags: window_flags(access),
            },
            rkey: next_key(first),
            alive: Mutex::new(Some(Alive::new(Kind::MemoryWindow))),
        })
    }

    pub(super) fn as_ptr(&self) -> *mut ibv_mw {
        self.mw.as_ptr()
    }

    pub(super) fn belongs_to(&self, pd: &Arc<RdmaPd>) -> bool {
        Arc::ptr_eq(&self.pd, pd)
    }
}

impl backend::MemoryWindow for RdmaWindow {
    fn rkey(&self) -> u32 {
        self.rkey
    }

    fn needs_request(&self) -> bool {
        true
    }

    fn withdraw(&self) -> Result<()> {
        once(&self.alive, || {
            // SAFETY: it was not withdrawn yet, so the library has it still.
            let ret = unsafe { (self.dealloc)(self.mw.as_ptr()) };
            check_ibv("ibv_dealloc_mw", ret)
        })
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// Of a window of type 2 the owner chooses the lowest byte of the key, another one each time.
fn next_key(key: u32) -> u32 {
    (key & !0xff) | (key.wrapping_add(1) & 0xff)
}

/// Windows know remote rights only.
fn window_flags(access: Access) -> c_uint {
    let mut flags = 0;
    if access.contains(Access::REMOTE_WRITE) {
        flags |= IBV_ACCESS_REMOTE_WRITE;
    }
    if access.contains(Access::REMOTE_READ) {
        flags |= IBV_ACCESS_REMOTE_READ;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_window_changes_in_its_lowest_byte() {
        assert_eq!(next_key(0x0102_0304), 0x0102_0305);
        assert_eq!(next_key(0x0102_03ff), 0x0102_0300);
    }

    #[test]
    fn windows_have_no_local_rights() {
        assert_eq!(window_flags(Access::REMOTE_WRITE), 2);
        assert_eq!(window_flags(Access::REMOTE_WRITE | Access::REMOTE_READ), 6);
        assert_eq!(window_flags(Access::LOCAL_WRITE), 0);
    }
}
