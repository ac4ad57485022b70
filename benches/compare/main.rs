//! Compares San Direct with what it stands on and what it stands beside, in one run: raw RDMA CM
//! and verbs, perftest, rsockets, kernel TCP.
//!
//! It runs where two RDMA devices answer, in the guest that `ci/rxe --icount` boots; there a
//! microsecond is 500 instructions, so that figures repeat. There is one processor there too, so
//! both ends sleep until something happens; nobody spins. Every client and server is a process of
//! its own.
//!
//! Latencies are medians. A message's is half a round trip, as perftest counts. After each connect
//! there is a pause, so that what the last one left to do is not counted with the next.
//!
//! ```text
//! compare [--json FILE] [--only NAME]... [--flood N]
//! ```

#![forbid(unsafe_code)]

mod bulk;
mod connects;
mod flood;
mod held;
mod messages;
mod one_way;
mod pings;
mod provider;
mod rate;
mod raw;
mod rdma;
mod refusals;
mod switch;
mod tcp;
mod tools;
mod wait;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use san_benches::record::{Goal, Record};
use san_benches::{Result, process};

/// How long anything may take that should take milliseconds. A clock that counts instructions leaps
/// over idle time, also when it is a disk that is waited for: hence so much.
const PATIENCE: Duration = Duration::from_secs(600);

/// How long a server waits for its client, which ends it.
const FOR_EVER: Duration = Duration::from_secs(1_000_000);

#[derive(Debug, Parser)]
#[command(about = "Ratios of San Direct to raw verbs, rsockets and kernel TCP")]
struct Args {
    /// Writes figures and ratios here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Runs only these measurements.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// How many connect requests the flood has.
    #[arg(long, default_value_t = 50_000)]
    flood: u32,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The other end of a measurement; started by this program itself.
    #[command(hide = true)]
    Serve {
        /// What kind of server.
        kind: String,
        /// Where it listens.
        address: IpAddr,
        /// A number that is of meaning to this kind.
        #[arg(default_value_t = 0)]
        number: u32,
    },
}

/// Where the measurements run.
#[derive(Debug, Clone, Copy)]
struct Site {
    /// The address of the servers' device.
    server: IpAddr,
    /// The address of the clients' device.
    client: IpAddr,
    /// How many connect requests the flood has.
    flood: u32,
}

type Measurement = fn(&Site, &mut Record) -> Result<()>;

const MEASUREMENTS: [(&str, Measurement); 16] = [
    ("send-latency", tools::send_latency),
    ("rstream", tools::rstream),
    ("messages-raw", messages::raw),
    ("messages-provider", messages::provider),
    ("messages-switch", messages::switch),
    ("one-way", one_way::all),
    ("stream-perftest", tools::streams),
    ("stream-provider", rate::provider),
    ("bulk", bulk::all),
    ("rdma-perftest", tools::rdma),
    ("rdma-raw", rdma::raw),
    ("rdma-provider", rdma::provider),
    ("connect", connects::all),
    ("connect-rate", connects::rates),
    ("refusal", refusals::all),
    ("flood", flood::all),
];

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.role {
        Some(Role::Serve {
            kind,
            address,
            number,
        }) => serve(&kind, address, number).map(|()| true),
        None => compare(&args),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(kind: &str, address: IpAddr, number: u32) -> Result<()> {
    match kind {
        "raw" => raw::server(address),
        "raw-memory" => rdma::raw_server(address),
        "raw-echo" => messages::raw_echo(address, number),
        "provider" => provider::server(address),
        "provider-deaf" => provider::deaf_server(address, number),
        "provider-memory" => rdma::provider_server(address),
        "provider-sink" => rate::sink(address),
        "provider-sink-bytes" => rate::sink_bytes(address),
        "provider-echo" => provider::echo(address, number),
        "switch" => switch::server(address),
        "switch-deaf" => switch::deaf_server(address, number),
        "switch-echo" => switch::echo(address, number),
        "switch-drain" => switch::drain(address, number),
        "tcp" => tcp::server(address),
        other => Err(format!("no server of the kind {other}").into()),
    }
}

/// Whether everything ran.
fn compare(args: &Args) -> Result<bool> {
    let site = Site {
        server: address("SAN_TEST_ADDR_B")?,
        client: address("SAN_TEST_ADDR_A")?,
        flood: args.flood,
    };
    for name in &args.only {
        if !MEASUREMENTS.iter().any(|(known, _)| known == name) {
            let known: Vec<&str> = MEASUREMENTS.iter().map(|(name, _)| *name).collect();
            return Err(format!("no measurement {name}; there are {}", known.join(", ")).into());
        }
    }
    // Everything that is needed is loaded once before anybody waits for it.
    drop(verbs_shim::Fabric::rdma()?.devices()?);
    process::read_ahead()?;
    let mut record = Record {
        versions: tools::versions(),
        ..Record::default()
    };
    for (name, measure) in MEASUREMENTS {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == name) {
            continue;
        }
        eprintln!("measuring {name}");
        if let Err(error) = measure(&site, &mut record) {
            record.failure(name, error);
        }
    }
    ratios(&mut record);
    one_way::ratios(&mut record);
    rdma_ratios(&mut record);
    bulk_ratios(&mut record);
    println!("{}", record.tables());
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&record)? + "\n")?;
    }
    Ok(record.failures.is_empty())
}

