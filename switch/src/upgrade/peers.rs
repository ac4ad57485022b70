//! Hosts that did not answer a dial a moment ago.
//!
//! One unaware host has thousands of connections to a server; it should cost it one dial, not
//! thousands. So what is remembered is the host, not the connection. Bounded; the entry that is
//! over first gives way. The clock is the caller's.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// After the first dial that nobody answered for; it doubles from the third in a row on.
const SHORT: Duration = Duration::from_secs(30);
/// The longest time, and that of a host that did not answer at all.
const LONG: Duration = Duration::from_secs(600);
/// Failures in a row that each count [`SHORT`].
const SHORT_ONES: u32 = 3;
/// Hosts that are remembered.
const MOST: usize = 4096;

/// What became of a dial that brought nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The host answered: nobody listens there.
    NobodyListens,
    /// Nothing came back in time.
    NoAnswer,
}

#[derive(Debug, Clone, Copy)]
struct Silent {
    until: Instant,
    in_a_row: u32,
}

/// The memory of one process.
#[derive(Debug, Default)]
pub(crate) struct SilentPeers {
    hosts: HashMap<IpAddr, Silent>,
}

impl SilentPeers {
    /// Whether the host may be dialled.
    pub(crate) fn may_dial(&self, host: IpAddr, now: Instant) -> bool {
        self.hosts
            .get(&host)
            .is_none_or(|silent| silent.until <= now)
    }

    /// A dial brought nothing; how long the host is left alone.
    pub(crate) fn failed(&mut self, host: IpAddr, why: Failed, now: Instant) -> Duration {
        let in_a_row = self
            .hosts
            .get(&host)
            .map_or(1, |silent| silent.in_a_row + 1);
        let pause = match why {
            Failed::NoAnswer => LONG,
            Failed::NobodyListens => {
                let doublings = in_a_row.saturating_sub(SHORT_ONES).min(16);
                (SHORT * 2u32.pow(doublings)).min(LONG)
            }
        };
        if self.hosts.len() >= MOST && !self.hosts.contains_key(&host) {
            let first = self.hosts.iter().min_by_key(|(_, silent)| silent.until);
            if let Some(first) = first.map(|(host, _)| *host) {
                self.hosts.remove(&first);
            }
        }
        let until = now + pause;
        self.hosts.insert(host, Silent { until, in_a_row });
        pause
    }

    /// The host answered and speaks this.
    pub(crate) fn answered(&mut self, host: IpAddr) {
        self.hosts.remove(&host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: u16) -> IpAddr {
        IpAddr::from([10, 1, (number >> 8) as u8, number as u8])
    }

    #[test]
    fn a_host_without_listener_is_left_alone_longer_and_longer() {
        let (mut peers, now) = (SilentPeers::default(), Instant::now());
        let pauses: Vec<u64> = (0..9)
            .map(|_| peers.failed(host(1), Failed::NobodyListens, now).as_secs())
            .collect();
        assert_eq!(pauses, [30, 30, 30, 60, 120, 240, 480, 600, 600]);
        assert!(!peers.may_dial(host(1), now + Duration::from_secs(599)));
        assert!(peers.may_dial(host(1), now + Duration::from_secs(600)));
        assert!(peers.may_dial(host(2), now));
    }

    #[test]
    fn a_silent_host_is_left_alone_for_long_at_once_and_an_answer_ends_it() {
        let (mut peers, now) = (SilentPeers::default(), Instant::now());
        assert_eq!(peers.failed(host(1), Failed::NoAnswer, now), LONG);
        peers.answered(host(1));
        assert!(peers.may_dial(host(1), now));
        assert_eq!(peers.failed(host(1), Failed::NobodyListens, now), SHORT);
    }

    #[test]
    fn the_memory_is_bounded() {
        let (mut peers, now) = (SilentPeers::default(), Instant::now());
        for number in 0..=MOST as u16 {
            let later = now + Duration::from_millis(u64::from(number));
            peers.failed(host(number), Failed::NobodyListens, later);
        }
        assert_eq!(peers.hosts.len(), MOST);
        let then = now + Duration::from_secs(10);
        assert!(peers.may_dial(host(0), then), "the oldest gave way");
        assert!(!peers.may_dial(host(1), then));
    }
}
