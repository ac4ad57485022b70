//! A lane: the completion queues, the shared receive queue and the buffers that a number of
//! connections of one device have in common.
//!
//! A device has as many lanes as its connections need (`device_context.rs`). Sizes are chosen so
//! that nothing can overflow: a lane takes no more connections than its queue for send completions
//! can hold sends of, and posts no more receives than its queue for receive completions can hold.
//!
//! How many receives are promised to whom is in the ledger (`ledger.rs`); so many buffers exist. A
//! connection posts a receive for every credit that it gives. What a closed connection leaves
//! posted is `surplus`, and used up by the next ones.
//!
//! Polling is in `dispatch.rs`.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, Weak};

use arrayvec::ArrayVec;
use crossbeam::queue::SegQueue;
use verbs_shim::{
    CompletionChannel, CompletionQueue, Device, ProtectionDomain, RegisteredBuffer,
    SharedReceiveQueue, Sleeper, VerbsError,
};

use super::connection::Connection;
use super::dispatch::{Change, Role, Waiters};
use super::ledger::Ledger;
use super::operation::Ending;
use super::pool::GrowingPool;
use crate::config::ProviderConfig;
use crate::counters::DataCounters;
use crate::event::EventObject;
use crate::progress::Progress;

/// A receive's token says nothing: what matters is the connection it arrives on.
const RECEIVE: u32 = 0;

/// Receives that are posted beyond what was promised, for those that a dying queue pair takes with
/// it half-way.
const SPARE_RECEIVES: u32 = 8;

pub(crate) struct Lane {
    pub(super) name: String,
    pub(super) pd: ProtectionDomain,
    pub(super) channel: CompletionChannel,
    /// Sleeps on the channel and `wake`.
    pub(super) sleeper: Sleeper,
    pub(super) recv_cq: CompletionQueue,
    pub(super) send_cq: CompletionQueue,
    pub(super) srq: SharedReceiveQueue,
    pub(super) send_depth: u32,
    /// Bytes of an RDMA operation; 0: the device cannot open memory to one peer alone.
    pub(super) rdma_limit: u32,
    pub(super) counters: DataCounters,

    pub(super) ledger: Ledger,
    receive_pool: GrowingPool,
    send_pool: GrowingPool,
    surplus: AtomicU32,

    pub(super) role: Mutex<Role>,
    pub(super) changes: SegQueue<Change>,
    pub(super) endings: SegQueue<(Arc<Connection>, Ending)>,
    /// How many of both there are.
    pub(super) mail_count: AtomicUsize,
    pub(super) waiters: Waiters,
    /// The thread that polls is asleep, or about to be.
    pub(super) asleep: AtomicBool,
    /// How often the thread that polls had gone to sleep when that was last looked at, and whether it
    /// is to look at the sends when it wakes.
    pub(super) sleeps_seen: AtomicU64,
    pub(super) sends_unseen: AtomicBool,
    /// How often something was done that the thread that polls has to look at.
    pub(super) kicks: AtomicUsize,
    /// Wakes it.
    pub(super) wake: EventObject,
    /// How many want to hear of send completions while the polling thread sleeps.
    pub(super) send_interest: AtomicUsize,
    /// How many want the lane served while nobody waits.
    pub(super) async_interest: AtomicUsize,
    /// How many have sends queued that nobody may be waiting for.
    pub(super) lazy_interest: AtomicUsize,
    /// The progress thread wants to know when nobody polls any more.
    pub(super) progress_waits: AtomicBool,
    pub(super) broken: AtomicBool,
    pub(super) progress: Weak<Progress>,
    pub(super) spin: std::time::Duration,
}

impl Lane {
    pub(crate) fn new(
        device: &Device,
        pd: &ProtectionDomain,
        config: &ProviderConfig,
        number: usize,
        progress: &Arc<Progress>,
    ) -> Result<Arc<Self>, VerbsError> {
        let limits = device.limits()?;
        let send_depth = u32::from(config.send_depth).min(limits.max_qp_wr.max(2));
        let most_connections = config
            .lane_connections
            .min(limits.max_cqe / send_depth)
            .max(1);
        let receives = config
            .lane_receives
            .min(limits.max_srq_wr)
            .min(limits.max_cqe);
        let channel = device.completion_channel()?;
        let recv_cq = device.create_cq(receives, Some(&channel))?;
        let spare = SPARE_RECEIVES.min(receives / 4);
        let each = u32::from(config.initial_window) + 1;
        let ledger = Ledger::new(most_connections, each, receives, spare);
        let send_cq = device.create_cq(most_connections * send_depth, Some(&channel))?;
        let srq = pd.create_srq(receives)?;
        let wake = EventObject::new().map_err(|e| VerbsError {
            call: "eventfd",
            source: e,
        })?;
        let wake_fd = wake.try_clone_fd().map_err(|e| VerbsError {
            call: "eventfd",
            source: e,
        })?;
        let name = format!("{}/{number}", device.name());
        tracing::debug!(lane = name, most_connections, receives, "lane opened");
        let lane = Arc::new(Self {
            name,
            pd: pd.clone(),
            sleeper: channel.sleeper(wake_fd)?,
            channel,
            recv_cq,
            send_cq,
            srq,
            send_depth,
            rdma_limit: match limits.max_windows {
                0 => 0,
                _ => config.max_rdma_size.min(device.port(1)?.max_message_size),
            },
            counters: DataCounters::default(),
            ledger,
            // The other half is for what is held of connections that are gone.
            receive_pool: GrowingPool::new(pd.clone(), config.max_message_size, receives * 2),
            send_pool: GrowingPool::new(
                pd.clone(),
                config.max_message_size,
                config.lane_send_buffers,
            ),
            surplus: AtomicU32::new(0),
            role: Mutex::new(Role::default()),
            changes: SegQueue::new(),
            endings: SegQueue::new(),
            mail_count: AtomicUsize::new(0),
            waiters: Waiters::default(),
            asleep: AtomicBool::new(false),
            sleeps_seen: AtomicU64::new(0),
            sends_unseen: AtomicBool::new(false),
            kicks: AtomicUsize::new(0),
            wake,
            send_interest: AtomicUsize::new(0),
            async_interest: AtomicUsize::new(0),
            lazy_interest: AtomicUsize::new(0),
            progress_waits: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            progress: Arc::downgrade(progress),
            spin: config.spin,
        });
        lane.provide_buffers()?;
        lane.post_receives(spare);
        Ok(lane)
    }

