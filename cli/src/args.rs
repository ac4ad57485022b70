//! The command line: what `san` understands. Nothing is done here.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "these are help texts, and an address in brackets is no link"
)]

use crate::destination::{Destination, local_address, peer};
use crate::exporter::ExporterAddress;
use crate::perf::units::parse_size;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use san_switch::RouteChoice;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

const AFTER: &str = "Settings are read from SAN_* in the environment (SAN_FABRIC=auto|rdma|soft|off, \
SAN_CONNECT_TIMEOUT_MS, SAN_BACKLOG, ...) and from the file that \
SAN_CONFIG names; san config shows them. SAN_LOG=debug shows what happens inside.";

const DEMO: &str = "Example: san demo          (without RDMA: SAN_FABRIC=soft san demo)";
const DEVICES: &str = "Example: san devices          (without RDMA: SAN_FABRIC=soft san devices)";
const LISTEN: &str = "Example: san listen --echo -k 0.0.0.0:7000";
const CONNECT: &str = "Example: san connect node7:7000 < file";
const STAT: &str = "Example: san stat 4711 --watch 2\n         san stat --serve 127.0.0.1:9464";
const DOCTOR: &str = "Example: san doctor node7:7000\n\n\
The exit status is 1 if a line says fail. With a peer, up to two connections are made to each of its \
addresses and closed at once, without a byte.";
const CONFIG: &str = "Example: SAN_FABRIC=soft san config --allowed\n\n\
The exit status is 1 if a program could not start with these settings.";
const PING: &str = "Example: san ping node7          (on node7 before that: san perf --serve)";
const PERF: &str =
    "Example: san perf node7 --svg node7.svg          (on node7 before that: san perf --serve)";
const TOP: &str = "Example: san top --interval 1          (q ends it)";
const RUN: &str = "Example: SAN_FABRIC=soft san run --report -- curl http://node7:8000/";
const MAN: &str = "Example: san man /usr/local/share/man/man1";
const COMPLETIONS: &str = "Example: san completions bash > /etc/bash_completion.d/san";

