//! Two engines and the network between them.
//!
//! Every message takes a millisecond. Messages are counted in the order they
//! are sent; by that number they can be lost or repeated.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::super::*;
use crate::rc::keys::KeySource;
use crate::time::Time;
use crate::wire::cm::{CmMessage, Dreq, Rej, RejReason, Rejected, Rtu};
use crate::wire::mad::MadBytes;

pub(super) const CLIENT: usize = 0;
pub(super) const SERVER: usize = 1;
const LATENCY: Duration = Duration::from_millis(1);

pub(super) struct Node {
    pub(super) engine: Engine,
    pub(super) events: Vec<Event>,
    pub(super) story: Vec<&'static str>,
    /// Refuse instead of accepting.
    pub(super) refuse: Option<(RejReason, Vec<u8>)>,
    /// Leave requests waiting.
    pub(super) slow: bool,
    pub(super) next_qpn: u32,
}

pub(super) struct Net {
    pub(super) now: Time,
    pub(super) client: Node,
    pub(super) server: Node,
    /// The server hears nothing.
    pub(super) deaf: bool,
    config: Config,
    flying: BTreeMap<(Time, u64), (usize, SocketAddr, MadBytes)>,
    sent: Vec<(Time, usize, MadBytes)>,
    lost: HashSet<usize>,
    repeated: BTreeMap<usize, Duration>,
    serial: u64,
}

fn address(side: usize) -> SocketAddr {
    ["10.0.0.1:4791", "10.0.0.2:4791"][side].parse().unwrap()
}

fn node(config: Config, side: usize, seed: u64) -> Node {
    let config = Config {
        guid: 0x1000 + side as u64,
        ..config
    };
    Node {
        engine: Engine::new(config, KeySource::seeded(seed)),
        events: Vec::new(),
        story: Vec::new(),
        refuse: None,
        slow: false,
        next_qpn: 0x100,
    }
}

impl Node {
    pub(super) fn reasons(&self) -> Vec<RejReason> {
        let reason = |event: &Event| match event {
            Event::Rejected { reason, .. } => Some(*reason),
            _ => None,
        };
        self.events.iter().filter_map(reason).collect()
    }

    pub(super) fn let_go_of_all(&mut self, now: Time) {
        let keys: HashSet<_> = self.events.iter().map(Event::conn).collect();
        for key in keys {
            self.engine.destroy(now, key);
        }
    }

    fn accept(&mut self, now: Time, key: ConnKey) {
        self.next_qpn += 1;
        let accept = Accept {
            qpn: self.next_qpn,
            psn: 7,
            responder_resources: 1,
            initiator_depth: 1,
            rnr_retry_count: 7,
            srq: false,
            extension: Extension {
                window: 9,
                features: 1,
            },
            private_data: [3; 196],
        };
        self.engine.accept(now, key, &accept).unwrap();
    }

    /// Does what a user does with events.
    fn act(&mut self, now: Time) {
        while let Some(event) = self.engine.poll_event() {
            self.events.push(event);
            let word = match event {
                Event::ConnectRequest {
                    conn,
                    peer,
                    request,
                    ..
                } => {
                    assert_eq!(request.src, "10.0.0.1:40000".parse().unwrap());
                    assert_eq!(request.private_data, [5; 56]);
                    assert_eq!(
                        peer.extension,
                        Some(Extension {
                            window: 8,
                            features: 3
                        })
                    );
                    if !self.slow {
                        self.engine.taken(conn);
                        match self.refuse.clone() {
                            Some((reason, data)) => {
                                self.engine.reject(now, conn, reason, &data).unwrap();
                            }
                            None => self.accept(now, conn),
                        }
                    }
                    "ConnectRequest"
                }
                Event::ConnectResponse {
                    conn,
                    peer,
                    private_data,
                } => {
                    assert_eq!((peer.psn, private_data), (7, [3; 196]));
                    self.engine.ready(conn).unwrap();
                    "ConnectResponse"
                }
                Event::Established { .. } => "Established",
                Event::Rejected { .. } => "Rejected",
                Event::Unreachable { .. } => "Unreachable",
                Event::Disconnected { .. } => "Disconnected",
                Event::TimewaitExit { .. } => "TimewaitExit",
            };
            self.story.push(word);
        }
    }
}

impl Net {
    pub(super) fn new() -> Self {
        Self::with(Config::default())
    }

    pub(super) fn with(config: Config) -> Self {
        Self {
            now: Time::from_nanos(1_000_000_000),
            client: node(config, CLIENT, 1),
            server: node(config, SERVER, 2),
            deaf: false,
            config,
            flying: BTreeMap::new(),
            sent: Vec::new(),
            lost: HashSet::new(),
            repeated: BTreeMap::new(),
            serial: 0,
        }
    }

    pub(super) fn lose(&mut self, index: usize) {
        self.lost.insert(index);
    }

    pub(super) fn repeat(&mut self, index: usize, later: Duration) {
        self.repeated.insert(index, later);
    }

    pub(super) fn listen(&mut self, addr: &str, backlog: usize) {
        self.server
            .engine
            .listen(addr.parse().unwrap(), false, backlog)
            .unwrap();
    }

    pub(super) fn request(&mut self, dst: &str) -> Connect {
        self.client.next_qpn += 1;
        Connect {
            path: Path {
                local: address(CLIENT),
                remote: address(SERVER),
            },
            src: "10.0.0.1:40000".parse().unwrap(),
            dst: dst.parse().unwrap(),
            qpn: self.client.next_qpn,
            psn: 5,
            mtu: 5,
            responder_resources: 1,
            initiator_depth: 1,
            retry_count: 6,
            rnr_retry_count: 7,
            ack_timeout: 14,
            srq: false,
            extension: Extension {
                window: 8,
                features: 3,
            },
            private_data: [5; 56],
        }
    }