fn address(variable: &str) -> Result<IpAddr> {
    let value = std::env::var(variable)
        .map_err(|_| format!("{variable} is not set: run this with ci/bench, or by ci/rxe"))?;
    value
        .parse()
        .map_err(|e| format!("{variable} is {value}: {e}").into())
}

fn ratios(record: &mut Record) {
    let at_most = |most| Some(Goal::AtMost(most));
    for size in ["64", "4096"] {
        let goals = match size {
            "64" => [at_most(1.02), at_most(1.04)],
            _ => [None, at_most(1.08)],
        };
        let key = |who: &str| format!("message.{size}.{who}");
        let base = key("perftest");
        for (who, what, goal) in [
            ("shim", "verbs-shim as perftest does it (the seam)", None),
            ("shim-lean", "verbs-shim, no event per send", None),
            ("provider", "provider message", goals[0]),
            (
                "provider-overlapped",
                "provider message, overlapped operations",
                None,
            ),
            ("switch", "send and receive through the switch", goals[1]),
            ("rsockets", "rsockets", None),
            ("tcp", "kernel TCP", None),
        ] {
            let what = format!("{size} B: {what} / ib_send_lat -e");
            record.ratio(&what, &key(who), &base, goal);
        }
        let what = format!("{size} B: provider message / verbs-shim, no event per send");
        record.ratio(&what, &key("provider"), &key("shim-lean"), None);
    }
    for (who, goal) in [("provider", None), ("switch", at_most(1.3)), ("tcp", None)] {
        let what = format!("connect: {who} / raw CM");
        record.ratio(&what, &format!("connect.{who}"), "connect.raw", goal);
        let what = format!("connects per second: {who} / raw CM");
        record.ratio(&what, &format!("rate.{who}"), "rate.raw", None);
    }
    let nobody = "refusal.raw.nobody-listens";
    for (who, what, goal) in [
        ("provider", "provider, backlog full", at_most(1.3)),
        ("switch", "switch, backlog full", None),
        ("raw", "raw CM, provider's backlog full", None),
        ("provider.nobody-listens", "provider, nobody listens", None),
    ] {
        let what = format!("refusal: {what} / raw CM, nobody listens");
        record.ratio(&what, &format!("refusal.{who}"), nobody, goal);
    }
}

/// Bulk beside SENDs of the same size and of the best one, and beside RDMA WRITEs; more is better.
fn bulk_ratios(record: &mut Record) {
    for size in bulk::WRITES {
        let goals = match size {
            4096 => [Some(Goal::AtLeast(1.0)), None],
            65_536 => [None, Some(Goal::AtLeast(0.9))],
            1_048_576 => [None, Some(Goal::AtLeast(0.95))],
            _ => [None, None],
        };
        for (who, goals) in [
            ("switch", goals),
            ("rsockets", [None; 2]),
            ("tcp", [None; 2]),
        ] {
            let of = format!("bulk.{size}.{who}");
            let what = format!("bulk by writes of {size} B: {who} /");
            let same = format!("stream.{size}.perftest");
            record.ratio(
                &format!("{what} ib_send_bw -e, {size} B"),
                &of,
                &same,
                goals[0],
            );
            let (best, name) = ("stream.best.perftest", "ib_send_bw -e at its best size");
            record.ratio(&format!("{what} {name}"), &of, best, goals[1]);
            let write = format!("rdma-rate.WRITE.{size}.perftest");
            record.ratio(&format!("{what} ib_write_bw, {size} B"), &of, &write, None);
        }
    }
}

/// Rates are the other way round: more is better.
fn rdma_ratios(record: &mut Record) {
    let best_stream = "stream.best.perftest";
    for size in pings::SIZES {
        for (who, what) in [
            ("provider", "provider"),
            ("provider-buffers", "provider, from registered buffers"),
            ("provider-tried", "provider, no operations"),
            ("provider-data-path", "provider, by its data path"),
        ] {
            let of = format!("stream.{size}.{who}");
            let what = format!("{size} B messages streaming: {what} /");
            let base = format!("stream.{size}.perftest");
            record.ratio(&format!("{what} ib_send_bw -e"), &of, &base, None);
            if size == 4096 {
                let what = format!("{what} ib_send_bw -e at its best size");
                record.ratio(&what, &of, best_stream, None);
            }
        }
    }
    for (_, verb) in rdma::VERBS {
        for size in rdma::SIZES {
            for (base, name) in [("perftest", "perftest"), ("shim", "verbs-shim")] {
                for who in ["shim", "provider"] {
                    if who == base {
                        continue;
                    }
                    let key = |who: &str| format!("rdma.{verb}.{size}.{who}");
                    let what = format!("{verb} {size} B, one: {who} / {name}");
                    record.ratio(&what, &key(who), &key(base), None);
                    let key = |who: &str| format!("rdma-rate.{verb}.{size}.{who}");
                    let what = format!("{verb} {size} B, many (more is better): {who} / {name}");
                    record.ratio(&what, &key(who), &key(base), None);
                }
            }
        }
    }
}
