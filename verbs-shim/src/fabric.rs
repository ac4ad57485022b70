//! A fabric: one way of reaching RDMA devices, opened at run time.
//!
//! It does not choose between fabrics; the caller opens the one it wants.

use std::fmt;
use std::sync::Arc;

use crate::backend;
use crate::cm::EventChannel;
use crate::device::Device;
use crate::error::{OpenError, Result};
use crate::rdma;
use crate::soft::{self, SoftConfig};
use crate::types::FabricKind;

/// A way to reach RDMA devices. Cheap to clone.
#[derive(Clone)]
pub struct Fabric {
    backend: Arc<dyn backend::Fabric>,
}

impl Fabric {
    /// Opens librdmacm.so.1 and libibverbs.so.1, and asks the kernel whether it has RDMA.
    ///
    /// # Errors
    /// Says which of these is missing: a library, a function in it, the kernel's support, a device.
    pub fn rdma() -> std::result::Result<Self, OpenError> {
        Ok(Self {
            backend: rdma::open()?,
        })
    }

    /// Opens `RoCEv2` in user space: one device, which needs no library and no privileges.
    ///
    /// # Errors
    /// [`OpenError::Soft`]: no thread, no descriptor, an address that is not this host's, or the
    /// host's addresses cannot be listed.
    pub fn soft(config: &SoftConfig) -> std::result::Result<Self, OpenError> {
        Ok(Self {
            backend: soft::open(config)?,
        })
    }

    /// Which backend this is.
    #[must_use]
    pub fn kind(&self) -> FabricKind {
        self.backend.kind()
    }

    /// The devices there are now, those that appeared since the last call among them. Empty when
    /// the last one is gone.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub fn devices(&self) -> Result<Vec<Device>> {
        let devices = self.backend.devices()?;
        Ok(devices.into_iter().map(Device::from_backend).collect())
    }

    /// A new channel for CM events.
    ///
    /// # Errors
    /// `EMFILE` and its kin; `ENODEV` when the last device is gone.
    pub fn event_channel(&self) -> Result<EventChannel> {
        Ok(EventChannel::from_backend(self.backend.event_channel()?))
    }
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fabric")
            .field("kind", &self.kind())
            .finish()
    }
}
