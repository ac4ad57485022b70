//! Requests against a backlog that nobody empties: `flood [REQUESTS [BACKLOG [AT_A_TIME]]]`, by
//! default 2,000 against 16, 32 at a time, from one device to the listener on `SAN_TEST_ADDR_B`.
//!
//! Fills the backlog, then counts how the others end, how long that takes, and what is left of
//! descriptors, memory and verbs objects. Exits with 1 if one got no answer or something leaked.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use san_provider::{
    AddressFamily, ConnectError, ConnectOptions, Decision, EventObject, NetworkEvents, NoUpcalls,
    Protocol, Provider, ProviderConfig, Socket, SocketType, SpiVersion, WsaCode,
};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let ip: IpAddr = std::env::var("SAN_TEST_ADDR_B")?.parse()?;
    let mut args = std::env::args().skip(1);
    let mut number = |default: usize| args.next().map_or(Ok(default), |n| n.parse());
    let (requests, backlog, at_a_time) = (number(2000)?, number(16)?, number(32)?);

    let provider = Provider::new(ProviderConfig::default())?;
    provider.startup(SpiVersion::CURRENT, false, Arc::new(NoUpcalls))?;
    let listener = socket(&provider, ip)?;
    listener.bind(SocketAddr::new(ip, 0))?;
    listener.listen(u32::try_from(backlog)?)?;
    let event = EventObject::new()?;
    listener.event_select(&event, NetworkEvents::ACCEPT)?;
    let addr = listener.local_addr()?.ok_or("no local address")?;

    let mut waiting = Vec::new();
    for _ in 0..backlog {
        waiting.push(Client::start(&provider, addr, Duration::from_secs(600))?);
    }
    let start = Instant::now();
    while provider.counters().queued < backlog as u64 {
        if start.elapsed() > Duration::from_secs(60) {
            return Err("the backlog did not fill".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // One round, so that everything exists that is made once.
    round(&provider, addr, at_a_time)?;
    let signalled = provider.counters().events_signalled;
    event.reset();
    let before = State::now()?;
    println!("backlog of {backlog} full; before: {before}");

    let start = Instant::now();
    let (mut refused, mut other, mut times) = (0, 0, Vec::new());
    let mut left = requests;
    while left > 0 {
        let now = left.min(at_a_time);
        left -= now;
        for (result, took) in round(&provider, addr, now)? {
            match result {
                Some(Err(error)) if error.code() == WsaCode::ConnRefused => refused += 1,
                result => {
                    other += 1;
                    println!("ended otherwise: {result:?}");
                }
            }
            times.push(took);
        }
    }
    let took = start.elapsed();
    let after = State::now()?;
    println!("after: {after}");
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    println!(
        "{requests} requests in {took:?}: {refused} refused, {other} otherwise, median {median:?}"
    );

    let counters = provider.counters();
    println!(
        "queued {}, refused_backlog {}",
        counters.queued, counters.refused_backlog
    );
    let connects = (requests + at_a_time) as u64;
    assert_eq!(counters.queued, backlog as u64);
    assert_eq!(counters.refused_backlog, connects);
    // The other signals are those of the connecting sockets' own events.
    assert_eq!(counters.events_signalled - signalled, requests as u64);
    assert!(!event.is_set(), "a refused request signalled the listener");
    assert_eq!(before.objects, after.objects);
    assert_eq!(before.descriptors, after.descriptors);
    assert_eq!((refused, other), (requests, 0));

    // Those that wait were not harmed.
    let mut served = Vec::new();
    while let Ok(accepted) = listener.accept(|_| Decision::Accept) {
        served.push(accepted);
    }
    assert_eq!(served.len(), backlog);
    for client in &waiting {
        assert!(client.event.wait(Duration::from_secs(30)));
        assert!(matches!(client.result()?, Some(Ok(()))));
    }
    println!("the {} that waited were served", served.len());
    listener.close()?;
    provider.cleanup()?;
    Ok(())
}

fn socket(provider: &Provider, ip: IpAddr) -> Result<Socket, Failure> {
    let family = AddressFamily::of(&SocketAddr::new(ip, 0));
    Ok(provider.socket(family, SocketType::Stream, Protocol::Tcp)?)
}

type Ended = (Option<Result<(), ConnectError>>, Duration);

fn round(provider: &Provider, addr: SocketAddr, count: usize) -> Result<Vec<Ended>, Failure> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Client::start(provider, addr, Duration::from_secs(30))?);
    }
    let mut ended = Vec::new();
    for client in &clients {
        let _ = client.event.wait(Duration::from_secs(40));
        ended.push((client.result()?, client.started.elapsed()));
        client.socket.close()?;
    }
    Ok(ended)
}

struct Client {
    socket: Socket,
    event: EventObject,
    started: Instant,
}

impl Client {
    fn start(provider: &Provider, addr: SocketAddr, deadline: Duration) -> Result<Self, Failure> {
        let socket = socket(provider, addr.ip())?;
        let event = EventObject::new()?;
        socket.event_select(&event, NetworkEvents::CONNECT)?;
        let started = Instant::now();
        match socket.connect(
            addr,
            ConnectOptions {
                deadline: Some(deadline),
                ..ConnectOptions::default()
            },
        ) {
            Err(error) if error.is_in_progress() => Ok(Self {
                socket,
                event,
                started,
            }),
            other => Err(format!("connect: {other:?}").into()),
        }
    }

    fn result(&self) -> Result<Option<Result<(), ConnectError>>, Failure> {
        Ok(self.socket.enum_network_events(Some(&self.event))?.connect)
    }
}

struct State {
    objects: verbs_shim::LiveObjects,
    descriptors: usize,
    resident_kib: u64,
}

impl State {
    fn now() -> Result<Self, Failure> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let resident = resident
            .and_then(|l| l.split_whitespace().next())
            .unwrap_or("0");
        Ok(Self {
            objects: verbs_shim::live_objects(),
            descriptors: std::fs::read_dir("/proc/self/fd")?.count(),
            resident_kib: resident.parse()?,
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            objects,
            descriptors,
            resident_kib,
        } = self;
        write!(
            f,
            "{descriptors} descriptors, {resident_kib} KiB resident, {objects:?}"
        )
    }
}
