//! The report: what a switch is doing and what it has counted, all at one time.
//!
//! Numbers are read where they are counted, without stopping anything: each lock is held for one
//! socket and a moment. Numbers of different sockets may therefore be some microseconds apart.
//! The form is JSON with `format` in it; fields may be added, and readers ignore those they do not
//! know.

use crate::companion::Companion;
use crate::companion::shared::ListenerShared;
use crate::net::registry::{ConnectionInfo, Counted};
use crate::net::rooms::Rooms;
use crate::route::fallback::{FallbackReason, NotTried, Route};
use crate::route::not_moved::NotMoved;
use crate::san::provider::StartedProvider;
use san_base::lock;
use san_provider::SocketStats;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Numbers by their names.
pub type Numbers = BTreeMap<String, u64>;

/// Connections that one report lists at most; the rest is counted in `omitted`.
const MOST_CONNECTIONS: usize = 16_384;

/// What one switch is doing and what it has counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The form of the report, [`Report::FORMAT`].
    pub format: u32,
    /// The process.
    pub pid: u32,
    /// The program's name.
    pub program: String,
    /// How long the switch has been there, in milliseconds.
    pub uptime_ms: u64,
    /// Why there is no SAN, where one was looked for in vain.
    pub no_san: Option<String>,
    /// What the switch has counted: the fields of [`SwitchStats`](crate::SwitchStats). Of a program that the
    /// preload library has, also why connections have stayed on TCP: the fields of
    /// [`ProgramStats`](crate::program::ProgramStats) that begin with `stayed`.
    pub switch: Numbers,
    /// Its providers.
    pub providers: Vec<ProviderReport>,
    /// Its listeners, in the order in which they were made.
    pub listeners: Vec<ListenerReport>,
    /// Its open connections, oldest first.
    pub connections: Vec<ConnectionReport>,
    /// Open connections that are not listed, since there are too many.
    pub omitted: usize,
    /// Of a program that the preload library has with the direct route: its last connects that were left to
    /// TCP, the latest last. Their connections are the kernel's, so `connections` does not have them.
    #[serde(default)]
    pub left_to_tcp: Vec<LeftToTcp>,
}

/// A connect that was left to TCP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LeftToTcp {
    /// Where to.
    pub peer: SocketAddr,
    /// Why.
    pub why: String,
    /// What mends it.
    pub remedy: String,
    /// How long ago, in milliseconds.
    pub age_ms: u64,
}

impl LeftToTcp {
    pub(crate) fn new(peer: SocketAddr, why: String, remedy: String, when: Instant) -> Self {
        LeftToTcp {
            peer,
            why,
            remedy,
            age_ms: millis(when.elapsed()),
        }
    }
}

/// A provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProviderReport {
    /// Its name.
    pub name: String,
    /// What it has counted: the fields of [`san_provider::Counters`].
    pub counters: Numbers,
    /// Sockets open now, listening and connecting ones among them.
    pub sockets: usize,
    /// The devices that it serves.
    pub devices: Vec<DeviceReport>,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeviceReport {
    /// Its name.
    pub name: String,
    /// What the device itself has counted, repeated packets among it
    /// ([`san_provider::Provider::device_counters`]). The names are the device's own: a kernel's device counts for all
    /// processes together, the soft fabric for this one. Empty where it tells nothing.
    pub counters: Numbers,
}

/// A listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ListenerReport {
    /// Where it listens.
    pub address: SocketAddr,
    /// How many connections may wait.
    pub backlog: u32,
    /// Accepted SAN connections that wait for the application now.
    pub waiting: usize,
    /// What it has counted: the fields of [`ListenerStats`](crate::ListenerStats).
    pub counters: Numbers,
    /// Its companions on the SAN.
    pub companions: Vec<CompanionReport>,
}

/// A listening companion, or one that could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CompanionReport {
    /// How it stands, for people.
    pub state: String,
    /// Requests that it holds now.
    pub held: usize,
    /// What it has counted: the fields of [`san_provider::ListenStats`].
    pub counters: Numbers,
}

