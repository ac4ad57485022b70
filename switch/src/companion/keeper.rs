//! The keeper of all listeners' companions: it makes and retires them, and rebuilds the table of
//! subnets they depend on.
//!
//! When that is due is decided by who calls: `Listener::open` (listen), `Switch::add_provider` (a
//! new provider) and the accept thread (a change of addresses). No lock is held across a call to a
//! provider.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use ipnet::IpNet;
use san_base::lock;

use super::plan::{Wanted, wanted};
use super::shared::ListenerShared;
use super::socket::Companion;
use super::watch::Watch;
use crate::counters::SwitchCounters;
use crate::route::Routes;
use crate::route::table::{SanEntry, SanTable};
use crate::san::failure::StepFailure;
use crate::san::provider::StartedProvider;
use crate::san::providers::Providers;
use crate::san::signals::Signals;

/// The keeper, one per switch.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(super) watch: Watch,
    providers: Arc<Providers>,
    routes: Arc<Routes>,
    counters: Arc<SwitchCounters>,
    /// Loopback addresses count as SAN addresses.
    loopback: bool,
    /// Subnets that are reached by a router.
    subnets: Vec<IpNet>,
    refresh: AtomicU8,
}

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const AGAIN: u8 = 2;

impl Keeper {
    pub(crate) fn new(
        providers: Arc<Providers>,
        routes: Arc<Routes>,
        counters: Arc<SwitchCounters>,
        loopback: bool,
        subnets: Vec<IpNet>,
    ) -> io::Result<Self> {
        Ok(Self {
            watch: Watch::new()?,
            providers,
            routes,
            counters,
            loopback,
            subnets,
            refresh: AtomicU8::new(IDLE),
        })
    }

    /// How the accept thread is told things.
    pub(crate) fn signals(&self) -> &Arc<Signals> {
        &self.watch.signals
    }

    /// A number for a listener.
    pub(crate) fn new_token(&self) -> u64 {
        self.watch.new_token()
    }

    /// Every listener that is open.
    pub(crate) fn listeners(&self) -> Vec<Arc<ListenerShared>> {
        self.watch.listeners()
    }

    /// Takes a listener in: it gets its companions.
    pub(crate) fn add(&self, listener: &Arc<ListenerShared>) {
        self.watch.add_listener(listener);
        self.ensure(listener, false);
    }

    /// A SAN connection is about to be queued: from the first one on, arrivals on TCP are stamped.
    pub(super) fn stamp_arrivals(&self, listener: &ListenerShared) {
        if listener.begin_to_stamp()
            && let Err(error) = self.watch.hear_tcp(listener)
        {
            tracing::warn!(%error, "connections over TCP come in no order with those over the SAN");
        }
    }

    /// Another process listens on: the companions here are closed, so that it can have them.
    pub(crate) fn leave(&self, listener: &ListenerShared) {
        self.forget(listener);
        listener.leave();
    }

    /// Closes both sides of a listener; again does nothing.
    pub(crate) fn close(&self, listener: &ListenerShared) {
        let Some(waiting) = listener.close() else {
            return;
        };
        // Out of the books first, so that no companion is made for it any more.
        self.forget(listener);
        listener.stop();
        drop(waiting);
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
                self.ensure(&listener, true);
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

    /// Takes a companion out of the epoll set and closes it.
    pub(super) fn retire(&self, companion: &Companion) {
        self.watch.remove_companion(companion);
        companion.socket.close();
    }

    /// Makes the companions that a listener lacks and retires those it should not have. Places
    /// that failed are tried again only if `retry`.
    fn ensure(&self, listener: &Arc<ListenerShared>, retry: bool) {
        if listener.is_tcp_alone {
            return;
        }
        let mut retry = retry;
        loop {
            let providers = self.providers.all();
            let table = self.routes.table();
            let wanted = wanted(&table, providers.len(), listener.address, listener.only_v6);
            let plan = lock(&listener.companions).plan(&wanted, retry);
            if plan.make.is_empty() && plan.close.is_empty() {
                return;
            }
            for companion in plan.close {
                self.retire(&companion);
            }
            for place in plan.make {
                let outcome = self.make(listener, place, &providers[place.provider]);
                let surplus = lock(&listener.companions).made(place, outcome);
                if let Some(companion) = surplus {
                    self.retire(&companion);
                }
            }
            // The table may have changed while the companions were being made.
            retry = false;
        }
    }

    /// Makes a companion and has the accept thread watch it.
    fn make(
        &self,
        listener: &Arc<ListenerShared>,
        place: Wanted,
        provider: &Arc<StartedProvider>,
    ) -> Result<Arc<Companion>, StepFailure> {
        let token = self.new_token();
        let made = Companion::listen(token, provider, place.address, listener.backlog)
            .and_then(|companion| self.watched(listener, Arc::new(companion)));
        match &made {
            Ok(_) => self.counters.companions_made.raise(),
            Err(failure) => {
                self.counters.companions_failed.raise();
                tracing::warn!(
                    address = %place.address, step = failure.step, reason = %failure.source,
                    "no companion; TCP goes on without it"
                );
            }
        }
        made
    }

    fn watched(
        &self,
        listener: &Arc<ListenerShared>,
        companion: Arc<Companion>,
    ) -> Result<Arc<Companion>, StepFailure> {
        if let Err(error) = self.watch.add_companion(listener, &companion) {
            self.retire(&companion);
            return Err(StepFailure::system("watch its event object", error));
        }
        Ok(companion)
    }

    /// Forgets a listener and closes its companions.
    fn forget(&self, listener: &ListenerShared) {
        self.watch.remove_listener(listener);
        let companions = lock(&listener.companions).close();
        for companion in companions {
            self.retire(&companion);
        }
    }

    fn rebuild_table(&self) {
        let mut entries = Vec::new();
        let mut without_wildcard = Vec::new();
        for (number, started) in self.providers.all().iter().enumerate() {
            if let Ok(false) = started.provider.is_wildcard_ours() {
                without_wildcard.push(number);
            }
            match started.provider.address_list() {
                Ok(addresses) => entries.extend(addresses.into_iter().map(|address| SanEntry {
                    provider: number,
                    ip: address.ip,
                    prefix_len: address.prefix_len,
                    device: address.device,
                    ifindex: address.ifindex,
                })),
                Err(error) => tracing::warn!(
                    provider = started.name, %error, "the provider does not tell its addresses"
                ),
            }
        }
        let table = SanTable::new(entries, self.loopback)
            .routed(self.subnets.clone())
            .without_wildcard(without_wildcard);
        tracing::debug!(
            subnets = table.entries().len(),
            "table of SAN subnets rebuilt"
        );
        self.routes.replace(table);
        self.counters.table_rebuilds.raise();
    }
}
