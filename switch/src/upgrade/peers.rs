//! What a process remembers of the hosts that it has dialled: who speaks this protocol, who did not
//! answer a moment ago, and which stream asks a host that nobody knows yet.
//!
//! One unaware host has thousands of connections to a server; it should cost it the dials of one,
//! not of thousands. So what is remembered is the host, not the connection, and of the streams of a host that
//! nobody knows one alone dials, while the others wait for what comes of it. A host that has answered is
//! known: where nobody listens for one of its streams, the peer of that stream has not come to it yet, or its
//! program does not move. Many of them in a row are taken for a host that speaks this no more.
//!
//! Bounded: a host that nothing is under way to, and whose time is over first, gives way. The clock is the
//! caller's.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// After the first stream for which nobody listened; it doubles from the third in a row on.
const SHORT: Duration = Duration::from_secs(30);
/// The longest time, and that of a host that did not answer at all.
const LONG: Duration = Duration::from_secs(600);
/// Failures in a row that each count [`SHORT`].
const SHORT_ONES: u32 = 3;
/// So many streams in a row for which nobody listens are borne from a host that is known.
const BORNE: u32 = 32;
/// So many streams ask a host that nobody knows, one after the other where others wait: one alone may have met
/// with a host that was busy.
const ASK: u32 = 3;
/// Hosts that are remembered.
const MOST: usize = 4096;

/// What became of a stream's dials that brought nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The host answered: nobody listens there.
    NobodyListens,
    /// Nothing came back in time.
    NoAnswer,
}

/// Whether a stream may dial its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Now,
    /// Another stream asks the host just now. This one is given back when that is through.
    Behind,
    /// The host is left alone.
    Silent,
}

#[derive(Debug, Default)]
struct Host {
    /// It has answered in this protocol.
    is_known: bool,
    /// Streams in a row that it was not left alone for, though they found nothing.
    borne: u32,
    /// It is left alone until then, and for how many times in a row.
    until: Option<Instant>,
    in_a_row: u32,
    /// The stream that asks a host that nobody knows, and those that wait for it.
    asks: Option<u64>,
    behind: VecDeque<u64>,
}

/// The memory of one process.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    hosts: HashMap<IpAddr, Host>,
}

impl Peers {
    /// Whether this stream may dial the host.
    pub(crate) fn turn(&mut self, host: IpAddr, stream: u64, now: Instant) -> Turn {
        self.make_room(host);
        let host = self.hosts.entry(host).or_default();
        if host.until.is_some_and(|until| until > now) {
            return Turn::Silent;
        }
        if host.is_known {
            return Turn::Now;
        }
        match *host.asks.get_or_insert(stream) {
            asks if asks == stream => Turn::Now,
            _ => {
                host.behind.push_back(stream);
                Turn::Behind
            }
        }
    }

    /// A stream's dials brought nothing; how long the host is left alone, and the streams that waited.
    pub(crate) fn failed(
        &mut self,
        host: IpAddr,
        stream: u64,
        why: Failed,
        now: Instant,
    ) -> (Duration, VecDeque<u64>) {
        self.make_room(host);
        let host = self.hosts.entry(host).or_default();
        let released = host.release(stream);
        host.borne += 1;
        let is_borne = match host.is_known {
            true => why == Failed::NobodyListens && host.borne < BORNE,
            false => !released.is_empty() && host.borne < ASK,
        };
        if is_borne {
            return (Duration::ZERO, released);
        }
        host.is_known = false;
        host.borne = 0;
        host.in_a_row += 1;
        let pause = match why {
            Failed::NoAnswer => LONG,
            Failed::NobodyListens => {
                let doublings = host.in_a_row.saturating_sub(SHORT_ONES).min(16);
                (SHORT * 2u32.pow(doublings)).min(LONG)
            }
        };
        host.until = Some(now + pause);
        (pause, released)
    }

    /// The host answered this stream, and speaks this. Returns the streams that waited.
    pub(crate) fn answered(&mut self, host: IpAddr, stream: u64) -> VecDeque<u64> {
        self.make_room(host);
        let host = self.hosts.entry(host).or_default();
        let released = host.release(stream);
        *host = Host {
            is_known: true,
            asks: host.asks,
            behind: std::mem::take(&mut host.behind),
            ..Host::default()
        };
        released
    }

    /// The stream dials no more, for a reason of its own. Returns the streams that waited for it.
    pub(crate) fn gave_up(&mut self, host: IpAddr, stream: u64) -> VecDeque<u64> {
        let host = self.hosts.get_mut(&host);
        host.map_or_else(VecDeque::new, |host| host.release(stream))
    }

    fn make_room(&mut self, host: IpAddr) {
        if self.hosts.len() < MOST || self.hosts.contains_key(&host) {
            return;
        }
        let idle = |(_, host): &(&IpAddr, &Host)| host.asks.is_none();
        let first = self
            .hosts
            .iter()
            .filter(idle)
            .min_by_key(|(_, host)| host.until);
        if let Some(first) = first.map(|(host, _)| *host) {
            self.hosts.remove(&first);
        }
    }
}

