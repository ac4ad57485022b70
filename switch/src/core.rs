//! What the switch's parts share: providers, the table of subnets, listeners, the accept thread's
//! epoll set.
//!
//! It makes and retires companions and rebuilds the table; when that is due is decided by
//! `net/listener.rs` (listen), `switch.rs` (a new provider) and `companion/accept_thread.rs` (a change of
//! addresses). No lock is held across a call to a provider.

use crate::companion::plan::{CompanionFailure, Place, wanted};
use crate::config::SwitchConfig;
use crate::counters::SwitchCounters;
use crate::error::FallbackReason;
use crate::net::connection::OpenConnections;
use crate::net::listener::ListenerShared;
use crate::route::negative_cache::NegativeCache;
use crate::route::table::{SanEntry, SanTable};
use crate::san::provider::{ProviderSocket, Registered};
use rustix::event::epoll;
use san_base::{Signal, lock};
use san_provider::{EventObject, NetworkEvents, SocketOption};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

/// The token of the wake-up signal in the epoll set.
pub(crate) const WAKE: u64 = 0;

/// How the accept thread is told things from outside, upcalls included.
#[derive(Debug)]
pub(crate) struct Signals {
    pub(crate) wake: Signal,
    pub(crate) addresses_changed: AtomicBool,
    pub(crate) stop: AtomicBool,
}

/// A listening companion.
#[derive(Debug)]
pub(crate) struct Companion {
    pub(crate) token: u64,
    pub(crate) provider: Arc<Registered>,
    pub(crate) socket: ProviderSocket,
    pub(crate) event: EventObject,
}

/// What a token of the epoll set stands for.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Tcp(Arc<ListenerShared>),
    Companion(Arc<ListenerShared>, Arc<Companion>),
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: SwitchConfig,
    pub(crate) counters: SwitchCounters,
    pub(crate) signals: Arc<Signals>,
    pub(crate) epoll: OwnedFd,
    pub(crate) negative: Mutex<NegativeCache<FallbackReason>>,
    pub(crate) closed: AtomicBool,
    pub(crate) connections: OpenConnections,
    /// Why there is no provider, where one was looked for.
    pub(crate) absent: Option<String>,
    pub(crate) started: Instant,
    providers: RwLock<Vec<Arc<Registered>>>,
    table: RwLock<Arc<SanTable>>,
    sources: Mutex<HashMap<u64, Source>>,
    next_token: AtomicU64,
    refresh: AtomicU8,
}

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const AGAIN: u8 = 2;

