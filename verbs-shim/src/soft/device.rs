//! The device of the soft backend: an endpoint with addresses. What can be asked of it is in
//! `device_verbs`.

use std::sync::{Mutex, PoisonError};

use soft_roce::endpoint::Endpoint;

use crate::address::{self, InterfaceAddress};
use crate::error::Result;

pub(super) struct SoftDevice {
    pub(super) endpoint: Endpoint,
    addresses: Mutex<Vec<InterfaceAddress>>,
    /// The addresses are the host's, and change with them.
    follow_host: bool,
}

impl SoftDevice {
    pub(super) fn new(
        endpoint: Endpoint,
        addresses: Vec<InterfaceAddress>,
        follow_host: bool,
    ) -> Self {
        Self {
            endpoint,
            addresses: Mutex::new(addresses),
            follow_host,
        }
    }

    /// The addresses as they are now.
    pub(super) fn current(&self) -> Result<Vec<InterfaceAddress>> {
        let mut addresses = self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.follow_host {
            let now = address::of_host()?;
            if now != *addresses {
                let ips: Vec<_> = now.iter().map(|a| a.ip).collect();
                self.endpoint.set_addresses(&ips);
                *addresses = now;
            }
        }
        Ok(addresses.clone())
    }
}

/// The most pieces of a request.
pub(super) fn max_pieces(device: &SoftDevice) -> u32 {
    narrow(device.endpoint.limits().max_sge)
}

pub(super) fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