    pub(super) fn connect(&mut self, dst: &str) -> ConnKey {
        let connect = self.request(dst);
        self.client.engine.connect(self.now, &connect).unwrap()
    }

    pub(super) fn accept_waiting(&mut self) {
        let keys: Vec<_> = self.server.events.iter().map(Event::conn).collect();
        for key in keys {
            self.server.accept(self.now, key);
        }
    }

    pub(super) fn restart_server(&mut self) {
        self.server = node(self.config, SERVER, 3);
    }

    pub(super) fn restart_client(&mut self) {
        self.client = node(self.config, CLIENT, 4);
    }

    /// A REJ, an RTU and a DREQ that name the connection rightly and come from
    /// a third address.
    pub(super) fn inject_from_stranger(&mut self, key: ConnKey, theirs: ConnKey) {
        let from = Path {
            local: address(SERVER),
            remote: "10.0.0.66:4791".parse().unwrap(),
        };
        let rej = Rej::new(theirs.0, key.0, Rejected::Other, RejReason::TIMEOUT);
        let dreq = Dreq {
            local_comm_id: theirs.0,
            remote_comm_id: key.0,
            remote_qpn: 0,
            private_data: [0; 220],
        };
        for message in [
            CmMessage::Rej(rej),
            CmMessage::Rtu(Rtu::new(theirs.0, key.0)),
            CmMessage::Dreq(dreq),
        ] {
            self.server.engine.handle(self.now, from, &message.emit(1));
        }
    }

    pub(super) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    pub(super) fn run_until(&mut self, done: impl Fn(&Self) -> bool) {
        let end = self.now + Duration::from_secs(60);
        while !done(self) && self.step(end) {}
    }

    /// Names of the messages sent so far.
    pub(super) fn kinds(&self) -> Vec<&'static str> {
        self.sent.iter().map(|(_, _, mad)| kind(mad)).collect()
    }

    pub(super) fn trace(&self) -> String {
        let line = |(at, side, mad): &(Time, usize, MadBytes)| {
            format!(
                "{} ms: {} sends {}",
                at.nanos() / 1_000_000,
                ["client", "server"][*side],
                kind(mad)
            )
        };
        let lines: Vec<_> = self.sent.iter().map(line).collect();
        let stories = format!("{:?} {:?}", self.client.story, self.server.story);
        format!("{}\n{stories}", lines.join("\n"))
    }

    /// Neither engine keeps anything.
    pub(super) fn assert_empty(&self) {
        for node in [&self.client, &self.server] {
            let engine = &node.engine;
            assert_eq!(engine.connections(), 0, "{}", self.trace());
            assert!(engine.by_remote.is_empty() && engine.by_peer_qp.is_empty());
            assert_eq!(engine.poll_timeout(), None);
        }
    }

    /// Does whatever comes next before `end`; false if nothing does.
    fn step(&mut self, end: Time) -> bool {
        self.settle();
        let packet = self.flying.keys().next().map(|(at, _)| *at);
        let timers = [
            self.client.engine.poll_timeout(),
            self.server.engine.poll_timeout(),
        ];
        let Some(next) = timers.into_iter().chain([packet]).flatten().min() else {
            return false;
        };
        if next > end {
            return false;
        }
        self.now = self.now.max(next);
        let due = self
            .flying
            .first_key_value()
            .is_some_and(|((at, _), _)| *at <= self.now);
        if due
            && let Some((_, (side, from, mad))) = self.flying.pop_first()
            && !(self.deaf && side == SERVER)
        {
            let path = Path {
                local: address(side),
                remote: from,
            };
            let now = self.now;
            self.node(side).engine.handle(now, path, &mad);
        }
        for node in [&mut self.client, &mut self.server] {
            node.engine.handle_timeout(self.now);
        }
        self.settle();
        true
    }

    fn settle(&mut self) {
        for side in [CLIENT, SERVER] {
            let now = self.now;
            self.node(side).act(now);
            while let Some(transmit) = self.node(side).engine.poll_transmit() {
                self.fly(side, &transmit);
            }
        }
    }

    fn fly(&mut self, side: usize, transmit: &Transmit) {
        let index = self.sent.len();
        self.sent.push((self.now, side, transmit.mad));
        assert_eq!(transmit.path.local, address(side));
        let Some(to) = (0..2).find(|to| address(*to) == transmit.path.remote) else {
            return;
        };
        let mut put = |later| {
            self.serial += 1;
            let at = (self.now + LATENCY + later, self.serial);
            self.flying
                .insert(at, (to, transmit.path.local, transmit.mad));
        };
        if !self.lost.contains(&index) {
            put(Duration::ZERO);
        }
        if let Some(later) = self.repeated.get(&index) {
            put(*later);
        }
    }

    fn node(&mut self, side: usize) -> &mut Node {
        if side == CLIENT {
            &mut self.client
        } else {
            &mut self.server
        }
    }
}

fn kind(mad: &MadBytes) -> &'static str {
    match CmMessage::parse(mad).unwrap().1 {
        CmMessage::Req(_) => "REQ",
        CmMessage::Mra(_) => "MRA",
        CmMessage::Rej(_) => "REJ",
        CmMessage::Rep(_) => "REP",
        CmMessage::Rtu(_) => "RTU",
        CmMessage::Dreq(_) => "DREQ",
        CmMessage::Drep(_) => "DREP",
    }
}
