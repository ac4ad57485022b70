//! Counts instructions and system calls: of a message (one send and one receive, blocking), and of a connection that is
//! made and closed again; ours by crate, the libraries', and those of rsockets beside.
//!
//! It runs where two RDMA devices answer and valgrind is at hand: `ci/bench --instructions`. Each figure is
//! the difference of two run lengths, divided by the difference, so that what happens once is not in it. Instructions
//! are those of user space. Nobody spins before sleeping: a spinning wait counts what the peer takes.
//!
//! ```text
//! instructions [--layer provider|switch] [--quick] [--profile] [--no-rsockets] [--json FILE] [--ceiling FILE] [--out DIR]
//! ```

#![forbid(unsafe_code)]

mod ends;
mod report;
mod rsockets;
mod watch;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use san_benches::Result;

/// Which interface of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    /// `try_send` and `receive_within` of the provider.
    Provider,
    /// `send` and `receive` of the switch.
    Switch,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A message of so many bytes.
    Message(usize),
    /// A connection made and closed.
    Connect,
}

impl Layer {
    fn parse(name: &str) -> Result<Self> {
        match name {
            "provider" => Ok(Self::Provider),
            "switch" => Ok(Self::Switch),
            _ => Err(format!("no layer {name}: provider, switch").into()),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Switch => "switch",
        }
    }
}

impl Subject {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Message(size) => format!("message-{size}"),
            Self::Connect => "connect".into(),
        }
    }

    pub(crate) fn counts(self) -> [u32; 3] {
        match self {
            Self::Message(_) => watch::MESSAGES,
            Self::Connect => watch::CONNECTS,
        }
    }
}

/// What is asked for.
#[derive(Debug, Default)]
struct Args {
    layers: Vec<Layer>,
    quick: bool,
    profile: bool,
    rsockets: bool,
    json: Option<PathBuf>,
    ceiling: Option<PathBuf>,
    out: PathBuf,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["serve", layer, address] => serve(layer, address).map(|()| true),
        ["dial", layer, to] => dial(layer, to).map(|()| true),
        _ => parse(&words).and_then(|args| count(&args)),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(layer: &str, address: &str) -> Result<()> {
    ends::server(Layer::parse(layer)?, address.parse()?)
}

fn dial(layer: &str, to: &str) -> Result<()> {
    ends::client(Layer::parse(layer)?, to.parse()?)
}

fn parse(words: &[&str]) -> Result<Args> {
    let mut args = Args {
        layers: vec![Layer::Provider, Layer::Switch],
        rsockets: true,
        out: std::env::temp_dir(),
        ..Args::default()
    };
    let mut words = words.iter();
    while let Some(&word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word {
            "--layer" => args.layers = vec![Layer::parse(value()?)?],
            "--quick" => args.quick = true,
            "--profile" => args.profile = true,
            "--no-rsockets" => args.rsockets = false,
            "--json" => args.json = Some(value()?.into()),
            "--ceiling" => args.ceiling = Some(value()?.into()),
            "--out" => args.out = value()?.into(),
            _ => return Err(format!("no option {word}").into()),
        }
    }
    Ok(args)
}

/// Whether everything ran and no ceiling is exceeded.
fn count(args: &Args) -> Result<bool> {
    let server: IpAddr = std::env::var("SAN_TEST_ADDR_B")
        .map_err(|_| "SAN_TEST_ADDR_B is not set: run this with ci/bench --instructions")?
        .parse()?;
    let subjects = match args.quick {
        true => vec![Subject::Message(64)],
        false => vec![
            Subject::Message(64),
            Subject::Message(4096),
            Subject::Connect,
        ],
    };
    std::fs::create_dir_all(&args.out)?;
    let mut report = report::Counts::new()?;
    for &layer in &args.layers {
        eprintln!("counting: {}", layer.name());
        let counted = watch::layer(layer, &subjects, server, &args.out)?;
        report.add(layer.name(), &counted);
        if args.profile {
            report.print_profile(layer.name(), &counted);
        }
    }
    if args.rsockets {
        eprintln!("counting: rsockets");
        let counted = rsockets::count(&subjects, server, &args.out)?;
        report.add("rsockets", &counted);
    }
    println!("{}", report.table());
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()?)?;
    }
    match &args.ceiling {
        Some(path) => report.check(&std::fs::read_to_string(path)?),
        None => Ok(true),
    }
}
