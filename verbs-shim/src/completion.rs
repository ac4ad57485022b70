//! Completion queues and completion channels.
//!
//! Nothing here waits: a channel's descriptor becomes readable, and whoever sleeps on it polls,
//! asks for notification, **polls again**, and only then sleeps.

use std::collections::HashMap;
use std::ffi::c_int;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::backend::{self, Poller};
use crate::error::{Result, VerbsError, check_ibv};
use crate::types::{BATCH, CompletionBatch, Generation, Woken};

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
    backend: Box<dyn backend::Sleeper>,
}

impl Sleeper {
    /// Sleeps until a queue announces something, the other descriptor is readable, a signal
    /// comes, or `timeout` is over (`None`: without end; rounded up to milliseconds), and takes
    /// the event that woke it; a few others may be left, and do not wake it again. On a fabric in user space the sleeper
    /// does the fabric's work meanwhile, which spares the hand-over from another thread.
    ///
    /// An announcement wakes it once: poll every queue that was asked for notification, and ask
    /// again, before sleeping again.
    #[must_use]
    pub fn sleep(&self, timeout: Option<Duration>) -> Woken {
        self.backend.sleep(timeout)
    }

    /// The descriptors to put into an epoll set of one's own (level-triggered, readable), to sleep
    /// on them and on other things at once, in place of [`Sleeper::sleep`]. They stay the same. On
    /// a fabric in user space its sockets are among them, so that no other thread has to read them
    /// and hand over what came.
    ///
    /// A sleep is: ask every queue for notification; poll it once more; [`Sleeper::before`]; the
    /// sleep, or only a look if that said `false`; [`Sleeper::after`]; poll. One thread does so at
    /// a time, and does not use [`Sleeper::sleep`] in between.
    #[must_use]
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.backend.fds()
    }

    /// To be called right before a sleep on [`Sleeper::fds`]. `false`: there are events already,
    /// and nothing may wake it.
    ///
    /// From now on this may be the one who works the fabric's sockets, for all of the process. So
    /// [`Sleeper::after`] has to follow as soon as the sleep is over, whatever ended it.
    #[must_use]
    pub fn before(&self) -> bool {
        self.backend.before()
    }

    /// To be called right after a sleep: does what came in on the fabric, and takes the events as
    /// [`CompletionChannel::consume`] does; how many.
    ///
    /// # Errors
    /// When the channel is broken.
    pub fn after(&self) -> Result<usize> {
        self.backend.after()
    }
}

impl fmt::Debug for Sleeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleeper").finish_non_exhaustive()
    }
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
    backend: Poller,
    /// No other queue of the process has or had it.
    serial: u32,
    /// Whether `retired` has any.
    has_retired: AtomicBool,
    retired: Mutex<RetiredQps>,
}

/// Queue pairs that were destroyed with work outstanding: their completions may still lie in the
/// completion queue when the device gives their number to another.
#[derive(Default)]
struct RetiredQps {
    /// With the count of those before it.
    qps: HashMap<(u32, Generation), u64>,
    /// How many there ever were.
    count: u64,
}

