//! Completion channels and completion queues of the rdma backend.

use std::ffi::c_int;
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::device::{RdmaDevice, set_nonblocking};
use super::ffi::constants::*;
use super::ffi::types::*;
use crate::backend::{self, PollFn, RawPoller};
use crate::error::{Result, VerbsError, check_ibv, check_ptr};
use crate::live::{Alive, Kind};
use crate::types::{Completion, RECEIVED_BY_WRITE, SUCCESS, WITH_IMM, Woken};

pub(super) struct RdmaCompletionChannel {
    device: Arc<RdmaDevice>,
    channel: NonNull<ibv_comp_channel>,
    /// Announcements that were asked for and not read yet; too many after a queue was asked twice,
    /// too few after one was found unannounced and forgotten. Reading until it is 0 or nothing is
    /// left therefore leaves at most one event of each queue unread.
    due: AtomicU32,
    _alive: Alive,
}

// SAFETY: libibverbs allows any thread to use a completion channel.
unsafe impl Send for RdmaCompletionChannel {}
// SAFETY: as above.
unsafe impl Sync for RdmaCompletionChannel {}

impl RdmaCompletionChannel {
    pub(super) fn new(device: Arc<RdmaDevice>) -> Result<Self> {
        // SAFETY: the device's context is open.
        let channel = unsafe { (device.api.ibv_create_comp_channel)(device.context()) };
        let channel = Self {
            channel: check_ptr("ibv_create_comp_channel", channel)?,
            device,
            due: AtomicU32::new(0),
            _alive: Alive::new(Kind::Channel),
        };
        set_nonblocking(channel.fd())?;
        Ok(channel)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel lives, and its descriptor does not change.
        let fd = unsafe { (*self.channel.as_ptr()).fd };
        // SAFETY: the descriptor is open as long as the channel, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// One event, unacknowledged.
    fn event(&self) -> Result<Option<NonNull<ibv_cq>>> {
        let mut cq = std::ptr::null_mut();
        let mut context = std::ptr::null_mut();
        loop {
            // SAFETY: the channel lives; the queue that an event names stays until the event is
            // acknowledged.
            let ret = unsafe {
                (self.device.api.ibv_get_cq_event)(
                    self.channel.as_ptr(),
                    &raw mut cq,
                    &raw mut context,
                )
            };
            if ret == 0 {
                return Ok(NonNull::new(cq));
            }
            let error = VerbsError::last("ibv_get_cq_event");
            match error.errno() {
                libc::EINTR => {}
                libc::EAGAIN => return Ok(None),
                _ => return Err(error),
            }
        }
    }

    /// Notes that an event was read; whether all that are due have been. Two readers at once may
    /// count one too many: then one of the next reads until nothing is left, which corrects it.
    #[inline]
    fn has_read_all(&self) -> bool {
        self.due.load(Ordering::Relaxed) == 0 || self.due.fetch_sub(1, Ordering::Relaxed) <= 1
    }

    #[inline]
    fn ack(&self, cq: NonNull<ibv_cq>, events: u32) {
        // SAFETY: the queue has this many unacknowledged events, so it is not destroyed yet.
        unsafe { (self.device.api.ibv_ack_cq_events)(cq.as_ptr(), events) };
    }
}

impl RdmaCompletionChannel {
    /// Reads on after an event of `first`, and acknowledges all.
    fn consume_more(&self, first: NonNull<ibv_cq>) -> Result<usize> {
        let mut total = 1;
        // Acknowledging takes a mutex of the queue's: once for a run of events of one queue.
        let mut run = (first, 1);
        let end = loop {
            let cq = match self.event() {
                Ok(Some(cq)) => cq,
                Ok(None) => {
                    self.due.store(0, Ordering::Relaxed);
                    break Ok(());
                }
                Err(error) => break Err(error),
            };
            total += 1;
            if run.0 == cq {
                run.1 += 1;
            } else {
                self.ack(run.0, run.1);
                run = (cq, 1);
            }
            if self.has_read_all() {
                break Ok(());
            }
        };
        self.ack(run.0, run.1);
        end.map(|()| total)
    }
}

impl backend::CompletionChannel for RdmaCompletionChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }

    fn consume(&self) -> Result<usize> {
        match self.event()? {
            Some(cq) if self.has_read_all() => {
                self.ack(cq, 1);
                Ok(1)
            }
            Some(cq) => self.consume_more(cq),
            None => {
                self.due.store(0, Ordering::Relaxed);
                Ok(0)
            }
        }
    }

    fn sleeper(self: Arc<Self>, other: OwnedFd) -> Result<Box<dyn backend::Sleeper>> {
        let failed = |error: Errno| VerbsError::from_errno("epoll_create", error.raw_os_error());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let sources = [
            // Edge-triggered: an event that another reader took does not wake in vain, and what
            // is left unread does not either.
            (
                self.fd(),
                CHANNEL,
                epoll::EventFlags::IN | epoll::EventFlags::ET,
            ),
            (other.as_fd(), OTHER, epoll::EventFlags::IN),
        ];
        for (fd, source, flags) in sources {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(source), flags).map_err(failed)?;
        }
        Ok(Box::new(RdmaSleeper {
            epoll,
            channel: self,
            _other: other,
        }))
    }
}

