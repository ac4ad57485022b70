//! Two hosts whose connections the CM makes and ends, refusals and crashes
//! included.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use soft_roce::cm::{Accept, Config, ConnKey, Connect, Engine, Event, Extension, ListenKey, Path};
use soft_roce::rc::{KeySource, Modify, MrTable, QpState, ReorderBudget};
use soft_roce::time::Time;
use soft_roce::wire::cm::RejReason;
use soft_roce::wire::deth::GSI_QPN;
use soft_roce::wire::mad::{MAD_PACKET_LEN, emit_packet};
use soft_roce::wire::{FlowCrc, ICRC_LEN, Packet};

use crate::net::{Net, Weather, What};
use crate::rng::Rng;
use crate::script::Script;
use crate::side::{Shared, Side, Terms};
use crate::world::{NetSink, REORDER_LIMIT, open};

const ADDRESSES: [&str; 2] = ["[fd00::1]:4791", "[fd00::2]:4791"];
const SERVICE: u16 = 7000;
const CLIENT: usize = 0;
const SERVER: usize = 1;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was done yet.
    New,
    Asking,
    Standing,
    Refused(RejReason),
    Unreachable,
    /// It was ended by the client, which had everything.
    Finished,
    /// It broke.
    Broken,
}

/// One connection that is to be, as both sides' test sees it.
pub struct Plan {
    pub phase: Phase,
    /// What the server did with its request.
    pub refused: bool,
    pub accepted: bool,
    terms: Terms,
    scripts: [Script; 2],
    begin: Time,
    conns: [Option<ConnKey>; 2],
    sides: [Option<Side>; 2],
    /// Whether the side may use its queue pair.
    ready: [bool; 2],
}

struct Host {
    address: SocketAddr,
    engine: Engine,
    shared: Shared,
    qps: HashMap<u32, usize>,
    conns: HashMap<ConnKey, usize>,
    inbox: Vec<Vec<u8>>,
    called: bool,
    wake: Option<Time>,
    incoming: FlowCrc,
    outgoing: FlowCrc,
    next_qpn: u32,
}

pub struct Managed {
    pub net: Net,
    hosts: [Host; 2],
    pub plans: Vec<Plan>,
    rng: Rng,
    /// The server refuses one request in so many; 0 is none.
    pub refuses: u64,
    pub backlog: usize,
    /// The server answers no request before this moment.
    pub sleeps_until: Time,
    /// Requests that it has not answered.
    waiting: Vec<(usize, ConnKey, u32)>,
    listener: Option<ListenKey>,
    /// The server crashes at this moment, and comes back at once.
    pub crash_at: Option<Time>,
    pub crashed: bool,
    /// Connections that the server was told stand.
    pub established: usize,
}

impl Managed {
    pub fn new(weather: Weather, rng: &mut Rng) -> Self {
        let hosts = [0, 1].map(|i| Host::new(i, rng));
        let mut this = Self {
            net: Net::new(weather, rng.fork()),
            hosts,
            plans: Vec::new(),
            rng: rng.fork(),
            refuses: 0,
            backlog: 64,
            sleeps_until: Time::ZERO,
            waiting: Vec::new(),
            listener: None,
            crash_at: None,
            crashed: false,
            established: 0,
        };
        this.listen();
        this
    }

    pub fn listen(&mut self) {
        let mut address = self.hosts[SERVER].address;
        address.set_port(SERVICE);
        let engine = &mut self.hosts[SERVER].engine;
        if let Some(old) = self.listener.take() {
            engine.unlisten(old);
        }
        self.listener = Some(engine.listen(address, false, self.backlog).unwrap());
    }

    pub fn plan(&mut self, terms: Terms, mut scripts: [Script; 2], begin: Time) {
        let lens = [scripts[0].len, scripts[1].len];
        scripts[0].aim(&mut self.rng, lens[1]);
        scripts[1].aim(&mut self.rng, lens[0]);
        self.plans.push(Plan {
            phase: Phase::New,
            refused: false,
            accepted: false,
            terms,
            scripts,
            begin,
            conns: [None; 2],
            sides: [None, None],
            ready: [false; 2],
        });
        self.net.run_at(begin, CLIENT);
    }

    /// Runs until every plan has come to an end and nothing is remembered.
    pub fn run(&mut self, end: Time) -> bool {
        loop {
            let over = |p: &Plan| !matches!(p.phase, Phase::New | Phase::Asking | Phase::Standing);
            let idle = self.hosts.iter().all(|h| h.engine.connections() == 0);
            if idle && self.plans.iter().all(over) {
                return true;
            }
            let Some((host, what)) = self.net.next() else {
                return false;
            };
            if self.net.now > end {
                return false;
            }
            match what {
                What::Datagram(bytes) => {
                    let h = &mut self.hosts[host];
                    h.inbox.push(bytes);
                    if !h.called {
                        h.called = true;
                        self.net.run_at(self.net.now.plus_nanos(5_000), host);
                    }
                }
                What::Run => self.run_host(host),
            }
        }
    }