/// An open connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ConnectionReport {
    /// Our end.
    pub local: SocketAddr,
    /// The peer's end.
    pub peer: SocketAddr,
    /// `san` or `tcp`.
    pub route: String,
    /// The provider, on the SAN.
    pub provider: Option<String>,
    /// The RDMA device, on the SAN.
    pub device: Option<String>,
    /// Why TCP, where the SAN was thought of.
    pub why: Option<String>,
    /// Why the SAN was not thought of, on a TCP connection that this process made.
    pub not_tried: Option<String>,
    /// What mends either of them.
    pub remedy: Option<String>,
    /// How long it has been there, in milliseconds.
    pub age_ms: u64,
    /// What it has counted: `bytes_sent`, `bytes_received`, `messages_sent` and
    /// `messages_received` (on TCP: calls that sent and received), and on the SAN the other fields
    /// of [`san_provider::ConnectionStats`]. A connection that may move also has `carrier_ups` and
    /// `carrier_downs`, how often it moved to the SAN and back, and `carrier_since_ms`.
    pub counters: Numbers,
}

impl Report {
    /// The form that this version writes.
    pub const FORMAT: u32 = 1;

    /// The report of a switch.
    pub(crate) fn of(rooms: &Rooms) -> Self {
        let mut listeners = rooms.companions.listeners();
        listeners.sort_unstable_by_key(|listener| listener.token);
        let (infos, mut omitted) = rooms.connections.oldest(MOST_CONNECTIONS);
        let now = Instant::now();
        let mut connections: Vec<_> = infos.iter().map(|info| connection(info, now)).collect();
        if let Some(program) = OF_PROGRAM.get() {
            (program.connections)(&mut |one| match connections.len() < MOST_CONNECTIONS {
                true => connections.push(elsewhere(rooms, &one, now)),
                false => omitted += 1,
            });
        }
        Report {
            format: Self::FORMAT,
            pid: std::process::id(),
            program: program_name(),
            uptime_ms: millis(now.saturating_duration_since(rooms.started)),
            no_san: rooms.absent.clone(),
            switch: of_switch(rooms),
            providers: rooms
                .providers
                .all()
                .iter()
                .enumerate()
                .map(|(index, one)| provider(rooms, index, one))
                .collect(),
            listeners: listeners.iter().map(|one| listener(rooms, one)).collect(),
            connections,
            omitted,
            left_to_tcp: OF_PROGRAM
                .get()
                .map_or_else(Vec::new, |program| (program.left)()),
        }
    }
}

fn provider(rooms: &Rooms, index: usize, started: &StartedProvider) -> ProviderReport {
    let stats = started.provider.counters();
    let table = rooms.routes.table();
    let entries = table.entries().iter();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.provider == index)
        .map(|entry| entry.device.clone())
        .collect();
    names.sort_unstable();
    names.dedup();
    let devices = names.into_iter().map(|name| DeviceReport {
        counters: started
            .provider
            .device_counters(&name)
            .into_iter()
            .collect(),
        name,
    });
    ProviderReport {
        name: started.name.clone(),
        sockets: usize::try_from(stats.sockets_opened.saturating_sub(stats.sockets_closed))
            .unwrap_or(usize::MAX),
        counters: numbers(stats.rows()),
        devices: devices.collect(),
    }
}

fn listener(rooms: &Rooms, listener: &Arc<ListenerShared>) -> ListenerReport {
    let name = |number| rooms.providers.name(number);
    let companions = lock(&listener.companions).each(name);
    ListenerReport {
        address: listener.address,
        backlog: listener.backlog,
        waiting: listener.san_waiting(),
        counters: numbers(listener.counters.snapshot().rows()),
        companions: companions
            .into_iter()
            .map(|(status, companion)| companion_report(status.to_string(), companion.as_deref()))
            .collect(),
    }
}

fn companion_report(state: String, companion: Option<&Companion>) -> CompanionReport {
    let stats = companion.and_then(|one| one.socket.data().stats().ok());
    let listen = stats.and_then(|stats| stats.listen);
    CompanionReport {
        state,
        held: listen.map_or(0, |listen| listen.held),
        counters: listen.map_or_else(Numbers::new, |listen| numbers(listen.rows())),
    }
}

