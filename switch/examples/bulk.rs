//! How fast a stream is, over the SAN and over the kernel's TCP, with the same calls: MB/s for writes of
//! several sizes, and the time of a small message one way.
//!
//! ```console
//! $ ci/soft cargo run --release -p san-switch --example bulk
//! ```
//!
//! Two threads, each with a switch of its own, at SAN_TEST_ADDR_A and SAN_TEST_ADDR_B.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use san_switch::{ConnectOptions, Connection, ListenOptions, Switch, SwitchConfig};

const TIME: Duration = Duration::from_millis(700);
const ROUNDS: u32 = 3000;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn address(name: &str, otherwise: &str) -> Outcome<IpAddr> {
    let text = std::env::var(name).unwrap_or_else(|_| otherwise.to_owned());
    Ok(text.parse()?)
}

fn pair(tcp_only: bool) -> Outcome<(Connection, Connection, [Switch; 2])> {
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

fn send_all(connection: &Connection, mut bytes: &[u8]) -> Outcome<()> {
    while !bytes.is_empty() {
        bytes = &bytes[connection.send(bytes)?..];
    }
    Ok(())
}

/// MB/s of writes of one size.
fn bulk(size: usize, tcp_only: bool) -> Outcome<f64> {
    let (client, server, _switches) = pair(tcp_only)?;
    let reader = std::thread::spawn(move || -> Outcome<(u64, Duration)> {
        let mut buffer = vec![0; 1 << 20];
        let mut total = server.receive(&mut buffer)? as u64;
        let begun = Instant::now();
        loop {
            match server.receive(&mut buffer)? {
                0 => return Ok((total, begun.elapsed())),
                n => total += n as u64,
            }
        }
    });
    let bytes = vec![7; size];
    let begun = Instant::now();
    while begun.elapsed() < TIME {
        send_all(&client, &bytes)?;
    }
    client.shutdown_write()?;
    let (total, time) = reader.join().map_err(|_| "the reader panicked")??;
    Ok(total as f64 / 1e6 / time.as_secs_f64())
}

/// Microseconds of a message one way.
fn one_way(size: usize, tcp_only: bool) -> Outcome<f64> {
    let (client, server, _switches) = pair(tcp_only)?;
    let echo = std::thread::spawn(move || -> Outcome<()> {
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

fn receive_all(connection: &Connection, bytes: &mut [u8]) -> Outcome<bool> {
    let mut at = 0;
    while at < bytes.len() {
        match connection.receive(&mut bytes[at..])? {
            0 => return Ok(false),
            n => at += n,
        }
    }
    Ok(true)
}

fn main() -> Outcome<()> {
    println!("{:>10} {:>12} {:>12}", "bytes", "SAN MB/s", "TCP MB/s");
    for size in [64, 4096, 65_536, 1 << 20] {
        println!(
            "{size:>10} {:>12.1} {:>12.1}",
            bulk(size, false)?,
            bulk(size, true)?
        );
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
