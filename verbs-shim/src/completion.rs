//! Completion queues, completion channels, and what a completion says.
//!
//! Nothing here waits: a channel's descriptor becomes readable, and whoever sleeps on it polls,
//! asks for notification, **polls again**, and only then sleeps.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrayvec::ArrayVec;

use crate::backend::{self, RawCompletion};
use crate::error::Result;
use crate::wr_id::{Kind, Life, WrId};

/// Where completion queues announce that there is something to poll. Cheap to clone.
#[derive(Clone)]
pub struct CompletionChannel {
    backend: Arc<dyn backend::CompletionChannel>,
}

impl CompletionChannel {
    pub(crate) fn from_backend(backend: Arc<dyn backend::CompletionChannel>) -> Self {
        Self { backend }
    }

    pub(crate) fn backend(&self) -> Arc<dyn backend::CompletionChannel> {
        Arc::clone(&self.backend)
    }

    /// Takes the events that were announced, without blocking, and acknowledges them; how many
    /// there were. As many as [`CompletionQueue::request_notify`] asked for, so that no call is
    /// spent on finding out that there are no more; what a queue announces later stays for the
    /// next call.
    ///
    /// # Errors
    /// When the channel is broken; an empty one is `Ok(0)`.
    pub fn consume(&self) -> Result<usize> {
        self.backend.consume()
    }

    /// What sleeps until a queue announces something or `other` is readable.
    ///
    /// # Errors
    /// `EMFILE` and its kin: it takes a descriptor.
    pub fn sleeper(&self, other: OwnedFd) -> Result<Sleeper> {
        Ok(Sleeper {
            backend: self.backend().sleeper(other)?,
        })
    }
}

/// Sleeps on a completion channel and one other descriptor, with as few system calls as that
/// takes.
pub struct Sleeper {
    backend: Arc<dyn backend::Sleeper>,
}

impl Sleeper {
    /// Sleeps until a queue announces something, the other descriptor is readable, a signal
    /// comes, or `timeout` is over (`None`: without end; rounded up to milliseconds), and takes
    /// the events as [`CompletionChannel::consume`] does. On a fabric in user space the sleeper
    /// does the fabric's work meanwhile, which spares the hand-over from another thread.
    ///
    /// An announcement wakes it once: poll every queue that was asked for notification, and ask
    /// again, before sleeping again.
    ///
    /// # Errors
    /// When the channel is broken.
    pub fn sleep(&self, timeout: Option<Duration>) -> Result<Woken> {
        self.backend.sleep(timeout)
    }
}

impl fmt::Debug for Sleeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleeper").finish_non_exhaustive()
    }
}

/// What ended [`Sleeper::sleep`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Woken {
    /// Events that were taken.
    pub events: usize,
    /// The other descriptor may be readable.
    pub other: bool,
}

impl AsFd for CompletionChannel {
    /// Readable when a queue announced something. Nonblocking.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.backend.as_fd()
    }
}

impl fmt::Debug for CompletionChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CompletionChannel")
            .field(&self.as_fd())
            .finish()
    }
}

/// A completion queue. Cheap to clone; any thread may poll.
#[derive(Clone)]
pub struct CompletionQueue {
    shared: Arc<CqShared>,
}

struct CqShared {
    backend: Arc<dyn backend::CompletionQueue>,
    serial: u64,
    /// Counts the queue pairs that were made on this queue: a completion that was polled before a
    /// queue pair was made is not that queue pair's.
    births: AtomicU64,
    /// Counts the graves that were dug.
    burials: AtomicU64,
    /// How many of them have been cleared.
    cleared: AtomicU64,
    /// Queue pairs that were destroyed with work outstanding, with the number of the grave: their
    /// completions may still lie in this queue when the device gives their number to another.
    graves: Mutex<HashMap<(u32, Life), u64>>,
}

