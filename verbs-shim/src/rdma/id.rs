//! CM ids of the rdma backend: the calls on them. How they are locked is said in [`super::channel`].

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::channel::RdmaEventChannel;
use super::cq::RdmaCq;
use super::device;
use super::ffi::Api;
use super::ffi::constants::*;
use super::ffi::types::*;
use super::memory::{RdmaPd, RdmaSrq};
use super::qp::{Parts, QpOwner, RdmaQp, wrong_device};
use super::sockaddr::{self, CAddr};
use crate::backend::{self, CmOption, QpAttr, same_fabric};
use crate::error::{Result, VerbsError, check_ptr, check_rdma};
use crate::live::{Alive, Kind};
use crate::types::{ConnParams, QpCaps};

pub(super) struct RdmaCmId {
    pub(super) api: &'static Api,
    id: NonNull<rdma_cm_id>,
    token: u64,
    /// Whether a queue pair was taken off it.
    had_qp: AtomicBool,
    /// The channel it is on. The lock also orders the calls on the id.
    channel: Mutex<Arc<RdmaEventChannel>>,
    _alive: Alive,
}

// SAFETY: librdmacm allows any thread to use an id; its fields are read and written under the gate.
unsafe impl Send for RdmaCmId {}
// SAFETY: as above.
unsafe impl Sync for RdmaCmId {}

/// The right to call with the id.
type Call<'a> = MutexGuard<'a, Arc<RdmaEventChannel>>;

impl RdmaCmId {
    pub(super) fn new(id: NonNull<rdma_cm_id>, token: u64, channel: Arc<RdmaEventChannel>) -> Self {
        Self {
            api: channel.api,
            id,
            token,
            had_qp: AtomicBool::new(false),
            channel: Mutex::new(channel),
            _alive: Alive::new(Kind::Id),
        }
    }

    fn call(&self) -> Call<'_> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ptr(&self) -> *mut rdma_cm_id {
        self.id.as_ptr()
    }

    fn context(&self, call: &Call<'_>) -> Option<NonNull<ibv_context>> {
        let _gate = call.gate();
        // SAFETY: the id lives, and the gate keeps the library from writing the field.
        NonNull::new(unsafe { (*self.ptr()).verbs })
    }

    /// The library follows this pointer in some calls without looking.
    fn require_context(&self, call: &Call<'_>, name: &'static str) -> Result<NonNull<ibv_context>> {
        self.context(call)
            .ok_or_else(|| VerbsError::invalid(name, "the id has no device yet"))
    }

    fn require_qp(&self, call: &Call<'_>, name: &'static str) -> Result<()> {
        self.require_context(call, name)?;
        // SAFETY: the id lives; the field changes only under the lock that `call` holds.
        if unsafe { (*self.ptr()).qp }.is_null() {
            return Err(VerbsError::invalid(name, "the id has no queue pair"));
        }
        Ok(())
    }

    fn option<T>(&self, name: c_int, mut value: T) -> Result<()> {
        let _call = self.call();
        // SAFETY: the id lives, and the value is as large as it is said to be.
        let ret = unsafe {
            (self.api.rdma_set_option)(
                self.ptr(),
                RDMA_OPTION_ID,
                name,
                (&raw mut value).cast(),
                size_of::<T>(),
            )
        };
        check_rdma("rdma_set_option", ret)
    }

    /// One of the id's addresses, by copy.
    fn addr(&self, of: fn(&rdma_addr) -> &libc::sockaddr_storage) -> Option<SocketAddr> {
        let call = self.call();
        let _gate = call.gate();
        // SAFETY: the id lives, and the gate keeps the library from writing the addresses.
        let addr = unsafe { &(*self.ptr()).route.addr };
        sockaddr::from_c(of(addr))
    }
}

impl backend::CmId for RdmaCmId {
    fn token(&self) -> u64 {
        self.token
    }