    pub fn check_end(&mut self) {
        for host in &self.hosts {
            assert_eq!(host.engine.connections(), 0, "nothing is remembered");
            assert_eq!(host.shared.reorder.used(), 0);
            assert!(host.qps.is_empty() && host.conns.is_empty());
        }
    }

    fn run_host(&mut self, host: usize) {
        let now = self.net.now;
        self.hosts[host].called = false;
        let inbox = std::mem::take(&mut self.hosts[host].inbox);
        if host == SERVER && !self.crashed && self.crash_at.is_some_and(|at| at <= now) {
            self.crash();
            return;
        }
        for datagram in inbox {
            self.take(host, now, &datagram);
        }
        self.hosts[host].engine.handle_timeout(now);
        if host == CLIENT {
            self.begin(now);
        }
        let mut again = None;
        // Twice: what users do with events makes engines speak.
        for _ in 0..2 {
            self.events(host, now);
            if host == SERVER {
                self.answer_all(now, &mut again);
            }
            for index in 0..self.plans.len() {
                self.drive(host, index, now, &mut again);
            }
            self.send_mads(host);
        }
        self.plan_wake(host, now, again);
    }

    fn take(&mut self, host: usize, now: Time, datagram: &[u8]) {
        let h = &mut self.hosts[host];
        let Some(Ok(packet)) = open(&h.incoming, datagram).map(Packet::parse) else {
            return;
        };
        let qpn = packet.bth.dest_qpn;
        if qpn == GSI_QPN {
            let path = Path {
                local: h.address,
                remote: ADDRESSES[1 - host].parse().unwrap(),
            };
            h.engine.handle(now, path, packet.payload);
            return;
        }
        let Some(index) = h.qps.get(&qpn).copied() else {
            return;
        };
        let plan = &mut self.plans[index];
        let Some(side) = &mut plan.sides[host] else {
            return;
        };
        side.qp.handle_packet(now, &packet);
        // The first packet says what a lost RTU would have said.
        if host == SERVER
            && !plan.ready[SERVER]
            && side.qp.counters().requests_received > 0
            && let Some(conn) = plan.conns[SERVER]
        {
            h.engine.peer_has_sent(conn);
        }
    }

    /// Asks for the connections whose time has come.
    fn begin(&mut self, now: Time) {
        for index in 0..self.plans.len() {
            let plan = &mut self.plans[index];
            if plan.phase != Phase::New || plan.begin > now {
                continue;
            }
            plan.phase = Phase::Asking;
            let qpn = self.make_side(CLIENT, index);
            let (src, mut dst) = (self.hosts[CLIENT].address, self.hosts[SERVER].address);
            dst.set_port(SERVICE);
            let mut private_data = [0; 56];
            private_data[..8].copy_from_slice(&(index as u64).to_be_bytes());
            let terms = self.plans[index].terms;
            let host = &mut self.hosts[CLIENT];
            let conn = host.engine.connect(
                now,
                &Connect {
                    path: Path {
                        local: src,
                        remote: ADDRESSES[SERVER].parse().unwrap(),
                    },
                    src,
                    dst,
                    qpn,
                    psn: psn(CLIENT, index),
                    mtu: terms.mtu.code(),
                    responder_resources: terms.depth,
                    initiator_depth: terms.depth,
                    retry_count: terms.retry_count,
                    rnr_retry_count: terms.rnr_retry,
                    ack_timeout: terms.timeout,
                    srq: terms.srq,
                    extension: Extension::default(),
                    private_data,
                },
            );
            let conn = conn.unwrap();
            host.conns.insert(conn, index);
            self.plans[index].conns[CLIENT] = Some(conn);
        }
    }

    fn make_side(&mut self, host: usize, index: usize) -> u32 {
        let plan = &mut self.plans[index];
        let h = &mut self.hosts[host];
        h.next_qpn += 1;
        let [a, b] = plan.scripts.clone();
        let (mine, theirs) = if host == CLIENT { (a, b) } else { (b, a) };
        let side = Side::new(
            &mut self.rng,
            &h.shared,
            h.next_qpn,
            plan.terms,
            mine,
            theirs,
        );
        plan.sides[host] = Some(side);
        h.qps.insert(h.next_qpn, index);
        h.next_qpn
    }

