//! Completion channels and completion queues of the rdma backend.

use std::ffi::c_int;
use std::mem::MaybeUninit;
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
use crate::backend::{self, RawCompletion};
use crate::completion::{BATCH, CompletionBatch, Woken};
use crate::error::{Result, VerbsError, check_ibv, check_ptr};
use crate::live::{Alive, Kind};

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

    /// Notes that an event was read; whether all that are due have been.
    fn has_read_all(&self) -> bool {
        let less = |due: u32| due.checked_sub(1);
        let before = self
            .due
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        before.unwrap_or(0) <= 1
    }

    fn ack(&self, cq: NonNull<ibv_cq>, events: u32) {
        // SAFETY: the queue has this many unacknowledged events, so it is not destroyed yet.
        unsafe { (self.device.api.ibv_ack_cq_events)(cq.as_ptr(), events) };
    }
}

impl backend::CompletionChannel for RdmaCompletionChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }

    fn consume(&self) -> Result<usize> {
        let mut total = 0;
        // Acknowledging takes a mutex of the queue's: once for a run of events of one queue.
        let mut run: Option<(NonNull<ibv_cq>, u32)> = None;
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
            run = match run {
                Some((same, events)) if same == cq => Some((cq, events + 1)),
                other => {
                    if let Some((cq, events)) = other {
                        self.ack(cq, events);
                    }
                    Some((cq, 1))
                }
            };
            if self.has_read_all() {
                break Ok(());
            }
        };
        if let Some((cq, events)) = run {
            self.ack(cq, events);
        }
        end.map(|()| total)
    }

    fn sleeper(self: Arc<Self>, other: OwnedFd) -> Result<Arc<dyn backend::Sleeper>> {
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
        Ok(Arc::new(RdmaSleeper {
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
        let mut found = [none; 2];
        let timeout = timeout.and_then(whole_milliseconds);
        let count = match epoll::wait(&self.epoll, &mut found, timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(VerbsError::from_errno("epoll_wait", error.raw_os_error())),
        };
        let mut woken = Woken {
            events: 0,
            other: false,
        };
        for event in found.iter().take(count) {
            match event.data.u64() {
                CHANNEL => woken.events = backend::CompletionChannel::consume(&*self.channel)?,
                _ => woken.other = true,
            }
        }
        Ok(woken)
    }
}

/// Rounded up, as epoll counts; `None`: longer than it can say, which is without end.
fn whole_milliseconds(timeout: Duration) -> Option<Timespec> {
    let milliseconds = i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).ok()?;
    Timespec::try_from(Duration::from_millis(u64::try_from(milliseconds).ok()?)).ok()
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

impl backend::CompletionQueue for RdmaCq {
    fn poll(&self, batch: &mut CompletionBatch) -> Result<usize> {
        let mut wcs = [const { MaybeUninit::<ibv_wc>::uninit() }; BATCH];
        let room = batch.room().min(BATCH);
        // SAFETY: the queue lives, and there is room for `room` entries.
        let polled = unsafe {
            (self.poll)(
                self.cq.as_ptr(),
                room as c_int,
                wcs.as_mut_ptr().cast::<ibv_wc>(),
            )
        };
        let Ok(count) = usize::try_from(polled) else {
            // A negative number, and what it is differs between drivers: the queue is broken.
            return Err(VerbsError::from_errno("ibv_poll_cq", libc::EIO));
        };
        let count = count.min(room);
        for wc in &wcs[..count] {
            // SAFETY: the driver has filled in the first `count` entries.
            let wc = unsafe { wc.assume_init_ref() };
            batch.push(completion(wc));
        }
        Ok(count)
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

/// Of a failed completion only the id, the status, the queue pair and the vendor's code are
/// defined.
fn completion(wc: &ibv_wc) -> RawCompletion {
    let success = wc.status == IBV_WC_SUCCESS;
    RawCompletion {
        wr_id: wc.wr_id,
        status: wc.status,
        vendor_error: wc.vendor_err,
        byte_len: if success { wc.byte_len } else { 0 },
        qp_num: wc.qp_num,
        imm: (success && wc.wc_flags & IBV_WC_WITH_IMM != 0).then(|| u32::from_be(wc.imm_data)),
        by_write: success && wc.opcode == IBV_WC_RECV_RDMA_WITH_IMM,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn wc() -> ibv_wc {
        ibv_wc {
            wr_id: 7,
            status: 0,
            opcode: 128,
            vendor_err: 9,
            byte_len: 10,
            imm_data: 0x0102_0304_u32.to_be(),
            qp_num: 11,
            src_qp: 0,
            wc_flags: IBV_WC_WITH_IMM,
            pkey_index: 0,
            slid: 0,
            sl: 0,
            dlid_path_bits: 0,
        }
    }

    #[test]
    fn immediate_data_is_in_host_order() {
        let c = completion(&wc());
        assert_eq!(
            (c.imm, c.byte_len, c.by_write),
            (Some(0x0102_0304), 10, false)
        );
    }

    #[test]
    fn no_flag_no_immediate_data() {
        // An invalidated key lies in the same place.
        let c = completion(&ibv_wc {
            wc_flags: 8,
            ..wc()
        });
        assert_eq!(c.imm, None);
    }

    #[test]
    fn of_a_failure_the_undefined_fields_are_not_read() {
        let failed = ibv_wc {
            status: 5,
            opcode: IBV_WC_RECV_RDMA_WITH_IMM,
            ..wc()
        };
        let c = completion(&failed);
        assert_eq!((c.wr_id, c.status, c.qp_num, c.vendor_error), (7, 5, 11, 9));
        assert_eq!((c.imm, c.byte_len, c.by_write), (None, 0, false));
    }

    #[test]
    fn unknown_numbers_are_numbers() {
        let c = completion(&ibv_wc {
            status: 77,
            opcode: 4000,
            ..wc()
        });
        assert_eq!((c.status, c.by_write), (77, false));
    }
}