fn connection(info: &ConnectionInfo, now: Instant) -> ConnectionReport {
    let mut report = ConnectionReport {
        local: info.local,
        peer: info.peer,
        route: "tcp".to_owned(),
        provider: None,
        device: None,
        why: None,
        not_tried: None,
        remedy: None,
        age_ms: millis(now.saturating_duration_since(info.since)),
        counters: Numbers::new(),
    };
    match info.route() {
        Route::San { provider, device } => {
            report.route = "san".to_owned();
            report.provider = Some(provider.clone());
            report.device = Some(device.clone());
        }
        Route::Tcp { why: None } => {}
        Route::Tcp { why: Some(why) } => {
            let text = Some(why.to_string());
            match why.is_fallback() {
                true => report.why = text,
                false => report.not_tried = text,
            }
            report.remedy = Some(why.remedy(info.peer));
        }
    }
    report.counters = match &info.counted {
        Counted::Tcp(counters) => numbers(counters.snapshot().rows()),
        Counted::Moving(stream, _) => {
            let carrying = stream.carrying();
            let since = millis(now.saturating_duration_since(carrying.since));
            let mut counters = numbers(stream.counters().snapshot().rows());
            counters.insert("carrier_ups".to_owned(), carrying.ups);
            counters.insert("carrier_downs".to_owned(), carrying.downs);
            counters.insert("carrier_since_ms".to_owned(), since);
            counters
        }
        // One that is being closed has nothing to tell any more.
        Counted::San(socket) => {
            socket
                .stats()
                .ok()
                .map_or_else(Numbers::new, |stats: SocketStats| {
                    let counted = stats.connection.map(|counted| numbers(counted.rows()));
                    counted.unwrap_or_default()
                })
        }
    };
    report
}

/// A connection over TCP that the kernel has, of a program that the preload library has.
pub(crate) struct Elsewhere {
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) since: Instant,
    /// Why it has not moved. `None`: the SAN has no way to the peer.
    pub(crate) why: Option<NotMoved>,
    /// Bytes since the library has seen it.
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

fn elsewhere(rooms: &Rooms, one: &Elsewhere, now: Instant) -> ConnectionReport {
    let not_tried = match one.why {
        Some(why) => NotTried::NotMoved(why),
        None => rooms.why_not_there(one.local, one.peer),
    };
    let why = FallbackReason::NotTried(not_tried);
    let counted = [("bytes_sent", one.sent), ("bytes_received", one.received)];
    ConnectionReport {
        local: one.local,
        peer: one.peer,
        route: "tcp".to_owned(),
        provider: None,
        device: None,
        why: None,
        not_tried: Some(why.to_string()),
        remedy: Some(why.remedy(one.peer)),
        age_ms: millis(now.saturating_duration_since(one.since)),
        counters: numbers(counted.into_iter()),
    }
}

/// What a program that the preload library has tells beside its switch.
pub(crate) struct OfProgram {
    /// What it counts.
    pub(crate) numbers: fn() -> Vec<(&'static str, u64)>,
    /// Its connections that the kernel has.
    pub(crate) connections: fn(&mut dyn FnMut(Elsewhere)),
    /// Its last connects that were left to TCP.
    pub(crate) left: fn() -> Vec<LeftToTcp>,
}

static OF_PROGRAM: OnceLock<OfProgram> = OnceLock::new();

/// The reports of this process have what its program tells, too.
pub(crate) fn add_program(program: OfProgram) {
    let _ = OF_PROGRAM.set(program);
}

fn of_switch(rooms: &Rooms) -> Numbers {
    let mut all = numbers(rooms.counters.snapshot().rows());
    if let Some(program) = OF_PROGRAM.get() {
        all.extend(numbers((program.numbers)().into_iter()));
    }
    all
}

fn numbers(rows: impl Iterator<Item = (&'static str, u64)>) -> Numbers {
    rows.map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What this process is called.
pub(crate) fn program_name() -> String {
    let name = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    name.trim_end().to_owned()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
