//! Which way a connect takes: the table of SAN subnets, and who did not answer a moment ago.
//!
//! Answers only: no socket, no provider, no thread.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use san_base::lock;

use crate::config::NegativeCacheConfig;
use fallback::FallbackReason;
use negative_cache::NegativeCache;
use table::SanTable;

pub(crate) mod fallback;
pub(crate) mod negative_cache;
pub(crate) mod not_moved;
pub(crate) mod table;

/// What one switch knows of the ways.
#[derive(Debug)]
pub(crate) struct Routes {
    table: RwLock<Arc<SanTable>>,
    negative: Mutex<NegativeCache<FallbackReason>>,
}

impl Routes {
    pub(crate) fn new(negative: NegativeCacheConfig) -> Self {
        Self {
            table: RwLock::default(),
            negative: Mutex::new(NegativeCache::new(negative)),
        }
    }

    pub(crate) fn table(&self) -> Arc<SanTable> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes a new table. What failed with the old one may work now.
    pub(crate) fn replace(&self, table: SanTable) {
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        lock(&self.negative).clear();
    }

    /// Why the SAN failed to reach this destination, if it did so lately.
    pub(crate) fn remembered(&self, destination: SocketAddr) -> Option<FallbackReason> {
        lock(&self.negative).lookup(destination, Instant::now())
    }

    /// Remembers that the SAN failed to reach this destination.
    pub(crate) fn remember(&self, destination: SocketAddr, reason: FallbackReason) {
        lock(&self.negative).insert(destination, reason, Instant::now());
    }
}
