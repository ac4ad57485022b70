//! CM event channels of the rdma backend, and how ids and channels are locked.
//!
//! Two locks. An id's own orders the calls on it. A channel's gate is held while
//! `rdma_get_cm_event` runs and its event is acknowledged, because the library then writes fields
//! of the id in question and modifies its queue pair; whoever reads those fields, or takes the
//! queue pair away, holds it too. Order: id, then gate. `rdma_destroy_id` waits until the events
//! of its id are acknowledged; since that happens under the gate, in the call that read them, it
//! never waits for a caller.
//!
//! An id's `context` pointer holds its token, so an event names its id without a table.

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::device::set_nonblocking;
use super::ffi::Api;
use super::ffi::constants::*;
use super::ffi::types::*;
use crate::error::{Result, check_ptr, check_rdma};
use crate::live::{Alive, Kind};
use crate::types::{ConnectionDetails, Event, PrivateData, RejectReason, Request};

pub(super) struct RdmaEventChannel {
    pub(super) api: &'static Api,
    pub(super) channel: NonNull<rdma_event_channel>,
    gate: Mutex<()>,
    _alive: Alive,
}

// SAFETY: librdmacm allows any thread to use a channel.
unsafe impl Send for RdmaEventChannel {}
// SAFETY: as above.
unsafe impl Sync for RdmaEventChannel {}

impl RdmaEventChannel {
    pub(super) fn new(api: &'static Api) -> Result<Self> {
        // SAFETY: no arguments.
        let channel = unsafe { (api.rdma_create_event_channel)() };
        let channel = Self {
            api,
            channel: check_ptr("rdma_create_event_channel", channel)?,
            gate: Mutex::new(()),
            _alive: Alive::new(Kind::Channel),
        };
        set_nonblocking(channel.fd())?;
        Ok(channel)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel lives, and its descriptor does not change.
        let fd = unsafe { (*self.channel.as_ptr()).fd };
        // SAFETY: the descriptor is open as long as the channel, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    pub(super) fn gate(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads, copies and acknowledges one event.
    pub(super) fn read(&self) -> Result<Option<RawEvent>> {
        let _gate = self.gate();
        let mut event = std::ptr::null_mut();
        loop {
            // SAFETY: the channel lives; the gate is held.
            let ret =
                unsafe { (self.api.rdma_get_cm_event)(self.channel.as_ptr(), &raw mut event) };
            let Err(error) = check_rdma("rdma_get_cm_event", ret) else {
                break;
            };
            match error.errno() {
                libc::EINTR => {}
                libc::EAGAIN => return Ok(None),
                _ => return Err(error),
            }
        }
        // SAFETY: the library returned an event that is not acknowledged yet.
        let raw = unsafe { RawEvent::copy(event) };
        // SAFETY: as above; nothing of it is used after.
        let ret = unsafe { (self.api.rdma_ack_cm_event)(event) };
        if let Err(error) = check_rdma("rdma_ack_cm_event", ret) {
            tracing::error!(%error, "an event could not be acknowledged");
        }
        Ok(Some(raw))
    }
}

impl Drop for RdmaEventChannel {
    fn drop(&mut self) {
        // SAFETY: ids hold their channel, so none is left.
        unsafe { (self.api.rdma_destroy_event_channel)(self.channel.as_ptr()) };
    }
}

/// An event, copied.
pub(super) struct RawEvent {
    event: c_uint,
    status: c_int,
    /// The token of the id it is about; of a connect request, the listener's.
    token: u64,
    /// The new id of a connect request, and its token.
    request: Option<(NonNull<rdma_cm_id>, u64)>,
    private_data: PrivateData,
    details: ConnectionDetails,
}

impl RawEvent {
    /// # Safety
    /// `event` is one of `rdma_get_cm_event`, not acknowledged yet, and the gate of its channel is
    /// held.
    unsafe fn copy(event: *mut rdma_cm_event) -> Self {
        // SAFETY: the caller's promise; nobody else has the event.
        let event = unsafe { &*event };
        let is_request = event.event == RDMA_CM_EVENT_CONNECT_REQUEST;
        let about = if is_request {
            event.listen_id
        } else {
            event.id
        };
        // SAFETY: ids stay until their events are acknowledged.
        let token = unsafe { (*about).context } as u64;
        let request = NonNull::new(event.id).filter(|_| is_request).map(|id| {
            let token = next_token();
            // The library gave the new id the listener's context.
            // SAFETY: the new id is known to nobody else.
            unsafe { (*id.as_ptr()).context = token as *mut c_void };
            (id, token)
        });
        let (private_data, details) = if carries_conn(event.event) {
            // SAFETY: with port space TCP these events carry this arm, and all its bit patterns
            // are valid.
            let conn = unsafe { event.param.conn };
            // SAFETY: the library points at as many bytes inside the event, or at nothing.
            (unsafe { private_data(&conn) }, details(&conn))
        } else {
            (PrivateData::EMPTY, ConnectionDetails::default())
        };
        Self {
            event: event.event,
            status: event.status,
            token,
            request,
            private_data,
            details,
        }
    }

