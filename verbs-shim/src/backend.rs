//! What a backend has to supply. One seam, at verbs level: nothing above this module knows which
//! fabric runs underneath.
//!
//! | trait | stands for | `rdma` | `soft` |
//! |---|---|---|---|
//! | [`Fabric`] | the whole | librdmacm, libibverbs | an endpoint per IP address |
//! | [`Device`] | a NIC | `ibv_context` of librdmacm | an endpoint |
//! | [`ProtectionDomain`] | `ibv_pd` | the same | a set of keys |
//! | [`MemoryRegion`] | `ibv_mr` | the same | keys over reads and writes at offsets |
//! | [`MemoryWindow`] | `ibv_mw`, type 2 | the same, bound by a request | a key for one queue pair |
//! | [`CompletionChannel`] | `ibv_comp_channel` | the same | an eventfd |
//! | [`CompletionQueue`] | `ibv_cq` | the same | a bounded queue; polling drives the endpoint |
//! | [`SharedReceiveQueue`] | `ibv_srq` | the same | a bounded queue |
//! | [`QueuePair`] | `ibv_qp` | the same | the endpoint's queue pair |
//! | [`EventChannel`] | `rdma_event_channel` | the same | an eventfd and a queue |
//! | [`CmId`] | `rdma_cm_id` | the same | the endpoint's CM state machine |
//!
//! Rules for every backend:
//! - Objects keep what they need alive themselves (a queue pair its id, its protection domain, its
//!   queues; an id its channel), so that the public handles may be let go in any order.
//! - `destroy` and `deregister` are called once, by the public object's destructor, `withdraw` until it
//!   returns `Ok`; the backends do not rely on it where a second call would be unsound. After `Ok` the
//!   fabric touches no memory of that object any more. After `Err` the memory is leaked: that is
//!   the only sound answer.
//! - A posted piece of memory stays in place until its completion was claimed or `destroy` returned.
//! - One virtual call a verb, and no allocation in `post_*`, and none in what [`RawPoller`],
//!   [`RawNotifier`] and [`RawSender`] call.
//! - Objects of another backend given as arguments are an `EINVAL`, see [`same_fabric`].
//!
//! It holds no policy and no state of its own.

mod message;

use std::any::Any;
use std::ffi::{c_int, c_void};
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arrayvec::ArrayVec;

pub(crate) use self::message::{INLINE, MessageWr, PostMessage, RawSender, SEND_WITH_IMM, Sender};
use crate::address::InterfaceAddress;
use crate::error::{Result, VerbsError};
use crate::types::{
    Access, BATCH, Completion, ConnParams, DeviceLimits, Event, FabricKind, Gid, PortAttr, QpCaps,
    SendFlags, Transport, Verb, Woken,
};

pub(crate) trait Fabric: Send + Sync {
    fn kind(&self) -> FabricKind;
    /// The devices there are now.
    fn devices(&self) -> Result<Vec<Arc<dyn Device>>>;
    fn event_channel(&self) -> Result<Arc<dyn EventChannel>>;
}

pub(crate) trait Device: Send + Sync {
    /// Unique in the process for as long as the device is known, the same in every handle.
    fn key(&self) -> u64;
    fn name(&self) -> &str;
    /// Host byte order.
    fn guid(&self) -> u64;
    fn transport(&self) -> Transport;
    fn limits(&self) -> Result<DeviceLimits>;
    fn port(&self, port: u8) -> Result<PortAttr>;
    fn gids(&self, port: u8) -> Result<Vec<Gid>>;
    /// The IP addresses by which it can be reached.
    fn addresses(&self) -> Result<Vec<InterfaceAddress>>;
    /// What it has counted, by names of its own.
    fn counters(&self) -> Vec<(String, u64)>;
    fn alloc_pd(self: Arc<Self>) -> Result<Arc<dyn ProtectionDomain>>;
    fn completion_channel(self: Arc<Self>) -> Result<Arc<dyn CompletionChannel>>;
    fn create_cq(
        self: Arc<Self>,
        depth: u32,
        channel: Option<Arc<dyn CompletionChannel>>,
    ) -> Result<Arc<dyn CompletionQueue>>;
}

#[allow(unsafe_code)]
pub(crate) trait ProtectionDomain: Downcast {
    /// Registers `len` bytes at `addr`.
    ///
    /// # Safety
    /// Until `deregister` of the result returned `Ok`, or for ever: as long as something posted, a
    /// peer by the region's own rights, or a peer by a window, reaches a byte, it stays mapped.
    /// While they may write it nobody holds a Rust reference to it, or reads or writes it other
    /// than by atomic operations on single bytes; while they may read it nobody holds an exclusive
    /// reference to it, or writes it other than in this way.
    unsafe fn register(
        self: Arc<Self>,
        addr: *mut u8,
        len: usize,
        access: Access,
    ) -> Result<Box<dyn MemoryRegion>>;
    fn create_srq(
        self: Arc<Self>,
        max_wr: u32,
        max_sge: u32,
    ) -> Result<Arc<dyn SharedReceiveQueue>>;
}

