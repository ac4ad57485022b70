//! How much memory this process may lock: registered memory is locked, and a limit that is too low
//! is the failure that operators meet most.
//!
//! The kernel says no more than ENOMEM. Here is found out whether the limit may be why, so that an
//! error can say what to raise. Nothing is raised or retried.

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};
use verbs_shim::{Access, BufferPool, Device, Fabric, FabricKind, VerbsError};

use crate::config::ProviderConfig;

/// Buffers that a connection needs first; a lane begins with no more.
const FIRST_BUFFERS: u32 = 32;

/// Bytes that may be locked, where there is a limit that counts for this process.
pub(crate) fn limit() -> Option<u64> {
    let limit = getrlimit(Resource::Memlock).current?;
    let is_exempt =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    (!is_exempt).then_some(limit)
}

/// The limit, where it may be why a call failed.
pub(crate) fn limit_behind(error: &VerbsError) -> Option<u64> {
    match error.errno() == Errno::NOMEM.raw_os_error() {
        true => limit(),
        false => None,
    }
}

/// Whether what a first connection needs can be locked. Asked before a socket listens: later each
/// request would have to be refused for it.
pub(crate) fn check(
    fabric: &Fabric,
    device: Option<Device>,
    config: &ProviderConfig,
) -> Result<(), VerbsError> {
    if fabric.kind() != FabricKind::Rdma || limit().is_none() {
        return Ok(());
    }
    // A wildcard's device is any: the limit is the process's.
    let Some(device) = device.or_else(|| fabric.devices().ok()?.into_iter().next()) else {
        return Ok(());
    };
    let pd = device.alloc_pd()?;
    BufferPool::new(
        &pd,
        config.max_message_size,
        FIRST_BUFFERS,
        Access::LOCAL_WRITE,
    )
    .map(drop)
}