    /// `adopt` makes the object of a connect request's id.
    pub(super) fn into_event<Id>(
        self,
        adopt: impl FnOnce(NonNull<rdma_cm_id>, u64) -> Id,
    ) -> Event<Id> {
        let id = self.token;
        let errno = self.status.saturating_abs();
        let (private_data, details) = (self.private_data, self.details);
        match self.event {
            RDMA_CM_EVENT_ADDR_RESOLVED => Event::AddrResolved { id },
            RDMA_CM_EVENT_ADDR_ERROR => Event::AddrError { id, errno },
            RDMA_CM_EVENT_ROUTE_RESOLVED => Event::RouteResolved { id },
            RDMA_CM_EVENT_ROUTE_ERROR => Event::RouteError { id, errno },
            RDMA_CM_EVENT_CONNECT_RESPONSE => Event::ConnectResponse {
                id,
                private_data,
                details,
            },
            RDMA_CM_EVENT_CONNECT_ERROR => Event::ConnectError { id, errno },
            RDMA_CM_EVENT_UNREACHABLE => Event::Unreachable { id, errno },
            RDMA_CM_EVENT_REJECTED => Event::Rejected {
                id,
                reason: RejectReason::from_raw(self.status),
                private_data,
            },
            RDMA_CM_EVENT_ESTABLISHED => Event::Established {
                id,
                private_data,
                details,
            },
            RDMA_CM_EVENT_DISCONNECTED => Event::Disconnected { id },
            RDMA_CM_EVENT_DEVICE_REMOVAL => Event::DeviceRemoval { id },
            RDMA_CM_EVENT_ADDR_CHANGE => Event::AddrChange { id },
            RDMA_CM_EVENT_TIMEWAIT_EXIT => Event::TimewaitExit { id },
            event => match self.request {
                Some((new, token)) => Event::ConnectRequest(Request {
                    listener: id,
                    id: adopt(new, token),
                    private_data,
                    details,
                }),
                None => Event::Unknown {
                    id,
                    event,
                    status: self.status,
                },
            },
        }
    }
}

/// The events whose `param.conn` this crate reads.
fn carries_conn(event: c_uint) -> bool {
    matches!(
        event,
        RDMA_CM_EVENT_CONNECT_REQUEST
            | RDMA_CM_EVENT_CONNECT_RESPONSE
            | RDMA_CM_EVENT_ESTABLISHED
            | RDMA_CM_EVENT_REJECTED
    )
}

/// # Safety
/// `private_data` is NULL or points at `private_data_len` bytes.
unsafe fn private_data(conn: &rdma_conn_param) -> PrivateData {
    if conn.private_data.is_null() {
        return PrivateData::EMPTY;
    }
    let len = usize::from(conn.private_data_len);
    // SAFETY: the caller's promise.
    PrivateData::copy(unsafe { std::slice::from_raw_parts(conn.private_data.cast(), len) })
}

fn details(conn: &rdma_conn_param) -> ConnectionDetails {
    ConnectionDetails {
        responder_resources: conn.responder_resources,
        initiator_depth: conn.initiator_depth,
        qp_num: conn.qp_num,
    }
}

pub(super) fn next_token() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use super::*;