    fn bind(&self, addr: SocketAddr) -> Result<()> {
        let call = self.call();
        let _gate = call.gate();
        let mut addr = CAddr::from(addr);
        // SAFETY: the id lives, and the address is one.
        let ret = unsafe { (self.api.rdma_bind_addr)(self.ptr(), addr.as_mut_ptr()) };
        check_rdma("rdma_bind_addr", ret)
    }

    fn listen(&self, backlog: i32) -> Result<()> {
        let call = self.call();
        let _gate = call.gate();
        // SAFETY: the id lives.
        let ret = unsafe { (self.api.rdma_listen)(self.ptr(), backlog) };
        check_rdma("rdma_listen", ret)
    }

    fn resolve_addr(
        &self,
        src: Option<SocketAddr>,
        dst: SocketAddr,
        timeout: Duration,
    ) -> Result<()> {
        let call = self.call();
        let _gate = call.gate();
        let mut src = src.map(CAddr::from);
        let src = src.as_mut().map_or(std::ptr::null_mut(), CAddr::as_mut_ptr);
        let mut dst = CAddr::from(dst);
        let ms = millis(timeout);
        // SAFETY: the id lives, and the addresses are such or NULL.
        let ret = unsafe { (self.api.rdma_resolve_addr)(self.ptr(), src, dst.as_mut_ptr(), ms) };
        check_rdma("rdma_resolve_addr", ret)
    }

    fn resolve_route(&self, timeout: Duration) -> Result<()> {
        const CALL: &str = "rdma_resolve_route";
        let call = self.call();
        self.require_context(&call, CALL)?;
        // SAFETY: the id lives and has a device.
        let ret = unsafe { (self.api.rdma_resolve_route)(self.ptr(), millis(timeout)) };
        check_rdma(CALL, ret)
    }

    fn connect(&self, params: &ConnParams<'_>) -> Result<()> {
        const CALL: &str = "rdma_connect";
        let call = self.call();
        self.require_qp(&call, CALL)?;
        let mut conn = conn_param(params);
        // SAFETY: the id lives and has a device; the private data is copied in the call.
        let ret = unsafe { (self.api.rdma_connect)(self.ptr(), &raw mut conn) };
        check_rdma(CALL, ret)
    }

    fn accept(&self, params: &ConnParams<'_>) -> Result<()> {
        const CALL: &str = "rdma_accept";
        let call = self.call();
        self.require_qp(&call, CALL)?;
        let mut conn = conn_param(params);
        // SAFETY: the id lives and has a device; the private data is copied in the call.
        let ret = unsafe { (self.api.rdma_accept)(self.ptr(), &raw mut conn) };
        check_rdma(CALL, ret)
    }

    fn reject(&self, private_data: &[u8]) -> Result<()> {
        let _call = self.call();
        // The caller has checked that it is no more than 148 bytes.
        let len = private_data.len() as u8;
        // SAFETY: the id lives; the private data is copied in the call.
        let ret = unsafe { (self.api.rdma_reject)(self.ptr(), private_data.as_ptr().cast(), len) };
        check_rdma("rdma_reject", ret)
    }

    fn is_pending(&self) -> bool {
        let call = self.call();
        if self.context(&call).is_none() {
            return false;
        }
        // SAFETY: every field is a number, or made of such.
        let mut attr: ibv_qp_attr = unsafe { MaybeUninit::zeroed().assume_init() };
        attr.qp_state = IBV_QPS_INIT;
        let mut mask = 0;
        let init = self.api.rdma_init_qp_attr;
        // The kernel answers from the state of its id, which is idle once the peer has given up.
        // SAFETY: the id lives and has a device; both places are written in the call only.
        unsafe { init(self.ptr(), &raw mut attr, &raw mut mask) == 0 }
    }

    fn disconnect(&self) -> Result<()> {
        const CALL: &str = "rdma_disconnect";
        let call = self.call();
        self.require_context(&call, CALL)?;
        // SAFETY: the id lives and has a device.
        let ret = unsafe { (self.api.rdma_disconnect)(self.ptr()) };
        check_rdma(CALL, ret)
    }

