//! How fast a stream is, over the SAN and over the kernel's TCP, with the same calls: for writes of several
//! sizes MB/s, the processor time of both ends together and how often their threads slept; and the time of a
//! small message one way.
//!
//! ```console
//! $ ci/soft cargo run --release -p san-switch --example bulk
//! $ ci/soft target/release/examples/bulk 65536 san       # one size, one way
//! ```
//!
//! Two threads, each with a switch of its own, at SAN_TEST_ADDR_A and SAN_TEST_ADDR_B. BULK_MS: how long a
//! figure is measured, in milliseconds (700). BULK_REPEAT: how often; the medians are told (1).

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use san_switch::{ConnectOptions, Connection, ListenOptions, Switch, SwitchConfig};

const ROUNDS: u32 = 3000;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

fn address(name: &str, otherwise: &str) -> Result<IpAddr> {
    let text = std::env::var(name).unwrap_or_else(|_| otherwise.to_owned());
    Ok(text.parse()?)
}

fn number(name: &str, otherwise: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(otherwise),
    }
}

fn pair(tcp_only: bool) -> Result<(Connection, Connection, [Switch; 2])> {
    let config = SwitchConfig::from_env()?;
    let switches = [Switch::new(config.clone())?, Switch::new(config)?];
    let here = address("SAN_TEST_ADDR_A", "127.0.0.1")?;
    let there = address("SAN_TEST_ADDR_B", "127.0.0.2")?;
    let listener = switches[1].listen(SocketAddr::new(there, 0), ListenOptions::default())?;
    let options = ConnectOptions::default()
        .local(SocketAddr::new(here, 0))
        .tcp_only(tcp_only);
    let client = switches[0].connect(listener.local_addr(), &options)?;
    let server = listener.accept()?;
    if client.is_san() == tcp_only {
        return Err(format!("the connection goes over {}", client.route()).into());
    }
    Ok((client, server, switches))
}

fn send_all(connection: &Connection, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        bytes = &bytes[connection.send(bytes)?..];
    }
    Ok(())
}

/// What this process has used so far.
struct Used {
    /// Processor time of all its threads, in seconds.
    processor: f64,
    /// How often one of them gave the processor up to wait.
    sleeps: u64,
}

/// From `/proc/self`: a clock tick is a hundredth of a second.
fn used() -> Result<Used> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let behind_name = stat.rsplit(')').next().unwrap_or_default();
    let field = |n: usize| -> Result<f64> {
        let text = behind_name.split_whitespace().nth(n);
        Ok(text
            .ok_or("a field of /proc/self/stat is missing")?
            .parse()?)
    };
    let processor = (field(11)? + field(12)?) / 100.0;
    let mut sleeps = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sleeps += line.unwrap_or("0").trim().parse::<u64>()?;
    }
    Ok(Used { processor, sleeps })
}

/// What one measurement has given.
#[derive(Clone, Copy)]
struct Figures {
    /// MB/s.
    rate: f64,
    /// Nanoseconds of processor for a byte, both ends.
    processor: f64,
    /// Sleeps for 64 KiB, both ends.
    sleeps: f64,
}

/// Writes of one size.
fn bulk(size: usize, tcp_only: bool) -> Result<Figures> {
    let time = Duration::from_millis(number("BULK_MS", 700)?);
    let (client, server, _switches) = pair(tcp_only)?;
    let before = used()?;
    let reader = std::thread::spawn(move || -> Result<(u64, Duration, Used)> {
        let mut buffer = vec![0; 1 << 20];
        let mut total = server.receive(&mut buffer)? as u64;
        let begun = Instant::now();
        loop {
            match server.receive(&mut buffer)? {
                0 => return Ok((total, begun.elapsed(), used()?)),
                n => total += n as u64,
            }
        }
    });
    let bytes = vec![7; size];
    let begun = Instant::now();
    while begun.elapsed() < time {
        send_all(&client, &bytes)?;
    }
    client.shutdown_write()?;
    let (total, time, after) = reader.join().map_err(|_| "the reader panicked")??;
    let total = total as f64;
    Ok(Figures {
        rate: total / 1e6 / time.as_secs_f64(),
        processor: (after.processor - before.processor) * 1e9 / total,
        sleeps: (after.sleeps - before.sleeps) as f64 * 65_536.0 / total,
    })
}

/// The measurements of one size by one way, by turns if there are several ways, as medians.
fn medians(size: usize, ways: &[bool]) -> Result<Vec<Figures>> {
    let mut all = vec![Vec::new(); ways.len()];
    for _ in 0..number("BULK_REPEAT", 1)?.max(1) {
        for (way, figures) in ways.iter().zip(&mut all) {
            figures.push(bulk(size, *way)?);
        }
    }
    let median = |figures: &Vec<Figures>, of: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = figures.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let one = |figures: &Vec<Figures>| Figures {
        rate: median(figures, |one| one.rate),
        processor: median(figures, |one| one.processor),
        sleeps: median(figures, |one| one.sleeps),
    };
    Ok(all.iter().map(one).collect())
}

fn tell(size: usize, ways: &[bool]) -> Result<()> {
    for (way, one) in ways.iter().zip(medians(size, ways)?) {
        let name = if *way { "TCP" } else { "SAN" };
        println!(
            "{size:>10} {name:>5} {:>10.1} {:>10.3} {:>10.2}",
            one.rate, one.processor, one.sleeps
        );
    }
    Ok(())
}

/// Microseconds of a message one way.
fn one_way(size: usize, tcp_only: bool) -> Result<f64> {
    let (client, server, _switches) = pair(tcp_only)?;
    let echo = std::thread::spawn(move || -> Result<()> {
        let mut buffer = vec![0; size];
        loop {
            if !receive_all(&server, &mut buffer)? {
                return Ok(());
            }
            send_all(&server, &buffer)?;
        }
    });
    let mut buffer = vec![7; size];
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        send_all(&client, &buffer)?;
        receive_all(&client, &mut buffer)?;
    }
    let time = begun.elapsed();
    client.shutdown_write()?;
    echo.join().map_err(|_| "the echo panicked")??;
    Ok(time.as_secs_f64() * 1e6 / f64::from(ROUNDS) / 2.0)
}

fn receive_all(connection: &Connection, bytes: &mut [u8]) -> Result<bool> {
    let mut at = 0;
    while at < bytes.len() {
        match connection.receive(&mut bytes[at..])? {
            0 => return Ok(false),
            n => at += n,
        }
    }
    Ok(true)
}

fn main() -> Result<()> {
    println!(
        "{:>10} {:>5} {:>10} {:>10} {:>10}",
        "bytes", "", "MB/s", "ns/byte", "sleeps/64K"
    );
    let mut arguments = std::env::args().skip(1);
    if let Some(size) = arguments.next() {
        let ways: &[bool] = match arguments.next().as_deref() {
            None => &[false, true],
            Some("san") => &[false],
            Some("tcp") => &[true],
            Some(other) => return Err(format!("'{other}' is neither 'san' nor 'tcp'").into()),
        };
        return tell(size.parse()?, ways);
    }
    for size in [64, 4096, 65_536, 1 << 20] {
        tell(size, &[false, true])?;
    }
    println!("{:>10} {:>12} {:>12}", "bytes", "SAN us", "TCP us");
    for size in [64, 4096, 65_536] {
        println!(
            "{size:>10} {:>12.1} {:>12.1}",
            one_way(size, false)?,
            one_way(size, true)?
        );
    }
    Ok(())
}