impl CompletionQueue {
    pub(crate) fn from_backend(backend: Arc<dyn backend::CompletionQueue>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            shared: Arc::new(CqShared {
                backend,
                serial: NEXT.fetch_add(1, Ordering::Relaxed),
                births: AtomicU64::new(0),
                burials: AtomicU64::new(0),
                cleared: AtomicU64::new(0),
                graves: Mutex::new(HashMap::new()),
            }),
        }
    }

    /// Replaces the content of `batch` by what the queue holds, up to the batch's capacity; how
    /// many that are. 0: the queue is empty.
    ///
    /// # Errors
    /// When the queue is broken (it overflowed, or the device is gone).
    pub fn poll(&self, batch: &mut CompletionBatch) -> Result<usize> {
        let cq = &*self.shared;
        let dug = cq.burials.load(Ordering::Acquire);
        batch.entries.clear();
        batch.cq = cq.serial;
        let polled = cq.backend.poll(batch);
        // After polling: whose completion it is had been made before.
        let births = cq.births.load(Ordering::Acquire);
        for completion in &mut batch.entries {
            completion.births = births;
        }
        // What lay in the queue when those graves were dug has come out by now.
        if batch.room() > 0 && dug > cq.cleared.load(Ordering::Acquire) {
            self.clear_graves(dug);
        }
        polled
    }

    /// Announces the next completion on the channel, once. Poll again after this call before
    /// waiting: what came in between is not announced.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn request_notify(&self) -> Result<()> {
        self.shared.backend.request_notify(false)
    }

    /// As [`CompletionQueue::request_notify`], only for receives of messages that the peer sent
    /// with the solicited flag, and for failures.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn request_notify_solicited(&self) -> Result<()> {
        self.shared.backend.request_notify(true)
    }

    /// How many completions it can hold.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.shared.backend.depth()
    }

    pub(crate) fn backend(&self) -> Arc<dyn backend::CompletionQueue> {
        Arc::clone(&self.shared.backend)
    }

    pub(crate) fn serial(&self) -> u64 {
        self.shared.serial
    }

    /// Notes that a queue pair is made on this queue: of completions it takes those only that
    /// count as many births or more.
    pub(crate) fn birth(&self) -> u64 {
        self.shared.births.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(crate) fn bury(&self, qp_num: u32, life: Life) {
        let mut graves = self.graves();
        let number = self.shared.burials.fetch_add(1, Ordering::AcqRel);
        graves.insert((qp_num, life), number);
    }

    pub(crate) fn has_grave(&self, qp_num: u32, life: Life) -> bool {
        self.graves().contains_key(&(qp_num, life))
    }

    fn clear_graves(&self, dug: u64) {
        let mut graves = self.graves();
        graves.retain(|_, &mut number| number >= dug);
        self.shared.cleared.fetch_max(dug, Ordering::AcqRel);
    }

    fn graves(&self) -> std::sync::MutexGuard<'_, HashMap<(u32, Life), u64>> {
        self.shared
            .graves
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionQueue")
            .field("serial", &self.shared.serial)
            .field("depth", &self.depth())
            .finish()
    }
}

/// How many completions one poll returns at most.
pub const BATCH: usize = 32;

/// Room for the completions of one poll; lives on the stack.
#[derive(Debug, Default)]
pub struct CompletionBatch {
    entries: ArrayVec<Completion, BATCH>,
    cq: u64,
}

impl CompletionBatch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The completions of the last poll, oldest first.
    pub fn iter(&self) -> std::slice::Iter<'_, Completion> {
        self.entries.iter()
    }

    /// Takes them out, to hand them to somebody else.
    pub fn drain(&mut self) -> impl Iterator<Item = Completion> + '_ {
        self.entries.drain(..)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn room(&self) -> usize {
        self.entries.remaining_capacity()
    }

    /// A completion past the capacity is a backend's mistake; it would be lost, so it is not taken.
    pub(crate) fn push(&mut self, raw: RawCompletion) {
        debug_assert!(!self.entries.is_full());
        let _ = self.entries.try_push(Completion {
            raw,
            cq: self.cq,
            births: 0,
            claimed: Cell::new(false),
        });
    }
}