    fn migrate(&self, channel: Arc<dyn backend::EventChannel>) -> Result<()> {
        const CALL: &str = "rdma_migrate_id";
        let new = same_fabric::<RdmaEventChannel>(CALL, channel.into_any())?;
        let mut call = self.call();
        if Arc::ptr_eq(&call, &new) {
            return Ok(());
        }
        let old = Arc::clone(&call);
        // Both gates, by address, so that two migrations in opposite directions do not lock up.
        let _gates = if Arc::as_ptr(&old) < Arc::as_ptr(&new) {
            let first = old.gate();
            (first, new.gate())
        } else {
            let first = new.gate();
            (first, old.gate())
        };
        // SAFETY: the id and both channels live; no event of the id is unacknowledged, since the
        // old gate is held, so the call does not block.
        let ret = unsafe { (self.api.rdma_migrate_id)(self.ptr(), new.channel.as_ptr()) };
        check_rdma(CALL, ret)?;
        *call = Arc::clone(&new);
        Ok(())
    }

    fn set_option(&self, option: CmOption) -> Result<()> {
        match option {
            CmOption::Tos(tos) => self.option(RDMA_OPTION_ID_TOS, tos),
            CmOption::AckTimeout(code) => self.option(RDMA_OPTION_ID_ACK_TIMEOUT, code),
            CmOption::ReuseAddr(on) => self.option(RDMA_OPTION_ID_REUSEADDR, c_int::from(on)),
            CmOption::V6Only(on) => self.option(RDMA_OPTION_ID_AFONLY, c_int::from(on)),
        }
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        self.addr(|addr| &addr.src_storage)
    }

    fn peer_addr(&self) -> Option<SocketAddr> {
        self.addr(|addr| &addr.dst_storage)
    }

    fn device(&self) -> Option<Arc<dyn backend::Device>> {
        let context = self.context(&self.call())?;
        match device::of_context(self.api, context) {
            Ok(device) => Some(device),
            Err(error) => {
                tracing::warn!(%error, "the device of an id is not among the devices");
                None
            }
        }
    }

    fn port(&self) -> u8 {
        let call = self.call();
        let _gate = call.gate();
        // SAFETY: the id lives, and the gate keeps the library from writing the field.
        unsafe { (*self.ptr()).port_num }
    }

    fn path_mtu(&self) -> Option<u32> {
        let call = self.call();
        let _gate = call.gate();
        // SAFETY: the id lives, and the gate keeps the library from writing the field.
        let (paths, count) = unsafe {
            let route = &(*self.ptr()).route;
            (NonNull::new(route.path_rec)?, route.num_paths)
        };
        if count < 1 {
            return None;
        }
        // SAFETY: the library's array of so many records, which it keeps as long as the id.
        let mtu = unsafe { (*paths.as_ptr()).mtu };
        Some(device::mtu_bytes(mtu.into())).filter(|mtu| *mtu > 0)
    }

    fn create_qp(self: Arc<Self>, attr: QpAttr) -> Result<Box<dyn backend::QueuePair>> {
        const CALL: &str = "rdma_create_qp";
        let parts = Parts {
            pd: same_fabric::<RdmaPd>(CALL, attr.pd.into_any())?,
            send_cq: same_fabric::<RdmaCq>(CALL, attr.send_cq.into_any())?,
            recv_cq: same_fabric::<RdmaCq>(CALL, attr.recv_cq.into_any())?,
            srq: attr
                .srq
                .map(|srq| same_fabric::<RdmaSrq>(CALL, srq.into_any()))
                .transpose()?,
        };
        let inline = attr.caps.inline.min(parts.pd.device.max_inline()?);
        let (qp, inline) = {
            let call = self.call();
            let context = self.require_context(&call, CALL)?.as_ptr();
            // Another device's queue would be found by its number, which means another one here.
            let same = parts.pd.device.context() == context
                && parts.send_cq.device.context() == context
                && parts.recv_cq.device.context() == context
                && parts
                    .srq
                    .as_ref()
                    .is_none_or(|srq| srq.pd.device.context() == context);
            if !same {
                return Err(wrong_device());
            }
            self.make_qp(&call, &parts, attr.caps, inline)?
        };
        let caps = QpCaps {
            inline,
            ..attr.caps
        };
        let id: Arc<dyn QpOwner> = self;
        // SAFETY: just made on this id of these parts, and no other object stands for it.
        Ok(Box::new(unsafe { RdmaQp::new(qp, caps, id, parts) }))
    }
}

