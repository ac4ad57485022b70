//! Devices: the contexts that librdmacm opens. What can be asked of one is in `device_verbs`.
//!
//! A protection domain must come from the very context that ids have, so contexts are taken from
//! librdmacm and never opened here. Each context that was seen once is held open for ever by a
//! list of `rdma_get_devices` that is not given back: librdmacm closes a dead device's context with
//! the last reference, and a `Device` handle may outlive every id.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::ffi::Api;
use super::ffi::constants::*;
use super::ffi::types::*;
use crate::backend;
use crate::error::{Result, VerbsError, check_ibv, check_ptr};
use crate::types::Transport;

/// A context of librdmacm's.
pub(super) struct RdmaDevice {
    pub(super) api: &'static Api,
    pub(super) context: NonNull<ibv_context>,
    pub(super) name: String,
    pub(super) transport: Transport,
    pub(super) attr: ibv_device_attr,
    /// Once it was asked for.
    pub(super) max_inline: OnceLock<u32>,
}

// SAFETY: libibverbs allows any thread to use a context; it is never closed.
unsafe impl Send for RdmaDevice {}
// SAFETY: as above.
unsafe impl Sync for RdmaDevice {}

static KNOWN: Mutex<Vec<Arc<RdmaDevice>>> = Mutex::new(Vec::new());

/// The devices there are now.
pub(super) fn list(api: &'static Api) -> Result<Vec<Arc<dyn backend::Device>>> {
    let devices = refresh(api)?;
    Ok(devices
        .into_iter()
        .map(|d| d as Arc<dyn backend::Device>)
        .collect())
}

/// The device of an id's context.
pub(super) fn of_context(
    api: &'static Api,
    context: NonNull<ibv_context>,
) -> Result<Arc<RdmaDevice>> {
    let known = |devices: &[Arc<RdmaDevice>]| {
        devices
            .iter()
            .find(|d| d.context == context)
            .map(Arc::clone)
    };
    if let Some(device) = known(&KNOWN.lock().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(device);
    }
    known(&refresh(api)?).ok_or_else(|| VerbsError::from_errno("rdma_get_devices", libc::ENODEV))
}

fn refresh(api: &'static Api) -> Result<Vec<Arc<RdmaDevice>>> {
    const CALL: &str = "rdma_get_devices";
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut count = 0;
    // SAFETY: the library writes the number to `count` and returns a list of that length, or NULL.
    let list = unsafe { (api.rdma_get_devices)(&raw mut count) };
    let list = match check_ptr(CALL, list) {
        Ok(list) => list,
        Err(e) if e.errno() == libc::ENODEV => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut present = Vec::new();
    let mut keep = false;
    for n in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the list has `count` entries.
        let entry = unsafe { list.as_ptr().add(n) };
        // SAFETY: as above.
        let Some(context) = NonNull::new(unsafe { *entry }) else {
            continue;
        };
        let device = match known.iter().find(|d| d.context == context) {
            Some(device) => Arc::clone(device),
            None => match RdmaDevice::new(api, context) {
                Ok(device) => {
                    keep = true;
                    let device = Arc::new(device);
                    known.push(Arc::clone(&device));
                    device
                }
                // It went away between the listing and the asking.
                Err(error) => {
                    tracing::warn!(%error, "a device does not answer");
                    continue;
                }
            },
        };
        present.push(device);
    }
    if !keep {
        // SAFETY: the list came from rdma_get_devices; what is used of it is held by another list.
        unsafe { (api.rdma_free_devices)(list.as_ptr()) };
    }
    Ok(present)
}

impl RdmaDevice {
    fn new(api: &'static Api, context: NonNull<ibv_context>) -> Result<Self> {
        let mut attr = MaybeUninit::<ibv_device_attr>::zeroed();
        // SAFETY: the context is open, and the structure is the one the library fills in.
        let ret = unsafe { (api.ibv_query_device)(context.as_ptr(), attr.as_mut_ptr()) };
        check_ibv("ibv_query_device", ret)?;
        // SAFETY: it was zeroed, and every field is a number, so whatever the library wrote is valid.
        let attr = unsafe { attr.assume_init() };
        // SAFETY: an open context points at its device.
        let device = unsafe { (*context.as_ptr()).device };
        // SAFETY: the device lives as long as the context, and its name never changes.
        let name = unsafe { (*device).name };
        // SAFETY: as above; nor does what it speaks.
        let transport = unsafe { (*device).transport_type };
        Ok(Self {
            api,
            context,
            name: text(&name),
            transport: match transport {
                IBV_TRANSPORT_IB => Transport::Infiniband,
                IBV_TRANSPORT_IWARP => Transport::Iwarp,
                other => Transport::Unknown(other),
            },
            attr,
            max_inline: OnceLock::new(),
        })
    }

    pub(super) fn context(&self) -> *mut ibv_context {
        self.context.as_ptr()
    }
}

/// What stands there up to the first zero, or to the end.
fn text(chars: &[c_char]) -> String {
    let bytes = chars.iter().map(|char| char.cast_unsigned());
    let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Codes 1 to 5 are 256 to 4096 bytes; 0: something else.
pub(super) fn mtu_bytes(code: u32) -> u32 {
    match code {
        IBV_MTU_256..=IBV_MTU_4096 => 128 << code,
        _ => 0,
    }
}

/// Makes a descriptor of the libraries' nonblocking.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    rustix::fs::fcntl_getfl(fd)
        .and_then(|flags| rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK))
        .map_err(|e| VerbsError::from_errno("fcntl", e.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_ends_with_its_place_at_the_latest() {
        let chars = |text: &[u8]| -> Vec<c_char> { text.iter().map(|&b| b as c_char).collect() };
        assert_eq!(text(&chars(b"rxe0\0\0x")), "rxe0");
        assert_eq!(text(&chars(b"no zero")), "no zero");
        assert_eq!(text(&chars(b"\0")), "");
    }

    #[test]
    fn mtu_codes() {
        let all: Vec<u32> = (0..7).map(mtu_bytes).collect();
        assert_eq!(all, [0, 256, 512, 1024, 2048, 4096, 0]);
    }
}
