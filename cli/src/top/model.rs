//! What `san top` shows: the processes' reports, and how fast their numbers grow. Pure: reports and
//! time in, rows out.

use crate::reports::Reports;
use crate::table::plain;
use san_switch::Report;
use san_switch::stat::{ConnectionReport, Numbers};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Instant;

/// Reasons for TCP that are listed.
const MOST_REASONS: usize = 20;

/// By what the processes are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Rate,
    Connections,
    Pid,
}

/// Numbers a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) sent: f64,
    pub(super) received: f64,
    pub(super) connects: f64,
    pub(super) fallbacks: f64,
    pub(super) refused: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) program: String,
    pub(super) uptime_ms: u64,
    /// `soft`, `rdma`, or why there is no SAN.
    pub(super) san: String,
    pub(super) listeners: usize,
    pub(super) waiting: usize,
    pub(super) on_san: usize,
    pub(super) on_tcp: usize,
    /// Since it began.
    pub(super) fallbacks: u64,
    pub(super) refused: u64,
    pub(super) rates: Rates,
    pub(super) connections: Vec<Connection>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Connection {
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    /// `san soft0`, `tcp`, or `tcp, since ...`.
    pub(super) route: String,
    pub(super) is_san: bool,
    pub(super) age_ms: u64,
    pub(super) sent: f64,
    pub(super) received: f64,
}

/// Everything at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Picture {
    pub(super) processes: Vec<Process>,
    /// Open connections over TCP by the reason, the most first.
    pub(super) reasons: Vec<(String, usize)>,
    pub(super) total: Rates,
    pub(super) on_san: usize,
    pub(super) on_tcp: usize,
    pub(super) unanswered: usize,
}

/// Which number of which switch: the process, its switch, and in it a connection or the whole.
type Key = (u32, u32, Option<(SocketAddr, SocketAddr)>);

/// What there was the last time, to tell how fast it grows.
#[derive(Debug, Default)]
pub(super) struct Model {
    before: HashMap<Key, Counted>,
    at: Option<Instant>,
}

/// Numbers that only grow.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    sent: u64,
    received: u64,
    connects: u64,
    fallbacks: u64,
    refused: u64,
    age_ms: u64,
}

impl Model {
    /// Takes new reports, and says how things are.
    pub(super) fn take(&mut self, found: &Reports, now: Instant) -> Picture {
        let passed = self.at.map(|at| now.saturating_duration_since(at));
        let seconds = passed.map(|passed| passed.as_secs_f64());
        let mut after = HashMap::new();
        let mut picture = Picture {
            unanswered: found.unanswered,
            ..Picture::default()
        };
        let mut last = (0, 0);
        for report in &found.reports {
            last = match last {
                (pid, n) if pid == report.pid => (pid, n + 1),
                _ => (report.pid, 1),
            };
            let rate = |key: Key, counted: Counted, after: &mut HashMap<Key, Counted>| {
                after.insert(key, counted);
                rates(self.before.get(&key).copied(), counted, seconds)
            };
            let process = process(report, last.1, |key, counted| {
                rate(key, counted, &mut after)
            });
            picture.total = picture.total.and(process.rates);
            picture.on_san += process.on_san;
            picture.on_tcp += process.on_tcp;
            picture.processes.push(process);
        }
        picture.reasons = reasons(&found.reports);
        self.before = after;
        self.at = Some(now);
        picture
    }
}

impl Picture {
    pub(super) fn sort(&mut self, order: Order) {
        let rate = |process: &Process| process.rates.sent + process.rates.received;
        match order {
            Order::Rate => self.processes.sort_by(|a, b| rate(b).total_cmp(&rate(a))),
            Order::Connections => {
                let count = |process: &Process| std::cmp::Reverse(process.on_san + process.on_tcp);
                self.processes.sort_by_key(count);
            }
            Order::Pid => self.processes.sort_by_key(|process| process.pid),
        }
    }
}

impl Order {
    pub(super) fn next(self) -> Self {
        match self {
            Order::Rate => Order::Connections,
            Order::Connections => Order::Pid,
            Order::Pid => Order::Rate,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Order::Rate => "rate",
            Order::Connections => "connections",
            Order::Pid => "pid",
        }
    }
}

impl Rates {
    fn and(self, other: Self) -> Self {
        Rates {
            sent: self.sent + other.sent,
            received: self.received + other.received,
            connects: self.connects + other.connects,
            fallbacks: self.fallbacks + other.fallbacks,
            refused: self.refused + other.refused,
        }
    }
}