/// TCP connections over RDMA where both ends have it, and over TCP everywhere else.
#[derive(Debug, Parser)]
#[command(name = "san", version, after_help = AFTER, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the whole of it on this machine: served, refused, rejected, and TCP on the same port.
    #[command(after_help = DEMO)]
    Demo(DemoArguments),
    /// List the devices of the fabric that is set, with their addresses, or say what is missing.
    #[command(after_help = DEVICES)]
    Devices(DevicesArguments),
    /// Wait for a connection, from the SAN or TCP, and join it to standard input and output.
    #[command(after_help = LISTEN)]
    Listen(ListenArguments),
    /// Connect, over the SAN where it has a way, and join the connection to standard input and
    /// output.
    #[command(after_help = CONNECT)]
    Connect(ConnectArguments),
    /// Say whether the SAN can be used here, which way a connection to a peer takes, and what to
    /// type where that is not well.
    #[command(after_help = DOCTOR)]
    Doctor(DoctorArguments),
    /// Show the settings in force, each with where it came from.
    #[command(after_help = CONFIG)]
    Config(ConfigArguments),
    /// Measure round trips to a `san perf --serve`, over the SAN and over TCP.
    #[command(after_help = PING)]
    Ping(PingArguments),
    /// Measure latency and throughput by size, over the SAN and over TCP, or serve those who do.
    #[command(after_help = PERF, override_usage = "san perf [OPTIONS] <HOST[:PORT]>\n       san perf --serve [<ADDR:PORT>]")]
    Perf(PerfArguments),
    /// Run a program whose TCP connections go over the SAN where both ends have it. The program knows
    /// nothing of it.
    #[command(after_help = RUN)]
    Run(RunArguments),
    /// Show what a running process does: listeners, connections, counters.
    #[command(after_help = STAT)]
    Stat(StatArguments),
    /// Watch the processes that have a switch: connections, carriers, rates, why TCP was taken.
    #[command(after_help = TOP)]
    Top(TopArguments),
    /// Write the manual pages into a directory.
    #[command(after_help = MAN)]
    Man {
        /// The directory; it is made if it does not exist.
        directory: PathBuf,
    },
    /// Print the completions for a shell.
    #[command(after_help = COMPLETIONS)]
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// Which way its connections go: direct tries the SAN first, upgrade begins on TCP and moves what
    /// carries enough, off is TCP.
    #[arg(long, value_name = "ROUTE", value_parser = ["upgrade", "direct", "off"], default_value = "upgrade")]
    pub(crate) route: String,
    /// Each of its processes says at its end how many connections and bytes went which way.
    #[arg(long)]
    pub(crate) report: bool,
    /// A file of rules that choose the route by role, program, address and port (SAN_RULES).
    #[arg(long, value_name = "FILE")]
    pub(crate) rules: Option<PathBuf>,
    /// A file with the key that all hosts share (SAN_KEY_FILE).
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// The program and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PROGRAM"
    )]
    pub(crate) program: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// The address that the clients come from; found from the devices if not given.
    #[arg(long, env = "SAN_TEST_ADDR_A", value_name = "IP")]
    pub(crate) addr_a: Option<IpAddr>,
    /// The address that they connect to; found from the devices if not given.
    #[arg(long, env = "SAN_TEST_ADDR_B", value_name = "IP")]
    pub(crate) addr_b: Option<IpAddr>,
    /// Print the closing report as JSON on standard output, the steps on standard error.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DevicesArguments {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// A peer, to see which way a connection to it takes: node7:7000. Without a port, whether RDMA
    /// answers there: node7.
    #[arg(value_name = "HOST[:PORT]", value_parser = peer)]
    pub(crate) peer: Option<(Destination, bool)>,
    /// Print JSON: the lines, and the facts behind them.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArguments {
    /// Show what each setting may be, too.
    #[arg(long)]
    pub(crate) allowed: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PingArguments {
    /// A host on which `san perf --serve` runs; without a port, port 7474.
    #[arg(value_name = "HOST[:PORT]", value_parser = peer)]
    pub(crate) server: (Destination, bool),
    /// Round trips, at most.
    #[arg(long, short, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) count: u64,
    /// Bytes of a message: 64, 4k, 1m.
    #[arg(long, short, value_name = "BYTES", default_value = "64", value_parser = parse_size)]
    pub(crate) size: usize,
    /// Milliseconds between two round trips.
    #[arg(long, short, value_name = "MS", default_value_t = 0,
          value_parser = clap::value_parser!(u64).range(0..=5_000))]
    pub(crate) interval: u64,
    /// Seconds for each carrier, at most.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(crate) seconds: f64,
    /// Write the figures as JSON into a file; - is standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PerfArguments {
    /// A host on which `san perf --serve` runs; without a port, port 7474.
    #[arg(value_name = "HOST[:PORT]", value_parser = peer, required_unless_present = "serve")]
    pub(crate) server: Option<(Destination, bool)>,
    /// Serve those who measure, until killed; without an address, at port 7474 of each.
    #[arg(long, value_name = "ADDR:PORT", num_args = 0..=1, conflicts_with_all = ["server", "json", "svg", "compare"],
          value_parser = local_address)]
    pub(crate) serve: Option<Option<SocketAddr>>,
    /// Connections that carry the throughput together.
    #[arg(long, short = 'n', value_name = "N", default_value = "1", value_parser = connections)]
    pub(crate) connections: usize,
    /// Bytes of a message, with commas between them.
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "64,1k,4k,64k,1m",
          value_parser = parse_size)]
    pub(crate) sizes: Vec<usize>,
    /// Seconds for each figure.
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds)]
    pub(crate) seconds: f64,
    /// Write the figures as JSON into a file; - is standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Draw the figures into a file.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Show beside each figure what it is of the one in a file that --json has written.
    #[arg(long, value_name = "FILE")]
    pub(crate) compare: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct StatArguments {
    /// Which process; without one, those that there are.
    #[arg(value_parser = process)]
    pub(crate) pid: Option<u32>,
    /// Print JSON: one line, a list with a report for each switch.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print OpenMetrics text, as Prometheus reads it.
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    pub(crate) openmetrics: bool,
    /// Serve OpenMetrics text of every process until killed, at a loopback port (/metrics) or a
    /// Unix socket.
    #[arg(long, value_name = "ADDR:PORT|PATH", conflicts_with_all = ["json", "watch", "openmetrics", "pid"])]
    pub(crate) serve: Option<ExporterAddress>,
    /// Again every so many seconds, until interrupted.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) watch: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct TopArguments {
    /// Seconds between two looks.
    #[arg(long, short, value_name = "SECONDS", default_value_t = 2,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) interval: u64,
}

