//! CM event channels and ids of the soft backend.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use soft_roce::endpoint::{self, CmEvent, CmEventKind};

use super::cq::SoftCq;
use super::device::SoftDevice;
use super::memory::{SoftPd, SoftSrq};
use super::qp::{Parts, SoftQp};
use crate::backend::{self, CmOption, QpAttr, same_fabric};
use crate::error::{Result, VerbsError};
use crate::live::{Alive, Kind};
use crate::types::{ConnParams, ConnectionDetails, Event, PrivateData, RejectReason, Request};

/// Requests that may wait to be read. The endpoint refuses the surplus.
const MAX_BACKLOG: usize = 4096;

pub(super) struct SoftEventChannel {
    channel: endpoint::EventChannel,
    device: Arc<SoftDevice>,
    _alive: Alive,
}

impl SoftEventChannel {
    pub(super) fn new(device: &Arc<SoftDevice>) -> Result<Self> {
        let channel = device.endpoint.event_channel();
        Ok(Self {
            channel: checked("rdma_create_event_channel", channel)?,
            device: Arc::clone(device),
            _alive: Alive::new(Kind::Channel),
        })
    }

    fn event(self: &Arc<Self>, event: CmEvent) -> Event<Arc<dyn backend::CmId>> {
        let id = event.id;
        let details = ConnectionDetails::default();
        match event.kind {
            CmEventKind::AddrResolved => Event::AddrResolved { id },
            CmEventKind::RouteResolved => Event::RouteResolved { id },
            CmEventKind::ConnectRequest {
                id: new,
                private_data,
                responder_resources,
                initiator_depth,
                ..
            } => {
                let details = ConnectionDetails {
                    responder_resources,
                    initiator_depth,
                    qp_num: 0,
                };
                let new = SoftCmId::new(new, Arc::clone(self), Some(details));
                Event::ConnectRequest(Request {
                    listener: id,
                    id: Arc::new(new),
                    private_data: PrivateData::copy(&private_data),
                    details,
                })
            }
            CmEventKind::Established { private_data } => Event::Established {
                id,
                private_data: PrivateData::copy(&private_data),
                details,
            },
            CmEventKind::ConnectError(errno) => Event::ConnectError { id, errno },
            CmEventKind::Unreachable(errno) => Event::Unreachable { id, errno },
            CmEventKind::Rejected {
                reason,
                private_data,
            } => Event::Rejected {
                id,
                reason: RejectReason::from_raw(i32::from(reason.0)),
                private_data: PrivateData::copy(&private_data),
            },
            CmEventKind::Disconnected => Event::Disconnected { id },
            CmEventKind::TimewaitExit => Event::TimewaitExit { id },
        }
    }
}

impl backend::EventChannel for SoftEventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    fn next(self: Arc<Self>) -> Result<Option<Event<Arc<dyn backend::CmId>>>> {
        Ok(self.channel.next().map(|event| self.event(event)))
    }

    fn create_id(self: Arc<Self>) -> Result<Arc<dyn backend::CmId>> {
        let id = self.device.endpoint.create_id(&self.channel);
        Ok(Arc::new(SoftCmId::new(id, self, None)))
    }
}

pub(super) struct SoftCmId {
    id: endpoint::CmId,
    /// What the peer asked for, on the accepting side.
    asked: Option<ConnectionDetails>,
    qp: Mutex<Weak<SoftQp>>,
    channel: Mutex<Arc<SoftEventChannel>>,
    device: Arc<SoftDevice>,
    _alive: Alive,
}

impl SoftCmId {
    fn new(
        id: endpoint::CmId,
        channel: Arc<SoftEventChannel>,
        asked: Option<ConnectionDetails>,
    ) -> Self {
        Self {
            id,
            asked,
            qp: Mutex::default(),
            device: Arc::clone(&channel.device),
            channel: Mutex::new(channel),
            _alive: Alive::new(Kind::Id),
        }
    }

    fn require_qp(&self, call: &'static str) -> Result<Arc<SoftQp>> {
        lock(&self.qp)
            .upgrade()
            .ok_or_else(|| VerbsError::invalid(call, "the id has no queue pair"))
    }

    fn params<'a>(&self, params: &ConnParams<'a>) -> endpoint::ConnParams<'a> {
        let most = self.device.endpoint.limits().max_reads;
        // What the peer asked for, seen from here, bounds what is agreed on.
        let asked = self.asked.unwrap_or(ConnectionDetails {
            responder_resources: most,
            initiator_depth: most,
            qp_num: 0,
        });
        endpoint::ConnParams {
            private_data: params.private_data,
            responder_resources: params
                .responder_resources
                .min(most)
                .min(asked.responder_resources),
            initiator_depth: params.initiator_depth.min(most).min(asked.initiator_depth),
            retry_count: params.retry_count.min(6),
            rnr_retry_count: params.rnr_retry.min(7),
        }
    }
}