fn process(report: &Report, nth: u32, mut rate: impl FnMut(Key, Counted) -> Rates) -> Process {
    let mut connections: Vec<Connection> = report
        .connections
        .iter()
        .map(|one| {
            let counted = Counted {
                sent: of(&one.counters, "bytes_sent"),
                received: of(&one.counters, "bytes_received"),
                age_ms: one.age_ms,
                ..Counted::default()
            };
            let key = (report.pid, nth, Some((one.local, one.peer)));
            connection(one, rate(key, counted))
        })
        .collect();
    connections.sort_by(|a, b| (b.sent + b.received).total_cmp(&(a.sent + a.received)));
    let on_san = connections.iter().filter(|one| one.is_san).count();
    let connects = ["connected_san", "connected_tcp", "fallbacks"];
    let counted = Counted {
        connects: connects.iter().map(|name| of(&report.switch, name)).sum(),
        fallbacks: of(&report.switch, "fallbacks"),
        refused: refused(report),
        age_ms: report.uptime_ms,
        ..Counted::default()
    };
    let mut rates = rate((report.pid, nth, None), counted);
    // Of the connections that are open: those over TCP are counted nowhere else.
    rates.sent = connections.iter().map(|one| one.sent).sum();
    rates.received = connections.iter().map(|one| one.received).sum();
    Process {
        pid: report.pid,
        program: plain(&report.program),
        uptime_ms: report.uptime_ms,
        san: san(report),
        listeners: report.listeners.len(),
        waiting: report.listeners.iter().map(|one| one.waiting).sum(),
        on_san,
        on_tcp: connections.len() - on_san + report.omitted,
        fallbacks: counted.fallbacks,
        refused: counted.refused,
        rates,
        connections,
    }
}

fn san(report: &Report) -> String {
    let names: Vec<String> = report
        .providers
        .iter()
        .map(|one| plain(&one.name))
        .collect();
    match (names.is_empty(), &report.no_san) {
        (false, _) => names.join(","),
        (true, Some(why)) => format!("none: {}", plain(why)),
        (true, None) => "off".to_owned(),
    }
}

fn connection(report: &ConnectionReport, rates: Rates) -> Connection {
    let why = report.why.as_ref().or(report.not_tried.as_ref());
    let route = match (&report.device, why) {
        (Some(device), _) => format!("san {}", plain(device)),
        (None, Some(why)) => format!("tcp, since {}", plain(why)),
        (None, None) => plain(&report.route),
    };
    Connection {
        local: report.local,
        peer: report.peer,
        route,
        is_san: report.route == "san",
        age_ms: report.age_ms,
        sent: rates.sent,
        received: rates.received,
    }
}

/// Requests that listeners refused, for whatever reason: those of the provider, and those of the
/// switch that never came to it.
fn refused(report: &Report) -> u64 {
    let is_refusal = |(name, _): &(&String, &u64)| name.starts_with("refused_");
    let sum = |numbers: &Numbers| -> u64 {
        let refusals = numbers.iter().filter(is_refusal);
        refusals.map(|(_, count)| *count).sum()
    };
    let by_providers: u64 = report.providers.iter().map(|one| sum(&one.counters)).sum();
    match report.providers.is_empty() {
        true => report.listeners.iter().map(|one| sum(&one.counters)).sum(),
        false => by_providers,
    }
}

fn reasons(reports: &[Report]) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let all = reports.iter().flat_map(|report| &report.connections);
    for why in all.filter_map(|one| one.why.as_deref()) {
        *counts.entry(plain(why)).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.truncate(MOST_REASONS);
    counts
}

/// How fast it grew. A number that is smaller than before is another's: a process or a connection of
/// the same name that began anew.
fn rates(before: Option<Counted>, now: Counted, seconds: Option<f64>) -> Rates {
    let (Some(before), Some(seconds)) = (before, seconds.filter(|s| *s > 0.0)) else {
        return Rates::default();
    };
    if now.age_ms < before.age_ms {
        return Rates::default();
    }
    let grew = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
    Rates {
        sent: grew(now.sent, before.sent),
        received: grew(now.received, before.received),
        connects: grew(now.connects, before.connects),
        fallbacks: grew(now.fallbacks, before.fallbacks),
        refused: grew(now.refused, before.refused),
    }
}

fn of(numbers: &Numbers, name: &str) -> u64 {
    numbers.get(name).copied().unwrap_or(0)
}
