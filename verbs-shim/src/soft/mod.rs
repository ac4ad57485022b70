//! The soft backend: RoCEv2 in user space, by the crate soft-roce. No library, no privileges.
//!
//! It translates and nothing else: an endpoint is a device, its objects are verbs objects. What it
//! adds is the memory ([`memory`]), since soft-roce handles no pointers, and the rule that what was
//! destroyed is not touched any more.
//!
//! One device, however many addresses: an endpoint serves all of them.

mod cm;
mod cq;
mod device;
mod device_verbs;
mod memory;
mod post;
mod qp;

use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use soft_roce::endpoint::{Config, Endpoint, HostAddresses};

use self::device::SoftDevice;
use crate::address::{self, AddressWatch};
use crate::backend;
use crate::error::{OpenError, Result, VerbsError};
use crate::types::FabricKind;

/// Settings of the soft fabric.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SoftConfig {
    /// The addresses by which the device can be reached; empty: all that this host has, loopback
    /// among them. Each has to be one of this host; those of 127.0.0.0/8 all are.
    pub addresses: Vec<IpAddr>,
    /// The directory in which this host's endpoints find each other; `None`: the user's runtime
    /// directory, or one of the user's own in the directory for temporary files.
    pub rendezvous: Option<PathBuf>,
}

/// Tells the endpoint which addresses the host has.
struct Host(AddressWatch);

impl AsFd for Host {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl HostAddresses for Host {
    fn changed(&self) -> Option<Vec<IpAddr>> {
        if !self.0.drain() {
            return None;
        }
        match address::of_host() {
            Ok(now) => Some(now.iter().map(|a| a.ip).collect()),
            Err(error) => {
                tracing::warn!(%error, "the host's addresses cannot be listed");
                None
            }
        }
    }
}

struct SoftFabric {
    device: Arc<SoftDevice>,
}

/// Opens an endpoint.
pub(crate) fn open(
    config: &SoftConfig,
) -> std::result::Result<Arc<dyn backend::Fabric>, OpenError> {
    let follow_host = config.addresses.is_empty();
    // Before they are listed, so that no change is missed.
    let watch = follow_host.then(AddressWatch::new);
    let addresses = match config.addresses.is_empty() {
        true => address::of_host().map_err(|VerbsError { source, .. }| OpenError::Soft {
            detail: format!("the host's addresses cannot be listed: {source}"),
        })?,
        false => config
            .addresses
            .iter()
            .map(|ip| address::named(*ip))
            .collect(),
    };
    for ip in &config.addresses {
        // Said now, by name, and not by the first listen or connect.
        UdpSocket::bind((*ip, 0)).map_err(|error| OpenError::Soft {
            detail: format!("{ip} cannot be used: {error}"),
        })?;
    }
    let endpoint = Endpoint::new(Config {
        addresses: addresses.iter().map(|a| a.ip).collect(),
        rendezvous: config.rendezvous.clone(),
        ..Config::default()
    })
    .map_err(|error| OpenError::Soft {
        detail: error.to_string(),
    })?;
    match watch {
        Some(Ok(watch)) => endpoint.follow(Arc::new(Host(watch))),
        // Listeners on a wildcard then have the addresses of their beginning.
        Some(Err(error)) => tracing::warn!(%error, "the host's addresses cannot be watched"),
        None => {}
    }
    Ok(Arc::new(SoftFabric {
        device: Arc::new(SoftDevice::new(endpoint, addresses, follow_host)),
    }))
}

impl backend::Fabric for SoftFabric {
    fn kind(&self) -> FabricKind {
        FabricKind::Soft
    }

    fn devices(&self) -> Result<Vec<Arc<dyn backend::Device>>> {
        Ok(vec![Arc::clone(&self.device) as Arc<dyn backend::Device>])
    }

    fn event_channel(&self) -> Result<Arc<dyn backend::EventChannel>> {
        Ok(Arc::new(cm::SoftEventChannel::new(&self.device)?))
    }
}
