//! What a process remembers of the hosts that it has dialled: who speaks this protocol, who did not
//! answer a moment ago, and which stream asks a host that nobody knows yet.
//!
//! One unaware host has thousands of connections to a server; it should cost it the dials of one,
//! not of thousands. So what is remembered is the host, not the connection, and of the streams of a host that
//! nobody knows one alone dials, while the others wait for what comes of it. If it finds nobody, the host is left
//! alone: for a second, and each time for twice as long, up to half a minute.
//!
//! A host that has answered is known. Where nobody listens for one of its streams, the peer of that stream has
//! not come to it yet, has ended, or its program does not move: that is no reason to leave the others alone. It
//! has a budget of such streams, which comes back with time, and whole with the next answer.
//!
//! Bounded: a host that nothing is under way to, and whose time is over first, gives way. The clock is the
//! caller's.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long a host is left alone for the first time; it doubles each time.
const FIRST: Duration = Duration::from_secs(1);
/// The longest time.
const LONG: Duration = Duration::from_secs(30);
/// The same of a host that nobody knows and that did not answer at all: each such dial takes a second.
const FIRST_SILENT: Duration = Duration::from_secs(10);
const LONG_SILENT: Duration = Duration::from_secs(600);
/// The budget of a host that is known: so many of its streams may find that nobody listens for them.
const BUDGET: u32 = 32;
/// In this time one of them comes back.
const BACK: Duration = Duration::from_millis(500);
/// So many streams ask a host one after the other before it is left alone, where others wait or it is known: one
/// alone may have met with a host that was busy.
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
    /// The host is left alone for so long.
    Silent(Duration),
}