impl backend::CmId for SoftCmId {
    fn token(&self) -> u64 {
        self.id.token()
    }

    fn bind(&self, addr: SocketAddr) -> Result<()> {
        checked("rdma_bind_addr", self.id.bind(addr))
    }

    fn listen(&self, backlog: i32) -> Result<()> {
        let backlog = usize::try_from(backlog).unwrap_or(0).clamp(1, MAX_BACKLOG);
        checked("rdma_listen", self.id.listen(backlog))
    }

    fn resolve_addr(
        &self,
        src: Option<SocketAddr>,
        dst: SocketAddr,
        timeout: Duration,
    ) -> Result<()> {
        checked("rdma_resolve_addr", self.id.resolve_addr(src, dst, timeout))
    }

    fn resolve_route(&self, timeout: Duration) -> Result<()> {
        checked("rdma_resolve_route", self.id.resolve_route(timeout))
    }

    fn connect(&self, params: &ConnParams<'_>) -> Result<()> {
        const CALL: &str = "rdma_connect";
        let qp = self.require_qp(CALL)?;
        checked(CALL, self.id.connect(&qp.qp, &self.params(params)))
    }

    fn accept(&self, params: &ConnParams<'_>) -> Result<()> {
        const CALL: &str = "rdma_accept";
        let qp = self.require_qp(CALL)?;
        checked(CALL, self.id.accept(&qp.qp, &self.params(params)))
    }

    fn reject(&self, private_data: &[u8]) -> Result<()> {
        checked("rdma_reject", self.id.reject(private_data))
    }

    fn is_pending(&self) -> bool {
        self.id.is_pending()
    }

    fn disconnect(&self) -> Result<()> {
        checked("rdma_disconnect", self.id.disconnect())
    }

    fn migrate(&self, channel: Arc<dyn backend::EventChannel>) -> Result<()> {
        let new = same_fabric::<SoftEventChannel>("rdma_migrate_id", channel.into_any())?;
        let mut channel = lock(&self.channel);
        self.id.migrate(&new.channel);
        *channel = new;
        Ok(())
    }

    fn set_option(&self, option: CmOption) -> Result<()> {
        const CALL: &str = "rdma_set_option";
        match option {
            CmOption::AckTimeout(code) => checked(CALL, self.id.set_ack_timeout(code)),
            CmOption::ReuseAddr(on) => checked(CALL, self.id.set_reuse_addr(on)),
            CmOption::V6Only(on) => checked(CALL, self.id.set_v6_only(on)),
            // The connections of an address share its socket.
            CmOption::Tos(_) => Err(VerbsError::from_errno(CALL, libc::EOPNOTSUPP)),
        }
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        self.id.local_addr()
    }

    fn peer_addr(&self) -> Option<SocketAddr> {
        self.id.peer_addr()
    }

    fn device(&self) -> Option<Arc<dyn backend::Device>> {
        // As on the kernel's RDMA: an id that is bound to a wildcard, or to nothing, has none.
        let bound = self.id.local_addr().filter(|a| !a.ip().is_unspecified());
        bound.map(|_| Arc::clone(&self.device) as Arc<dyn backend::Device>)
    }

    fn port(&self) -> u8 {
        u8::from(self.device().is_some())
    }

    // The endpoint refuses what does not fit by itself.
    fn path_mtu(&self) -> Option<u32> {
        None
    }

    fn create_qp(self: Arc<Self>, attr: QpAttr) -> Result<Box<dyn backend::QueuePair>> {
        const CALL: &str = "rdma_create_qp";
        let parts = Parts {
            pd: same_fabric::<SoftPd>(CALL, attr.pd.into_any())?,
            send_cq: same_fabric::<SoftCq>(CALL, attr.send_cq.into_any())?,
            recv_cq: same_fabric::<SoftCq>(CALL, attr.recv_cq.into_any())?,
            srq: attr
                .srq
                .map(|srq| same_fabric::<SoftSrq>(CALL, srq.into_any()))
                .transpose()?,
        };
        let devices = [
            &parts.pd.device,
            &parts.send_cq.device,
            &parts.recv_cq.device,
        ];
        let srq = parts.srq.as_ref().map(|srq| srq.device());
        if devices
            .into_iter()
            .chain(srq)
            .any(|d| !Arc::ptr_eq(d, &self.device))
        {
            return Err(VerbsError::invalid(CALL, "a part of another device"));
        }
        let mut place = lock(&self.qp);
        if place.upgrade().is_some() {
            return Err(VerbsError::invalid(CALL, "the id has a queue pair already"));
        }
        let qp = Arc::new(SoftQp::new(
            Arc::clone(&self) as Arc<dyn backend::CmId>,
            attr.caps,
            parts,
        )?);
        *place = Arc::downgrade(&qp);
        Ok(Box::new(qp))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each is changed by one assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn checked<T>(call: &'static str, result: io::Result<T>) -> Result<T> {
    result.map_err(|source| VerbsError { call, source })
}