impl<'a> IntoIterator for &'a CompletionBatch {
    type Item = &'a Completion;
    type IntoIter = std::slice::Iter<'a, Completion>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// A finished work request. It comes from [`CompletionQueue::poll`] and from nowhere else, cannot
/// be copied, and gives its buffers back once, by `claim` on the queue it was posted to.
pub struct Completion {
    raw: RawCompletion,
    cq: u64,
    births: u64,
    claimed: Cell<bool>,
}

impl Completion {
    /// The number that was given with the request.
    #[must_use]
    pub fn token(&self) -> u32 {
        (self.raw.wr_id >> 32) as u32
    }

    /// The queue pair it happened on.
    #[must_use]
    pub fn qp_num(&self) -> u32 {
        self.raw.qp_num
    }

    /// How it ended.
    #[must_use]
    pub fn status(&self) -> WcStatus {
        WcStatus::from_raw(self.raw.status)
    }

    /// The device's own code for a failure.
    #[must_use]
    pub fn vendor_error(&self) -> u32 {
        self.raw.vendor_error
    }

    /// How many bytes came; of meaning only for receives and RDMA READs that succeeded.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.raw.byte_len as usize
    }

    /// The immediate data of a receive, in host byte order.
    #[must_use]
    pub fn imm(&self) -> Option<u32> {
        self.raw.imm
    }

    /// Whether it is a receive; true to the fact for failed work too.
    #[must_use]
    pub fn is_recv(&self) -> bool {
        self.wr().is_some_and(|wr| wr.kind != Kind::Send)
    }

    /// Whether the buffer came from a shared receive queue.
    #[must_use]
    pub fn is_shared_recv(&self) -> bool {
        self.wr().is_some_and(|wr| wr.kind == Kind::SharedReceive)
    }

    /// Whether an RDMA WRITE with immediate took the receive: the buffer is then unused, and
    /// [`Completion::byte_len`] counts what was written.
    #[must_use]
    pub fn is_rdma_write(&self) -> bool {
        self.raw.by_write
    }

    pub(crate) fn wr(&self) -> Option<WrId> {
        WrId::unpack(self.raw.wr_id)
    }

    pub(crate) fn cq_serial(&self) -> u64 {
        self.cq
    }

    pub(crate) fn births(&self) -> u64 {
        self.births
    }

    pub(crate) fn is_claimed(&self) -> bool {
        self.claimed.get()
    }

    pub(crate) fn set_claimed(&self) {
        self.claimed.set(true);
    }

