//! Completion channels and completion queues of the rdma backend.

use std::ffi::{c_int, c_void};
use std::mem::{ManuallyDrop, offset_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::device::{RdmaDevice, set_nonblocking};
use super::ffi::constants::*;
use super::ffi::types::*;
use crate::backend::{self, NotifyFn, PollFn, RawNotifier, RawPoller};
use crate::error::{Result, VerbsError, check_ibv, check_ptr};
use crate::live::{Alive, Kind};
use crate::types::{Completion, RECEIVED_BY_WRITE, SUCCESS, WITH_IMM, Woken};

pub(super) struct RdmaCompletionChannel {
    device: Arc<RdmaDevice>,
    channel: NonNull<ibv_comp_channel>,
    /// Announcements that were asked for and not read yet; too many after a queue was asked twice,
    /// too few after one was found unannounced and forgotten. Reading until it is 0 or nothing is
    /// left therefore leaves at most one event of each queue unread.
    due: Arc<AtomicU32>,
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
            due: Arc::new(AtomicU32::new(0)),
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

    /// Reads one event, and has it acknowledged when its queue goes; whether there was one.
    #[inline]
    fn read_event(&self) -> Result<bool> {
        let mut cq = std::ptr::null_mut();
        let mut context = std::ptr::null_mut();
        // SAFETY: the channel lives; the queue that an event names stays until the event is
        // acknowledged.
        let ret = unsafe {
            (self.device.api.ibv_get_cq_event)(self.channel.as_ptr(), &raw mut cq, &raw mut context)
        };
        if ret != 0 {
            return self.retry_event();
        }
        // SAFETY: all queues of a channel are made by `RdmaCq::new`, which gives them such a context and
        // keeps it until the queue is destroyed, which waits for this event to be acknowledged.
        let unacknowledged = unsafe { &*context.cast_const().cast::<Unacknowledged>() };
        if !unacknowledged.note() {
            // SAFETY: the queue has this unacknowledged event, so it is not destroyed yet.
            unsafe { (self.device.api.ibv_ack_cq_events)(cq, 1) };
        }
        Ok(true)
    }

    /// After a call that failed.
    #[cold]
    #[inline(never)]
    fn retry_event(&self) -> Result<bool> {
        let error = VerbsError::last("ibv_get_cq_event");
        match error.errno() {
            libc::EINTR => self.read_event(),
            libc::EAGAIN => Ok(false),
            _ => Err(error),
        }
    }

    /// Notes that an event was read; whether all that are due have been. Two readers at once may
    /// count one too many: then one of the next reads until nothing is left, which corrects it.
    #[inline]
    fn has_read_all(&self) -> bool {
        self.due.load(Ordering::Relaxed) == 0 || self.due.fetch_sub(1, Ordering::Relaxed) <= 1
    }

    /// Reads the events that are due; how many there were.
    fn read_events(&self) -> Result<usize> {
        match self.read_event()? {
            true if self.has_read_all() => Ok(1),
            true => self.read_more(),
            false => self.nothing_left(),
        }
    }

    /// Reads the one that an edge has announced, and the others only when there may be many: one that was
    /// asked for mostly never comes, since what it would announce was found without, and to look for it in
    /// vain costs a call of the system.
    #[inline]
    fn read_announced(&self) -> Woken {
        match self.read_event() {
            Ok(true) if self.has_few_left() => Woken::Announced,
            Ok(true) => self.read_all_announced(),
            Ok(false) => {
                self.due.store(0, Ordering::Relaxed);
                Woken::Nothing
            }
            Err(error) => Woken::Failed(Box::new(error)),
        }
    }

    #[cold]
    #[inline(never)]
    fn read_all_announced(&self) -> Woken {
        match self.read_more() {
            Ok(_) => Woken::Announced,
            Err(error) => Woken::Failed(Box::new(error)),
        }
    }

    /// As [`Self::has_read_all`], but a few may be left.
    #[inline]
    fn has_few_left(&self) -> bool {
        let is_counted = self.due.load(Ordering::Relaxed) > 0;
        !is_counted || self.due.fetch_sub(1, Ordering::Relaxed) <= MOST_LEFT
    }

    #[cold]
    #[inline(never)]
    fn nothing_left(&self) -> Result<usize> {
        self.due.store(0, Ordering::Relaxed);
        Ok(0)
    }

    /// Reads on after the first one.
    #[cold]
    #[inline(never)]
    fn read_more(&self) -> Result<usize> {
        let mut total = 1;
        while self.read_event()? {
            total += 1;
            if self.has_read_all() {
                return Ok(total);
            }
        }
        self.due.store(0, Ordering::Relaxed);
        Ok(total)
    }
}

/// So many events may stay unread while somebody sleeps by edges.
const MOST_LEFT: u32 = 16;

/// Events of one queue that were read and not acknowledged yet. Acknowledging takes a mutex of the
/// queue's and wakes whoever destroys it; nobody else needs it, so it is done once, at the end.
struct Unacknowledged(AtomicU64);

impl Unacknowledged {
    /// The queue is about to be destroyed.
    const CLOSING: u64 = 1 << 63;

    /// Notes an event that was read. `false`: the queue is being destroyed, and its reader has to
    /// acknowledge the event.
    #[inline]
    fn note(&self) -> bool {
        self.0.fetch_add(1, Ordering::AcqRel) < Self::CLOSING
    }

    /// From now on readers acknowledge by themselves; how many events they left until now.
    fn close(&self) -> u64 {
        self.0.fetch_or(Self::CLOSING, Ordering::AcqRel) & !Self::CLOSING
    }
}

impl backend::CompletionChannel for RdmaCompletionChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }

    fn consume(&self) -> Result<usize> {
        self.read_events()
    }

    fn sleeper(self: Arc<Self>, other: OwnedFd) -> Result<Box<dyn backend::Sleeper>> {
        let failed = |error: Errno| VerbsError::from_errno("epoll_create", error.raw_os_error());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let sources = [
            // Edge-triggered: an event that another reader took does not wake in vain, and what
            // is left unread does not either (`read_announced` leaves some).
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
const NOTHING: u64 = 2;

/// A signal is no failure.
#[cold]
#[inline(never)]
fn not_slept(error: Errno) -> Woken {
    match error {
        Errno::INTR => Woken::Nothing,
        error => {
            let error = VerbsError::from_errno("epoll_wait", error.raw_os_error());
            Woken::Failed(Box::new(error))
        }
    }
}

/// One epoll set for both descriptors: unlike poll(2) it does not enter and leave the wait queues
/// of all of them with every call.
struct RdmaSleeper {
    epoll: OwnedFd,
    channel: Arc<RdmaCompletionChannel>,
    /// Open as long as the set names it.
    _other: OwnedFd,
}

impl backend::Sleeper for RdmaSleeper {
    fn sleep(&self, timeout: Option<Duration>) -> Woken {
        let none = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(NOTHING),
        };
        // One at a time: the other source comes with the next call.
        let mut found = [none];
        let timeout = timeout.and_then(whole_milliseconds);
        if let Err(error) = epoll::wait(&self.epoll, &mut found, timeout.as_ref()) {
            return not_slept(error);
        }
        match found[0].data.u64() {
            CHANNEL => self.channel.read_announced(),
            OTHER => Woken::Other,
            _ => Woken::Nothing,
        }
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.channel.fd()]
    }

    fn before(&self) -> bool {
        // The kernel keeps what is announced.
        true
    }

    fn after(&self) -> Result<usize> {
        self.channel.read_events()
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
    /// The queue's context. Lost with a queue that could not be destroyed.
    unacknowledged: ManuallyDrop<Box<Unacknowledged>>,
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
        let unacknowledged = Box::new(Unacknowledged(AtomicU64::new(0)));
        // SAFETY: context and channel live; vector 0 always exists.
        let cq = unsafe {
            (device.api.ibv_create_cq)(
                device.context(),
                entries,
                (&raw const *unacknowledged).cast_mut().cast::<c_void>(),
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
            unacknowledged: ManuallyDrop::new(unacknowledged),
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

    fn raw_notifier(&self) -> RawNotifier {
        // SAFETY: both are pointers to what has the same layout, and `RawNotifier` calls with a number.
        let notify = unsafe { std::mem::transmute::<ReqNotifyCq, NotifyFn>(self.notify) };
        let asked = self
            .channel
            .as_ref()
            .map(|channel| Arc::clone(&channel.due));
        // SAFETY: libibverbs allows any thread to ask, while the queue lives, which is as long as this
        // object.
        unsafe { RawNotifier::new(notify, self.cq.as_ptr().cast(), asked) }
    }

    fn depth(&self) -> u32 {
        self.depth
    }
}

impl Drop for RdmaCq {
    fn drop(&mut self) {
        let left = self.unacknowledged.close();
        // The library counts modulo 2^32, too.
        // SAFETY: so many of its events were read and not acknowledged.
        unsafe { (self.device.api.ibv_ack_cq_events)(self.as_ptr(), left as u32) };
        // Waits for events that are being read at this moment.
        // SAFETY: queue pairs hold their queues, so none uses it.
        let ret = unsafe { (self.device.api.ibv_destroy_cq)(self.as_ptr()) };
        match check_ibv("ibv_destroy_cq", ret) {
            // SAFETY: no event names the queue any more, and it is dropped nowhere else.
            Ok(()) => unsafe { ManuallyDrop::drop(&mut self.unacknowledged) },
            Err(error) => tracing::error!(%error, "a completion queue is lost"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_an_event_of_a_queue_that_ends_acknowledges_it() {
        let events = Unacknowledged(AtomicU64::new(0));
        assert!(events.note() && events.note());
        assert_eq!(events.close(), 2);
        assert!(!events.note() && !events.note());
    }

    /// Each event is acknowledged once: by its reader, or with the queue.
    #[test]
    fn no_event_is_acknowledged_twice_or_never() {
        for _ in 0..200 {
            let events = Unacknowledged(AtomicU64::new(0));
            let (mine, left) = std::thread::scope(|scope| {
                let reader = scope.spawn(|| (0..100).filter(|_| !events.note()).count());
                let left = events.close();
                (reader.join().unwrap(), left)
            });
            assert_eq!(mine as u64 + left, 100);
        }
    }
}