impl CompletionQueue {
    pub(crate) fn from_backend(backend: Arc<dyn backend::CompletionQueue>) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let serial = u32::try_from(NEXT.fetch_add(1, Ordering::Relaxed))
            .map_err(|_| VerbsError::from_errno("ibv_create_cq", libc::ENOSPC))?;
        Ok(Self {
            shared: Arc::new(CqShared {
                backend: Poller::new(backend),
                serial,
                has_retired: AtomicBool::new(false),
                retired: Mutex::new(RetiredQps::default()),
            }),
        })
    }

    /// Replaces the content of `batch` by what the queue holds, up to the batch's capacity; how
    /// many that are. 0: the queue is empty.
    ///
    /// # Errors
    /// When the queue is broken (it overflowed, or the device is gone).
    pub fn poll(&self, batch: &mut CompletionBatch) -> Result<usize> {
        let mut failure = None;
        match self.poll_or(batch, |error| failure = Some(error)) {
            0 => failure.map_or(Ok(0), Err),
            found => Ok(found),
        }
    }

    /// As [`CompletionQueue::poll`], the shortest way: a failure goes to `failed`, and nothing was found.
    // Always where it is called: mostly nothing is there, and to save the registers costs as much.
    #[inline(always)]
    pub fn poll_or(&self, batch: &mut CompletionBatch, failed: impl FnOnce(VerbsError)) -> usize {
        let cq = &*self.shared;
        let polled = match cq.has_retired.load(Ordering::Acquire) {
            false => cq.backend.poll(batch.entries()),
            true => self.poll_and_forget(batch),
        };
        if polled > 0 {
            return batch.open(polled as usize, cq.serial);
        }
        batch.clear();
        if polled < 0 {
            failed(self.poll_failure());
        }
        0
    }

    #[cold]
    #[inline(never)]
    fn poll_failure(&self) -> VerbsError {
        self.shared.backend.queue().poll_error()
    }

    /// Polls when queue pairs have been retired.
    #[cold]
    #[inline(never)]
    fn poll_and_forget(&self, batch: &mut CompletionBatch) -> c_int {
        let before = self.shared.retired.lock().count;
        let found = self.shared.backend.poll(batch.entries());
        if (0..BATCH as c_int).contains(&found) {
            // What lay in the queue when those were retired has come out by now.
            let mut retired = self.shared.retired.lock();
            retired.qps.retain(|_, &mut number| number >= before);
            let more = !retired.qps.is_empty();
            self.shared.has_retired.store(more, Ordering::Release);
        }
        found
    }

    /// Announces the next completion on the channel, once. Poll again after this call before
    /// waiting: what came in between is not announced.
    ///
    /// # Errors
    /// When the device refuses.
    #[inline]
    pub fn request_notify(&self) -> Result<()> {
        self.notify(false)
    }

    /// As [`CompletionQueue::request_notify`], only for receives of messages that the peer sent
    /// with the solicited flag, and for failures.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn request_notify_solicited(&self) -> Result<()> {
        self.notify(true)
    }

    #[inline]
    fn notify(&self, solicited_only: bool) -> Result<()> {
        match self.shared.backend.request_notify(solicited_only) {
            0 => Ok(()),
            ret => not_asked(ret),
        }
    }

    /// How many completions it can hold.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.shared.backend.queue().depth()
    }

    pub(crate) fn backend(&self) -> Arc<dyn backend::CompletionQueue> {
        Arc::clone(self.shared.backend.queue())
    }

    #[inline]
    pub(crate) fn serial(&self) -> u32 {
        self.shared.serial
    }

    /// Notes that a queue pair was destroyed whose completions may still come.
    pub(crate) fn retire(&self, qp_num: u32, generation: Generation) {
        let mut retired = self.shared.retired.lock();
        let number = retired.count;
        retired.count += 1;
        retired.qps.insert((qp_num, generation), number);
        self.shared.has_retired.store(true, Ordering::Release);
    }

    pub(crate) fn has_retired(&self, qp_num: u32, generation: Generation) -> bool {
        let retired = self.shared.retired.lock();
        retired.qps.contains_key(&(qp_num, generation))
    }
}

#[cold]
#[inline(never)]
fn not_asked(ret: c_int) -> Result<()> {
    check_ibv("ibv_req_notify_cq", ret)
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionQueue")
            .field("serial", &self.shared.serial)
            .field("depth", &self.depth())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::bench;

    #[test]
    fn retired_queue_pairs_are_known_until_the_queue_is_empty() {
        let bench = bench();
        let generation = Generation::new(7);
        bench.notes.posted.lock().unwrap().push(0);
        (0..BATCH).for_each(|_| bench.notes.complete(0, 1, 0));
        bench.cq.retire(1, generation);
        // A full batch: there may be more.
        assert_eq!(bench.poll().len(), BATCH);
        assert!(bench.cq.has_retired(1, generation));
        assert_eq!(bench.poll().len(), 0);
        assert!(!bench.cq.has_retired(1, generation));
        bench.cq.retire(2, generation);
        assert!(bench.cq.has_retired(2, generation));
        bench.poll();
        assert!(!bench.cq.has_retired(2, generation));
        assert!(!bench.cq.shared.has_retired.load(Ordering::Relaxed));
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
