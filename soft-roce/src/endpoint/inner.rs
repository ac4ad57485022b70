//! What all handles of an endpoint share.
//!
//! What it does: holds it; opens sockets; knows the time.
//! What it does not do: anything with packets (`progress`) or with the CM (`cm`).

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use rustix::event::epoll;
pub(super) use san_base::lock;

use super::cm::CmState;
use super::config::{Config, Counters, HostAddresses, OpenError};
use super::cq::{Activity, ChannelShared};
use super::qp::QpShared;
use super::timers::{NEVER, Timers};
use crate::cm::{self, ConnKey};
use crate::driver::port::Port;
use crate::driver::rendezvous::{Entry, PATIENCE, Registration, Rendezvous, STEP};
use crate::driver::wake::Wake;
use crate::rc::keys::KeySource;
use crate::rc::{self, MrTable, Pd, ReorderBudget};
use crate::time::Time;
use crate::wire::ROCE_PORT;

/// So many locks for finding queue pairs that readers hardly ever meet.
const SHARDS: usize = 16;

type Shard = RwLock<HashMap<u32, Arc<QpShared>>>;

/// An endpoint.
pub(super) struct Inner {
    pub(super) config: Config,
    pub(super) guid: u64,
    pub(super) keys: KeySource,
    pub(super) regions: Arc<MrTable>,
    pub(super) reorder: Arc<ReorderBudget>,
    start: Instant,
    pub(super) addresses: RwLock<Vec<IpAddr>>,
    /// Who tells of changes of those, if anybody does.
    pub(super) host: Mutex<Option<Arc<dyn HostAddresses>>>,
    /// Never held while packets are handled: that takes other locks, under which ports are added.
    ports: RwLock<Arc<Vec<Arc<Port>>>>,
    qps: [Shard; SHARDS],
    /// What queue pairs that are gone have counted. Taken before the locks of queue pairs.
    gone: Mutex<rc::Counters>,
    pub(super) timers: Timers,
    pub(super) cm: Mutex<CmState>,
    /// When the CM wants to be woken, in nanoseconds.
    pub(super) cm_deadline: AtomicU64,
    /// Connections whose queue pair has found the peer dead; the CM is told when
    /// its lock may be taken.
    pub(super) dead: Mutex<Vec<ConnKey>>,
    pub(super) rendezvous: Rendezvous,
    /// Queue pairs that owe acknowledgements.
    pub(super) put_off: PutOff,
    next_pd: AtomicU32,
    /// PSN of the next CM message; nobody looks at it.
    pub(super) mad_psn: AtomicU32,
    pub(super) waiter: Arc<Waiter>,
    pub(super) activity: Activity,
    /// Those that wait behind the one who works the sockets.
    followers: Mutex<Vec<Arc<ChannelShared>>>,
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
}

/// Queue pairs whose acknowledgements wait for the next look at the sockets.
#[derive(Debug, Default)]
pub(super) struct PutOff {
    queue: Mutex<Vec<Arc<QpShared>>>,
    len: AtomicUsize,
}

impl PutOff {
    pub(super) fn push(&self, qp: Arc<QpShared>) {
        let mut queue = lock(&self.queue);
        queue.push(qp);
        self.len.store(queue.len(), Ordering::Release);
    }

    pub(super) fn pop(&self) -> Option<Arc<QpShared>> {
        if self.len.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut queue = lock(&self.queue);
        let qp = queue.pop();
        self.len.store(queue.len(), Ordering::Release);
        qp
    }
}

/// What a thread sleeps on. It outlives the endpoint, so that sleeping does not
/// keep the endpoint alive.
#[derive(Debug)]
pub(super) struct Waiter {
    /// All sockets.
    sockets: OwnedFd,
    /// For the endpoint's thread.
    pub(super) wake: Wake,
    /// Until when the thread sleeps, in nanoseconds.
    pub(super) sleeps_until: AtomicU64,
    /// Whether somebody sleeps on the sockets in the thread's place.
    pub(super) led: AtomicBool,
    /// How many sockets that one watches.
    pub(super) watched: AtomicUsize,
    /// Whether the thread leaves the sockets to others.
    pub(super) stands_back: AtomicBool,
    pub(super) stop: AtomicBool,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Buffers and keys are in there: not for logs.
        f.debug_struct("Endpoint")
            .field("guid", &format_args!("{:#018x}", self.guid))
            .finish_non_exhaustive()
    }
}

