//! Devices: the contexts that librdmacm opens.
//!
//! A protection domain must come from the very context that ids have, so contexts are taken from
//! librdmacm and never opened here. Each context that was seen once is held open for ever by a
//! list of `rdma_get_devices` that is not given back: librdmacm closes a dead device's context with
//! the last reference, and a `Device` handle may outlive every id.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::cq::{RdmaCompletionChannel, RdmaCq};
use super::ffi::Api;
use super::ffi::constants::*;
use super::ffi::types::*;
use super::memory::RdmaPd;
use crate::address::{self, InterfaceAddress};
use crate::backend::{self, same_fabric};
use crate::error::{Result, VerbsError, check_ibv, check_ptr};
use crate::types::{DeviceLimits, Gid, LinkLayer, MAX_PIECES, PortAttr, PortState};

const TYPE_2_WINDOWS: std::ffi::c_uint =
    IBV_DEVICE_MEM_WINDOW_TYPE_2A | IBV_DEVICE_MEM_WINDOW_TYPE_2B;

/// A context of librdmacm's.
pub(super) struct RdmaDevice {
    pub(super) api: &'static Api,
    context: NonNull<ibv_context>,
    name: String,
    attr: ibv_device_attr,
    max_inline: OnceLock<u32>,
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
        // SAFETY: it was zeroed, and zeros are valid in every field.
        let attr = unsafe { attr.assume_init() };
        // SAFETY: an open context points at its device.
        let device = unsafe { (*context.as_ptr()).device };
        // SAFETY: the device lives as long as the context, and its name never changes.
        let name = unsafe { &raw const (*device).name };
        // SAFETY: the library ends the name with a zero.
        let name = unsafe { CStr::from_ptr(name.cast()) };
        Ok(Self {
            api,
            context,
            name: name.to_string_lossy().into_owned(),
            attr,
            max_inline: OnceLock::new(),
        })
    }

    pub(super) fn context(&self) -> *mut ibv_context {
        self.context.as_ptr()
    }

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
        // SAFETY: it was zeroed, and zeros are valid in every field.
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

    #[test]
    fn mtu_codes() {
        let all: Vec<u32> = (0..7).map(mtu_bytes).collect();
        assert_eq!(all, [0, 256, 512, 1024, 2048, 4096, 0]);
    }
}
