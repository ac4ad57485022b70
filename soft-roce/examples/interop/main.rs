//! Stands in for either side of rdma-core's and perftest's programs, so that the
//! other side can be the original on an RDMA device.
//!
//! ```text
//! interop rping-server|cmatose-server|send-lat-server|send-bw-server|... ADDR[:PORT] [key=value...]
//! interop rping-client|...                                             ADDR[:PORT] [key=value...]
//! ```
//!
//! Keys: `size` (bytes), `count` (messages or iterations), `connections`.

#[path = "../common/mod.rs"]
mod common;

mod cmatose;
mod perftest;
mod rping;

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use common::{Node, Result};
use soft_roce::endpoint::Config;

/// What the command line asks for.
struct Job {
    addr: SocketAddr,
    size: usize,
    count: usize,
    connections: usize,
}

fn job(role: &str, args: &[String]) -> Result<Job> {
    let (port, size, count) = match role.rsplit_once('-').map_or(role, |(program, _)| program) {
        "rping" => (7174, 64, 10),
        "cmatose" => (7471, 100, 10),
        "send-lat" => (18515, 2, 1000),
        "send-bw" => (18515, 65_536, 1000),
        other => return Err(format!("unknown role {other}").into()),
    };
    let (addr, rest) = args.split_first().ok_or("no address")?;
    let addr = match addr.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port),
        Err(_) => addr.parse()?,
    };
    let mut job = Job {
        addr,
        size,
        count,
        connections: 1,
    };
    for arg in rest {
        let (key, value) = arg.split_once('=').ok_or("key=value expected")?;
        *match key {
            "size" => &mut job.size,
            "count" => &mut job.count,
            "connections" => &mut job.connections,
            other => return Err(format!("unknown key {other}").into()),
        } = value.parse()?;
    }
    Ok(job)
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (role, rest) = args
        .split_first()
        .ok_or("usage: interop ROLE ADDR[:PORT] [key=value...]")?;
    let job = job(role, rest)?;
    let node = Node::new(Config::default())?;
    let result = match role.as_str() {
        "rping-server" => rping::server(&node, &job),
        "rping-client" => rping::client(&node, &job),
        "cmatose-server" => cmatose::server(&node, &job),
        "cmatose-client" => cmatose::client(&node, &job),
        "send-lat-server" => perftest::server(&node, &job, true),
        "send-lat-client" => perftest::client(&node, &job, true),
        "send-bw-server" => perftest::server(&node, &job, false),
        "send-bw-client" => perftest::client(&node, &job, false),
        other => return Err(format!("unknown role {other}").into()),
    };
    let counters = node.endpoint.counters();
    println!("{role}: {counters:?}");
    result?;
    for (name, count) in [
        ("bad ICRC", counters.bad_icrc),
        ("malformed", counters.malformed),
        ("foreign source", counters.foreign_source),
        ("malformed CM", counters.cm.malformed),
    ] {
        if count > 0 {
            return Err(format!("{count} packets: {name}").into());
        }
    }
    println!("{role}: OK");
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("interop: {why}");
            ExitCode::FAILURE
        }
    }
}