#[derive(Debug, Args)]
pub(crate) struct ListenArguments {
    /// Where to listen: 10.0.7.1:7000, 0.0.0.0:7000, [::]:7000, [fe80::1%eth0]:7000; port 0 takes a
    /// free one.
    #[arg(value_name = "ADDR:PORT", value_parser = local_address)]
    pub(crate) address: SocketAddr,
    /// direct: connections begin on the SAN or on TCP and stay there; upgrade: those on TCP may move to
    /// the SAN later.
    #[arg(long, value_name = "ROUTE", value_parser = route)]
    pub(crate) route: Option<RouteChoice>,
    /// Connections that may wait until they are accepted.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) backlog: Option<u32>,
    /// Go on with the next connection when one has ended.
    #[arg(long, short = 'k')]
    pub(crate) keep_open: bool,
    /// Send back what comes, to any number of peers at once, instead of using standard input and
    /// output.
    #[arg(long)]
    pub(crate) echo: bool,
    /// Print what happens as JSON lines on standard error.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConnectArguments {
    /// Where to connect to: 10.0.7.2:7000, [::1]:7000, [fe80::1%eth0]:7000, node7:7000.
    #[arg(value_name = "HOST:PORT")]
    pub(crate) destination: Destination,
    /// The local address to come from; port 0 leaves the port to the system.
    #[arg(long, value_name = "ADDR:PORT", value_parser = local_address)]
    pub(crate) local: Option<SocketAddr>,
    /// Give up after this many milliseconds, SAN and TCP and all of the host's addresses together.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    pub(crate) timeout: Option<u64>,
    /// direct: the SAN first, and TCP where it gives no connection; upgrade: TCP first, and the SAN when
    /// the connection has carried enough.
    #[arg(long, value_name = "ROUTE", value_parser = route)]
    pub(crate) route: Option<RouteChoice>,
    /// Use TCP even where the SAN has a way.
    #[arg(long)]
    pub(crate) tcp: bool,
    /// Print what happens as JSON lines on standard error.
    #[arg(long)]
    pub(crate) json: bool,
}

fn route(text: &str) -> Result<RouteChoice, String> {
    match text {
        "direct" => Ok(RouteChoice::Direct),
        "upgrade" => Ok(RouteChoice::Upgrade),
        _ => Err("it is direct or upgrade".to_owned()),
    }
}

fn process(text: &str) -> Result<u32, String> {
    let number = text.parse().ok();
    number.ok_or_else(|| {
        format!("'{text}' is no process id, which is a number; see which there are: san stat")
    })
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n| (0.01..=30.0).contains(n));
    number.ok_or_else(|| format!("'{text}' is no number of seconds from 0.01 to 30"))
}

fn connections(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=256).contains(n));
    number.ok_or_else(|| format!("'{text}' is no number from 1 to 256"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound_and_each_command_has_an_example() {
        let command = Arguments::command();
        command.clone().debug_assert();
        for one in command.get_subcommands() {
            let help = one.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            let example = format!("san {}", one.get_name());
            let is_shown = help.contains("Example: ") && help.contains(&example);
            assert!(is_shown, "{example}");
        }
    }
}