const CHANNEL: u64 = 0;
const OTHER: u64 = 1;

/// One epoll set for both descriptors: unlike poll(2) it does not enter and leave the wait queues
/// of all of them with every call.
struct RdmaSleeper {
    epoll: OwnedFd,
    channel: Arc<RdmaCompletionChannel>,
    /// Open as long as the set names it.
    _other: OwnedFd,
}

impl backend::Sleeper for RdmaSleeper {
    fn sleep(&self, timeout: Option<Duration>) -> Result<Woken> {
        let none = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(OTHER),
        };
        // One at a time: the other source comes with the next call.
        let mut found = [none];
        let timeout = timeout.and_then(whole_milliseconds);
        let count = match epoll::wait(&self.epoll, &mut found, timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(VerbsError::from_errno("epoll_wait", error.raw_os_error())),
        };
        let source = (count > 0).then(|| found[0].data.u64());
        Ok(Woken {
            events: match source {
                Some(CHANNEL) => backend::CompletionChannel::consume(&*self.channel)?,
                _ => 0,
            },
            other: source == Some(OTHER),
        })
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.channel.fd()]
    }

    fn before(&self) -> bool {
        // The kernel keeps what is announced.
        true
    }

    fn after(&self) -> Result<usize> {
        backend::CompletionChannel::consume(&*self.channel)
    }
}

/// Rounded up, as epoll counts; `None`: longer than it can say, which is without end.
fn whole_milliseconds(timeout: Duration) -> Option<Timespec> {
    const LONGEST: u64 = i32::MAX as u64 / 1000;
    let (seconds, nanos) = (timeout.as_secs(), timeout.subsec_nanos());
    (seconds < LONGEST).then(|| Timespec {
        tv_sec: seconds as i64,
        tv_nsec: i64::from(nanos.div_ceil(1_000_000) * 1_000_000),
    })
}

impl Drop for RdmaCompletionChannel {
    fn drop(&mut self) {
        // SAFETY: queues hold their channel, so none is left.
        let ret = unsafe { (self.device.api.ibv_destroy_comp_channel)(self.channel.as_ptr()) };
        if let Err(error) = check_ibv("ibv_destroy_comp_channel", ret) {
            tracing::error!(%error, "a completion channel is lost");
        }
    }
}

pub(super) struct RdmaCq {
    pub(super) device: Arc<RdmaDevice>,
    cq: NonNull<ibv_cq>,
    poll: PollCq,
    notify: ReqNotifyCq,
    depth: u32,
    channel: Option<Arc<RdmaCompletionChannel>>,
    _alive: Alive,
}

// SAFETY: libibverbs allows any thread to use a completion queue.
unsafe impl Send for RdmaCq {}
// SAFETY: as above.
unsafe impl Sync for RdmaCq {}

