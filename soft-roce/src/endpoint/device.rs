//! The device: what all handles of an endpoint stand on.
//!
//! What it does: puts the shared state together and counts.
//! What it does not do: anything with packets (`progress`) or with the CM (`cm`).

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::{self, JoinHandle, ThreadId};

use san_base::lock;

use super::config::{Config, Counters, HostAddresses, OpenError};
use super::shared::cm::{CmGuard, CmState};
use super::shared::schedule::Schedule;
use super::shared::sleepers::{Sleepers, Waiter};
use super::shared::sockets::Sockets;
use super::shared::table::{PutOff, QpTable};
use crate::cm;
use crate::driver::rendezvous::Rendezvous;
use crate::driver::route::Routes;
use crate::rc::keys::KeySource;
use crate::rc::{MrTable, Pd, ReorderBudget};

/// An endpoint.
pub(super) struct Device {
    pub(super) config: Config,
    pub(super) guid: u64,
    pub(super) keys: KeySource,
    pub(super) regions: Arc<MrTable>,
    pub(super) reorder: Arc<ReorderBudget>,
    pub(super) addresses: RwLock<Vec<IpAddr>>,
    /// Who tells of changes of those, if anybody does.
    pub(super) host: Mutex<Option<Arc<dyn HostAddresses>>>,
    pub(super) sockets: Sockets,
    pub(super) routes: Routes,
    pub(super) qps: QpTable,
    pub(super) schedule: Schedule,
    pub(super) sleepers: Sleepers,
    cm: Mutex<CmState>,
    /// Queue pairs that owe acknowledgements.
    pub(super) put_off: PutOff,
    next_pd: AtomicU32,
    /// PSN of the next CM message; nobody looks at it.
    pub(super) mad_psn: AtomicU32,
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Buffers and keys are in there: not for logs.
        f.debug_struct("Endpoint")
            .field("guid", &format_args!("{:#018x}", self.guid))
            .finish_non_exhaustive()
    }
}

impl Device {
    pub(super) fn new(config: Config) -> Result<Arc<Self>, OpenError> {
        let rendezvous = match &config.rendezvous {
            Some(dir) => Rendezvous::at(dir.clone()),
            None => Rendezvous::open(),
        };
        let rendezvous = rendezvous.map_err(OpenError::Rendezvous)?;
        let waiter = Arc::new(Waiter::new().map_err(OpenError::Descriptor)?);
        let keys = KeySource::random();
        // Locally administered, and no multicast.
        let guid = keys.next_u64() & !(0x03 << 56) | 0x02 << 56;
        let engine = cm::Engine::new(cm::Config { guid, ..config.cm }, KeySource::random());
        Ok(Arc::new(Self {
            guid,
            keys,
            regions: Arc::new(MrTable::new(config.max_mr, KeySource::random())),
            reorder: Arc::new(ReorderBudget::new(config.reorder_bytes)),
            addresses: RwLock::new(config.addresses.clone()),
            host: Mutex::default(),
            sockets: Sockets::new(rendezvous, waiter.clone()),
            routes: Routes::default(),
            qps: QpTable::default(),
            schedule: Schedule::new(config.keepalive, waiter.clone()),
            sleepers: Sleepers::new(waiter),
            cm: Mutex::new(CmState::new(engine)),
            put_off: PutOff::default(),
            next_pd: AtomicU32::new(1),
            mad_psn: AtomicU32::new(0),
            thread: Mutex::default(),
            config,
        }))
    }

    pub(super) fn lock_cm(&self) -> CmGuard<'_> {
        CmGuard::lock(&self.cm)
    }

    pub(super) fn alloc_pd(&self) -> Pd {
        Pd(self.next_pd.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn counters(&self) -> Counters {
        let mut all = Counters {
            queue_pairs: self.qps.count(),
            regions: self.regions.count(),
            reorder_bytes: self.reorder.used(),
            transport: self.qps.counters(),
            ..Counters::default()
        };
        for port in self.sockets.ports().iter() {
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
        let cm = self.lock_cm();
        all.connections = cm.engine.connections();
        all.cm = cm.engine.counters();
        all
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.sleepers.waiter.stop.store(true, Ordering::Release);
        self.sleepers.waiter.wake.signal();
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
