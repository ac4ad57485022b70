//! The provider's own IP addresses (duties 6, 65, 66, 99).
//!
//! It lists; which subnets they stand for is for the switch to say.

use std::net::IpAddr;

use rustix::io::Errno;
use verbs_shim::{Device, Fabric, Transport, VerbsError};

use crate::event::EventObject;

/// Descriptors that the question may need at a time.
const SPARE: usize = 8;

/// A local address that an RDMA device can be reached by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SanAddress {
    /// The address.
    pub ip: IpAddr,
    /// The length of its network's prefix.
    pub prefix_len: u8,
    /// The RDMA device's name.
    pub device: String,
    /// The network interface's name.
    pub netdev: String,
    /// The network interface's index.
    pub ifindex: u32,
}

impl SanAddress {
    /// Whether `ip` is an address of this device's: this very one, or, of a device on the loopback,
    /// another of the loopback's network. The kernel takes all of 127.0.0.0/8 for this host's, though
    /// its interface names 127.0.0.1 alone.
    #[must_use]
    pub fn takes(&self, ip: IpAddr) -> bool {
        let (own, ip) = (self.ip.to_canonical(), ip.to_canonical());
        own == ip
            || match (own, ip) {
                (IpAddr::V4(own), IpAddr::V4(ip)) if own.is_loopback() && ip.is_loopback() => {
                    let differing = own.to_bits() ^ ip.to_bits();
                    differing.leading_zeros() >= u32::from(self.prefix_len)
                }
                // ::1 is the only one.
                _ => false,
            }
    }
}

/// The addresses of all devices now that the provider can use. A device that cannot be asked has none; but where only a
/// descriptor or memory is missing for the question, it has those it was `known` to have: a process
/// with too many files open must not lose its listeners.
pub(crate) fn read(fabric: &Fabric, known: &[SanAddress]) -> Vec<SanAddress> {
    if !known.is_empty() && !has_descriptors() {
        tracing::warn!("no descriptor is left to ask for addresses; they stay as they were");
        return known.to_vec();
    }
    let devices = match fabric.devices() {
        Ok(devices) => devices,
        Err(error) => {
            tracing::warn!(%error, "the RDMA devices cannot be listed");
            return match is_shortage(&error) {
                true => known.to_vec(),
                false => Vec::new(),
            };
        }
    };
    let mut list = Vec::new();
    for device in devices.iter().filter(|device| is_usable(device)) {
        match device.addresses() {
            Ok(found) => list.extend(found.into_iter().map(|address| SanAddress {
                ip: address.ip,
                prefix_len: address.prefix_len,
                device: device.name().to_owned(),
                netdev: address.netdev,
                ifindex: address.ifindex,
            })),
            Err(error) => {
                tracing::warn!(device = device.name(), %error, "no addresses of this device");
                if is_shortage(&error) {
                    let of_device = known.iter().filter(|a| a.device == device.name());
                    list.extend(of_device.cloned());
                }
            }
        }
    }
    list
}

/// Whether the provider can use a device at all. Its messages need immediate data, which iWARP has not.
/// Besides, an iWARP device's ports are TCP's: a connect by it to a TCP server would write into that
/// server's stream.
pub(crate) fn is_usable(device: &Device) -> bool {
    device.transport() == Transport::Infiniband
}

/// Whether a listener on the wildcard address would listen on a device that the provider cannot use.
pub(crate) fn has_unusable(fabric: &Fabric) -> bool {
    let devices = fabric.devices().unwrap_or_default();
    devices.iter().any(|device| !is_usable(device))
}

/// Whether there are descriptors to ask with: not every answer that comes without says so.
fn has_descriptors() -> bool {
    let spare: [_; SPARE] = std::array::from_fn(|_| EventObject::new());
    spare.iter().all(Result::is_ok)
}

/// Whether the question failed for what this process lacks at this moment.
fn is_shortage(error: &VerbsError) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
    shortages
        .iter()
        .any(|errno| errno.raw_os_error() == error.errno())
}
