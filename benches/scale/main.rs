//! Many idle connections, and storms of short ones: what a connection costs in memory, descriptors
//! and processor time, for each end in a process of its own.
//!
//! ```text
//! cargo run --release -p san-benches --example scale -- --connections 10000
//! ci/rxe target/release/examples/scale --fabric rdma --connections 3000
//! ```
//!
//! It prints figures and judges none; the exit status is 0 when every connection came to be, and
//! everything was given back after the storms.

mod ends;

use clap::Parser;
use ends::{End, Fabric, Layer, Wave};
use san_benches::Result;
use san_benches::process::{Holdings, cpu_time, resident_by_mapping};
use san_benches::server::Server;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Connects under way at a time.
const WAVE: usize = 64;

#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// Idle connections.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// What they run on.
    #[arg(long, value_enum, default_value = "soft")]
    fabric: Fabric,
    /// What they are made with.
    #[arg(long, value_enum, default_value = "provider")]
    layer: Layer,
    /// Where the server listens; SAN_TEST_ADDR_B or 127.0.0.1 if not given.
    #[arg(long)]
    address: Option<IpAddr>,
    /// Seconds for which processor time is counted while nothing happens.
    #[arg(long, default_value_t = 10)]
    idle: u64,
    /// Connections of each storm, opened and closed at once; 0 is no storm.
    #[arg(long, default_value_t = 2000)]
    storm: usize,
    /// Storms.
    #[arg(long, default_value_t = 5)]
    storms: usize,
    /// Tells besides by what is mapped how the memory of the connecting end divides.
    #[arg(long)]
    mappings: bool,
    /// This process is the other end.
    #[arg(long, hide = true)]
    serve: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.serve {
        true => ends::serve(arguments.fabric, arguments.layer, address(&arguments)),
        false => run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scale: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    raise_descriptor_limit();
    let n = arguments.connections;
    let (fabric, layer) = (arguments.fabric, arguments.layer);
    let mut words = vec!["--serve".to_owned(), "--address".to_owned()];
    words.push(address(arguments).to_string());
    words.push(format!("--fabric={}", fabric.name()));
    words.push(format!("--layer={}", layer.name()));
    let (mut server, port) = Server::start(&words)?;
    let to = SocketAddr::new(address(arguments), port.parse()?);
    let client = End::new(fabric, layer)?;

    // What the first connection needs is there for all.
    let first = client.connect(to, WAVE)?;
    wait_for(&mut server, WAVE)?;
    drop(first);
    wait_for(&mut server, 0)?;
    let (here, there) = (Holdings::now()?, Remote::of(&mut server)?);
    let mapped = resident_by_mapping()?;

    let started = Instant::now();
    let connections = open(&client, to, n)?;
    wait_for(&mut server, n)?;
    let took = started.elapsed();
    let (here_after, there_after) = (Holdings::now()?, Remote::of(&mut server)?);
    println!(
        "{n} connections on {} by the {}",
        fabric.name(),
        layer.name()
    );
    println!(
        "  connected in {:.1} s, {:.2} ms each",
        took.as_secs_f64(),
        took.as_secs_f64() * 1e3 / n as f64
    );
    tell("connecting end", n, here, here_after);
    tell("accepting end", n, there.holdings, there_after.holdings);
    let both = |h: Holdings, t: Holdings| (h.resident_kib + t.resident_kib) as f64;
    let more = both(here_after, there_after.holdings) - both(here, there.holdings);
    println!("  both ends: {:.2} KiB a connection", more / n as f64);

    if arguments.mappings {
        for (name, after) in resident_by_mapping()? {
            let more = after.saturating_sub(mapped.get(&name).copied().unwrap_or(0));
            if more > 0 {
                let each = more as f64 / n as f64;
                println!("  {each:.2} KiB a connection, {more} KiB: {name}");
            }
        }
    }

    let (cpu_here, cpu_there) = (cpu_time()?, Remote::of(&mut server)?.cpu);
    std::thread::sleep(Duration::from_secs(arguments.idle));
    let idle_here = cpu_time()?.saturating_sub(cpu_here);
    let idle_there = Remote::of(&mut server)?.cpu.saturating_sub(cpu_there);
    println!(
        "  idle for {} s: {} ms of processor time here, {} ms there",
        arguments.idle,
        idle_here.as_millis(),
        idle_there.as_millis()
    );
    let started = Instant::now();
    drop(connections);
    wait_for(&mut server, 0)?;
    println!("  closed in {:.1} s", started.elapsed().as_secs_f64());
    storms(arguments, &client, &mut server, to)
}

