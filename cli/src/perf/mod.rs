//! `san perf` and `san ping`: latency and throughput over the SAN and over TCP, in one run, against a
//! `san perf --serve` at the other end.
//!
//! `protocol.rs` is what the ends say to each other, `client.rs` one measurement, `server.rs` the
//! other end. The rest is about a run: its report, its tables, its picture. Only the switch's public
//! API is used, so the figures are those of an application.

mod client;
mod files;
mod plot;
mod print;
mod progress;
pub(crate) mod protocol;
mod report;
mod server;
pub(crate) mod units;

use crate::args::{PerfArguments, PingArguments};
use crate::attempts::connect_to_any;
use crate::destination::Destination;
use crate::output::{self, Output};
use crate::problem::Problem;
use client::{Client, Enough, Way};
use files::Sink;
use progress::Progress;
use protocol::Kind;
use report::{Carrier, Direction, FORMAT, Latency, Run, Throughput};
use san_switch::net::process_switch;
use san_switch::{ConnectOptions, Route, RouteChoice, Switch};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long one address of the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures, or serves those who do.
pub(crate) fn run(arguments: &PerfArguments) -> Result<ExitCode, Problem> {
    let switch = process_switch()?;
    if let Some(address) = arguments.serve {
        return server::run(&switch, address, false);
    }
    let Some(server) = &arguments.server else {
        return Err(Problem::new("no server was named")
            .with_remedy("san perf HOST; on HOST before that: san perf --serve"));
    };
    // What is wrong with the files is told before anything is measured.
    let earlier = arguments.compare.as_deref().map(Run::load).transpose()?;
    let json = arguments.json.as_deref().map(Sink::open).transpose()?;
    let svg = arguments.svg.as_deref().map(Sink::open).transpose()?;
    let server = find(&switch, server)?;
    let run = measure(&switch, server, arguments)?;
    let show = |out: &mut dyn Write, width| {
        let mut out = out;
        print::tables(&mut out, &run, earlier.as_ref(), width)
    };
    show_and_save(&run, json, show)?;
    if let Some(sink) = svg {
        let svg = plot::draw(&run)
            .map_err(|error| Problem::new(format!("cannot draw the picture: {error}")))?;
        sink.write(svg.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Round trips alone, with their histograms.
pub(crate) fn ping(arguments: &PingArguments) -> Result<ExitCode, Problem> {
    let switch = process_switch()?;
    let json = arguments.json.as_deref().map(Sink::open).transpose()?;
    let server = find(&switch, &arguments.server)?;
    let mut run = start(&switch, server, 1, arguments.seconds)?;
    let enough = Enough {
        count: arguments.count,
        time: Duration::from_secs_f64(arguments.seconds),
    };
    let pause = Duration::from_millis(arguments.interval);
    for (client, carrier) in carriers(&switch, server, &mut run) {
        let histogram = client.round_trips(arguments.size, enough, pause, |_| {})?;
        carrier
            .latency
            .push(Latency::new(arguments.size, &histogram));
    }
    let show = |out: &mut dyn Write, width| {
        let mut out = out;
        print::heads(&mut out, &run, width)?;
        for carrier in &run.carriers {
            for latency in &carrier.latency {
                print::histogram(&mut out, &carrier.name.to_uppercase(), latency, width)?;
            }
        }
        Ok(())
    };
    show_and_save(&run, json, show)?;
    Ok(ExitCode::SUCCESS)
}

/// For people on standard output, unless that carries the JSON.
fn show_and_save(
    run: &Run,
    json: Option<Sink>,
    show: impl Fn(&mut dyn Write, usize) -> io::Result<()>,
) -> Result<(), Problem> {
    let width = output::table_width();
    match &json {
        Some(Sink::StandardOutput) => {}
        _ => {
            let mut out = Output::stdout();
            let shown = show(&mut out, width).and_then(|()| out.flush());
            shown.map_err(output::unwritten)?;
        }
    }
    if let Some(sink) = json {
        let mut text = serde_json::to_vec_pretty(run).map_err(io::Error::from)?;
        text.push(b'\n');
        sink.write(&text)?;
    }
    Ok(())
}

/// The address of the server that answers.
fn find(switch: &Switch, server: &(Destination, bool)) -> Result<SocketAddr, Problem> {
    let (destination, has_port) = server;
    let mut addresses = destination.resolve()?;
    if !has_port {
        for address in &mut addresses {
            address.set_port(protocol::PORT);
        }
    }
    let options = ConnectOptions::default()
        .route(RouteChoice::Direct)
        .timeout(PATIENCE);
    match connect_to_any(switch, &addresses, &options) {
        Ok(connection) => Ok(connection.peer_addr()),
        Err(problem) => {
            let port = addresses.first().map_or(protocol::PORT, SocketAddr::port);
            let serve = match port {
                protocol::PORT => "san perf --serve".to_owned(),
                port => format!("san perf --serve 0.0.0.0:{port}"),
            };
            Err(problem.with_remedy(format!("start a server there: {serve}")))
        }
    }
}

/// An empty run, with the carriers that there are.
fn start(
    switch: &Switch,
    server: SocketAddr,
    connections: usize,
    seconds: f64,
) -> Result<Run, Problem> {
    let mut run = Run {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        server: server.to_string(),
        seconds,
        connections,
        no_san: None,
        carriers: Vec::new(),
    };
    for way in [Way::San, Way::Tcp] {
        let client = Client {
            switch,
            server,
            way,
        };
        let connected = client.look()?;
        if let (Way::San, Route::Tcp { why }) = (way, &connected.route) {
            let none = || switch.no_san_reason().map(str::to_owned);
            let why = none().or_else(|| why.as_ref().map(ToString::to_string));
            run.no_san = Some(why.unwrap_or_else(|| "the SAN has no way there".to_owned()));
            continue;
        }
        run.carriers.push(Carrier {
            name: name(way).to_owned(),
            // This command has asked for TCP itself: that is no reason to look for.
            route: match way {
                Way::San => connected.route.to_string(),
                Way::Tcp => "TCP, to compare".to_owned(),
            },
            connect_ns: u64::try_from(connected.took.as_nanos()).unwrap_or(u64::MAX),
            latency: Vec::new(),
            throughput: Vec::new(),
        });
    }
    Ok(run)
}

fn name(way: Way) -> &'static str {
    match way {
        Way::San => "san",
        Way::Tcp => "tcp",
    }
}

/// Each carrier of the run, with what measures it.
fn carriers<'a>(
    switch: &'a Switch,
    server: SocketAddr,
    run: &'a mut Run,
) -> impl Iterator<Item = (Client<'a>, &'a mut Carrier)> {
    run.carriers.iter_mut().map(move |carrier| {
        let way = match carrier.name == name(Way::San) {
            true => Way::San,
            false => Way::Tcp,
        };
        let client = Client {
            switch,
            server,
            way,
        };
        (client, carrier)
    })
}

/// Every figure of a run: for each size, each carrier in turn, so that both meet the same machine.
fn measure(switch: &Switch, server: SocketAddr, arguments: &PerfArguments) -> Result<Run, Problem> {
    let connections = arguments.connections;
    let time = Duration::from_secs_f64(arguments.seconds);
    let mut run = start(switch, server, connections, arguments.seconds)?;
    let mut sizes = arguments.sizes.clone();
    sizes.sort_unstable();
    sizes.dedup();
    let progress = Progress::new(sizes.len() * run.carriers.len() * 3, output::width());
    for size in sizes {
        for (client, carrier) in carriers(switch, server, &mut run) {
            let enough = Enough {
                count: u64::MAX,
                time,
            };
            let histogram = client.round_trips(size, enough, Duration::ZERO, |_| {})?;
            let latency = Latency::new(size, &histogram);
            let name = carrier.name.to_uppercase();
            let median = units::time(latency.p50_ns);
            progress.done(format!("{name}, {}: {median}", units::size(size)));
            carrier.latency.push(latency);
            for (kind, direction) in [(Kind::Up, Direction::Up), (Kind::Down, Direction::Down)] {
                let moved = client.one_way(kind, size, time, connections)?;
                let seconds = moved.took.as_secs_f64();
                let rate = moved.bytes as f64 / seconds.max(f64::MIN_POSITIVE);
                progress.done(format!(
                    "{name}, {} {}: {} MB/s",
                    units::size(size),
                    direction.word(),
                    units::megabytes(rate)
                ));
                carrier.throughput.push(Throughput {
                    size,
                    direction,
                    bytes: moved.bytes,
                    seconds,
                    bytes_per_second: rate,
                });
            }
        }
    }
    Ok(run)
}