    /// What comes out of an event of the library with this number and status, on an id with token
    /// 9.
    fn event(number: c_uint, status: c_int, data: Option<&[u8]>) -> Event<()> {
        // SAFETY: zeros are valid in every field.
        let mut id: rdma_cm_id = unsafe { MaybeUninit::zeroed().assume_init() };
        id.context = 9 as *mut c_void;
        // SAFETY: zeros are valid in every field.
        let mut event: rdma_cm_event = unsafe { MaybeUninit::zeroed().assume_init() };
        event.id = &raw mut id;
        event.event = number;
        event.status = status;
        // SAFETY: zeros are valid in every field.
        let mut conn: rdma_conn_param = unsafe { MaybeUninit::zeroed().assume_init() };
        conn.private_data = data.map_or(std::ptr::null(), |d| d.as_ptr().cast());
        conn.private_data_len = data.map_or(55, |d| d.len() as u8);
        conn.qp_num = 77;
        conn.initiator_depth = 3;
        conn.responder_resources = 4;
        event.param = rdma_cm_event_param { conn };
        // SAFETY: all of it lives on this stack.
        let raw = unsafe { RawEvent::copy(&raw mut event) };
        raw.into_event(|_, _| panic!("no request"))
    }

    #[test]
    fn every_number_becomes_an_event_of_its_id() {
        for number in (0..100).filter(|&n| n != RDMA_CM_EVENT_CONNECT_REQUEST) {
            assert_eq!(event(number, 0, None).id(), 9, "{number}");
        }
    }

    #[test]
    fn numbers_that_nobody_knows_are_kept() {
        for number in [12, 13, 16, 20, u32::MAX] {
            match event(number, -5, None) {
                Event::Unknown { id, event, status } => {
                    assert_eq!((id, event, status), (9, number, -5));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn errors_are_positive() {
        let errno = |number, status| match event(number, status, None) {
            Event::AddrError { errno, .. }
            | Event::RouteError { errno, .. }
            | Event::ConnectError { errno, .. }
            | Event::Unreachable { errno, .. } => errno,
            other => panic!("{other:?}"),
        };
        for number in [1, 3, 6, 7] {
            assert_eq!(errno(number, -110), 110);
            assert_eq!(errno(number, 110), 110);
            assert_eq!(errno(number, c_int::MIN), c_int::MAX);
        }
    }

    #[test]
    fn private_data_is_copied_where_an_event_has_it() {
        match event(RDMA_CM_EVENT_REJECTED, 28, Some(b"why")) {
            Event::Rejected {
                reason,
                private_data,
                ..
            } => {
                assert_eq!(reason, RejectReason::ConsumerDefined);
                assert_eq!(&*private_data, b"why");
            }
            other => panic!("{other:?}"),
        }
        match event(RDMA_CM_EVENT_ESTABLISHED, 0, Some(b"welcome")) {
            Event::Established {
                private_data,
                details,
                ..
            } => {
                assert_eq!(&*private_data, b"welcome");
                assert_eq!((details.qp_num, details.initiator_depth), (77, 3));
                assert_eq!(details.responder_resources, 4);
            }
            other => panic!("{other:?}"),
        }
        // A length without data.
        match event(RDMA_CM_EVENT_REJECTED, 8, None) {
            Event::Rejected { private_data, .. } => assert!(private_data.is_empty()),
            other => panic!("{other:?}"),
        }
    }
}