impl RdmaCmId {
    /// Makes the queue pair of parts that are of the id's context; with the inline size that was
    /// granted.
    fn make_qp(
        &self,
        call: &Call<'_>,
        parts: &Parts,
        caps: QpCaps,
        inline: u32,
    ) -> Result<(NonNull<ibv_qp>, u32)> {
        const CALL: &str = "rdma_create_qp";
        let mut init = ibv_qp_init_attr {
            qp_context: std::ptr::null_mut(),
            send_cq: parts.send_cq.as_ptr(),
            recv_cq: parts.recv_cq.as_ptr(),
            srq: parts
                .srq
                .as_ref()
                .map_or(std::ptr::null_mut(), |srq| srq.as_ptr()),
            cap: ibv_qp_cap {
                max_send_wr: caps.send_wr,
                max_recv_wr: caps.recv_wr,
                max_send_sge: caps.sge,
                max_recv_sge: 1,
                max_inline_data: inline,
            },
            qp_type: IBV_QPT_RC,
            sq_sig_all: 0,
        };
        let create = self.api.rdma_create_qp;
        // The library writes the id's field, and reads it while it reads events of connections. They
        // come after connect or accept, which need the queue pair; so only where this is not the
        // first one can such an event be under way. Else nobody has to wait for the device.
        let _gate = self.had_qp.load(Ordering::Relaxed).then(|| call.gate());
        // SAFETY: the id, the domain and the queues live and are of one context.
        let ret = unsafe { create(self.ptr(), parts.pd.as_ptr(), &raw mut init) };
        check_rdma(CALL, ret)?;
        // SAFETY: the id lives; the field changes only under the lock that `call` holds.
        let qp = check_ptr(CALL, unsafe { (*self.ptr()).qp })?;
        Ok((qp, init.cap.max_inline_data))
    }
}

impl QpOwner for RdmaCmId {
    fn detach_qp(&self) {
        let call = self.call();
        let _gate = call.gate();
        self.had_qp.store(true, Ordering::Relaxed);
        // SAFETY: the id lives, and both locks are held.
        unsafe { (*self.ptr()).qp = std::ptr::null_mut() };
    }
}

impl Drop for RdmaCmId {
    fn drop(&mut self) {
        // Waits for events of the id that are read and not acknowledged: `read` never leaves any.
        // SAFETY: nobody else has the id, and its queue pair, which would hold it, was taken off it.
        let ret = unsafe { (self.api.rdma_destroy_id)(self.ptr()) };
        if let Err(error) = check_rdma("rdma_destroy_id", ret) {
            tracing::error!(%error, "a CM id is lost");
        }
    }
}

fn conn_param(params: &ConnParams<'_>) -> rdma_conn_param {
    rdma_conn_param {
        private_data: params.private_data.as_ptr().cast(),
        // The caller has checked that it is no more than 196 bytes.
        private_data_len: params.private_data.len() as u8,
        responder_resources: params.responder_resources,
        initiator_depth: params.initiator_depth,
        flow_control: 1,
        retry_count: params.retry_count,
        rnr_retry_count: params.rnr_retry,
        // Both are taken from the queue pair.
        srq: 0,
        qp_num: 0,
    }
}

fn millis(timeout: Duration) -> c_int {
    c_int::try_from(timeout.as_millis())
        .unwrap_or(c_int::MAX)
        .max(1)
}
