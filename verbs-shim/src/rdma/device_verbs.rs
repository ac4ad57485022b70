//! What can be asked of a device of the rdma backend, and what is made on it: above all that holds
//! the device.

use std::mem::MaybeUninit;
use std::sync::Arc;

use super::cq::{RdmaCompletionChannel, RdmaCq};
use super::device::{RdmaDevice, mtu_bytes, of_context};
use super::ffi::constants::*;
use super::ffi::types::*;
use super::memory::RdmaPd;
use crate::address::{self, InterfaceAddress};
use crate::backend::{self, same_fabric};
use crate::error::{Result, VerbsError, check_ibv, check_ptr};
use crate::types::{DeviceLimits, Gid, LinkLayer, MAX_PIECES, PortAttr, PortState, Transport};

const TYPE_2_WINDOWS: std::ffi::c_uint =
    IBV_DEVICE_MEM_WINDOW_TYPE_2A | IBV_DEVICE_MEM_WINDOW_TYPE_2B;

impl RdmaDevice {
    /// The inline size that the device takes, found by making queue pairs until one is granted.
    pub(super) fn max_inline(self: &Arc<Self>) -> Result<u32> {
        if let Some(&known) = self.max_inline.get() {
            return Ok(known);
        }
        let found = self.probe_inline()?;
        Ok(*self.max_inline.get_or_init(|| found))
    }

    /// The entries that are in use, in one call: reading the table from /sys takes several for each
    /// of its places, 1,024 on some devices. `None`: library or kernel cannot.
    fn gid_table(&self) -> Option<Vec<ibv_gid_entry>> {
        const MOST: usize = 1024;
        const UNUSED: ibv_gid_entry = ibv_gid_entry {
            gid: [0; 2],
            gid_index: 0,
            port_num: 0,
            gid_type: 0,
            ndev_ifindex: 0,
        };
        let query = self.api.ibv_query_gid_table?;
        let mut entries = vec![UNUSED; MOST];
        let size = size_of::<ibv_gid_entry>();
        // SAFETY: the context is open, and there is room for as many entries of this size.
        let count = unsafe { query(self.context.as_ptr(), entries.as_mut_ptr(), MOST, 0, size) };
        entries.truncate(usize::try_from(count).ok()?);
        Some(entries)
    }

