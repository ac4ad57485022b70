//! Connecting to a host of several addresses: by happy eyeballs (RFC 8305), under one deadline.
//!
//! One address after the other is tried, the families by turns, each next one when those before it
//! have been silent for a while or have failed. The first that connects is taken and the others are
//! called off. No thread works for it.

use crate::problem::Problem;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use san_switch::{ConnectOptions, Connection, PendingConnect, Switch};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long an attempt has before the next one begins beside it.
const HEAD_START: Duration = Duration::from_millis(250);

/// The first of a host's addresses that answers; if none does, what the last one said.
///
/// `options.timeout` is for all of them together; without it the switch's setting is.
pub(crate) fn connect_to_any(
    switch: &Switch,
    addresses: &[SocketAddr],
    options: &ConnectOptions,
) -> Result<Connection, Problem> {
    let limit = options.timeout.unwrap_or(switch.config().connect_timeout);
    let mut race = Race {
        switch,
        options,
        end: Instant::now().checked_add(limit),
        waiting: by_turns(addresses).into(),
        running: Vec::new(),
        next: Instant::now(),
        last: Problem::new("the host has no address"),
    };
    loop {
        race.start_next();
        if let Some(connection) = race.poll() {
            return Ok(connection);
        }
        if race.running.is_empty() && (race.waiting.is_empty() || race.is_over()) {
            return Err(race.last);
        }
        race.sleep()?;
    }
}

struct Race<'a> {
    switch: &'a Switch,
    options: &'a ConnectOptions,
    /// When it is over for all; `None` is never.
    end: Option<Instant>,
    waiting: VecDeque<SocketAddr>,
    /// In the order in which they began.
    running: Vec<PendingConnect>,
    /// When the next one begins.
    next: Instant,
    last: Problem,
}

impl Race<'_> {
    fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// Two attempts cannot come from the same local port.
    fn is_one_at_a_time(&self) -> bool {
        self.options.local.is_some_and(|local| local.port() != 0)
    }

    fn is_due(&self) -> bool {
        match self.running.is_empty() {
            true => true,
            false => !self.is_one_at_a_time() && Instant::now() >= self.next,
        }
    }

    fn start_next(&mut self) {
        while self.is_due() && !self.is_over() {
            let left = self
                .end
                .map(|end| end.saturating_duration_since(Instant::now()));
            let among = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
            let Some(address) = self.waiting.pop_front() else {
                return;
            };
            let mut options = self.options.clone();
            options.timeout = match self.is_one_at_a_time() {
                // Or else the first that is silent would leave nothing to the others.
                true => left.map(|left| left / among),
                false => left,
            };
            match self.switch.start_connect(address, &options) {
                Ok(attempt) => {
                    self.running.push(attempt);
                    self.next = Instant::now() + HEAD_START;
                }
                Err(error) => self.last = error.into(),
            }
        }
    }

    fn poll(&mut self) -> Option<Connection> {
        let mut n = 0;
        while let Some(attempt) = self.running.get_mut(n) {
            match attempt.poll() {
                Ok(Some(connection)) => return Some(connection),
                Ok(None) => n += 1,
                Err(error) => {
                    self.running.remove(n);
                    self.last = error.into();
                    // A failure is an answer: the next one need not wait.
                    self.next = Instant::now();
                }
            }
        }
        None
    }

    /// Until an attempt has something to do, or the next one is due.
    fn sleep(&self) -> Result<(), Problem> {
        let begins = match self.waiting.is_empty() || self.is_one_at_a_time() {
            true => None,
            false => Some(self.next),
        };
        let ends = self.running.iter().filter_map(PendingConnect::deadline);
        let until = ends.chain(begins).chain(self.end).min();
        let left = match self.running.is_empty() {
            true => Some(Duration::ZERO),
            false => until.map(|until| until.saturating_duration_since(Instant::now())),
        };
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let readiness = self.running.iter().map(PendingConnect::readiness);
        let mut fds: Vec<_> = readiness
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Problem::new(format!("cannot wait: {errno}"))),
        }
    }
}

/// The families by turns, beginning with that of the first address; each in the resolver's order.
fn by_turns(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let is_first_family = |address: &&SocketAddr| address.is_ipv6() == addresses[0].is_ipv6();
    let mut first = addresses.iter().filter(is_first_family);
    let mut second = addresses.iter().filter(|address| !is_first_family(address));
    let mut all = Vec::with_capacity(addresses.len());
    while all.len() < addresses.len() {
        all.extend(first.next());
        all.extend(second.next());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use san_switch::{FabricChoice, SwitchConfig};
    use std::net::{TcpListener, TcpStream};

    fn switch() -> Switch {
        Switch::new(SwitchConfig::default().fabric(FabricChoice::Off)).unwrap()
    }

    /// An address that does not answer: its backlog is full.
    struct Silent {
        listener: TcpListener,
        _queued: Vec<TcpStream>,
    }

    impl Silent {
        fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            rustix::net::listen(&listener, 0).unwrap();
            let address = listener.local_addr().unwrap();
            let patience = Duration::from_millis(100);
            let mut queued = Vec::new();
            while let Ok(stream) = TcpStream::connect_timeout(&address, patience) {
                queued.push(stream);
            }
            Self {
                listener,
                _queued: queued,
            }
        }

        fn address(&self) -> SocketAddr {
            self.listener.local_addr().unwrap()
        }
    }

    fn within(timeout: u64) -> ConnectOptions {
        ConnectOptions::default().timeout(Duration::from_millis(timeout))
    }

    #[test]
    fn silent_addresses_hold_up_nobody_for_long() {
        let (one, two) = (Silent::new(), Silent::new());
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = [one.address(), two.address(), good.local_addr().unwrap()];
        let start = Instant::now();
        let connection = connect_to_any(&switch(), &addresses, &within(20_000)).unwrap();
        assert_eq!(connection.peer_addr(), addresses[2]);
        assert!(start.elapsed() >= 2 * HEAD_START);
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn the_deadline_is_for_all_of_them() {
        let silent: Vec<_> = (0..3).map(|_| Silent::new()).collect();
        let addresses: Vec<_> = silent.iter().map(Silent::address).collect();
        for local in [
            None,
            Some("127.0.0.1:0".parse().unwrap()),
            Some(free_port()),
        ] {
            let mut options = within(1000);
            options.local = local;
            let start = Instant::now();
            let problem = connect_to_any(&switch(), &addresses, &options).unwrap_err();
            assert!(problem.to_string().contains("in time"), "{problem}");
            let took = start.elapsed();
            assert!(took >= Duration::from_millis(990), "{took:?}");
            assert!(took < Duration::from_millis(2500), "{took:?}");
        }
    }

    fn free_port() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    }

    #[test]
    fn a_refusal_makes_way_at_once() {
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut addresses = vec![free_port(); 20];
        let refused = connect_to_any(&switch(), &addresses, &within(20_000)).unwrap_err();
        assert!(refused.to_string().contains("refused"), "{refused}");
        addresses.push(good.local_addr().unwrap());
        let start = Instant::now();
        let connection = connect_to_any(&switch(), &addresses, &within(60_000)).unwrap();
        assert_eq!(connection.peer_addr(), addresses[20]);
        assert!(start.elapsed() < 20 * HEAD_START);
    }

    #[test]
    fn families_take_turns() {
        let all = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"];
        let all = all.map(|address| address.parse().unwrap());
        let order = by_turns(&all);
        assert_eq!(order, [all[0], all[3], all[1], all[4], all[2]]);
        assert_eq!(by_turns(&all[3..]), &all[3..]);
        assert_eq!(by_turns(&[]), []);
    }
}
