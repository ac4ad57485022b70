//! The rdma backend: librdmacm and libibverbs, opened at run time.
//!
//! What keeps it sound, besides the order of destruction that the objects' `Arc`s give:
//! - Contexts belong to librdmacm and stay open for the life of the process ([`device`]).
//! - A channel's gate is held while an event is read and acknowledged, and by whoever reads or
//!   writes fields of an id that the library writes while reading events ([`channel`]).
//! - The library modifies a queue pair while it reads certain events, so a queue pair is taken off
//!   its id under the gate before it is destroyed ([`qp`]).
//!
//! It has no state of its own beyond the list of contexts, and makes no decisions.

#![allow(unsafe_code)]

mod channel;
mod cq;
mod device;
mod device_verbs;
pub mod ffi;
mod id;
mod memory;
mod new_id;
mod post;
mod qp;
mod sockaddr;
mod window;

use std::io;
use std::sync::Arc;

use crate::backend;
use crate::error::{OpenError, Result, VerbsError, check_ptr};
use crate::types::FabricKind;

struct RdmaFabric {
    api: &'static ffi::Api,
}

/// Loads the libraries and asks the kernel.
pub(crate) fn open() -> std::result::Result<Arc<dyn backend::Fabric>, OpenError> {
    let api = ffi::api()?;
    let mut count = 0;
    // SAFETY: the library writes the number to `count` and returns a list of that length, or NULL.
    let list = unsafe { (api.ibv_get_device_list)(&raw mut count) };
    if list.is_null() {
        let source = io::Error::last_os_error();
        return Err(OpenError::NoKernelSupport { source });
    }
    // SAFETY: the list came from ibv_get_device_list; its devices are not used after.
    unsafe { (api.ibv_free_device_list)(list) };
    if count == 0 {
        return Err(OpenError::NoDevice);
    }
    // A device without the connection manager's module is found out here.
    // SAFETY: no arguments.
    let channel = unsafe { (api.rdma_create_event_channel)() };
    let channel = check_ptr("rdma_create_event_channel", channel)
        .map_err(|VerbsError { source, .. }| OpenError::ConnectionManager { source })?;
    // SAFETY: the channel was made above and has no ids.
    unsafe { (api.rdma_destroy_event_channel)(channel.as_ptr()) };
    Ok(Arc::new(RdmaFabric { api }))
}

impl backend::Fabric for RdmaFabric {
    fn kind(&self) -> FabricKind {
        FabricKind::Rdma
    }

    fn devices(&self) -> Result<Vec<Arc<dyn backend::Device>>> {
        device::list(self.api)
    }

    fn event_channel(&self) -> Result<Arc<dyn backend::EventChannel>> {
        Ok(Arc::new(channel::RdmaEventChannel::new(self.api)?))
    }
}
