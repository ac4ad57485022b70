//! What it costs to register and deregister memory, kept and not kept: `registrations [ROUNDS]`,
//! on a connection to `SAN_TEST_ADDR_B`, by default 2,000 rounds for each size.
//!
//! Prints medians. Exits with a failure if a round that ought to be a hit was none.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use san_provider::{
    AddressFamily, ConnectOptions, Decision, EventObject, Fabric, MemoryAccess, NetworkEvents,
    NoUpcalls, Protocol, Provider, ProviderConfig, SharedMemory, Socket, SocketType, SoftConfig,
    SpiVersion,
};

const PATIENCE: Duration = Duration::from_secs(20);

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let rounds = std::env::args().nth(1).map_or(Ok(2000), |n| n.parse())?;
    println!("register and deregister, median of {rounds}:");
    for (name, entries) in [("kept", 1024), ("not kept", 0)] {
        let config = ProviderConfig {
            memory_cache_entries: entries,
            ..ProviderConfig::default()
        };
        let provider = match std::env::var("SAN_FABRIC").as_deref() {
            Ok("soft") => {
                let soft = SoftConfig {
                    addresses: vec![address()?],
                    ..SoftConfig::default()
                };
                Provider::with_fabric(Fabric::soft(&soft)?, config)?
            }
            _ => Provider::new(config)?,
        };
        provider.startup(SpiVersion::CURRENT, false, Arc::new(NoUpcalls))?;
        let (socket, peer) = connect(&provider)?;
        for size in [4096, 65_536, 1 << 20] {
            let median = measure(&socket, size, rounds)?;
            println!("  {size:>8} bytes, {name}: {median:?}");
        }
        let hits = provider.counters().cache_hits;
        println!("  hits: {hits}");
        if entries > 0 && hits == 0 {
            return Err("nothing was kept".into());
        }
        drop((socket, peer));
        provider.cleanup()?;
    }
    Ok(())
}

fn address() -> Result<IpAddr, Failure> {
    Ok(std::env::var("SAN_TEST_ADDR_B")?.parse()?)
}

fn measure(socket: &Socket, size: usize, rounds: usize) -> Result<Duration, Failure> {
    let memory = SharedMemory::new(size)?;
    memory.write_at(0, &vec![1; size])?;
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let began = Instant::now();
        let handle = socket.register_memory((&memory).into(), MemoryAccess::ReadWrite)?;
        socket.deregister_memory(handle)?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

fn connect(provider: &Provider) -> Result<(Socket, Socket), Failure> {
    let ip = address()?;
    let socket = || {
        let family = AddressFamily::of(&SocketAddr::new(ip, 0));
        provider.socket(family, SocketType::Stream, Protocol::Tcp)
    };
    let (listener, client) = (socket()?, socket()?);
    listener.bind(SocketAddr::new(ip, 0))?;
    listener.listen(1)?;
    let (requests, connected) = (EventObject::new()?, EventObject::new()?);
    listener.event_select(&requests, NetworkEvents::ACCEPT)?;
    client.event_select(&connected, NetworkEvents::CONNECT)?;
    let addr = listener.local_addr()?.ok_or("no address")?;
    match client.connect(addr, ConnectOptions::default()) {
        Err(error) if error.is_in_progress() => {}
        other => return Err(format!("connect: {other:?}").into()),
    }
    if !requests.wait(PATIENCE) {
        return Err("no request came".into());
    }
    let accepted = listener.accept(|_| Decision::Accept)?;
    if !connected.wait(PATIENCE) {
        return Err("the connect did not end".into());
    }
    let ended = client.enum_network_events(Some(&connected))?.connect;
    ended.ok_or("no connect ended")??;
    Ok((client, accepted.socket))
}