#[derive(Debug, Default)]
struct Host {
    /// It has answered in this protocol.
    is_known: bool,
    /// What its budget lacks, and since when that was counted.
    lacks: u32,
    counted: Option<Instant>,
    /// Streams in a row that it was not left alone for, though they found nothing, beside those of the budget.
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
        if let Some(until) = host.until.filter(|until| *until > now) {
            return Turn::Silent(until - now);
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
        let pause = match (host.is_known, why) {
            (true, Failed::NobodyListens) => host.spend(now),
            (true, Failed::NoAnswer) => host.bear(true, FIRST, LONG),
            (false, why) => {
                let (first, most) = match why {
                    Failed::NobodyListens => (FIRST, LONG),
                    Failed::NoAnswer => (FIRST_SILENT, LONG_SILENT),
                };
                host.bear(!released.is_empty(), first, most)
            }
        };
        if !pause.is_zero() {
            host.until = Some(now + pause);
        }
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

    /// One of the budget. How long it is left alone: where that is used up, until one more comes back.
    fn spend(&mut self, now: Instant) -> Duration {
        let counted = *self.counted.get_or_insert(now);
        let back = now.saturating_duration_since(counted).as_millis() / BACK.as_millis();
        let back = u32::try_from(back).unwrap_or(u32::MAX);
        self.counted = Some(counted + BACK * back.min(self.lacks));
        self.lacks = self.lacks.saturating_sub(back);
        if self.lacks == 0 {
            self.counted = Some(now);
        }
        // Dials that are under way when it is used up count, too.
        self.lacks = (self.lacks + 1).min(BUDGET);
        match self.lacks < BUDGET {
            true => Duration::ZERO,
            false => BACK,
        }
    }

    /// How long it is left alone after one more stream that found nothing. `is_borne`: not for the first ones.
    fn bear(&mut self, is_borne: bool, first: Duration, most: Duration) -> Duration {
        self.borne += 1;
        if is_borne && self.borne < ASK {
            return Duration::ZERO;
        }
        self.borne = 0;
        let doublings = self.in_a_row.min(16);
        self.in_a_row += 1;
        (first * 2u32.pow(doublings)).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: u16) -> IpAddr {
        IpAddr::from([10, 1, (number >> 8) as u8, number as u8])
    }

    /// What is left of a pause when the host is asked for so much later.
    fn silent_for(peers: &mut Peers, number: u16, at: Instant) -> Option<Duration> {
        match peers.turn(host(number), 1, at) {
            Turn::Silent(time) => Some(time),
            _ => None,
        }
    }

    #[test]
    fn a_host_without_listener_is_left_alone_longer_and_longer() {
        for (why, wanted) in [
            (Failed::NobodyListens, [1, 2, 4, 8, 16, 30, 30, 30]),
            (Failed::NoAnswer, [10, 20, 40, 80, 160, 320, 600, 600]),
        ] {
            let (mut peers, now) = (Peers::default(), Instant::now());
            let mut pause = || peers.failed(host(1), 1, why, now).0.as_secs();
            assert_eq!([(); 8].map(|()| pause()), wanted);
            let last = Duration::from_secs(wanted[7]);
            assert_eq!(silent_for(&mut peers, 1, now), Some(last));
            assert_eq!(silent_for(&mut peers, 1, now + last), None);
            assert_eq!(silent_for(&mut peers, 2, now), None);
            peers.answered(host(1), 1);
            assert_eq!(silent_for(&mut peers, 1, now), None, "an answer ends it");
        }
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
        assert_eq!(peers.turn(host(2), 9, now), Turn::Silent(FIRST));
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
        assert_eq!((pause, released.len()), (FIRST, 2));
        assert_eq!(peers.turn(host(1), 3, now), Turn::Silent(FIRST));
    }

    #[test]
    fn a_host_that_is_known_is_not_left_alone_for_streams_that_do_not_move() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        peers.answered(host(1), 0);
        let fail = |peers: &mut Peers, at| peers.failed(host(1), 1, Failed::NobodyListens, at).0;
        for _ in 1..BUDGET {
            assert_eq!(fail(&mut peers, now), Duration::ZERO);
            assert_eq!(peers.turn(host(1), 2, now), Turn::Now);
        }
        assert_eq!(fail(&mut peers, now), BACK, "the budget is used up");
        assert_eq!(peers.turn(host(1), 2, now), Turn::Silent(BACK));
        assert_eq!(
            peers.turn(host(1), 2, now + BACK),
            Turn::Now,
            "it is still known"
        );
        // From now on so many as come back: two a second.
        let mut asked = 0;
        for tenth in 1..=100 {
            let at = now + BACK + Duration::from_millis(100) * tenth;
            if peers.turn(host(1), 2, at) == Turn::Now {
                fail(&mut peers, at);
                asked += 1;
            }
        }
        assert!((19..=21).contains(&asked), "{asked} in ten seconds");
        peers.answered(host(1), 3);
        let later = now + Duration::from_secs(11);
        for _ in 1..BUDGET {
            assert_eq!(fail(&mut peers, later), Duration::ZERO, "it is whole again");
        }
    }

    #[test]
    fn the_budget_of_a_host_comes_back_with_time() {
        let (mut peers, mut now) = (Peers::default(), Instant::now());
        peers.answered(host(1), 0);
        // One client without the library every second, for an hour.
        for _ in 0..3600 {
            let (pause, _) = peers.failed(host(1), 1, Failed::NobodyListens, now);
            assert_eq!(pause, Duration::ZERO);
            now += Duration::from_secs(1);
        }
    }

    #[test]
    fn a_host_that_is_known_may_be_busy_for_a_moment() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        peers.answered(host(1), 0);
        let fail = |peers: &mut Peers| peers.failed(host(1), 1, Failed::NoAnswer, now).0.as_secs();
        let pauses = [(); 9].map(|()| fail(&mut peers));
        assert_eq!(pauses, [0, 0, 1, 0, 0, 2, 0, 0, 4]);
        peers.answered(host(1), 0);
        assert_eq!([(); 3].map(|()| fail(&mut peers)), [0, 0, 1]);
    }

    #[test]
    fn the_memory_is_bounded() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        for number in 0..=MOST as u16 {
            let later = now + Duration::from_millis(u64::from(number));
            peers.failed(host(number), 1, Failed::NoAnswer, later);
        }
        assert_eq!(peers.hosts.len(), MOST);
        let then = now + Duration::from_secs(5);
        assert!(silent_for(&mut peers, 1, then).is_some());
        assert_eq!(silent_for(&mut peers, 0, then), None, "the oldest gave way");
        assert_eq!(peers.hosts.len(), MOST);
    }
}
