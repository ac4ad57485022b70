//! Connects: how long one takes, and how many there are in a second, one after the other.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use san_benches::Result;
use san_benches::record::Record;
use san_benches::server::Server;
use san_benches::stats::Samples;

use crate::raw::{self, Dialler};
use crate::{Site, provider, switch, tcp};

/// Connects that are measured.
const CONNECTS: u32 = 200;

/// Connects before that.
const WARM_UP: u32 = 10;

/// Between connects: everything that the last one left to do is done, on both sides.
const PAUSE: Duration = Duration::from_millis(20);

/// Latencies.
pub(crate) fn all(site: &Site, record: &mut Record) -> Result<()> {
    let mut dialler = Dialler::new(64)?;
    let mut handshakes = Samples::default();
    let samples = latencies(
        site.server,
        "raw",
        |to| {
            let connection = dialler.connect(to)?;
            handshakes.push(connection.handshake);
            Ok(connection)
        },
        raw::Connection::close,
    )?;
    record.samples(
        "connect.raw",
        "connect: raw CM, resolving and queue pair included",
        &samples,
    );
    let what = "of that, rdma_connect to ESTABLISHED";
    record.samples("connect.raw.handshake", what, &handshakes);

    let client = provider::Client::new()?;
    let samples = latencies(
        site.server,
        "provider",
        |to| client.connect(to),
        provider::close,
    )?;
    record.samples(
        "connect.provider",
        "connect: provider, to FD_CONNECT",
        &samples,
    );

    let client = switch::Client::new()?;
    let samples = latencies(site.server, "switch", |to| client.connect(to), drop_it)?;
    record.samples(
        "connect.switch",
        "connect: through the switch, over the SAN",
        &samples,
    );

    let samples = latencies(site.server, "tcp", tcp::connect, drop_it)?;
    record.samples("connect.tcp", "connect: kernel TCP", &samples);
    Ok(())
}

/// Connects per second, each closed again before the next.
pub(crate) fn rates(site: &Site, record: &mut Record) -> Result<()> {
    let mut dialler = Dialler::new(64)?;
    let per_second = rate(
        site.server,
        "raw",
        |to| dialler.connect(to),
        raw::Connection::close,
    )?;
    let what = "connect and close, one after the other: raw CM";
    record.figure("rate.raw", what, "1/s", per_second);

    let client = provider::Client::new()?;
    let per_second = rate(
        site.server,
        "provider",
        |to| client.connect(to),
        provider::close,
    )?;
    let what = "connect and close, one after the other: provider";
    record.figure("rate.provider", what, "1/s", per_second);

    let client = switch::Client::new()?;
    let per_second = rate(site.server, "switch", |to| client.connect(to), drop_it)?;
    let what = "connect and close, one after the other: switch";
    record.figure("rate.switch", what, "1/s", per_second);

    let per_second = rate(site.server, "tcp", tcp::connect, drop_it)?;
    let what = "connect and close, one after the other: kernel TCP";
    record.figure("rate.tcp", what, "1/s", per_second);
    Ok(())
}

// The value is spent.
#[allow(clippy::unnecessary_wraps)]
fn drop_it<T>(connection: T) -> Result<()> {
    drop(connection);
    Ok(())
}

fn latencies<C>(
    server: IpAddr,
    kind: &str,
    mut connect: impl FnMut(SocketAddr) -> Result<C>,
    close: impl Fn(C) -> Result<()>,
) -> Result<Samples> {
    let (_server, to) = start(server, kind)?;
    let mut samples = Samples::with_capacity(CONNECTS as usize);
    for n in 0..WARM_UP + CONNECTS {
        let start = Instant::now();
        let connection = connect(to)?;
        let took = start.elapsed();
        if n >= WARM_UP {
            samples.push(took);
        }
        close(connection)?;
        std::thread::sleep(PAUSE);
    }
    Ok(samples)
}

fn rate<C>(
    server: IpAddr,
    kind: &str,
    mut connect: impl FnMut(SocketAddr) -> Result<C>,
    close: impl Fn(C) -> Result<()>,
) -> Result<f64> {
    let (_server, to) = start(server, kind)?;
    for _ in 0..WARM_UP {
        close(connect(to)?)?;
    }
    let start = Instant::now();
    for _ in 0..CONNECTS {
        close(connect(to)?)?;
    }
    Ok(f64::from(CONNECTS) / start.elapsed().as_secs_f64())
}

fn start(server: IpAddr, kind: &str) -> Result<(Server, SocketAddr)> {
    let args = ["serve", kind, &server.to_string()].map(String::from);
    let (running, port) = Server::start(&args)?;
    Ok((running, SocketAddr::new(server, port.parse()?)))
}