impl Core {
    pub(crate) fn new(config: SwitchConfig, absent: Option<String>) -> io::Result<Self> {
        let signals = Signals {
            wake: Signal::new()?,
            addresses_changed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&epoll, signals.wake.as_fd(), data, epoll::EventFlags::IN)?;
        Ok(Core {
            negative: Mutex::new(NegativeCache::new(config.negative_cache)),
            config,
            counters: SwitchCounters::default(),
            signals: Arc::new(signals),
            epoll,
            closed: AtomicBool::new(false),
            connections: OpenConnections::default(),
            absent,
            started: Instant::now(),
            providers: RwLock::default(),
            table: RwLock::default(),
            sources: Mutex::default(),
            next_token: AtomicU64::new(WAKE + 1),
            refresh: AtomicU8::new(IDLE),
        })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn table(&self) -> Arc<SanTable> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn providers(&self) -> Vec<Arc<Registered>> {
        let providers = self.providers.read();
        providers.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn provider(&self, index: usize) -> Option<Arc<Registered>> {
        let providers = self.providers.read();
        let providers = providers.unwrap_or_else(PoisonError::into_inner);
        providers.get(index).cloned()
    }

    pub(crate) fn add_provider(&self, provider: Arc<Registered>) {
        let providers = self.providers.write();
        providers
            .unwrap_or_else(PoisonError::into_inner)
            .push(provider);
    }

    /// Asks every provider for its addresses, replaces the table, and brings all listeners'
    /// companions in line with it (duties 6, 7, 8). When another thread is at it already, that
    /// thread does it once more.
    pub(crate) fn refresh(&self) {
        let start = self
            .refresh
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                Some(if state == IDLE { RUNNING } else { AGAIN })
            });
        if start != Ok(IDLE) {
            return;
        }
        loop {
            self.rebuild_table();
            for listener in self.listeners() {
                self.ensure_companions(&listener, true);
            }
            let end =
                self.refresh
                    .compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire);
            if end.is_ok() {
                return;
            }
            self.refresh.store(RUNNING, Ordering::Release);
        }
    }

    /// Makes the companions that a listener lacks and retires those it should not have.
    pub(crate) fn ensure_companions(&self, listener: &Arc<ListenerShared>, retry: bool) {
        let mut retry = retry;
        loop {
            let providers = self.providers();
            let places = wanted(
                &self.table(),
                providers.len(),
                listener.address,
                listener.only_v6,
            );
            let plan = lock(&listener.companions).plan(&places, retry);
            if plan.make.is_empty() && plan.close.is_empty() {
                return;
            }
            for companion in plan.close {
                self.retire(&companion);
            }
            for place in plan.make {
                let outcome = self.make_companion(listener, place, &providers[place.provider]);
                match &outcome {
                    Ok(_) => self.counters.companions_made.raise(),
                    Err(failure) => {
                        self.counters.companions_failed.raise();
                        tracing::warn!(
                            address = %place.address, step = failure.step, reason = failure.reason,
                            "no companion; TCP goes on without it"
                        );
                    }
                }
                let surplus = lock(&listener.companions).made(place, outcome);
                if let Some(companion) = surplus {
                    self.retire(&companion);
                }
            }
            // The table may have changed while the companions were being made.
            retry = false;
        }
    }

    /// Takes a companion out of the epoll set and closes it.
    pub(crate) fn retire(&self, companion: &Companion) {
        lock(&self.sources).remove(&companion.token);
        let _ = epoll::delete(&self.epoll, companion.event.as_fd());
        companion.socket.close();
    }

    /// Watches a listener's TCP socket for arrivals, edge-triggered: each gives one stamp.
    pub(crate) fn watch_listener(&self, listener: &Arc<ListenerShared>) -> io::Result<()> {
        lock(&self.sources).insert(listener.token, Source::Tcp(Arc::clone(listener)));
        let data = epoll::EventData::new_u64(listener.token);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, listener.tcp.as_fd(), data, flags)?;
        Ok(())
    }

    /// Forgets a listener and closes its companions.
    pub(crate) fn forget_listener(&self, listener: &ListenerShared) {
        lock(&self.sources).remove(&listener.token);
        let _ = epoll::delete(&self.epoll, listener.tcp.as_fd());
        let companions = lock(&listener.companions).close();
        for companion in companions {
            self.retire(&companion);
        }
    }

    pub(crate) fn new_token(&self) -> u64 {
        self.next_token.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn source(&self, token: u64) -> Option<Source> {
        lock(&self.sources).get(&token).cloned()
    }

    /// Every listener that is open.
    pub(crate) fn listeners(&self) -> Vec<Arc<ListenerShared>> {
        lock(&self.sources)
            .values()
            .filter_map(|source| match source {
                Source::Tcp(listener) => Some(Arc::clone(listener)),
                Source::Companion(..) => None,
            })
            .collect()
    }

    /// Has the companion's event object tell the accept thread, or stops that for a while.
    pub(crate) fn watch_companion(&self, companion: &Companion, on: bool) -> io::Result<()> {
        let data = epoll::EventData::new_u64(companion.token);
        let fd = companion.event.as_fd();
        if on {
            epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?;
        } else {
            epoll::delete(&self.epoll, fd)?;
        }
        Ok(())
    }

    fn rebuild_table(&self) {
        let mut entries = Vec::new();
        for (index, registered) in self.providers().iter().enumerate() {
            match registered.provider.address_list() {
                Ok(addresses) => entries.extend(addresses.into_iter().map(|address| SanEntry {
                    provider: index,
                    ip: address.ip,
                    prefix_len: address.prefix_len,
                    device: address.device,
                    ifindex: address.ifindex,
                })),
                Err(error) => tracing::warn!(
                    provider = registered.name, %error, "the provider does not tell its addresses"
                ),
            }
        }
        let table = Arc::new(SanTable::new(entries, self.config.loopback));
        tracing::debug!(
            subnets = table.entries().len(),
            "table of SAN subnets rebuilt"
        );
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
        lock(&self.negative).clear();
        self.counters.table_rebuilds.raise();
    }

    /// Duties 13-16, 24-26: socket, bind, event object, listen; then the accept thread watches.
    fn make_companion(
        &self,
        listener: &Arc<ListenerShared>,
        place: Place,
        provider: &Arc<Registered>,
    ) -> Result<Arc<Companion>, CompanionFailure> {
        let socket = provider.socket(place.address)?;
        // Duty 15: as TCP's listening socket has it.
        socket.set_option(SocketOption::ReuseAddr, 1)?;
        socket.bind(place.address)?;
        let event = provider.event_object()?;
        socket.event_select(&event, NetworkEvents::ACCEPT)?;
        socket.listen(listener.backlog)?;
        let companion = Arc::new(Companion {
            token: self.new_token(),
            provider: Arc::clone(provider),
            socket,
            event,
        });
        let source = Source::Companion(Arc::clone(listener), Arc::clone(&companion));
        lock(&self.sources).insert(companion.token, source);
        if let Err(error) = self.watch_companion(&companion, true) {
            self.retire(&companion);
            return Err(CompanionFailure::system("watch its event object", &error));
        }
        Ok(companion)
    }
}
