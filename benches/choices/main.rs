//! Measures what two defaults of the provider rest on: from how many bytes on RDMA is better than
//! messages (`SO_RDMA_THRESHOLD_SIZE`), and how long a waiting thread polls before it sleeps. And it runs
//! threads that share nothing, to see whether that is so.
//!
//! ```text
//! cargo run --release -p san-benches --example choices -- threshold
//! cargo run --release -p san-benches --example choices -- spin
//! ci/rxe --icount target/release/examples/choices --fabric rdma threshold
//! ```
//!
//! Both ends are processes of their own. It prints tables and judges nothing; the exit status is 0
//! when everything ran.

#![forbid(unsafe_code)]

mod ends;
mod spin;
mod threads;
mod threshold;

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
struct Arguments {
    /// What it runs on.
    #[arg(long, value_enum, default_value = "soft")]
    fabric: ends::Fabric,
    /// Where the server listens; SAN_TEST_ADDR_B or 127.0.0.1 if not given.
    #[arg(long)]
    address: Option<IpAddr>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// Messages or RDMA, by size.
    Threshold,
    /// Polling before sleeping, by time.
    Spin {
        /// Processors for the two ends: 1, both on the same, or 2.
        #[arg(long, default_value_t = 2)]
        processors: usize,
    },
    /// Messages to and fro by threads that have a connection and a lane each; nothing is measured here:
    /// to be run by strace.
    Threads {
        threads: u32,
        /// Round trips of each.
        rounds: usize,
    },
    /// The other end of `threshold`.
    #[command(hide = true)]
    ServeThreshold { way: String, size: usize },
    /// The other end of `spin`.
    #[command(hide = true)]
    ServeSpin {
        micros: u64,
        pause: u64,
        processor: usize,
    },
    /// The other end of `threads`.
    #[command(hide = true)]
    ServeThreads { threads: u32 },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let tests = std::env::var("SAN_TEST_ADDR_B").ok();
    let tests = tests.and_then(|address| address.parse().ok());
    let site = ends::Site {
        fabric: arguments.fabric,
        address: arguments
            .address
            .or(tests)
            .unwrap_or(Ipv4Addr::LOCALHOST.into()),
    };
    let outcome = match arguments.what {
        What::Threshold => threshold::measure(site),
        What::Spin { processors } => spin::measure(site, processors),
        What::Threads { threads, rounds } => threads::run(site, threads, rounds),
        What::ServeThreshold { way, size } => threshold::serve(site, &way, size),
        What::ServeSpin {
            micros,
            pause,
            processor,
        } => spin::serve(site, micros, pause, processor),
        What::ServeThreads { threads } => threads::serve(site, threads),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("choices: {error}");
            ExitCode::FAILURE
        }
    }
}