impl AsFd for Waiter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sockets.as_fd()
    }
}

/// Whoever holds it sleeps on the sockets; the thread does not.
#[derive(Debug)]
pub(super) struct Leader<'a>(&'a Waiter);

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        self.0.led.store(false, Ordering::Release);
    }
}

impl Inner {
    pub(super) fn new(config: Config) -> Result<Arc<Self>, OpenError> {
        let rendezvous = match &config.rendezvous {
            Some(dir) => Rendezvous::at(dir.clone()),
            None => Rendezvous::open(),
        };
        let sockets = epoll::create(epoll::CreateFlags::CLOEXEC);
        let waiter = Waiter {
            sockets: sockets.map_err(|why| OpenError::Descriptor(why.into()))?,
            wake: Wake::new().map_err(OpenError::Descriptor)?,
            sleeps_until: AtomicU64::new(0),
            led: AtomicBool::new(false),
            watched: AtomicUsize::new(0),
            stands_back: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        };
        let keys = KeySource::random();
        // Locally administered, and no multicast.
        let guid = keys.next_u64() & !(0x03 << 56) | 0x02 << 56;
        let engine = cm::Engine::new(cm::Config { guid, ..config.cm }, KeySource::random());
        Ok(Arc::new(Self {
            guid,
            keys,
            regions: Arc::new(MrTable::new(config.max_mr, KeySource::random())),
            reorder: Arc::new(ReorderBudget::new(config.reorder_bytes)),
            start: Instant::now(),
            addresses: RwLock::new(config.addresses.clone()),
            host: Mutex::default(),
            ports: RwLock::default(),
            qps: Default::default(),
            gone: Mutex::default(),
            timers: Timers::new(),
            cm: Mutex::new(CmState::new(engine)),
            cm_deadline: AtomicU64::new(NEVER),
            dead: Mutex::default(),
            rendezvous: rendezvous.map_err(OpenError::Rendezvous)?,
            put_off: PutOff::default(),
            next_pd: AtomicU32::new(1),
            mad_psn: AtomicU32::new(0),
            waiter: Arc::new(waiter),
            activity: Activity::default(),
            followers: Mutex::default(),
            thread: Mutex::default(),
            config,
        }))
    }

    /// The time, as the engines count it.
    pub(super) fn now(&self) -> Time {
        Time::ZERO + self.start.elapsed()
    }

    pub(super) fn alloc_pd(&self) -> Pd {
        Pd(self.next_pd.fetch_add(1, Ordering::Relaxed))
    }

