//! The open connections of a switch, for those who ask.
//!
//! Only a connection's beginning and end are noted here; what it moves counts elsewhere.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use san_base::lock;

use crate::counters::TcpCounters;
use crate::route::fallback::Route;
use crate::upgrade::stream::MovingStream;

/// What is known of an open connection from outside.
pub(crate) struct ConnectionInfo {
    number: u64,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    /// The way that it took when it was made; of one that may move it says nothing.
    route: Route,
    pub(crate) since: Instant,
    pub(crate) counted: Counted,
}

/// Where a connection's numbers are.
pub(crate) enum Counted {
    /// The provider has them.
    San(san_provider::Socket),
    Tcp(Arc<TcpCounters>),
    /// It may move to the SAN, where this is its way.
    Moving(Arc<MovingStream>, Route),
}

impl ConnectionInfo {
    /// Which way it goes now.
    pub(crate) fn route(&self) -> &Route {
        match &self.counted {
            Counted::Moving(stream, san) if stream.carrying().is_san => san,
            Counted::Moving(stream, _) => Route::not_moved(stream.why_on_tcp()),
            _ => &self.route,
        }
    }

    /// Whether the SAN carries it now.
    pub(crate) fn is_san(&self) -> bool {
        match &self.counted {
            Counted::Moving(stream, _) => stream.carrying().is_san,
            _ => matches!(self.route, Route::San { .. }),
        }
    }
}

/// The open connections of a switch, for those who ask. Only a connection's beginning and end are
/// noted here.
#[derive(Default)]
pub(crate) struct OpenConnections {
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, Weak<ConnectionInfo>>>,
}

impl OpenConnections {
    /// At most so many, the oldest first, and how many more there are.
    pub(crate) fn oldest(&self, most: usize) -> (Vec<Arc<ConnectionInfo>>, usize) {
        let open = lock(&self.open);
        let omitted = open.len().saturating_sub(most);
        let listed = open.values().take(most).filter_map(Weak::upgrade).collect();
        (listed, omitted)
    }

    pub(super) fn add(
        &self,
        local: SocketAddr,
        peer: SocketAddr,
        route: Route,
        counted: Counted,
    ) -> Arc<ConnectionInfo> {
        let info = Arc::new(ConnectionInfo {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            local,
            peer,
            route,
            since: Instant::now(),
            counted,
        });
        lock(&self.open).insert(info.number, Arc::downgrade(&info));
        info
    }

    pub(super) fn remove(&self, info: &ConnectionInfo) {
        lock(&self.open).remove(&info.number);
    }
}

impl fmt::Debug for OpenConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = lock(&self.open).len();
        f.debug_struct("OpenConnections")
            .field("open", &open)
            .finish_non_exhaustive()
    }
}