    /// Takes a place for a connection with the receives of its initial window, and one for credit
    /// messages, if there is one.
    pub(crate) fn join(&self) -> bool {
        !self.broken.load(Ordering::Relaxed) && self.ledger.join()
    }

    pub(crate) fn connections(&self) -> u32 {
        self.ledger.connections()
    }

    /// Whether one more connection would have a place now.
    pub(crate) fn has_place(&self) -> bool {
        !self.broken.load(Ordering::Relaxed) && self.ledger.has_place()
    }

    /// Sets `n` more receives aside for a connection that has `window`; `false`: there are not so
    /// many.
    pub(super) fn grow_window(&self, window: u32, n: u32) -> Result<bool, VerbsError> {
        if !self.ledger.grow(window, n) {
            return Ok(false);
        }
        match self.provide_buffers() {
            Ok(()) => Ok(true),
            Err(error) => {
                self.ledger.release(n);
                Err(error)
            }
        }
    }

    /// Makes the buffers that were promised and are not there yet.
    pub(super) fn provide_buffers(&self) -> Result<(), VerbsError> {
        self.receive_pool.grow_to(self.ledger.buffers())
    }

    /// `n` receives stay posted that nobody was promised any more.
    pub(super) fn abandon(&self, n: u32) {
        self.surplus.fetch_add(n, Ordering::AcqRel);
    }

    /// Posts `n` receives that were set aside; how many were.
    pub(super) fn post_receives(&self, n: u32) -> u32 {
        let from_surplus = self.take_surplus(n);
        let mut posted = from_surplus;
        let mut batch = ArrayVec::<RegisteredBuffer, 16>::new();
        while posted < n {
            while !batch.is_full() && posted + batch_len(&batch) < n {
                match self.receive_pool.take() {
                    Some(buffer) => batch.push(buffer),
                    None => break,
                }
            }
            let before = batch_len(&batch);
            let result = self.srq.post_batch(RECEIVE, &mut batch);
            let left = batch_len(&batch);
            posted += before - left;
            if let Err(error) = result {
                tracing::warn!(lane = self.name, %error, "a receive could not be posted");
                break;
            }
            if before == 0 {
                break;
            }
        }
        posted
    }

    /// Posts a receive whose message was taken in at once.
    pub(super) fn repost(&self, buffer: RegisteredBuffer) {
        if let Err(error) = self.srq.post(RECEIVE, buffer) {
            tracing::warn!(lane = self.name, error = %error.error, "a receive could not be posted");
        }
    }

    /// Somebody wants to hear of send completions while the polling thread sleeps, or not any more.
    pub(super) fn watch_sends(&self, wanted: bool) {
        count(&self.send_interest, wanted);
    }

    /// Somebody wants the lane served while nobody waits, or not any more.
    pub(super) fn serve_async(&self, wanted: bool) {
        count(&self.async_interest, wanted);
    }

    /// Somebody has sends queued, or not any more.
    pub(super) fn serve_lazily(&self, wanted: bool) {
        count(&self.lazy_interest, wanted);
    }

    pub(crate) fn has_lazy_interest(&self) -> bool {
        self.lazy_interest.load(Ordering::SeqCst) > 0
    }

    pub(crate) fn has_async_interest(&self) -> bool {
        self.async_interest.load(Ordering::SeqCst) > 0
    }

    pub(crate) fn channel_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    pub(crate) fn counters(&self) -> &DataCounters {
        &self.counters
    }

    /// A buffer to send from.
    pub(super) fn send_buffer(&self) -> Result<Option<RegisteredBuffer>, VerbsError> {
        self.send_pool.take_or_grow()
    }

    /// How many buffers to send from are free, or could be made.
    pub(super) fn send_buffers_left(&self) -> usize {
        self.send_pool.left()
    }

    fn take_surplus(&self, n: u32) -> u32 {
        let mut have = self.surplus.load(Ordering::Acquire);
        while have > 0 {
            let take = have.min(n);
            match self.surplus.compare_exchange_weak(
                have,
                have - take,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return take,
                Err(now) => have = now,
            }
        }
        0
    }
}

fn batch_len(batch: &ArrayVec<RegisteredBuffer, 16>) -> u32 {
    u32::try_from(batch.len()).unwrap_or(u32::MAX)
}

fn count(value: &AtomicUsize, up: bool) {
    if up {
        value.fetch_add(1, Ordering::SeqCst);
    } else {
        value.fetch_sub(1, Ordering::SeqCst);
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("name", &self.name)
            .field("ledger", &self.ledger)
            .field("surplus", &self.surplus.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}
