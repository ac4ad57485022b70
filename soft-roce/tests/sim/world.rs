//! Two hosts, the connections between them, and the order in which everything
//! happens.

use std::sync::Arc;

use soft_roce::rc::{KeySource, MrTable, QpState, ReorderBudget, Transmitted};
use soft_roce::sink::PacketSink;
use soft_roce::time::Time;
use soft_roce::wire::{FlowCrc, ICRC_LEN, Packet};

use crate::net::{Net, Weather, What};
use crate::rng::Rng;
use crate::script::Script;
use crate::side::{Shared, Side, Terms};
use crate::witness::Witness;

const ADDRESSES: [&str; 2] = ["[fd00::1]:4791", "[fd00::2]:4791"];

struct Host {
    shared: Shared,
    sides: Vec<Side>,
    inbox: Vec<Vec<u8>>,
    /// Whether it will run because of its inbox.
    called: bool,
    wake: Option<Time>,
    /// It has crashed: nothing runs any more.
    dead: bool,
    incoming: FlowCrc,
    outgoing: FlowCrc,
}

pub struct World {
    pub net: Net,
    hosts: [Host; 2],
    rng: Rng,
    /// From a datagram's arrival until the host looks.
    pub sloth: u64,
    /// Packets that one call may send.
    pub room: Option<usize>,
    /// Datagrams that no queue pair took.
    pub unreadable: u64,
    pub witness: Witness,
}

/// Between the numbers of a connection's queue pairs at host 0 and at host 1.
const APART: u32 = 1000;

/// Memory for packets that wait, per host.
pub const REORDER_LIMIT: usize = 1 << 20;

impl World {
    pub fn new(weather: Weather, rng: &mut Rng) -> Self {
        let addresses = ADDRESSES.map(|a| a.parse().unwrap());
        let mut host = |i: usize| Host {
            shared: Shared {
                regions: Arc::new(MrTable::new(10_000, KeySource::seeded(rng.next()))),
                reorder: Arc::new(ReorderBudget::new(REORDER_LIMIT)),
            },
            sides: Vec::new(),
            inbox: Vec::new(),
            called: false,
            wake: None,
            dead: false,
            incoming: FlowCrc::new(addresses[1 - i], addresses[i]),
            outgoing: FlowCrc::new(addresses[i], addresses[1 - i]),
        };
        let hosts = [host(0), host(1)];
        Self {
            net: Net::new(weather, rng.fork()),
            hosts,
            rng: rng.fork(),
            sloth: 1_000,
            room: None,
            unreadable: 0,
            witness: Witness::default(),
        }
    }

    /// A connection; the scripts are those of host 0 and of host 1.
    pub fn connect(&mut self, rng: &mut Rng, terms: Terms, mut scripts: [Script; 2]) {
        let lens = [scripts[0].len, scripts[1].len];
        scripts[0].aim(rng, lens[1]);
        scripts[1].aim(rng, lens[0]);
        let number = 100 + self.hosts[0].sides.len() as u32;
        self.witness.connected(number, terms.mtu.bytes());
        let psn = [0, 1].map(|_| {
            // Often just before the numbers begin anew.
            let near = 0xff_ffff - rng.below(200) as u32;
            if rng.one_in(2) {
                near
            } else {
                rng.next() as u32 & 0xff_ffff
            }
        });
        let [a, b] = scripts;
        let mut x = Side::new(
            rng,
            &self.hosts[0].shared,
            number,
            terms,
            a.clone(),
            b.clone(),
        );
        let mut y = Side::new(rng, &self.hosts[1].shared, number + APART, terms, b, a);
        x.connect(&y, psn[1], psn[0]);
        y.connect(&x, psn[0], psn[1]);
        x.begin();
        y.begin();
        self.hosts[0].sides.push(x);
        self.hosts[1].sides.push(y);
    }

    pub fn sides(&self) -> impl Iterator<Item = &Side> {
        self.hosts.iter().flat_map(|h| &h.sides)
    }

    pub fn side_mut(&mut self, host: usize, index: usize) -> &mut Side {
        &mut self.hosts[host].sides[index]
    }

    /// Host 1 forgets everything, as after a crash.
    pub fn crash(&mut self, host: usize) {
        self.hosts[host].dead = true;
    }

