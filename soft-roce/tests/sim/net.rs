//! The network between two hosts: delay, bandwidth, a bounded queue, and every
//! mischief a network is capable of, as a seed determines.

use std::collections::BinaryHeap;

use soft_roce::time::Time;
use soft_roce::wire::{Opcode, PacketKind};

use crate::rng::Rng;

/// What the network does.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// One way, in nanoseconds.
    pub delay: u64,
    /// Up to so much more, for each packet on its own: they overtake.
    pub jitter: u64,
    /// Nanoseconds on the wire for a kilobyte.
    pub nanos_per_kb: u64,
    /// Packets that wait for the wire; more are dropped.
    pub queue: u64,
    pub loss: f64,
    /// ACKs and responses are lost besides.
    pub answer_loss: f64,
    pub duplication: f64,
    /// Held back by several delays.
    pub reorder: f64,
    /// One bit flipped.
    pub corruption: f64,
    /// From this moment on nothing passes.
    pub cut_at: Option<Time>,
    /// Between these moments nothing passes.
    pub outage: Option<(Time, Time)>,
}

impl Weather {
    /// Ten gigabits, ten microseconds, nothing amiss.
    pub const FAIR: Self = Self {
        delay: 10_000,
        jitter: 0,
        nanos_per_kb: 800,
        queue: 10_000,
        loss: 0.0,
        answer_loss: 0.0,
        duplication: 0.0,
        reorder: 0.0,
        corruption: 0.0,
        cut_at: None,
        outage: None,
    };

    /// Anything from fair to very foul.
    pub fn random(rng: &mut Rng) -> Self {
        let mut p = |most: f64| match rng.below(3) {
            0 => 0.0,
            1 => most / 10.0,
            _ => most,
        };
        let (loss, duplication, reorder, corruption) = (p(0.1), p(0.1), p(0.1), p(0.05));
        let answer_loss = p(0.3);
        Self {
            delay: rng.pick(&[1_000, 10_000, 100_000, 1_000_000]),
            jitter: rng.pick(&[0, 0, 500, 20_000]),
            nanos_per_kb: rng.pick(&[80, 800, 8_000]),
            queue: rng.pick(&[16, 64, 1_000]),
            loss,
            answer_loss,
            duplication,
            reorder,
            corruption,
            cut_at: None,
            outage: None,
        }
    }
}

/// Something that happens to a host.
#[derive(Debug, PartialEq, Eq)]
pub enum What {
    /// A datagram arrives.
    Datagram(Vec<u8>),
    /// The host has time.
    Run,
}

#[derive(Debug, PartialEq, Eq)]
struct Event {
    at: Time,
    /// Ties are broken by the order of making.
    number: u64,
    host: usize,
    what: What,
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // The earliest is the greatest, for the heap.
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The network and everything that is going to happen.
pub struct Net {
    pub now: Time,
    pub weather: Weather,
    rng: Rng,
    events: BinaryHeap<Event>,
    made: u64,
    /// When each host's wire is free.
    free_at: [Time; 2],
    /// Datagrams handed in, and those that were dropped or spoiled.
    pub sent: u64,
    pub lost: u64,
}

impl Net {
    pub fn new(weather: Weather, rng: Rng) -> Self {
        Self {
            now: Time::ZERO,
            weather,
            rng,
            events: BinaryHeap::new(),
            made: 0,
            free_at: [Time::ZERO; 2],
            sent: 0,
            lost: 0,
        }
    }

    /// What happens next, and to whom. The clock moves there.
    pub fn next(&mut self) -> Option<(usize, What)> {
        let event = self.events.pop()?;
        assert!(event.at >= self.now, "time runs backwards");
        self.now = event.at;
        Some((event.host, event.what))
    }

    pub fn run_at(&mut self, at: Time, host: usize) {
        self.push(at.max(self.now), host, What::Run);
    }

    /// Sends a datagram from `host` to the other one.
    pub fn send(&mut self, host: usize, mut datagram: Vec<u8>) {
        let w = self.weather;
        self.sent += 1;
        let bytes = datagram.len() as u64 + 60;
        let on_wire = (bytes * w.nanos_per_kb / 1000).max(1);
        let start = self.free_at[host].max(self.now);
        let waiting = start.nanos_since(self.now) / on_wire;
        let cut = w.cut_at.is_some_and(|at| self.now >= at)
            || w.outage
                .is_some_and(|(from, to)| self.now >= from && self.now < to);
        let loss = w.loss
            + if is_answer(&datagram) {
                w.answer_loss
            } else {
                0.0
            };
        if waiting >= w.queue || cut || self.rng.chance(loss) {
            self.lost += 1;
            return;
        }
        self.free_at[host] = start.plus_nanos(on_wire);
        let arrival = self.free_at[host].plus_nanos(w.delay);
        if self.rng.chance(w.duplication) {
            let late = self.rng.below(4 * w.delay + 1);
            self.push(
                arrival.plus_nanos(late),
                1 - host,
                What::Datagram(datagram.clone()),
            );
        }
        if self.rng.chance(w.corruption) {
            self.lost += 1;
            let bit = self.rng.below(8 * datagram.len() as u64) as usize;
            datagram[bit / 8] ^= 1 << (bit % 8);
        }
        let mut late = if w.jitter > 0 {
            self.rng.below(w.jitter)
        } else {
            0
        };
        if self.rng.chance(w.reorder) {
            late += self.rng.below(4 * w.delay + 1);
        }
        self.push(arrival.plus_nanos(late), 1 - host, What::Datagram(datagram));
    }

    fn push(&mut self, at: Time, host: usize, what: What) {
        self.made += 1;
        self.events.push(Event {
            at,
            number: self.made,
            host,
            what,
        });
    }
}

/// Whether it is an ACK, a NAK or a part of a READ's response.
fn is_answer(datagram: &[u8]) -> bool {
    Opcode::from_byte(datagram[0])
        .is_ok_and(|o| matches!(o.packet_kind(), PacketKind::ReadResponse | PacketKind::Ack))
}
