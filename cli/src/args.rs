//! The command line: what `san` understands. Nothing is done here.

use crate::destination::{Destination, local_address, peer};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

const AFTER: &str = "Settings are read from SAN_* in the environment (SAN_FABRIC=auto|rdma|soft|off, \
SAN_CONNECT_TIMEOUT_MS, SAN_BACKLOG, ...) and from the file that SAN_CONFIG names. SAN_LOG=debug \
shows what happens inside.";

const DOCTOR: &str = "Example: san doctor node7:7000\n\n\
The exit status is 1 if a line says fail. With a peer, up to two connections are made to each of its \
addresses and closed at once, without a byte.";
const MAN: &str = "Example: san man /usr/local/share/man/man1";
const COMPLETIONS: &str = "Example: san completions bash > /etc/bash_completion.d/san";

/// Sockets over RDMA, with TCP beside them.
#[derive(Debug, Parser)]
#[command(name = "san", version, after_help = AFTER, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the whole of it on this machine: served, refused, rejected, and TCP on the same port.
    Demo(DemoArguments),
    /// List the devices of the fabric that is set, with their addresses, or say what is missing.
    Devices(DevicesArguments),
    /// Wait for a connection, from the SAN or TCP, and join it to standard input and output.
    Listen(ListenArguments),
    /// Connect, over the SAN where it has a way, and join the connection to standard input and
    /// output.
    Connect(ConnectArguments),
    /// Say whether the SAN can be used here, which way a connection to a peer takes, and what to
    /// type where that is not well.
    #[command(after_help = DOCTOR)]
    Doctor(DoctorArguments),
    /// Show what a running process does: listeners, connections, counters.
    Stat(StatArguments),
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
pub(crate) struct StatArguments {
    /// Which process; without one, those that there are.
    pub(crate) pid: Option<u32>,
    /// Print JSON: one line, a list with a report for each switch.
    #[arg(long)]
    pub(crate) json: bool,
    /// Again every so many seconds, until interrupted.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) watch: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct ListenArguments {
    /// Where to listen: 10.0.7.1:7000, 0.0.0.0:7000, [::]:7000, [fe80::1%eth0]:7000; port 0 takes a
    /// free one.
    #[arg(value_name = "ADDR:PORT", value_parser = local_address)]
    pub(crate) address: SocketAddr,
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
    /// Use TCP even where the SAN has a way.
    #[arg(long)]
    pub(crate) tcp: bool,
    /// Print what happens as JSON lines on standard error.
    #[arg(long)]
    pub(crate) json: bool,
}