    fn probe_inline(self: &Arc<Self>) -> Result<u32> {
        let pd = RdmaPd::new(Arc::clone(self))?;
        let cq = RdmaCq::new(Arc::clone(self), 1, None)?;
        let mut last = None;
        for wish in [4096, 2048, 1024, 512, 256, 128, 64, 32, 0] {
            let mut init = ibv_qp_init_attr {
                qp_context: std::ptr::null_mut(),
                send_cq: cq.as_ptr(),
                recv_cq: cq.as_ptr(),
                srq: std::ptr::null_mut(),
                cap: ibv_qp_cap {
                    max_send_wr: 1,
                    max_recv_wr: 1,
                    // As large as this crate's queue pairs get: the two share room on some devices.
                    max_send_sge: MAX_PIECES as u32,
                    max_recv_sge: 1,
                    max_inline_data: wish,
                },
                qp_type: IBV_QPT_RC,
                sq_sig_all: 0,
            };
            // SAFETY: the domain and the queue live, and are of one context.
            let qp = unsafe { (self.api.ibv_create_qp)(pd.as_ptr(), &raw mut init) };
            match check_ptr("ibv_create_qp", qp) {
                Ok(qp) => {
                    // SAFETY: made above, known to nobody else.
                    let ret = unsafe { (self.api.ibv_destroy_qp)(qp.as_ptr()) };
                    check_ibv("ibv_destroy_qp", ret)?;
                    return Ok(init.cap.max_inline_data);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| VerbsError::from_errno("ibv_create_qp", libc::EINVAL)))
    }
}

impl backend::Device for RdmaDevice {
    fn key(&self) -> u64 {
        // Contexts are never closed, so no other gets this address.
        self.context.as_ptr() as u64
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn counters(&self) -> Vec<(String, u64)> {
        address::hw_counters(&self.name)
    }

    fn guid(&self) -> u64 {
        u64::from_be(self.attr.node_guid)
    }

    fn transport(&self) -> Transport {
        self.transport
    }

    fn limits(&self) -> Result<DeviceLimits> {
        // Through the list, since the probe's objects hold the device.
        let this = of_context(self.api, self.context)?;
        let count = |n: i32| u32::try_from(n).unwrap_or(0);
        let a = &self.attr;
        Ok(DeviceLimits {
            max_qp: count(a.max_qp),
            max_qp_wr: count(a.max_qp_wr),
            max_sge: count(a.max_sge),
            max_inline: this.max_inline()?,
            max_cq: count(a.max_cq),
            max_cqe: count(a.max_cqe),
            max_mr: count(a.max_mr),
            max_mr_size: a.max_mr_size,
            max_windows: match a.device_cap_flags & TYPE_2_WINDOWS {
                0 => 0,
                _ => count(a.max_mw),
            },
            max_pd: count(a.max_pd),
            max_srq: count(a.max_srq),
            max_srq_wr: count(a.max_srq_wr),
            max_qp_rd_atom: count(a.max_qp_rd_atom),
            max_qp_init_rd_atom: count(a.max_qp_init_rd_atom),
            ports: a.phys_port_cnt,
        })
    }

    fn port(&self, port: u8) -> Result<PortAttr> {
        // Zeroed, since the exported function fills in all but the last field.
        let mut attr = MaybeUninit::<ibv_port_attr>::zeroed();
        // SAFETY: the context is open; the exported function writes a prefix of the structure.
        let ret =
            unsafe { (self.api.ibv_query_port)(self.context.as_ptr(), port, attr.as_mut_ptr()) };
        check_ibv("ibv_query_port", ret)?;
        // SAFETY: it was zeroed, and every field is a number, so whatever the library wrote is valid.
        let attr = unsafe { attr.assume_init() };
        Ok(PortAttr {
            state: match attr.state {
                IBV_PORT_DOWN => PortState::Down,
                IBV_PORT_INIT => PortState::Init,
                IBV_PORT_ARMED => PortState::Armed,
                IBV_PORT_ACTIVE => PortState::Active,
                IBV_PORT_ACTIVE_DEFER => PortState::ActiveDefer,
                n => PortState::Unknown(n),
            },
            link_layer: match attr.link_layer {
                IBV_LINK_LAYER_INFINIBAND => LinkLayer::Infiniband,
                IBV_LINK_LAYER_ETHERNET => LinkLayer::Ethernet,
                n => LinkLayer::Unknown(n),
            },
            max_mtu: mtu_bytes(attr.max_mtu),
            active_mtu: mtu_bytes(attr.active_mtu),
            max_message_size: attr.max_msg_sz,
            gid_table_len: u32::try_from(attr.gid_tbl_len).unwrap_or(0),
        })
    }

    fn gids(&self, port: u8) -> Result<Vec<Gid>> {
        let mut gids = match self.gid_table() {
            Some(entries) => gids_of(&entries, port),
            None => address::gids(&self.name, port)?,
        };
        address::keep_own_netdevs(&mut gids)?;
        Ok(gids)
    }

    fn addresses(&self) -> Result<Vec<InterfaceAddress>> {
        let mut gids = Vec::new();
        for port in 1..=self.attr.phys_port_cnt {
            gids.extend(self.gids(port)?);
        }
        address::of_device(&self.name, gids)
    }

    fn alloc_pd(self: Arc<Self>) -> Result<Arc<dyn backend::ProtectionDomain>> {
        Ok(Arc::new(RdmaPd::new(self)?))
    }

    fn completion_channel(self: Arc<Self>) -> Result<Arc<dyn backend::CompletionChannel>> {
        Ok(Arc::new(RdmaCompletionChannel::new(self)?))
    }

    fn create_cq(
        self: Arc<Self>,
        depth: u32,
        channel: Option<Arc<dyn backend::CompletionChannel>>,
    ) -> Result<Arc<dyn backend::CompletionQueue>> {
        let channel = channel
            .map(|c| same_fabric::<RdmaCompletionChannel>("ibv_create_cq", c.into_any()))
            .transpose()?;
        Ok(Arc::new(RdmaCq::new(self, depth, channel)?))
    }
}

/// The entries of one port.
fn gids_of(entries: &[ibv_gid_entry], port: u8) -> Vec<Gid> {
    let of_port = |entry: &&ibv_gid_entry| entry.port_num == u32::from(port);
    let mut gids: Vec<Gid> = entries
        .iter()
        .filter(of_port)
        .map(|entry| Gid {
            index: entry.gid_index,
            // Both numbers are in network order.
            gid: entry.gid.map(u64::from_be).into_iter().fold(0, join).into(),
            kind: match entry.gid_type {
                IBV_GID_TYPE_IB | IBV_GID_TYPE_ROCE_V1 => "IB/RoCE v1".to_owned(),
                IBV_GID_TYPE_ROCE_V2 => "RoCE v2".to_owned(),
                _ => String::new(),
            },
            netdev: match entry.ndev_ifindex {
                0 => None,
                index => address::name_of(index),
            },
        })
        .filter(|gid| !gid.gid.is_unspecified())
        .collect();
    gids.sort_unstable_by_key(|gid| gid.index);
    gids
}

fn join(high: u128, low: u64) -> u128 {
    high << 64 | u128::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_one_port_in_order() {
        let entry = |gid: &str, gid_index, port_num, gid_type| {
            let bits = u128::from(gid.parse::<std::net::Ipv6Addr>().unwrap());
            ibv_gid_entry {
                gid: [((bits >> 64) as u64).to_be(), (bits as u64).to_be()],
                gid_index,
                port_num,
                gid_type,
                ndev_ifindex: 0,
            }
        };
        let table = [
            entry("::ffff:10.0.7.1", 3, 1, 2),
            entry("fe80::5054:ff:fe12:3456", 1, 1, 1),
            entry("fe80::1", 0, 2, 0),
            entry("::", 2, 1, 2),
        ];
        let of = |port| {
            let gids = gids_of(&table, port).into_iter();
            gids.map(|g| (g.index, g.gid.to_string(), g.kind))
                .collect::<Vec<_>>()
        };
        let (one, two) = ("IB/RoCE v1".to_owned(), "RoCE v2".to_owned());
        assert_eq!(
            of(1),
            [
                (1, "fe80::5054:ff:fe12:3456".to_owned(), one.clone()),
                (3, "::ffff:10.0.7.1".to_owned(), two),
            ]
        );
        assert_eq!(of(2), [(0, "fe80::1".to_owned(), one)]);
        assert_eq!(of(3), []);
    }
}