    /// Runs until `done` or until `end`. Says whether it was done.
    pub fn run(&mut self, end: Time, mut done: impl FnMut(&Self) -> bool) -> bool {
        self.net.run_at(self.net.now, 0);
        self.net.run_at(self.net.now, 1);
        while !done(self) {
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
                        let at = self.net.now.plus_nanos(self.sloth);
                        self.net.run_at(at, host);
                    }
                }
                What::Run => self.run_host(host),
            }
        }
        true
    }

    pub fn all_done(&self) -> bool {
        self.sides().all(Side::is_done)
    }

    pub fn all_broken(&self) -> bool {
        self.hosts
            .iter()
            .filter(|h| !h.dead)
            .flat_map(|h| &h.sides)
            .all(|s| s.qp.state() == QpState::Error)
    }

    /// Lets what is still under way arrive.
    pub fn settle(&mut self) {
        let end = self.net.now.plus_nanos(1_000_000_000);
        self.run(end, |_| false);
    }

    pub fn check_end(&mut self) {
        for host in &mut self.hosts {
            for side in &mut host.sides {
                side.check_end();
            }
            assert_eq!(host.shared.reorder.used(), 0, "nothing waits for ever");
        }
    }

    fn run_host(&mut self, index: usize) {
        let now = self.net.now;
        let host = &mut self.hosts[index];
        host.called = false;
        let inbox = std::mem::take(&mut host.inbox);
        if host.dead {
            return;
        }
        for datagram in inbox {
            let Some(bytes) = open(&host.incoming, &datagram) else {
                self.unreadable += 1;
                continue;
            };
            let Ok(packet) = Packet::parse(bytes) else {
                self.unreadable += 1;
                continue;
            };
            let qpn = packet.bth.dest_qpn;
            match host.sides.iter_mut().find(|s| s.qp.qpn() == qpn) {
                Some(side) => side.qp.handle_packet(now, &packet),
                None => self.unreadable += 1,
            }
        }
        let mut again = None;
        for side in &mut host.sides {
            side.qp.handle_timeout(now);
            loop {
                let (busy, lazy) = side.user();
                if lazy {
                    again = Some(now.plus_nanos(self.rng.range(1_000, 100_000)));
                }
                let mut sink = NetSink {
                    packets: Vec::new(),
                    room: self.room,
                };
                let blocked = side.qp.transmit(now, &mut sink) == Transmitted::Blocked;
                let sent = sink.packets.len();
                let number = side.qp.qpn() % APART;
                for mut packet in sink.packets {
                    let parsed = Packet::parse(&packet[..packet.len() - ICRC_LEN]);
                    self.witness.sees(index, number, &parsed.unwrap());
                    host.outgoing.seal(0, &mut packet);
                    self.net.send(index, packet);
                }
                if blocked {
                    again = Some(now.plus_nanos(1_000));
                    break;
                }
                if !busy && sent == 0 {
                    break;
                }
            }
            side.check_bounds();
        }
        assert!(host.shared.reorder.used() <= REORDER_LIMIT);
        let timeouts = host.sides.iter().filter_map(|s| s.qp.poll_timeout());
        let wake = timeouts.chain(again).min();
        if let Some(at) = wake
            && wake != host.wake.filter(|w| *w > now)
        {
            assert!(at > now, "a deadline in the past would spin");
            host.wake = wake;
            self.net.run_at(at, index);
        }
    }
}

/// What is between UDP header and ICRC, if the ICRC is right.
pub fn open<'a>(flow: &FlowCrc, datagram: &'a [u8]) -> Option<&'a [u8]> {
    flow.check(0, datagram)?;
    Some(&datagram[..datagram.len() - ICRC_LEN])
}

#[derive(Default)]
pub struct NetSink {
    pub packets: Vec<Vec<u8>>,
    pub room: Option<usize>,
}

impl PacketSink for NetSink {
    fn packet(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.room.is_some_and(|room| self.packets.len() >= room) {
            return None;
        }
        // Leftovers, as the contract says.
        self.packets.push(vec![0xa5; len + ICRC_LEN]);
        self.packets.last_mut().map(|p| &mut p[..len])
    }
}
