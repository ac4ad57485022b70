//! Destinations that did not answer on the SAN a moment ago.
//!
//! A host without RDMA costs a connect its whole SAN deadline. It should cost it once, not every
//! time, so the failure is remembered for a while and TCP is taken at once meanwhile. Bounded;
//! the oldest memory gives way. The clock is the caller's. What is final (refused, reset,
//! unreachable) never gets here, since it says nothing about the next connect.

use crate::config::NegativeCacheConfig;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

/// The memory of one switch.
#[derive(Debug)]
pub(crate) struct NegativeCache<R> {
    config: NegativeCacheConfig,
    /// Oldest first: all entries live equally long.
    entries: VecDeque<Entry<R>>,
}

#[derive(Debug)]
struct Entry<R> {
    destination: SocketAddr,
    until: Instant,
    reason: R,
}

impl<R: Clone> NegativeCache<R> {
    pub(crate) fn new(config: NegativeCacheConfig) -> Self {
        NegativeCache {
            config,
            entries: VecDeque::new(),
        }
    }

    /// Why this destination failed, if it did so lately.
    pub(crate) fn lookup(&mut self, destination: SocketAddr, now: Instant) -> Option<R> {
        self.expire(now);
        let found = self
            .entries
            .iter()
            .find(|entry| entry.destination == destination)?;
        Some(found.reason.clone())
    }

    /// Remembers that this destination failed now.
    pub(crate) fn insert(&mut self, destination: SocketAddr, reason: R, now: Instant) {
        self.forget(destination);
        self.expire(now);
        if self.config.entries == 0 || self.config.lifetime.is_zero() {
            return;
        }
        if self.entries.len() >= self.config.entries {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry {
            destination,
            until: now + self.config.lifetime,
            reason,
        });
    }

    /// Forgets a destination that answered.
    pub(crate) fn forget(&mut self, destination: SocketAddr) {
        self.entries
            .retain(|entry| entry.destination != destination);
    }

    /// Forgets everything: the addresses of this host changed.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    fn expire(&mut self, now: Instant) {
        while self.entries.front().is_some_and(|entry| entry.until <= now) {
            self.entries.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn cache(entries: usize, seconds: u64) -> NegativeCache<u32> {
        NegativeCache::new(NegativeCacheConfig {
            entries,
            lifetime: Duration::from_secs(seconds),
        })
    }

    fn host(number: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 7, 1], number))
    }

    #[test]
    fn a_failure_is_remembered_for_its_lifetime_and_no_longer() {
        let (mut cache, start) = (cache(4, 30), Instant::now());
        assert_eq!(cache.lookup(host(1), start), None);
        cache.insert(host(1), 7, start);
        assert_eq!(
            cache.lookup(host(1), start + Duration::from_secs(29)),
            Some(7)
        );
        assert_eq!(cache.lookup(host(2), start), None);
        assert_eq!(cache.lookup(host(1), start + Duration::from_secs(30)), None);
    }

    #[test]
    fn the_oldest_gives_way() {
        let (mut cache, start) = (cache(2, 30), Instant::now());
        for number in 1..=3 {
            cache.insert(host(number), u32::from(number), start);
        }
        assert_eq!(cache.lookup(host(1), start), None);
        assert_eq!(cache.lookup(host(2), start), Some(2));
        // A renewed one is the youngest again.
        cache.insert(host(2), 20, start);
        cache.insert(host(4), 4, start);
        assert_eq!(cache.lookup(host(3), start), None);
        assert_eq!(cache.lookup(host(2), start), Some(20));
        assert_eq!(cache.entries.len(), 2);
    }

    #[test]
    fn an_answer_or_an_address_change_ends_the_memory() {
        let (mut cache, start) = (cache(4, 30), Instant::now());
        cache.insert(host(1), 1, start);
        cache.insert(host(2), 2, start);
        cache.forget(host(1));
        assert_eq!(cache.lookup(host(1), start), None);
        assert_eq!(cache.lookup(host(2), start), Some(2));
        cache.clear();
        assert_eq!(cache.lookup(host(2), start), None);
    }

    #[test]
    fn it_can_be_turned_off() {
        for mut cache in [cache(0, 30), cache(4, 0)] {
            cache.insert(host(1), 1, Instant::now());
            assert_eq!(cache.lookup(host(1), Instant::now()), None);
            assert!(cache.entries.is_empty());
        }
    }
}