    /// Becomes the one who sleeps on the sockets, if nobody is.
    pub(super) fn lead(&self) -> Option<Leader<'_>> {
        let led = &self.waiter.led;
        led.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
            .then(|| Leader(&self.waiter))
    }

    /// Waits behind the leader.
    pub(super) fn follow(&self, channel: &Arc<ChannelShared>) {
        lock(&self.followers).push(channel.clone());
    }

    /// Waits no longer. False: was roused to lead.
    pub(super) fn unfollow(&self, channel: &Arc<ChannelShared>) -> bool {
        let mut followers = lock(&self.followers);
        let at = followers
            .iter()
            .position(|other| Arc::ptr_eq(other, channel));
        at.map(|at| followers.swap_remove(at)).is_some()
    }

    /// Has one that waits work the sockets, unless somebody does.
    pub(super) fn rouse_follower(&self) {
        if !self.waiter.led.load(Ordering::Acquire)
            && let Some(channel) = lock(&self.followers).pop()
        {
            channel.rouse();
        }
    }

    /// A user will sleep on a descriptor: has the thread work the sockets.
    pub(super) fn arm(&self) {
        self.activity.note_armed();
        if self.waiter.stands_back.load(Ordering::Acquire) {
            self.waiter.wake.signal();
        }
    }

    /// The earliest deadline of any engine, in nanoseconds.
    pub(super) fn next_deadline(&self) -> u64 {
        self.timers
            .next()
            .min(self.cm_deadline.load(Ordering::Acquire))
    }

    pub(super) fn until_next_timer(&self) -> Duration {
        let next = self.next_deadline();
        Duration::from_nanos(next.saturating_sub(self.now().nanos()))
    }

    /// Wakes the thread if it would sleep past `at`.
    pub(super) fn thread_by(&self, at: u64) {
        if at < self.waiter.sleeps_until.load(Ordering::Acquire) {
            self.waiter.wake.signal();
        }
    }

    /// Has the CM end a connection soon: the peer does not answer any more.
    pub(super) fn note_dead(&self, conn: u32) {
        if conn != 0 {
            lock(&self.dead).push(ConnKey(conn));
            self.cm_deadline.store(0, Ordering::Release);
            self.thread_by(0);
        }
    }

    // --- queue pairs ---

    /// Puts a queue pair under a number of its own.
    pub(super) fn insert_qp(&self, qpn: u32, qp: Arc<QpShared>) -> bool {
        let mut shard = self
            .shard(qpn)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match shard.entry(qpn) {
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(qp);
                true
            }
            std::collections::hash_map::Entry::Occupied(_) => false,
        }
    }

    /// Takes a queue pair out, and never another one that has its number by now. What it has counted stays.
    pub(super) fn remove_qp(&self, qpn: u32, qp: &Arc<QpShared>) {
        let mut gone = lock(&self.gone);
        let mut shard = self
            .shard(qpn)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if shard.get(&qpn).is_some_and(|known| Arc::ptr_eq(known, qp)) {
            shard.remove(&qpn);
            drop(shard);
            gone.add(&qp.counters());
        }
    }

    pub(super) fn qp(&self, qpn: u32) -> Option<Arc<QpShared>> {
        let shard = self
            .shard(qpn)
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        shard.get(&qpn).cloned()
    }

    pub(super) fn qp_count(&self) -> usize {
        let len = |shard: &Shard| shard.read().unwrap_or_else(PoisonError::into_inner).len();
        self.qps.iter().map(len).sum()
    }

    /// What all queue pairs have counted.
    fn transport_counters(&self) -> rc::Counters {
        let gone = lock(&self.gone);
        let mut all = *gone;
        for shard in &self.qps {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            let there: Vec<_> = shard.values().cloned().collect();
            drop(shard);
            for qp in there {
                all.add(&qp.counters());
            }
        }
        all
    }

    fn shard(&self, qpn: u32) -> &Shard {
        &self.qps[qpn as usize % SHARDS]
    }

    // --- sockets ---

    /// The sockets as they are now.
    pub(super) fn ports(&self) -> Arc<Vec<Arc<Port>>> {
        Arc::clone(&self.ports.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn port_at(&self, local: SocketAddr) -> Option<Arc<Port>> {
        self.ports()
            .iter()
            .find(|port| port.local() == local)
            .cloned()
    }

    /// A socket on `ip` for connecting. `far`: the peer is on another host, and
    /// may answer to port 4791 only.
    pub(super) fn port_to_connect(&self, ip: IpAddr, far: bool) -> io::Result<Arc<Port>> {
        let on_ip: Vec<_> = self
            .ports()
            .iter()
            .filter(|port| port.local().ip() == ip)
            .cloned()
            .collect();
        if let Some(port) = on_ip.iter().find(|port| port.is_public()) {
            return Ok(port.clone());
        }
        if far {
            match self.open_public(ip) {
                Ok(port) => return Ok(port),
                Err(why) => tracing::info!(
                    %ip, %why,
                    "no UDP port 4791 here: only peers of this crate will be reached"
                ),
            }
        }
        match on_ip.into_iter().next() {
            Some(port) => Ok(port),
            None => self.open_port(ip, None, None),
        }
    }

    /// A socket on `ip` for listening: port 4791, or a private one if another
    /// endpoint of this user on this host has that.
    ///
    /// # Errors
    /// `AddrInUse`: somebody else has port 4791 of this address: the kernel's
    /// `rdma_rxe`, or another user.
    pub(super) fn port_to_listen(&self, ip: IpAddr) -> io::Result<Arc<Port>> {
        let public = self
            .ports()
            .iter()
            .find(|port| port.local().ip() == ip && port.is_public())
            .cloned();
        if let Some(port) = public {
            return Ok(port);
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let why = match self.open_public(ip) {
                Ok(port) => return Ok(port),
                Err(why) if why.kind() == io::ErrorKind::AddrInUse => why,
                Err(why) => return Err(why),
            };
            if self.rendezvous.find(Entry::Public(ip)).is_some() {
                break;
            }
            // Whoever has the port may be about to say so, or about to end.
            if Instant::now() >= until {
                let text = format!(
                    "UDP port {ROCE_PORT} of {ip} is taken by another user or by the kernel's rdma_rxe: {why}"
                );
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
            thread::sleep(STEP);
        }
        let private = self
            .ports()
            .iter()
            .find(|port| port.local().ip() == ip)
            .cloned();
        match private {
            Some(port) => Ok(port),
            None => self.open_port(ip, None, None),
        }
    }

    fn open_public(&self, ip: IpAddr) -> io::Result<Arc<Port>> {
        let port = Port::open(ip, Some(ROCE_PORT))?;
        // Whoever has the port has the entry; a leftover is overwritten.
        let entry = self.rendezvous.register(Entry::Public(ip), ROCE_PORT).ok();
        self.add_port(port, entry)
    }

    fn open_port(
        &self,
        ip: IpAddr,
        port: Option<u16>,
        entry: Option<Registration>,
    ) -> io::Result<Arc<Port>> {
        self.add_port(Port::open(ip, port)?, entry)
    }

    fn add_port(&self, mut port: Port, entry: Option<Registration>) -> io::Result<Arc<Port>> {
        port.registration = entry;
        let port = Arc::new(port);
        let data = epoll::EventData::new_u64(0);
        epoll::add(&self.waiter.sockets, &port, data, epoll::EventFlags::IN)?;
        tracing::debug!(local = %port.local(), window = port.window(), "socket");
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut ports).push(port.clone());
        Ok(port)
    }

    /// Closes the sockets on an address that no queue pair or id holds. Whoever
    /// sleeps on them lets go of them when it wakes.
    pub(super) fn close_ports(&self, ip: IpAddr) {
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        let idle = |port: &Arc<Port>| port.local().ip() == ip && Arc::strong_count(port) == 1;
        let kept: Vec<_> = ports.iter().filter(|port| !idle(port)).cloned().collect();
        if kept.len() < ports.len() {
            *ports = Arc::new(kept);
            // The thread looks after what is opened next until the sleeper has
            // counted anew.
            self.waiter.watched.store(0, Ordering::Release);
        }
    }

    pub(super) fn counters(&self) -> Counters {
        let mut all = Counters {
            queue_pairs: self.qp_count(),
            regions: self.regions.count(),
            reorder_bytes: self.reorder.used(),
            transport: self.transport_counters(),
            ..Counters::default()
        };
        for port in self.ports().iter() {
            let c = &port.counters;
            let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            all.sent_packets += get(&c.sent_packets);
            all.sent_calls += get(&c.sent_calls);
            all.send_dropped += get(&c.send_dropped);
            all.received_packets += get(&c.received_packets);
            all.received_calls += get(&c.received_calls);
            all.bad_icrc += get(&c.bad_icrc);
            all.malformed += get(&c.malformed);
            all.unknown_qp += get(&c.unknown_qp);
            all.foreign_source += get(&c.foreign_source);
        }
        let cm = lock(&self.cm);
        all.connections = cm.engine.connections();
        all.cm = cm.engine.counters();
        all
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.waiter.stop.store(true, Ordering::Release);
        self.waiter.wake.signal();
        let thread = lock(&self.thread).take();
        // The last handle may have been the thread's own.
        let me: ThreadId = thread::current().id();
        if let Some(thread) = thread
            && thread.thread().id() != me
        {
            // A panic there has been reported by the runtime.
            let _ = thread.join();
        }
    }
}
