//! What exists between the first startup and the last cleanup, and is shared by the sockets and
//! the threads.
//!
//! It owns; it decides nothing.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use rustix::io::Errno;
use verbs_shim::fork::Generation;
use verbs_shim::{CmId, EventChannel, Fabric, VerbsError};

use crate::address_list::{self, SanAddress};
use crate::config::ProviderConfig;
use crate::control::Control;
use crate::counters::{ControlCounters, Counters};
use crate::device_context::DeviceTable;
use crate::error::Unusable;
use crate::memory::MemoryStore;
use crate::owners::Owners;
use crate::progress::{Progress, Served, Upcall};
use crate::statistics::SocketStats;
use crate::sync::lock;

pub(crate) struct Runtime {
    pub(crate) config: ProviderConfig,
    pub(crate) fabric: Fabric,
    /// `None` once the provider went down: sockets that were not let go keep nothing open.
    channel: Mutex<Option<EventChannel>>,
    pub(crate) counters: ControlCounters,
    /// What lanes have counted that are gone.
    gone: Mutex<Counters>,
    pub(crate) devices: DeviceTable,
    pub(crate) memory: Arc<MemoryStore>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) control: Arc<Control>,
    pub(crate) owners: Owners,
    sockets: Mutex<HashMap<u64, Weak<dyn OpenSocket>>>,
    socket_count: AtomicU32,
    next_number: AtomicU64,
    addresses: Mutex<Vec<SanAddress>>,
    stopped: AtomicBool,
    made: Generation,
}

/// What the provider asks of any socket that is open.
pub(crate) trait OpenSocket: Send + Sync {
    /// Closes it.
    fn shut(&self);

    /// Its statistics now, whatever state it is in.
    fn stats(&self) -> SocketStats;
}

/// A place among the sockets, given back when dropped.
#[derive(Debug)]
pub(crate) struct SocketPlace(Arc<Runtime>);

impl Drop for SocketPlace {
    fn drop(&mut self) {
        self.0.socket_count.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Runtime {
    pub(crate) fn new(
        config: ProviderConfig,
        fabric: Fabric,
        channel: EventChannel,
        progress: Arc<Progress>,
        control: Arc<Control>,
        memory: Arc<MemoryStore>,
    ) -> Self {
        Self {
            config,
            fabric,
            channel: Mutex::new(Some(channel)),
            counters: ControlCounters::default(),
            gone: Mutex::default(),
            devices: DeviceTable::default(),
            memory,
            progress,
            control,
            owners: Owners::default(),
            sockets: Mutex::new(HashMap::new()),
            socket_count: AtomicU32::new(0),
            next_number: AtomicU64::new(1),
            addresses: Mutex::new(Vec::new()),
            stopped: AtomicBool::new(false),
            made: Generation::now(),
        }
    }

    /// Takes a place for a socket; `None`: there are as many as are allowed (duty 68).
    pub(crate) fn socket_place(self: &Arc<Self>) -> Option<SocketPlace> {
        let limit = self.config.max_sockets;
        let taken = self
            .socket_count
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < limit).then_some(n + 1)
            });
        taken.ok().map(|_| SocketPlace(Arc::clone(self)))
    }

    /// A number that no other socket has or had.
    pub(crate) fn next_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn add_socket<S: OpenSocket + 'static>(&self, number: u64, socket: &Arc<S>) {
        let socket = Arc::downgrade(socket);
        lock(&self.sockets).insert(number, socket);
    }

    pub(crate) fn remove_socket(&self, number: u64) {
        lock(&self.sockets).remove(&number);
    }

    pub(crate) fn sockets(&self) -> Vec<Arc<dyn OpenSocket>> {
        lock(&self.sockets)
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// The provider went down: every call says so from now on.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        lock(&self.channel).take();
    }

    /// Where CM events come; `None` once the provider went down.
    pub(crate) fn channel(&self) -> Option<EventChannel> {
        lock(&self.channel).clone()
    }

    /// A new CM id.
    pub(crate) fn new_id(&self) -> Result<CmId, VerbsError> {
        let gone = || VerbsError::from_errno("rdma_create_id", Errno::NODEV.raw_os_error());
        CmId::new(&self.channel().ok_or_else(gone)?)
    }

    /// Whether sockets can be used in this process. Asked before any lock is taken: in a forked
    /// child nobody may be left to open it.
    pub(crate) fn usable(&self) -> Result<(), Unusable> {
        if self.made.is_past() {
            return Err(Unusable::Inherited);
        }
        match self.stopped.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(Unusable::Stopped),
        }
    }

    /// Whether it is another process's, which this one was forked from.
    pub(crate) fn is_inherited(&self) -> bool {
        self.made.is_past()
    }

    /// Counters of everything.
    pub(crate) fn counters(&self) -> Counters {
        // Held to the end: a lane is either gone or there.
        let gone = lock(&self.gone);
        let mut counters = *gone;
        self.counters.add_to(&mut counters);
        counters.upcalls = self.progress.made();
        let cache = self.memory.counts();
        counters.cache_hits = cache.hits;
        counters.cache_misses = cache.misses;
        counters.cache_evictions = cache.evictions;
        counters.cache_invalidations = cache.invalidations;
        counters.cache_bypasses = cache.bypasses;
        for lane in self.progress.lanes() {
            counters.add_data(lane.counters());
            counters.sleeps += lane.sleeps();
        }
        counters
    }

    /// A look, two a second, of the thread `san-progress`: lanes and registrations that nobody has used for
    /// long go, and their memory with them.
    pub(crate) fn drop_unused(&self) {
        self.memory.drop_unused(Instant::now());
        let mut gone = lock(&self.gone);
        let lanes = self.devices.take_unused();
        for lane in &lanes {
            gone.add_data(lane.counted());
            gone.sleeps += Served::sleeps(&**lane);
        }
        drop(gone);
        // The device takes its time for each; nobody waits for that.
        for lane in lanes {
            tracing::debug!(lane = lane.name, "a lane that nobody uses goes");
        }
    }

    /// The list of local addresses as it is now. The switch is told if it changed (duties 8, 66).
    pub(crate) fn refresh_addresses(&self) -> Vec<SanAddress> {
        let known = lock(&self.addresses).clone();
        let now = address_list::read(&self.fabric, &known);
        let before = std::mem::replace(&mut *lock(&self.addresses), now.clone());
        let as_set = |list: &[SanAddress]| list.iter().cloned().collect::<HashSet<_>>();
        if as_set(&before) != as_set(&now) {
            self.counters.address_list_changes.raise();
            tracing::debug!(addresses = now.len(), "address list changed");
            self.progress.push(Upcall::AddressListChanged);
        }
        now
    }

    /// The first list: nobody is told of a change.
    pub(crate) fn read_addresses(&self) {
        *lock(&self.addresses) = address_list::read(&self.fabric, &[]);
    }

    /// Whether `ip` is an address of one of the provider's devices.
    pub(crate) fn is_local(&self, ip: IpAddr) -> bool {
        let known = lock(&self.addresses).iter().any(|a| a.takes(ip));
        // It may have come this moment.
        known || self.refresh_addresses().iter().any(|a| a.takes(ip))
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime")
            .field("fabric", &self.fabric)
            .finish_non_exhaustive()
    }
}
