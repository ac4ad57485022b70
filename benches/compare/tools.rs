//! The programs measured beside ours: perftest's `ib_send_lat -e`, and `rstream`, which runs on
//! rsockets and on kernel TCP. Also the versions of everything.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use san_benches::Result;
use san_benches::peers::{parse_rstream, parse_send_latency};
use san_benches::record::Record;

use crate::Place;
use crate::messages::{ROUNDS, SIZES};

/// How often a client tries: its server takes its time to start, and says nothing when it has.
const TRIES: u32 = 20;

/// `ib_send_lat -e`, over RDMA CM, with perftest's own settings.
pub(crate) fn send_latency(place: &Place, record: &mut Record) -> Result<()> {
    for size in SIZES {
        let (size_arg, rounds) = (size.to_string(), ROUNDS.to_string());
        let args = ["-R", "-F", "-e", "-s", &size_arg, "-n", &rounds];
        let address = place.server.to_string();
        let client = [&args[..], &[&address]].concat();
        let output = pair("ib_send_lat", &args, &client)?;
        let latency = parse_send_latency(&output)?;
        if latency.bytes as usize != size {
            return Err(format!("ib_send_lat measured {} bytes", latency.bytes).into());
        }
        let what = format!("message {size} B, one way: ib_send_lat -e");
        let key = format!("message.{size}.perftest");
        record.figure(&key, &what, "us", latency.typical);
    }
    Ok(())
}

/// `rstream`, one transfer each way in turn, blocking; on rsockets and on TCP.
pub(crate) fn rstream(place: &Place, record: &mut Record) -> Result<()> {
    for size in SIZES {
        for (who, name, option) in [
            ("rsockets", "rsockets", None),
            ("tcp", "kernel TCP", Some("s")),
        ] {
            let latency = rstream_latency(place.server, size, option)?;
            let what = format!("message {size} B, one way: {name} (rstream)");
            record.figure(&format!("message.{size}.{who}"), &what, "us", latency);
        }
    }
    Ok(())
}

fn rstream_latency(server: IpAddr, size: usize, option: Option<&str>) -> Result<f64> {
    let (address, size, rounds) = (server.to_string(), size.to_string(), ROUNDS.to_string());
    let mut args = vec!["-T", "b"];
    args.extend(option.iter().flat_map(|option| ["-T", option]));
    args.extend(["-S", &size, "-I", &rounds, "-C", "1"]);
    let server = [&args[..], &["-b", &address]].concat();
    let client = [&args[..], &["-s", &address]].concat();
    let output = pair("rstream", &server, &client)?;
    Ok(parse_rstream(&output)?.micros_per_transfer)
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