pub(crate) trait MemoryRegion: Send + Sync {
    fn lkey(&self) -> u32;
    fn rkey(&self) -> u32;
    fn deregister(&self) -> Result<()>;
    fn as_any(&self) -> &dyn Any;
}

/// A memory window of type 2.
pub(crate) trait MemoryWindow: Send + Sync {
    /// The key that it opens, or will open, under.
    fn rkey(&self) -> u32;
    /// Whether [`QueuePair::post_bind`] has to open it; else it is open.
    fn needs_request(&self) -> bool;
    /// After `Ok` its key opens nothing, and no access by it is under way.
    fn withdraw(&self) -> Result<()>;
    fn as_any(&self) -> &dyn Any;
}

pub(crate) trait CompletionChannel: Downcast {
    fn as_fd(&self) -> BorrowedFd<'_>;
    /// Takes and acknowledges what has been announced; how many events that were.
    fn consume(&self) -> Result<usize>;
    fn sleeper(self: Arc<Self>, other: OwnedFd) -> Result<Box<dyn Sleeper>>;
}

pub(crate) trait Sleeper: Send + Sync {
    /// Sleeps until there are events, the other descriptor is readable, a signal came, or the time
    /// is over, and takes the events. A fabric in user space works for the sleeper meanwhile.
    fn sleep(&self, timeout: Option<Duration>) -> Woken;
    /// What becomes readable, for a set that somebody else sleeps on.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;
    /// Before such a sleep; `false`: there are events already.
    fn before(&self) -> bool;
    /// After it: does the fabric's work and takes the events; how many.
    fn after(&self) -> Result<usize>;
}

pub(crate) trait CompletionQueue: Downcast {
    /// How it is polled.
    fn raw_poller(&self) -> RawPoller;
    /// What a negative number of polling means.
    fn poll_error(&self) -> VerbsError;
    /// How it is asked for one event on the channel with the next completion, or the next solicited one.
    fn raw_notifier(&self) -> RawNotifier;
    /// How many entries were granted.
    fn depth(&self) -> u32;
}

pub(crate) trait SharedReceiveQueue: Downcast {
    fn max_wr(&self) -> u32;
    /// Posts the chain in order; on failure says how many of them were taken. It may link them.
    fn post_recv(&self, wrs: &mut [RecvWr]) -> PostResult;
    /// Posts a chain that is linked already.
    ///
    /// # Safety
    /// `first` begins a chain of `count` receives, [`MAX_CHAIN`] at most, whose last one has no next one;
    /// each has its own piece. Nobody else touches them during the call.
    #[allow(unsafe_code)]
    unsafe fn post_linked(&self, first: *mut RecvWr, count: usize) -> PostResult {
        let mut wrs = ArrayVec::<RecvWr, MAX_CHAIN>::new();
        let mut next = first;
        while wrs.len() < count.min(MAX_CHAIN) && !next.is_null() {
            // SAFETY: by the contract it is one of the chain.
            let wr = unsafe { *next };
            next = wr.next;
            wrs.push(RecvWr::new(wr.wr_id, wr.sge));
        }
        self.post_recv(&mut wrs)
    }
    fn destroy(&self) -> Result<()>;
}

