//! Devices.
//!
//! Opening is the backend's business: a [`Device`] is open for as long as it is held. Addresses
//! are in [`crate::address`], and what is made on a device beside its queues is in [`crate::memory`].

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::address::InterfaceAddress;
use crate::backend;
use crate::completion::{CompletionChannel, CompletionQueue};
use crate::error::Result;
use crate::types::{DeviceLimits, Gid, PortAttr, Transport};

/// An open RDMA device. Cheap to clone; two handles of one device are equal.
#[derive(Clone)]
pub struct Device {
    backend: Arc<dyn backend::Device>,
}

impl Device {
    pub(crate) fn from_backend(backend: Arc<dyn backend::Device>) -> Self {
        Self { backend }
    }

    pub(crate) fn backend(&self) -> Arc<dyn backend::Device> {
        Arc::clone(&self.backend)
    }

    /// The kernel's name of the device, such as `mlx5_0` or `rxe0`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.backend.name()
    }

    /// What it has counted, lost and repeated packets among it, by names of its own: of a device of the kernel the
    /// `hw_counters` of port 1, which are of all processes together; of the soft fabric this process's. Empty where it
    /// tells nothing.
    #[must_use]
    pub fn counters(&self) -> Vec<(String, u64)> {
        self.backend.counters()
    }

    /// The node GUID.
    #[must_use]
    pub fn guid(&self) -> u64 {
        self.backend.guid()
    }

    /// What it speaks to its peers.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.backend.transport()
    }

    /// What it can do. The first call makes a queue pair and destroys it again; later ones answer
    /// from memory.
    ///
    /// # Errors
    /// When the device does not answer.
    pub fn limits(&self) -> Result<DeviceLimits> {
        self.backend.limits()
    }

    /// The attributes of port `port` (from 1).
    ///
    /// # Errors
    /// `EINVAL`: no such port.
    pub fn port(&self, port: u8) -> Result<PortAttr> {
        self.backend.port(port)
    }

    /// The GIDs in use on port `port`.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn gids(&self, port: u8) -> Result<Vec<Gid>> {
        self.backend.gids(port)
    }

    /// The IP addresses by which this device can be reached: those of the network interfaces that
    /// its GIDs belong to; of the soft fabric's device, those it was opened with.
    ///
    /// # Errors
    /// When the kernel's tables cannot be read.
    pub fn addresses(&self) -> Result<Vec<InterfaceAddress>> {
        self.backend.addresses()
    }

    /// A new completion channel, for completion queues of this device.
    ///
    /// # Errors
    /// `EMFILE` and its kin.
    pub fn completion_channel(&self) -> Result<CompletionChannel> {
        let channel = Arc::clone(&self.backend).completion_channel()?;
        Ok(CompletionChannel::from_backend(channel))
    }

    /// A new completion queue of at least `depth` entries; with a channel it can announce
    /// completions there.
    ///
    /// # Errors
    /// `EINVAL`: more than `max_cqe`, 0, or a channel of another device. `ENOMEM`.
    pub fn create_cq(
        &self,
        depth: u32,
        channel: Option<&CompletionChannel>,
    ) -> Result<CompletionQueue> {
        let channel = channel.map(CompletionChannel::backend);
        let cq = Arc::clone(&self.backend).create_cq(depth, channel)?;
        CompletionQueue::from_backend(cq)
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        self.backend.key() == other.backend.key()
    }
}

impl Eq for Device {}

impl Hash for Device {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.backend.key().hash(state);
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.name()).finish()
    }
}
