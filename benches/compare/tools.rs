//! The programs measured beside ours: perftest's `ib_send_lat -e` and others of it, and `rstream`,
//! which runs on rsockets and on kernel TCP. Also the versions of everything.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use san_benches::Result;
use san_benches::peers::{parse_bandwidth, parse_rstream, parse_send_latency};
use san_benches::record::Record;
use verbs_shim::Fabric;

use crate::pings::{SIZES, rounds};
use crate::rate::MESSAGES;
use crate::{Site, rdma};

/// How often a client tries: its server takes its time to start, and says nothing when it has.
const TRIES: u32 = 20;

/// `ib_send_lat -e`, over RDMA CM, with perftest's own settings.
pub(crate) fn send_latency(site: &Site, record: &mut Record) -> Result<()> {
    SIZES
        .into_iter()
        .try_for_each(|size| send_latency_of(site, record, size))
}

pub(crate) fn send_latency_of(site: &Site, record: &mut Record, size: usize) -> Result<()> {
    let (size_arg, rounds) = (size.to_string(), rounds(size).to_string());
    let args = ["-R", "-F", "-e", "-s", &size_arg, "-n", &rounds];
    let address = site.server.to_string();
    let client = [&args[..], &[&address]].concat();
    let output = pair("ib_send_lat", &args, &client)?;
    let latency = parse_send_latency(&output)?;
    if latency.bytes as usize != size {
        return Err(format!("ib_send_lat measured {} bytes", latency.bytes).into());
    }
    let what = format!("message {size} B, one way: ib_send_lat -e");
    let key = format!("message.{size}.perftest");
    record.figure(&key, &what, "us", latency.typical);
    Ok(())
}

/// `ib_send_bw -e`, and at which size it is best.
pub(crate) fn streams(site: &Site, record: &mut Record) -> Result<()> {
    let mut best = (0, 0.0);
    for size in [SIZES[0], SIZES[1], 1 << 16, 1 << 20] {
        let messages = match size {
            0..=4096 => MESSAGES,
            _ => rdma::rounds(size),
        };
        let output = own_devices("ib_send_bw", site, size, messages, &["-e"])?;
        let rate = parse_bandwidth(&output, size)?;
        let what = format!("messages of {size} B, streaming: ib_send_bw -e");
        record.figure(&format!("stream.{size}.perftest"), &what, "MiB/s", rate);
        if rate > best.1 {
            best = (size, rate);
        }
    }
    let what = format!("the best of them, at {} B", best.0);
    record.figure("stream.best.perftest", &what, "MiB/s", best.1);
    Ok(())
}

/// `ib_read_lat -e`, `ib_read_bw -e` and `ib_write_bw`. There are no events for WRITE, and
/// `ib_write_lat` is no latency of one operation: it bounces writes between two ends that spin.
pub(crate) fn rdma(site: &Site, record: &mut Record) -> Result<()> {
    for size in rdma::SIZES {
        let rounds = rdma::rounds(size);
        let output = own_devices("ib_read_lat", site, size, rounds, &["-e"])?;
        let latency = parse_send_latency(&output)?;
        let what = format!("RDMA READ {size} B, to its completion: ib_read_lat -e");
        let key = format!("rdma.READ.{size}.perftest");
        record.figure(&key, &what, "us", latency.typical);
        let events: &[&str] = &["-e"];
        for (program, verb, events) in [
            ("ib_read_bw", "READ", events),
            ("ib_write_bw", "WRITE", &[][..]),
        ] {
            let output = own_devices(program, site, size, rounds, events)?;
            let rate = parse_bandwidth(&output, size)?;
            let what = format!(
                "RDMA {verb} {size} B, many: {program}{}{}",
                if events.is_empty() { "" } else { " " },
                events.concat()
            );
            let key = format!("rdma-rate.{verb}.{size}.perftest");
            record.figure(&key, &what, "MiB/s", rate);
        }
    }
    Ok(())
}

/// A program of perftest without RDMA CM: its server then waits for the end on a TCP socket, asleep.
/// With RDMA CM it would spin, and on one processor take half the time from the client.
fn own_devices(
    program: &str,
    site: &Site,
    size: usize,
    rounds: usize,
    more: &[&str],
) -> Result<String> {
    let (size, rounds) = (size.to_string(), rounds.to_string());
    let args = |address| -> Result<Vec<String>> {
        let (device, gid) = device_of(address)?;
        let mut args = ["-F", "-s", &size, "-n", &rounds, "-d", &device, "-x", &gid].to_vec();
        args.extend(more);
        Ok(args.into_iter().map(String::from).collect())
    };
    let (server, mut client) = (args(site.server)?, args(site.client)?);
    client.push(site.server.to_string());
    let server: Vec<&str> = server.iter().map(String::as_str).collect();
    let client: Vec<&str> = client.iter().map(String::as_str).collect();
    pair(program, &server, &client)
}