pub(crate) trait QueuePair: Send + Sync {
    fn qp_num(&self) -> u32;
    /// What was granted.
    fn caps(&self) -> QpCaps;
    fn post_one_send(&self, wr: &SendWr<'_>) -> PostResult;
    /// Who takes messages of inline bytes with immediate data without the way through this table. `None`:
    /// [`QueuePair::post_one_send`] does.
    fn raw_sender(&self) -> Option<RawSender> {
        None
    }
    /// Posts the chain in order, with one doorbell; on failure says how many of them were taken.
    fn post_send(&self, wrs: &[SendWr<'_>]) -> PostResult;
    fn post_recv(&self, wrs: &mut [RecvWr]) -> PostResult;
    /// A window of `len` bytes at `addr`, which lie in `region`, for this queue pair's peer alone.
    /// It is withdrawn before the queue pair is destroyed.
    fn window(
        &self,
        region: &dyn MemoryRegion,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Result<Box<dyn MemoryWindow>>;
    /// Posts the signaled request that opens a window of this queue pair.
    fn post_bind(&self, window: &dyn MemoryWindow, wr_id: u64) -> PostResult;
    /// To the error state: what is posted gets flushed.
    fn to_error(&self) -> Result<()>;
    fn destroy(&self) -> Result<()>;
}

pub(crate) trait EventChannel: Downcast {
    fn as_fd(&self) -> BorrowedFd<'_>;
    /// The next event, if there is one: copied out and acknowledged.
    fn next(self: Arc<Self>) -> Result<Option<Event<Arc<dyn CmId>>>>;
    fn create_id(self: Arc<Self>) -> Result<Arc<dyn CmId>>;
}

pub(crate) trait CmId: Send + Sync {
    /// Unique in the process, never used again, never 0.
    fn token(&self) -> u64;
    fn bind(&self, addr: SocketAddr) -> Result<()>;
    fn listen(&self, backlog: i32) -> Result<()>;
    fn resolve_addr(
        &self,
        src: Option<SocketAddr>,
        dst: SocketAddr,
        timeout: Duration,
    ) -> Result<()>;
    fn resolve_route(&self, timeout: Duration) -> Result<()>;
    fn connect(&self, params: &ConnParams<'_>) -> Result<()>;
    fn accept(&self, params: &ConnParams<'_>) -> Result<()>;
    fn reject(&self, private_data: &[u8]) -> Result<()>;
    /// Of a request: whether its peer may still wait for the answer.
    fn is_pending(&self) -> bool;
    fn disconnect(&self) -> Result<()>;
    fn migrate(&self, channel: Arc<dyn EventChannel>) -> Result<()>;
    fn set_option(&self, option: CmOption) -> Result<()>;
    fn local_addr(&self) -> Option<SocketAddr>;
    fn peer_addr(&self) -> Option<SocketAddr>;
    fn device(&self) -> Option<Arc<dyn Device>>;
    fn port(&self) -> u8;
    /// Bytes of payload that a packet on its path has at most, where the fabric says so.
    fn path_mtu(&self) -> Option<u32>;
    fn create_qp(self: Arc<Self>, attr: QpAttr) -> Result<Box<dyn QueuePair>>;
}

/// What a queue pair is made of.
pub(crate) struct QpAttr {
    pub(crate) caps: QpCaps,
    pub(crate) pd: Arc<dyn ProtectionDomain>,
    pub(crate) send_cq: Arc<dyn CompletionQueue>,
    pub(crate) recv_cq: Arc<dyn CompletionQueue>,
    pub(crate) srq: Option<Arc<dyn SharedReceiveQueue>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum CmOption {
    Tos(u8),
    ReuseAddr(bool),
    V6Only(bool),
    AckTimeout(u8),
}

/// A local piece of registered memory, in the layout of `struct ibv_sge`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Sge {
    pub(crate) addr: u64,
    pub(crate) length: u32,
    pub(crate) lkey: u32,
}

/// Where the bytes of a send request come from, or go to with a READ.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WrData<'a> {
    /// Copied while posting.
    Inline(&'a [u8]),
    Sges(&'a [Sge]),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct SendWr<'a> {
    pub(crate) wr_id: u64,
    pub(crate) operation: Verb,
    pub(crate) data: WrData<'a>,
    pub(crate) flags: SendFlags,
}

/// A receive, in the layout of `struct ibv_recv_wr` with its one piece behind it, so that a verbs backend
/// only has to link it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct RecvWr {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut RecvWr,
    pub(crate) pieces: *mut Sge,
    pub(crate) count: c_int,
    pub(crate) sge: Sge,
}

impl RecvWr {
    /// One that is not linked yet.
    #[inline]
    pub(crate) fn new(wr_id: u64, sge: Sge) -> Self {
        Self {
            wr_id,
            next: std::ptr::null_mut(),
            pieces: std::ptr::null_mut(),
            count: 1,
            sge,
        }
    }
}

// SAFETY: what its pointers point at is looked at by the call alone for which they were set.
#[allow(unsafe_code)]
unsafe impl Send for RecvWr {}

/// Of posting. Its failure is a box, so that success costs one register.
pub(crate) type PostResult = std::result::Result<(), Box<PostFailure>>;

/// A chain that was not posted as a whole.
#[derive(Debug)]
pub(crate) struct PostFailure {
    /// How many the device has, or may have: all of them, if the backend cannot tell.
    pub(crate) taken: usize,
    /// Why the next one was not taken.
    pub(crate) error: VerbsError,
}

impl PostFailure {
    #[cold]
    pub(crate) fn new(taken: usize, error: VerbsError) -> Box<Self> {
        Box::new(Self { taken, error })
    }
}

/// The longest chain that is posted at once.
pub(crate) const MAX_CHAIN: usize = 16;

/// Writes completions to the room for `room` entries, oldest first; how many. Negative: the queue is
/// broken.
pub(crate) type PollFn =
    unsafe extern "C" fn(queue: *mut c_void, room: c_int, entries: *mut Completion) -> c_int;

/// A function that polls, and for which queue.
#[derive(Clone, Copy)]
pub(crate) struct RawPoller {
    poll: PollFn,
    queue: *mut c_void,
}

impl RawPoller {
    /// # Safety
    /// While the [`CompletionQueue`] that gives this out lives and stays where it is, any thread may
    /// call `poll` with `queue` and room for so many entries; it writes valid ones there, and nothing
    /// else, and keeps no pointer to them.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn new(poll: PollFn, queue: *mut c_void) -> Self {
        Self { poll, queue }
    }
}

/// Asks for one event with the next completion, or the next solicited one if the number is not 0: 0, or
/// an error as `ibv_*` return it.
pub(crate) type NotifyFn = unsafe extern "C" fn(queue: *mut c_void, solicited_only: c_int) -> c_int;

/// A function that asks for notification, and for which queue.
pub(crate) struct RawNotifier {
    notify: NotifyFn,
    queue: *mut c_void,
    /// Raised with every request, before it.
    asked: Option<Arc<AtomicU32>>,
}

impl RawNotifier {
    /// # Safety
    /// While the [`CompletionQueue`] that gives this out lives and stays where it is, any thread may
    /// call `notify` with `queue` and any number.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn new(
        notify: NotifyFn,
        queue: *mut c_void,
        asked: Option<Arc<AtomicU32>>,
    ) -> Self {
        Self {
            notify,
            queue,
            asked,
        }
    }
}

/// Polls a completion queue, and asks it for notification, by calls to where the entries come from.
/// It is asked far more often than anything else, and mostly in vain, so a table of functions in
/// between would be felt.
pub(crate) struct Poller {
    raw: RawPoller,
    notifier: RawNotifier,
    queue: Arc<dyn CompletionQueue>,
}

// SAFETY: the contracts of RawPoller::new and RawNotifier::new allow any thread, several at once too, and
// the queue may be held and dropped by any.
#[allow(unsafe_code)]
unsafe impl Send for Poller {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Poller {}

impl Poller {
    pub(crate) fn new(queue: Arc<dyn CompletionQueue>) -> Self {
        Self {
            raw: queue.raw_poller(),
            notifier: queue.raw_notifier(),
            queue,
        }
    }

    pub(crate) fn queue(&self) -> &Arc<dyn CompletionQueue> {
        &self.queue
    }

    /// Fills in entries from the front, until they are full or the queue is empty; how many.
    /// Negative: the queue is broken.
    #[inline]
    #[allow(unsafe_code)]
    pub(crate) fn poll(&self, entries: &mut [Completion; BATCH]) -> c_int {
        // SAFETY: the queue that gave it out is held, where an `Arc` does not move it, and there is room
        // for `BATCH` entries, which nobody else has meanwhile.
        unsafe { (self.raw.poll)(self.raw.queue, BATCH as c_int, entries.as_mut_ptr()) }
    }

    /// Asks for one event with the next completion: 0, or an error as `ibv_*` return it.
    #[inline]
    #[allow(unsafe_code)]
    pub(crate) fn request_notify(&self, solicited_only: bool) -> c_int {
        let RawNotifier {
            notify,
            queue,
            asked,
        } = &self.notifier;
        if let Some(asked) = asked {
            asked.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the queue that gave it out is held, where an `Arc` does not move it.
        unsafe { notify(*queue, c_int::from(solicited_only)) }
    }
}

/// Lets a backend recognise its own objects among the arguments of a call.
pub(crate) trait Downcast: Any + Send + Sync {
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<T: Any + Send + Sync> Downcast for T {
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// The concrete object of one's own backend.
pub(crate) fn same_fabric<T: Any + Send + Sync>(
    call: &'static str,
    object: Arc<dyn Any + Send + Sync>,
) -> Result<Arc<T>> {
    object
        .downcast()
        .map_err(|_| VerbsError::invalid(call, "an argument belongs to another fabric"))
}

/// The same, of an object that is borrowed.
pub(crate) fn same_kind<'a, T: Any>(call: &'static str, object: &'a dyn Any) -> Result<&'a T> {
    object
        .downcast_ref()
        .ok_or_else(|| VerbsError::invalid(call, "an argument belongs to another fabric"))
}