impl Host {
    /// Whom the end of this stream's dials lets go on.
    fn release(&mut self, stream: u64) -> VecDeque<u64> {
        if self.asks != Some(stream) {
            return VecDeque::new();
        }
        self.asks = None;
        std::mem::take(&mut self.behind)
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
        let (mut peers, now) = (Peers::default(), Instant::now());
        let pauses: Vec<u64> = (0..9)
            .map(|_| peers.failed(host(1), 1, Failed::NobodyListens, now).0)
            .map(|pause| pause.as_secs())
            .collect();
        assert_eq!(pauses, [30, 30, 30, 60, 120, 240, 480, 600, 600]);
        let turn = |peers: &mut Peers, number, after| {
            peers.turn(host(number), 1, now + Duration::from_secs(after))
        };
        assert_eq!(turn(&mut peers, 1, 599), Turn::Silent);
        assert_eq!(turn(&mut peers, 1, 600), Turn::Now);
        assert_eq!(turn(&mut peers, 2, 0), Turn::Now);
    }

    #[test]
    fn a_silent_host_is_left_alone_for_long_at_once_and_an_answer_ends_it() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        assert_eq!(peers.failed(host(1), 1, Failed::NoAnswer, now).0, LONG);
        peers.answered(host(1), 1);
        assert_eq!(peers.turn(host(1), 2, now), Turn::Now);
    }

    #[test]
    fn one_stream_asks_a_host_that_nobody_knows_and_the_others_wait() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        assert_eq!(peers.turn(host(1), 7, now), Turn::Now);
        assert_eq!(peers.turn(host(1), 8, now), Turn::Behind);
        assert_eq!(peers.turn(host(1), 9, now), Turn::Behind);
        assert_eq!(peers.turn(host(1), 7, now), Turn::Now, "it asks again");
        assert!(peers.gave_up(host(1), 8).is_empty(), "it did not ask");
        assert_eq!(peers.answered(host(1), 7), [8, 9]);
        for stream in 8..12 {
            assert_eq!(peers.turn(host(1), stream, now), Turn::Now);
        }

        assert_eq!(peers.turn(host(2), 7, now), Turn::Now);
        assert_eq!(peers.turn(host(2), 8, now), Turn::Behind);
        assert_eq!(peers.gave_up(host(2), 7), [8], "another one may ask");
        assert_eq!(peers.turn(host(2), 8, now), Turn::Now);
        let (_, released) = peers.failed(host(2), 8, Failed::NobodyListens, now);
        assert!(released.is_empty());
        assert_eq!(peers.turn(host(2), 9, now), Turn::Silent);
    }

    #[test]
    fn where_others_wait_a_host_is_asked_by_three() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        for stream in 0..5 {
            peers.turn(host(1), stream, now);
        }
        for (stream, why) in [(0, Failed::NoAnswer), (1, Failed::NobodyListens)] {
            let (pause, released) = peers.failed(host(1), stream, why, now);
            assert_eq!(pause, Duration::ZERO);
            assert_eq!(released, (stream + 1..5).collect::<VecDeque<_>>());
            assert_eq!(peers.turn(host(1), stream + 1, now), Turn::Now);
            for behind in stream + 2..5 {
                assert_eq!(peers.turn(host(1), behind, now), Turn::Behind);
            }
        }
        let (pause, released) = peers.failed(host(1), 2, Failed::NobodyListens, now);
        assert_eq!((pause, released.len()), (SHORT, 2));
        assert_eq!(peers.turn(host(1), 3, now), Turn::Silent);
    }

    #[test]
    fn a_host_that_is_known_may_have_streams_that_do_not_move() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        peers.answered(host(1), 0);
        let fail = |peers: &mut Peers| peers.failed(host(1), 1, Failed::NobodyListens, now).0;
        for _ in 1..BORNE {
            assert_eq!(fail(&mut peers), Duration::ZERO);
            assert_eq!(peers.turn(host(1), 2, now), Turn::Now);
        }
        assert_eq!(fail(&mut peers), SHORT, "so many in a row");
        assert_eq!(peers.turn(host(1), 2, now), Turn::Silent);
        peers.answered(host(1), 3);
        assert_eq!(fail(&mut peers), Duration::ZERO);
        assert_eq!(peers.failed(host(1), 1, Failed::NoAnswer, now).0, LONG);
    }

    #[test]
    fn the_memory_is_bounded() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        for number in 0..=MOST as u16 {
            let later = now + Duration::from_millis(u64::from(number));
            peers.failed(host(number), 1, Failed::NobodyListens, later);
        }
        assert_eq!(peers.hosts.len(), MOST);
        let then = now + Duration::from_secs(10);
        assert_eq!(peers.turn(host(1), 1, then), Turn::Silent);
        assert_eq!(
            peers.turn(host(0), 1, then),
            Turn::Now,
            "the oldest gave way"
        );
        assert_eq!(peers.hosts.len(), MOST);
    }
}