/// The device with this address, and the index of its GID.
fn device_of(address: IpAddr) -> Result<(String, String)> {
    let wanted = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    for device in Fabric::rdma()?.devices()? {
        for gid in device.gids(1)? {
            if gid.gid == wanted && !gid.kind.ends_with("v1") {
                return Ok((device.name().to_owned(), gid.index.to_string()));
            }
        }
    }
    Err(format!("no device has the address {address}").into())
}

/// `rstream`, one transfer each way in turn, blocking; on rsockets and on TCP.
pub(crate) fn rstream(site: &Site, record: &mut Record) -> Result<()> {
    SIZES
        .into_iter()
        .try_for_each(|size| rstream_of(site, record, size))
}

pub(crate) fn rstream_of(site: &Site, record: &mut Record, size: usize) -> Result<()> {
    for (who, name, option) in [
        ("rsockets", "rsockets", None),
        ("tcp", "kernel TCP", Some("s")),
    ] {
        let latency = rstream_latency(site.server, size, option)?;
        let what = format!("message {size} B, one way: {name} (rstream)");
        record.figure(&format!("message.{size}.{who}"), &what, "us", latency);
    }
    Ok(())
}

fn rstream_latency(server: IpAddr, size: usize, option: Option<&str>) -> Result<f64> {
    let (address, size, rounds) = (
        server.to_string(),
        size.to_string(),
        rounds(size).to_string(),
    );
    let mut args = vec!["-T", "b"];
    args.extend(option.iter().flat_map(|option| ["-T", option]));
    args.extend(["-S", &size, "-I", &rounds, "-C", "1"]);
    let server = [&args[..], &["-b", &address]].concat();
    let client = [&args[..], &["-s", &address]].concat();
    let output = pair("rstream", &server, &client)?;
    Ok(parse_rstream(&output)?.micros_per_transfer)
}

/// `rstream`, many transfers one way and then the other, blocking: MiB a second.
pub(crate) fn rstream_rate(
    server: IpAddr,
    size: usize,
    transfers: usize,
    option: Option<&str>,
) -> Result<f64> {
    let (address, size, transfers) = (server.to_string(), size.to_string(), transfers.to_string());
    let mut args = vec!["-T", "b"];
    args.extend(option.iter().flat_map(|option| ["-T", option]));
    args.extend(["-S", &size, "-I", "2", "-C", &transfers]);
    let server = [&args[..], &["-b", &address]].concat();
    let client = [&args[..], &["-s", &address]].concat();
    let output = pair("rstream", &server, &client)?;
    let megabytes = parse_rstream(&output)?.megabytes_per_second;
    Ok(megabytes * 1e6 / f64::from(1 << 20))
}

/// Runs a server and a client of one program; what the client printed.
fn pair(program: &str, server: &[&str], client: &[&str]) -> Result<String> {
    let mut why = String::new();
    for _ in 0..TRIES {
        let mut listening = Running(bounded(program, server).spawn()?);
        for _ in 0..TRIES {
            std::thread::sleep(Duration::from_millis(200));
            let Output {
                status,
                stdout,
                stderr,
            } = bounded(program, client).output()?;
            let stdout = String::from_utf8_lossy(&stdout).into_owned();
            if status.success() && stdout.lines().count() > 1 {
                return Ok(stdout);
            }
            why = format!(
                "{program} {}: {status}, {}",
                client.join(" "),
                String::from_utf8_lossy(&stderr).trim()
            );
            if !matches!(listening.0.try_wait(), Ok(None)) {
                break; // it took that client for its one, or could not listen
            }
        }
    }
    Err(why.into())
}

/// Ends what is left of it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that cannot hang for ever. Whoever waits for it does so asleep.
fn bounded(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.arg("60").arg(program).args(args);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The versions of what runs here.
pub(crate) fn versions() -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    let mut note = |name: &str, program: &str, args: &[&str]| {
        if let Ok(output) = Command::new(program).args(args).output()
            && output.status.success()
        {
            let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            versions.insert(name.to_owned(), text);
        }
    };
    note("kernel", "uname", &["-r"]);
    for (name, package) in [("rdma-core", "librdmacm1"), ("perftest", "perftest")] {
        let format = ["-W", "-f", "${Version}", package];
        note(name, "dpkg-query", &format);
    }
    versions
}