    /// How much of the receive buffer is filled.
    pub(crate) fn filled(&self, capacity: usize) -> usize {
        match self.status() {
            WcStatus::Success if !self.raw.by_write => self.byte_len().min(capacity),
            _ => 0,
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("token", &self.token())
            .field("qp_num", &self.qp_num())
            .field("status", &self.status())
            .field("recv", &self.is_recv())
            .field("byte_len", &self.raw.byte_len)
            .field("imm", &self.raw.imm)
            .finish()
    }
}

macro_rules! wc_status {
    ($($(#[$doc:meta])* $name:ident = $n:literal,)*) => {
        /// How a work request ended: IBTA's completion types (volume 1, 11.6.2) by verbs' numbers.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum WcStatus {
            $($(#[$doc])* $name,)*
            /// A number that this crate does not know.
            Unknown(u32),
        }

        impl WcStatus {
            /// The status with this number.
            #[must_use]
            pub fn from_raw(n: u32) -> Self {
                match n {
                    $($n => Self::$name,)*
                    n => Self::Unknown(n),
                }
            }

            /// Its number.
            #[must_use]
            pub fn raw(self) -> u32 {
                match self {
                    $(Self::$name => $n,)*
                    Self::Unknown(n) => n,
                }
            }
        }
    };
}

wc_status! {
    /// Done.
    Success = 0,
    /// The message was longer than the buffer posted for it, or longer than the port can send.
    LocalLength = 1,
    /// The queue pair could not do it.
    LocalQpOperation = 2,
    /// End-to-end context error (reliable datagram).
    LocalEecOperation = 3,
    /// A local key or range was wrong.
    LocalProtection = 4,
    /// The queue pair went to the error state first.
    WrFlushed = 5,
    /// Binding a memory window failed.
    MwBind = 6,
    /// The peer answered with something unexpected.
    BadResponse = 7,
    /// The local buffer did not allow what the peer asked for.
    LocalAccess = 8,
    /// The peer did not take the message: too long, or an operation it does not support.
    RemoteInvalidRequest = 9,
    /// The peer's memory does not allow it.
    RemoteAccess = 10,
    /// The peer could not finish it.
    RemoteOperation = 11,
    /// No answer after all retries.
    RetryExceeded = 12,
    /// The peer had no receive posted, after all retries.
    RnrRetryExceeded = 13,
    /// Reliable datagram domain.
    LocalRddViolation = 14,
    /// Reliable datagram request.
    RemoteInvalidRdRequest = 15,
    /// The peer aborted it.
    RemoteAborted = 16,
    /// End-to-end context number.
    InvalidEecNumber = 17,
    /// End-to-end context state.
    InvalidEecState = 18,
    /// The device is in a fatal state.
    Fatal = 19,
    /// No response in time.
    ResponseTimeout = 20,
    /// Anything else.
    General = 21,
}

impl WcStatus {
    /// Whether it is [`WcStatus::Success`].
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Self::Success
    }
}

impl fmt::Display for WcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(n) => write!(f, "completion status {n}"),
            known => write!(f, "{known:?} (completion status {})", known.raw()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::bench;

    #[test]
    fn every_status_keeps_its_number() {
        for n in (0..100).chain([u32::MAX]) {
            assert_eq!(WcStatus::from_raw(n).raw(), n);
        }
        assert_eq!(WcStatus::from_raw(5), WcStatus::WrFlushed);
        assert_eq!(WcStatus::from_raw(12), WcStatus::RetryExceeded);
        assert_eq!(WcStatus::from_raw(22), WcStatus::Unknown(22));
        assert_eq!(WcStatus::Unknown(99).to_string(), "completion status 99");
        assert!(WcStatus::Success.is_success() && !WcStatus::General.is_success());
    }

    #[test]
    fn graves_last_until_the_queue_is_empty() {
        let bench = bench();
        let life = Life::new(7);
        bench.notes.posted.lock().unwrap().push(0);
        (0..BATCH).for_each(|_| bench.notes.complete(0, 1, 0));
        bench.cq.bury(1, life);
        // A full batch: there may be more.
        assert_eq!(bench.poll().len(), BATCH);
        assert!(bench.cq.has_grave(1, life));
        assert_eq!(bench.poll().len(), 0);
        assert!(!bench.cq.has_grave(1, life));
        bench.cq.bury(2, life);
        assert!(bench.cq.has_grave(2, life));
        bench.poll();
        assert!(bench.cq.graves().is_empty());
    }

    #[test]
    fn a_poll_replaces_what_the_batch_held() {
        let bench = bench();
        bench.notes.posted.lock().unwrap().push(42 << 32);
        bench.notes.complete(0, 1, 0);
        let mut batch = bench.poll();
        assert_eq!((batch.len(), batch.iter().next().unwrap().token()), (1, 42));
        assert_eq!(batch.drain().count(), 1);
        assert!(batch.is_empty());
        bench.notes.complete(0, 1, 0);
        bench.cq.poll(&mut batch).unwrap();
        assert_eq!(bench.cq.poll(&mut batch).unwrap(), 0);
        assert!(batch.is_empty());
    }
}