    fn events(&mut self, host: usize, now: Time) {
        while let Some(event) = self.hosts[host].engine.poll_event() {
            match event {
                Event::ConnectRequest {
                    conn,
                    peer,
                    request,
                    ..
                } => {
                    assert_eq!(host, SERVER);
                    let number = request.private_data[..8].try_into().unwrap();
                    let index = u64::from_be_bytes(number) as usize;
                    self.waiting.push((index, conn, peer.psn));
                    assert!(self.waiting.len() <= self.backlog, "backlog");
                }
                Event::ConnectResponse { conn, peer, .. } => {
                    let index = self.hosts[host].conns[&conn];
                    assert!(self.plans[index].accepted, "accepted by nobody");
                    if self.plans[index].sides[SERVER].is_none() {
                        // The server that accepted has crashed since.
                        assert!(self.crashed);
                        self.hosts[host].engine.destroy(now, conn);
                        self.over(host, conn, Phase::Broken);
                        continue;
                    }
                    let psns = (psn(CLIENT, index), peer.psn);
                    self.make_ready(CLIENT, index, psns);
                    self.hosts[host].engine.ready(conn).unwrap();
                    let plan = &mut self.plans[index];
                    plan.ready[CLIENT] = true;
                    plan.phase = Phase::Standing;
                }
                Event::Established { conn } => {
                    let index = self.hosts[host].conns[&conn];
                    assert!(!self.plans[index].refused, "refused means refused");
                    self.plans[index].ready[SERVER] = true;
                    self.established += 1;
                }
                Event::Rejected { conn, reason, .. } => {
                    self.over(host, conn, Phase::Refused(reason));
                }
                Event::Unreachable { conn } => self.over(host, conn, Phase::Unreachable),
                Event::Disconnected { conn } => {
                    let index = self.hosts[host].conns[&conn];
                    if let Some(side) = &mut self.plans[index].sides[host] {
                        side.stopped = true;
                        side.qp.modify(&Modify::Error).unwrap();
                    }
                }
                Event::TimewaitExit { conn } => self.over(host, conn, Phase::Broken),
            }
        }
    }

    /// The server takes up the requests that wait, if it does that now.
    fn answer_all(&mut self, now: Time, again: &mut Option<Time>) {
        if now < self.sleeps_until {
            *again = Some(self.sleeps_until);
            return;
        }
        for (index, conn, psn) in std::mem::take(&mut self.waiting) {
            self.answer(index, conn, psn, now);
        }
    }

    /// The server's answer to a request.
    fn answer(&mut self, index: usize, conn: ConnKey, peer_psn: u32, now: Time) {
        self.hosts[SERVER].engine.taken(conn);
        if self.plans[index].sides[CLIENT].is_none() {
            // A late copy of a request that the client gave up.
            let engine = &mut self.hosts[SERVER].engine;
            let _ = engine.reject(now, conn, RejReason::STALE_CONNECTION, &[]);
            return;
        }
        if self.refuses > 0 && self.rng.one_in(self.refuses) {
            self.plans[index].refused = true;
            let engine = &mut self.hosts[SERVER].engine;
            engine
                .reject(now, conn, RejReason::CONSUMER_DEFINED, b"no")
                .unwrap();
            return;
        }
        let qpn = self.make_side(SERVER, index);
        self.make_ready(SERVER, index, (psn(SERVER, index), peer_psn));
        let plan = &mut self.plans[index];
        plan.accepted = true;
        plan.conns[SERVER] = Some(conn);
        let terms = plan.terms;
        let host = &mut self.hosts[SERVER];
        host.conns.insert(conn, index);
        let accept = Accept {
            qpn,
            psn: psn(SERVER, index),
            responder_resources: terms.depth,
            initiator_depth: terms.depth,
            rnr_retry_count: terms.rnr_retry,
            srq: terms.srq,
            extension: Extension::default(),
            private_data: [0; 196],
        };
        host.engine.accept(now, conn, &accept).unwrap();
    }

    fn make_ready(&mut self, host: usize, index: usize, (rq_psn, sq_psn): (u32, u32)) {
        let [a, b] = &mut self.plans[index].sides;
        let (Some(a), Some(b)) = (a, b) else {
            panic!("a connection with one side");
        };
        let (mine, theirs) = if host == CLIENT { (a, b) } else { (b, a) };
        mine.connect(theirs, rq_psn, sq_psn);
        mine.begin();
    }

    /// A connection is no more, for one host.
    fn over(&mut self, host: usize, conn: ConnKey, phase: Phase) {
        let h = &mut self.hosts[host];
        let Some(index) = h.conns.remove(&conn) else {
            return;
        };
        let plan = &mut self.plans[index];
        plan.conns[host] = None;
        let Some(mut side) = plan.sides[host].take() else {
            return;
        };
        h.qps.remove(&side.qp.qpn());
        side.stopped = true;
        side.qp.modify(&Modify::Error).unwrap();
        if host == CLIENT && plan.phase == Phase::Standing || host == SERVER && plan.ready[SERVER] {
            side.check_flushed();
        }
        if host == CLIENT && !matches!(plan.phase, Phase::Finished | Phase::Broken) {
            plan.phase = phase;
        }
    }

