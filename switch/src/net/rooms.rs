//! The rooms of one switch, and what keeps them open.
//!
//! Each room has its own locks; nothing is decided here. The switch itself (`switch.rs`) owns the
//! threads and ends with the last [`Lease`].

use std::any::Any;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::closing::Closing;
use super::handover::offers::Offers;
use super::registry::OpenConnections;
use crate::companion::keeper::Keeper;
use crate::companion::plan::canonical;
use crate::config::{FabricChoice, RouteChoice, SwitchConfig};
use crate::counters::SwitchCounters;
use crate::policy::SocketRole;
use crate::route::Routes;
use crate::route::fallback::{NotTried, Route};
use crate::route::table::RouteQuery;
use crate::san::providers::Providers;
use crate::upgrade::service::Service;
use crate::upgrade::thread;

/// What listeners, connects and connections of one switch share.
#[derive(Debug)]
pub(crate) struct Rooms {
    pub(crate) config: SwitchConfig,
    pub(crate) counters: Arc<SwitchCounters>,
    pub(crate) providers: Arc<Providers>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) companions: Arc<Keeper>,
    pub(crate) connections: OpenConnections,
    pub(crate) closing: Arc<Closing>,
    pub(crate) moving: Arc<Service>,
    pub(crate) offers: Offers,
    /// Why there is no provider, where one was looked for.
    pub(crate) absent: Option<String>,
    pub(crate) started: Instant,
    closed: AtomicBool,
}

impl Rooms {
    pub(crate) fn new(config: SwitchConfig, absent: Option<String>) -> io::Result<Self> {
        let counters = Arc::new(SwitchCounters::default());
        let providers = Arc::new(Providers::default());
        let routes = Arc::new(Routes::new(config.negative_cache));
        let companions = Keeper::new(
            Arc::clone(&providers),
            Arc::clone(&routes),
            Arc::clone(&counters),
            config.loopback,
            config.subnets.clone(),
        )?;
        let closing = Arc::new(Closing::new(Arc::clone(&counters)));
        let moving = Service::new(
            Arc::clone(&providers),
            Arc::clone(&routes),
            Arc::clone(&counters),
            config.key.clone(),
            config.upgrade_idle,
            thread::start,
        )?;
        Ok(Self {
            config,
            counters,
            providers,
            routes,
            companions: Arc::new(companions),
            connections: OpenConnections::default(),
            closing,
            moving: Arc::new(moving),
            offers: Offers::default(),
            absent,
            started: Instant::now(),
            closed: AtomicBool::new(false),
        })
    }

    /// The route of a socket: as its options name it, as the rules have it, or as the settings do.
    pub(super) fn route(
        &self,
        role: SocketRole,
        address: SocketAddr,
        named: Option<RouteChoice>,
    ) -> RouteChoice {
        named
            .or_else(|| self.config.rules.choose(role, address))
            .unwrap_or(self.config.route)
    }

    /// The way over the SAN between two addresses of a TCP connection, if there is one.
    pub(super) fn way(&self, local: SocketAddr, peer: SocketAddr) -> Option<Route> {
        let table = self.routes.table();
        let entry = table.route(&between(local, peer))?;
        Some(Route::San {
            provider: self.providers.name(entry.provider),
            device: entry.device.clone(),
        })
    }

    /// Why there is none.
    pub(crate) fn why_not_there(&self, local: SocketAddr, peer: SocketAddr) -> NotTried {
        let table = self.routes.table();
        match table.entries().is_empty() {
            true => self.why_no_san(),
            false => table.why_none(&between(local, peer)),
        }
    }

    /// Why a connect finds no address of the SAN at all.
    pub(super) fn why_no_san(&self) -> NotTried {
        match (self.config.route, self.config.fabric) {
            (RouteChoice::Off, _) => NotTried::SaidTcp,
            (_, FabricChoice::Off) => NotTried::FabricOff,
            _ => NotTried::NoSan,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Closes the switch to everything new; whether it was open.
    pub(crate) fn close(&self) -> bool {
        !self.closed.swap(true, Ordering::AcqRel)
    }
}

fn between(local: SocketAddr, peer: SocketAddr) -> RouteQuery {
    RouteQuery {
        destination: canonical(peer),
        bound: Some(local.ip().to_canonical()),
        preferred: None,
    }
}

/// A hold on a switch: while there is one, its threads run and its providers stay started.
#[derive(Clone)]
pub(crate) struct Lease {
    rooms: Arc<Rooms>,
    _switch: Arc<dyn Any + Send + Sync>,
}

impl Lease {
    /// A lease of these rooms, which `switch` closes when it is dropped.
    pub(crate) fn new(rooms: &Arc<Rooms>, switch: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            rooms: Arc::clone(rooms),
            _switch: switch,
        }
    }
}

impl Deref for Lease {
    type Target = Rooms;

    fn deref(&self) -> &Rooms {
        &self.rooms
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}
