//! A poller whose connections are in many lanes: those on which nothing comes are watched, and what comes on one of
//! them is told as soon as anything. The provider asks no idle peers, since that would look at the lanes as well: what
//! is lost stays lost.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use san_provider::{Provider, ProviderConfig};
use san_switch::{Connection, Interest, PolledEvent, Poller, Switch, SwitchBuilder};
use san_tests::net::fabric;
use san_tests::time::bounded;

use support::*;

/// Waits after which every lane on which nothing came is watched.
const UNTIL_COLD: usize = 30;

/// Connections of two switches, of which the second has so many in a lane.
struct Scene {
    clients: Vec<Connection>,
    servers: Vec<Arc<Connection>>,
    _switches: [Switch; 2],
}

impl Scene {
    fn new(connections: usize, in_a_lane: u32) -> Self {
        let own = ProviderConfig {
            lane_connections: in_a_lane,
            keepalive: Duration::ZERO,
            ..SwitchBuilder::provider_config(&config())
        };
        let provider = Provider::with_fabric(fabric(), own).unwrap();
        let builder = Switch::builder().config(config());
        let there = builder.provider("lanes", provider).build().unwrap();
        let here = switch();
        let listener = there.listen(any(), backlog(4)).unwrap();
        let (mut clients, mut servers) = (Vec::new(), Vec::new());
        for _ in 0..connections {
            clients.push(san_client(&here, &listener));
            let server = accept(&listener);
            server.set_nonblocking(true).unwrap();
            servers.push(Arc::new(server));
        }
        Self {
            clients,
            servers,
            _switches: [here, there],
        }
    }

    fn poller(&self, tokens: impl Iterator<Item = usize>, interest: Interest) -> Arc<Poller> {
        let poller = Poller::new().unwrap();
        for token in tokens {
            let server = &self.servers[token];
            poller.add(server, token as u64, interest).unwrap();
        }
        Arc::new(poller)
    }

    fn ask(&self, number: usize) {
        (&self.clients[number]).write_all(b"?").unwrap();
    }

    /// The poller tells that it was asked, and of nothing else.
    fn hears(&self, poller: &Poller, number: usize) {
        assert_eq!(told(poller), [number]);
        assert_eq!(self.servers[number].receive(&mut [0; 9]).unwrap(), 1);
    }

    /// So many waits that find something of one connection only.
    fn until_others_are_cold(&self, poller: &Poller, busy: usize) {
        for _ in 0..UNTIL_COLD {
            self.ask(busy);
            self.hears(poller, busy);
        }
    }
}

/// The numbers that a wait tells, which is none only if it is not woken.
fn told(poller: &Poller) -> Vec<usize> {
    let mut events = Vec::new();
    poller.wait(&mut events, Some(PATIENCE)).unwrap();
    let number = |event: &PolledEvent| usize::try_from(event.token).unwrap();
    events.iter().map(number).collect()
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn what_comes_on_a_lane_that_was_idle_is_told() {
    bounded(|| {
        const CONNECTIONS: usize = 12;
        let scene = Scene::new(CONNECTIONS, 1);
        let poller = scene.poller(0..CONNECTIONS, Interest::READABLE);
        for round in 0..3 {
            scene.until_others_are_cold(&poller, round);
            for number in 0..CONNECTIONS {
                scene.ask(number);
                scene.hears(&poller, number);
            }
            // While nobody waits, and several at once.
            for number in 0..CONNECTIONS {
                scene.ask(number);
            }
            let mut seen = [0; CONNECTIONS];
            while seen.contains(&0) {
                for number in told(&poller) {
                    seen[number] += scene.servers[number].receive(&mut [0; 9]).unwrap();
                }
            }
        }
        // A lane that has no connection any more is watched no more, and others go on.
        for number in (1..CONNECTIONS).step_by(2) {
            let server = &scene.servers[number];
            poller.remove(server, number as u64).unwrap();
        }
        scene.until_others_are_cold(&poller, 0);
        for number in (0..CONNECTIONS).step_by(2) {
            scene.ask(number);
            scene.hears(&poller, number);
        }
        // Nor are those of a poller that is gone: another one hears of them.
        drop(poller);
        let poller = scene.poller(0..CONNECTIONS, Interest::READABLE.edge());
        scene.until_others_are_cold(&poller, 1);
        scene.ask(7);
        scene.hears(&poller, 7);
    });
}

/// The thread that a lane wakes goes to work, and stays there until the other one has heard of the next.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_thread_that_goes_to_work_leaves_the_lane_to_another_one() {
    bounded(|| {
        const CONNECTIONS: usize = 8;
        for number in (2..CONNECTIONS).step_by(2) {
            let scene = Scene::new(CONNECTIONS, 2);
            // An edge, of which one thread is told.
            let poller = scene.poller(0..CONNECTIONS, Interest::READABLE.edge());
            scene.until_others_are_cold(&poller, 0);
            let (tells, hears) = mpsc::channel();
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let (poller, tells) = (Arc::clone(&poller), tells.clone());
                    let servers = scene.servers.clone();
                    // One event each: then the thread does something else until the test is over.
                    thread::spawn(move || {
                        for number in told(&poller) {
                            assert_eq!(servers[number].receive(&mut [0; 9]).unwrap(), 1);
                            tells.send(number).unwrap();
                        }
                    })
                })
                .collect();
            for asked in [number, number + 1] {
                scene.ask(asked);
                assert_eq!(hears.recv_timeout(PATIENCE), Ok(asked));
            }
            for thread in threads {
                thread.join().unwrap();
            }
        }
    });
}

/// Loops share lanes: what one takes from a lane, and what it polls there, is told by the other, too.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn loops_that_watch_the_same_lanes_take_nothing_from_each_other() {
    bounded(|| {
        const CONNECTIONS: usize = 12;
        const LOOPS: usize = 3;
        let scene = Scene::new(CONNECTIONS, 4);
        let stop = Arc::new(AtomicBool::new(false));
        let pollers: Vec<_> = (0..LOOPS)
            .map(|own| scene.poller((own..CONNECTIONS).step_by(LOOPS), Interest::READABLE))
            .collect();
        let (tells, hears) = mpsc::channel();
        let threads: Vec<_> = pollers
            .iter()
            .map(|poller| {
                let (poller, tells) = (Arc::clone(poller), tells.clone());
                let (stop, servers) = (Arc::clone(&stop), scene.servers.clone());
                thread::spawn(move || {
                    while !stop.load(Ordering::Acquire) {
                        for number in told(&poller) {
                            assert_eq!(servers[number].receive(&mut [0; 9]).unwrap(), 1);
                            tells.send(number).unwrap();
                        }
                    }
                })
            })
            .collect();
        // Each is busy for a while, so that the lanes of the others are watched; then comes another one's turn.
        for round in 0..40 {
            let (busy, next) = (round % CONNECTIONS, (round * 5 + 1) % CONNECTIONS);
            for asked in std::iter::repeat_n(busy, UNTIL_COLD / 2).chain([next]) {
                scene.ask(asked);
                assert_eq!(hears.recv_timeout(PATIENCE), Ok(asked), "in round {round}");
            }
        }
        stop.store(true, Ordering::Release);
        pollers.iter().for_each(|poller| poller.waker().wake());
        for thread in threads {
            thread.join().unwrap();
        }
    });
}