    /// One queue pair's turn.
    fn drive(&mut self, host: usize, index: usize, now: Time, again: &mut Option<Time>) {
        let plan = &mut self.plans[index];
        let ready = plan.ready[host];
        let Some(side) = &mut plan.sides[host] else {
            return;
        };
        side.qp.handle_timeout(now);
        loop {
            let (busy, lazy) = if ready { side.user() } else { (false, false) };
            let mut sink = NetSink::default();
            side.qp.transmit(now, &mut sink);
            let sent = sink.packets.len();
            for mut packet in sink.packets {
                self.hosts[host].outgoing.seal(0, &mut packet);
                self.net.send(host, packet);
            }
            if lazy {
                *again = Some(now.plus_nanos(self.rng.range(1_000, 100_000)));
            }
            if !busy && sent == 0 {
                break;
            }
        }
        side.check_bounds();
        let broken = side.qp.state() == QpState::Error;
        if host == SERVER {
            if broken && let Some(conn) = plan.conns[SERVER] {
                let _ = self.hosts[SERVER].engine.disconnect(now, conn);
            }
            return;
        }
        let done = plan.sides.iter().flatten().all(Side::is_done);
        let both = plan.sides.iter().flatten().count() == 2;
        if plan.phase == Phase::Standing && (broken || done && both) {
            plan.phase = if broken {
                Phase::Broken
            } else {
                Phase::Finished
            };
            if let Some(conn) = plan.conns[CLIENT] {
                self.hosts[CLIENT].engine.disconnect(now, conn).unwrap();
            }
        } else if plan.phase == Phase::Standing {
            // A sign of life now and then, for the side that only waits.
            let wait = now.plus_nanos(200_000_000);
            if again.is_none_or(|at| at > wait) {
                *again = Some(wait);
            }
            if let Some(side) = &mut plan.sides[CLIENT] {
                side.qp.probe();
            }
        }
    }

    fn send_mads(&mut self, host: usize) {
        while let Some(transmit) = self.hosts[host].engine.poll_transmit() {
            let mut packet = vec![0; MAD_PACKET_LEN + ICRC_LEN];
            emit_packet(0, &transmit.mad, &mut packet[..MAD_PACKET_LEN]);
            self.hosts[host].outgoing.seal(0, &mut packet);
            self.net.send(host, packet);
        }
    }

    fn plan_wake(&mut self, host: usize, now: Time, again: Option<Time>) {
        let sides = self.plans.iter().filter_map(|p| p.sides[host].as_ref());
        let timeouts = sides.filter_map(|s| s.qp.poll_timeout());
        let h = &mut self.hosts[host];
        let wake = timeouts
            .chain(again)
            .chain(h.engine.poll_timeout())
            .chain(self.crash_at.filter(|_| host == SERVER && !self.crashed))
            .min();
        if let Some(at) = wake
            && wake != h.wake.filter(|w| *w > now)
        {
            h.wake = wake;
            self.net.run_at(at.max(now.plus_nanos(1)), host);
        }
        assert!(h.shared.reorder.used() <= REORDER_LIMIT);
    }

    /// The server forgets everything, is another one, and listens again.
    fn crash(&mut self) {
        self.crashed = true;
        let fresh = Host::new(SERVER, &mut self.rng);
        self.hosts[SERVER] = fresh;
        self.waiting.clear();
        self.listener = None;
        self.listen();
        for plan in &mut self.plans {
            plan.sides[SERVER] = None;
            plan.conns[SERVER] = None;
            plan.ready[SERVER] = false;
        }
    }
}

impl Host {
    fn new(index: usize, rng: &mut Rng) -> Self {
        let addresses = ADDRESSES.map(|a| -> SocketAddr { a.parse().unwrap() });
        let (me, peer) = (addresses[index], addresses[1 - index]);
        let config = Config {
            guid: rng.next(),
            ..Config::default()
        };
        Self {
            address: me,
            engine: Engine::new(config, KeySource::seeded(rng.next())),
            shared: Shared {
                regions: Arc::new(MrTable::new(10_000, KeySource::seeded(rng.next()))),
                reorder: Arc::new(ReorderBudget::new(REORDER_LIMIT)),
            },
            qps: HashMap::new(),
            conns: HashMap::new(),
            inbox: Vec::new(),
            called: false,
            wake: None,
            incoming: FlowCrc::new(peer, me),
            outgoing: FlowCrc::new(me, peer),
            // Random, so that nothing old reaches something new.
            next_qpn: 2 + (rng.next() as u32 & 0x7f_ffff),
        }
    }
}

/// The PSN that a side expects first.
fn psn(host: usize, index: usize) -> u32 {
    (0xff_fff0 + 40 * index as u32 + 7 * host as u32) & 0xff_ffff
}