impl RdmaCq {
    pub(super) fn new(
        device: Arc<RdmaDevice>,
        depth: u32,
        channel: Option<Arc<RdmaCompletionChannel>>,
    ) -> Result<Self> {
        const CALL: &str = "ibv_create_cq";
        if channel
            .as_ref()
            .is_some_and(|c| c.device.context() != device.context())
        {
            return Err(VerbsError::invalid(
                CALL,
                "the channel is of another device",
            ));
        }
        let entries = c_int::try_from(depth)
            .map_err(|_| VerbsError::invalid(CALL, format!("{depth} entries")))?;
        // SAFETY: the context is open, and its table does not change.
        let ops = unsafe { &(*device.context()).ops };
        let (Some(poll), Some(notify)) = (ops.poll_cq, ops.req_notify_cq) else {
            return Err(VerbsError::from_errno(CALL, libc::EOPNOTSUPP));
        };
        let channel_ptr = channel
            .as_ref()
            .map_or(std::ptr::null_mut(), |c| c.channel.as_ptr());
        // SAFETY: context and channel live; vector 0 always exists.
        let cq = unsafe {
            (device.api.ibv_create_cq)(
                device.context(),
                entries,
                std::ptr::null_mut(),
                channel_ptr,
                0,
            )
        };
        let cq = check_ptr(CALL, cq)?;
        // SAFETY: the queue was made above, and nobody resizes it.
        let granted = unsafe { (*cq.as_ptr()).cqe };
        Ok(Self {
            device,
            cq,
            poll,
            notify,
            depth: u32::try_from(granted).unwrap_or(depth),
            channel,
            _alive: Alive::new(Kind::CompletionQueue),
        })
    }

    pub(super) fn as_ptr(&self) -> *mut ibv_cq {
        self.cq.as_ptr()
    }
}

/// The driver writes entries where they are read.
const _: () = {
    assert!(size_of::<Completion>() == size_of::<ibv_wc>());
    assert!(align_of::<Completion>() == align_of::<ibv_wc>());
    assert!(offset_of!(Completion, wr_id) == offset_of!(ibv_wc, wr_id));
    assert!(offset_of!(Completion, status) == offset_of!(ibv_wc, status));
    assert!(offset_of!(Completion, opcode) == offset_of!(ibv_wc, opcode));
    assert!(offset_of!(Completion, vendor_error) == offset_of!(ibv_wc, vendor_err));
    assert!(offset_of!(Completion, byte_len) == offset_of!(ibv_wc, byte_len));
    assert!(offset_of!(Completion, imm) == offset_of!(ibv_wc, imm_data));
    assert!(offset_of!(Completion, qp_num) == offset_of!(ibv_wc, qp_num));
    assert!(offset_of!(Completion, flags) == offset_of!(ibv_wc, wc_flags));
    assert!(SUCCESS == IBV_WC_SUCCESS);
    assert!(WITH_IMM == IBV_WC_WITH_IMM && RECEIVED_BY_WRITE == IBV_WC_RECV_RDMA_WITH_IMM);
};

impl backend::CompletionQueue for RdmaCq {
    fn raw_poller(&self) -> RawPoller {
        // SAFETY: both are pointers to what has the same layout, in which every bit pattern is
        // valid.
        let poll = unsafe { std::mem::transmute::<PollCq, PollFn>(self.poll) };
        // SAFETY: libibverbs allows any thread to poll, with room for as many entries as are said,
        // while the queue lives, which is as long as this object.
        unsafe { RawPoller::new(poll, self.cq.as_ptr().cast()) }
    }

    fn poll_error(&self) -> VerbsError {
        // What the negative number is differs between drivers.
        VerbsError::from_errno("ibv_poll_cq", libc::EIO)
    }

    fn request_notify(&self, solicited_only: bool) -> Result<()> {
        if let Some(channel) = &self.channel {
            channel.due.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the queue lives.
        let ret = unsafe { (self.notify)(self.cq.as_ptr(), c_int::from(solicited_only)) };
        check_ibv("ibv_req_notify_cq", ret)
    }

    fn depth(&self) -> u32 {
        self.depth
    }
}

impl Drop for RdmaCq {
    fn drop(&mut self) {
        // Waits for events that are read and not acknowledged: `consume` never leaves any.
        // SAFETY: queue pairs hold their queues, so none uses it.
        let ret = unsafe { (self.device.api.ibv_destroy_cq)(self.cq.as_ptr()) };
        if let Err(error) = check_ibv("ibv_destroy_cq", ret) {
            tracing::error!(%error, "a completion queue is lost");
        }
    }
}