/// Connections opened and closed in bursts.
fn storms(arguments: &Arguments, client: &End, server: &mut Server, to: SocketAddr) -> Result<()> {
    let burst = arguments.storm;
    if burst == 0 {
        return Ok(());
    }
    let mut after_first = None;
    for round in 1..=arguments.storms {
        let started = Instant::now();
        drop(open(client, to, burst)?);
        wait_for(server, 0)?;
        let (here, there) = (Holdings::now()?, Remote::of(server)?.holdings);
        println!(
            "storm {round}: {burst} opened and closed in {:.1} s; {} KiB, {} descriptors, {} threads here, {} KiB, {}, {} there",
            started.elapsed().as_secs_f64(),
            here.resident_kib,
            here.descriptors,
            here.threads,
            there.resident_kib,
            there.descriptors,
            there.threads
        );
        let now = (
            here.descriptors,
            here.threads,
            there.descriptors,
            there.threads,
        );
        match after_first {
            None => after_first = Some(now),
            Some(first) if first == now => {}
            Some(first) => {
                return Err(format!("descriptors and threads were {first:?}, are {now:?}").into());
            }
        }
    }
    Ok(())
}

/// Opens so many connections, a wave at a time.
fn open(client: &End, to: SocketAddr, count: usize) -> Result<Vec<Wave>> {
    let waves = (0..count).step_by(WAVE);
    waves
        .map(|done| client.connect(to, WAVE.min(count - done)))
        .collect()
}

fn tell(end: &str, n: usize, before: Holdings, after: Holdings) {
    let kib = after.resident_kib.saturating_sub(before.resident_kib);
    println!(
        "  {end}: {:.2} KiB a connection; descriptors {} -> {}, threads {} -> {}",
        kib as f64 / n as f64,
        before.descriptors,
        after.descriptors,
        before.threads,
        after.threads
    );
}

/// What the other end says of itself.
struct Remote {
    holdings: Holdings,
    cpu: Duration,
}

impl Remote {
    fn of(server: &mut Server) -> Result<Self> {
        let answer = server.ask("holdings")?;
        let numbers: Vec<u64> = answer
            .split_whitespace()
            .map(str::parse)
            .collect::<std::result::Result<_, _>>()?;
        let &[resident_kib, descriptors, threads, cpu] = numbers.as_slice() else {
            return Err(format!("the server said {answer}").into());
        };
        let holdings = Holdings {
            resident_kib,
            descriptors,
            threads,
        };
        Ok(Self {
            holdings,
            cpu: Duration::from_micros(cpu),
        })
    }
}

fn wait_for(server: &mut Server, connections: usize) -> Result<()> {
    match server.ask(&format!("wait {connections}"))?.as_str() {
        "fine" => Ok(()),
        other => Err(format!("the other end has {other} connections, not {connections}").into()),
    }
}

fn address(arguments: &Arguments) -> IpAddr {
    let tests = std::env::var("SAN_TEST_ADDR_B").ok();
    let tests = tests.and_then(|address| address.parse().ok());
    let given = arguments.address.or(tests);
    given.unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// A connection of the switch has a TCP socket's descriptor.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it cannot be raised, connects will say so.
    let _ = setrlimit(Resource::Nofile, limit);
}
