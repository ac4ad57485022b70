//! `san demo`: the main job on one listener, on this machine's own fabric.
//!
//! Everything happens for real, between two addresses of this host (or one, towards itself).
//! Each step says what it does and what was seen; [`report`] keeps the promises and judges them.

mod addresses;
mod moving;
mod report;
mod traffic;

use crate::args::DemoArguments;
use crate::output::{self, tell};
use crate::problem::Problem;
use addresses::Pair;
use report::{ClientReport, DemoReport};
use san_switch::{
    ConnectOptions, Connection, Decision, FabricChoice, FallbackReason, IncomingRequest,
    ListenOptions, Listener, Route, Side, Switch, SwitchConfig,
};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};
use traffic::{PATTERN_LEN, echo_once, pattern};

/// The backlog of the demo's listener.
const BACKLOG: u32 = 4;
/// Clients that connect at once.
const CLIENTS: usize = 10;
/// No step waits longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the demo. The exit code is 0 only if all that was promised was seen.
pub(crate) fn run(arguments: &DemoArguments) -> Result<ExitCode, Problem> {
    let config = SwitchConfig::from_env()?;
    // The demo shows the way back to TCP and its own deadlines, whatever the settings say.
    let config = config
        .strict(false)
        .io_timeout(Some(PATIENCE))
        .connect_timeout(PATIENCE);
    let switch = open(config)?;
    let pair = addresses::find(&switch, arguments.addr_a, arguments.addr_b)?;
    let mut demo = Demo::new(switch, pair, arguments.json)?;
    demo.many_clients_at_once()?;
    demo.one_rejected_by_the_condition_function();
    demo.tcp_client_on_the_same_port()?;
    demo.nobody_on_the_san()?;
    demo.a_stream_moves()?;
    demo.close();
    let good = demo.report.finish().map_err(output::unwritten)?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The switch on the best fabric there is: RDMA, or else the soft fabric between two loopback
/// addresses, unless the settings name one.
fn open(config: SwitchConfig) -> Result<Switch, Problem> {
    if config.fabric != FabricChoice::Auto {
        return Ok(Switch::new(config)?);
    }
    let switch = Switch::new(config.clone())?;
    let Some(reason) = switch.no_san_reason() else {
        return Ok(switch);
    };
    tell!("san: no RDMA here, so the demo runs on the soft fabric ({reason})");
    let mut config = config.fabric(FabricChoice::Soft);
    if config.soft_addresses.is_empty() {
        config.soft_addresses = vec![[127, 0, 0, 1].into(), [127, 0, 0, 2].into()];
    }
    Ok(Switch::new(config)?)
}

struct Demo {
    switch: Switch,
    listener: Listener,
    pair: Pair,
    reject: Arc<AtomicBool>,
    report: DemoReport,
}

impl Demo {
    fn new(switch: Switch, pair: Pair, json: bool) -> Result<Self, Problem> {
        let mut report = DemoReport::new(json);
        let reject = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&reject);
        let any: IpAddr = match pair.server {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let options = ListenOptions::default().backlog(BACKLOG).condition(
            move |request: &IncomingRequest| {
                if request.side == Side::San && asked.load(Ordering::SeqCst) {
                    Decision::Reject
                } else {
                    Decision::Accept
                }
            },
        );
        let listener = switch.listen(SocketAddr::new(any, 0), options)?;
        report.step(format!(
            "listening on {} with a backlog of {BACKLOG}, on TCP and:",
            listener.local_addr()
        ));
        let san = listener.san_status();
        for companion in &san {
            report.line(companion.to_string());
        }
        let listens = san
            .iter()
            .any(|one| one.state == san_switch::CompanionState::Listening);
        report.promise("a companion listens on the SAN", listens);
        report.line(format!("clients come from {pair}"));
        Ok(Demo {
            switch,
            listener,
            pair,
            reject,
            report,
        })
    }

    /// Ten SAN clients, nobody accepts: as many as the backlog wait, the others are refused.
    /// Then those that wait are accepted and their bytes sent back.
    fn many_clients_at_once(&mut self) -> Result<(), Problem> {
        self.report.step(format!(
            "{CLIENTS} SAN clients connect at once while nobody calls accept"
        ));
        let outcomes = self.connect_all();
        let mut served = Vec::new();
        let mut refused = 0;
        for (number, (outcome, took)) in outcomes.into_iter().enumerate() {
            let mut client = ClientReport::new(number + 1, took);
            match outcome {
                Ok(connection) => {
                    client.connected(&connection);
                    if matches!(connection.route(), Route::San { .. }) {
                        served.push(connection);
                    }
                }
                Err(error) => {
                    client.failed(&error);
                    refused += usize::from(client.is_refused());
                }
            }
            self.report.client(client);
        }
        let stats = self.listener.stats();
        let counters = self.provider_counters();
        self.report.line(format!(
            "{} queued; refused: {} by the provider's CM thread, {} by the accept thread; \
             {} FD_ACCEPT signals",
            self.listener.san_waiting(),
            counters.refused_backlog,
            stats.refused_backlog,
            stats.accept_signals
        ));
        self.report.signals(stats.accept_signals);
        let backlog = BACKLOG as usize;
        self.report.promise(
            format!("{backlog} of {CLIENTS} clients are connected over the SAN"),
            served.len() == backlog,
        );
        self.report.promise(
            format!(
                "the other {} are refused with ECONNREFUSED",
                CLIENTS - backlog
            ),
            refused == CLIENTS - backlog,
        );
        self.report.promise(
            format!("{backlog} connections wait for accept"),
            self.listener.san_waiting() == backlog,
        );
        let signals = stats.accept_signals;
        self.report.promise(
            "FD_ACCEPT was signalled, not more often than clients came",
            (1..=CLIENTS as u64).contains(&signals),
        );
        let all = counters.refused_backlog + stats.refused_backlog;
        self.report
            .promise("both sides count the same refusals", all == refused as u64);
        self.echo_over(&served)
    }

    fn connect_all(&self) -> Vec<(Result<Connection, san_switch::ConnectError>, Duration)> {
        let start = Barrier::new(CLIENTS);
        let destination = self.destination();
        let options = self.client_options();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        let begin = Instant::now();
                        let outcome = self.switch.connect(destination, &options);
                        (outcome, begin.elapsed())
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("a client thread does not panic"))
                .collect()
        })
    }

    fn echo_over(&mut self, clients: &[Connection]) -> Result<(), Problem> {
        self.report.step(format!(
            "the server accepts them; {PATTERN_LEN} bytes there and back over each"
        ));
        // All are accepted before the first client waits for its echo: whose turn comes first is
        // the order of arrival, not of the clients' numbers.
        let mut over_san = 0;
        for _ in clients {
            let server = self.accept()?;
            let way = if server.is_san() { "the SAN" } else { "TCP" };
            over_san += usize::from(server.is_san());
            self.report
                .line(format!("accepted {} over {way}", server.peer_addr()));
            std::thread::Builder::new()
                .name("demo-echo".to_owned())
                .spawn(move || echo_once(&server))?;
        }
        let (mut good, total) = (0, clients.len());
        for client in clients {
            let name = client.local_addr();
            match traffic::ask_for_echo(client) {
                Ok(took) => {
                    good += 1;
                    let took = took.as_micros();
                    self.report
                        .line(format!("echo for {name} is right, after {took} us"));
                }
                Err(error) => self.report.line(format!("echo for {name} failed: {error}")),
            }
        }
        self.report.promise(
            "every accepted SAN connection carries an echo",
            total > 0 && good == total && over_san == total,
        );
        Ok(())
    }

    fn one_rejected_by_the_condition_function(&mut self) {
        self.report
            .step("the condition function says no to the next client");
        self.reject.store(true, Ordering::SeqCst);
        let begin = Instant::now();
        let outcome = self
            .switch
            .connect(self.destination(), &self.client_options());
        let mut client = ClientReport::new(CLIENTS + 1, begin.elapsed());
        self.reject.store(false, Ordering::SeqCst);
        match &outcome {
            Ok(connection) => client.connected(connection),
            Err(error) => client.failed(error),
        }
        let refused = client.is_refused();
        self.report.client(client);
        let counted = self.listener.stats().refused_condition == 1;
        self.report.promise(
            "a client rejected by the condition function gets ECONNREFUSED",
            refused && counted,
        );
    }

    fn tcp_client_on_the_same_port(&mut self) -> Result<(), Problem> {
        let destination = self.destination();
        self.report
            .step(format!("a plain TCP client connects to {destination}"));
        let client = TcpStream::connect_timeout(&destination, PATIENCE)?;
        let server = self.accept()?;
        let over_tcp = matches!(server.route(), Route::Tcp { why: None });
        self.report.line(format!(
            "accepted {} {}",
            server.peer_addr(),
            if over_tcp { "over TCP" } else { "over the SAN" }
        ));
        std::thread::Builder::new()
            .name("demo-echo".to_owned())
            .spawn(move || echo_once(&server))?;
        client.set_read_timeout(Some(PATIENCE))?;
        let echoed = tcp_echo(&client);
        if let Err(error) = &echoed {
            self.report.line(format!("echo failed: {error}"));
        }
        self.report.promise(
            "a TCP client is served on the same address and port",
            over_tcp && echoed.is_ok(),
        );
        Ok(())
    }

    fn nobody_on_the_san(&mut self) -> Result<(), Problem> {
        let plain = TcpListener::bind((self.pair.server, 0))?;
        let destination = plain.local_addr()?;
        self.report.step(format!(
            "a SAN client connects to {destination}, where only TCP listens"
        ));
        let begin = Instant::now();
        let outcome = self.switch.connect(destination, &self.client_options());
        let mut client = ClientReport::new(CLIENTS + 2, begin.elapsed());
        let mut fell_back = false;
        match &outcome {
            Ok(connection) => {
                client.connected(connection);
                fell_back = matches!(
                    connection.route(),
                    Route::Tcp { why: Some(why) } if matches!(why.root(), FallbackReason::Connect(_))
                );
            }
            Err(error) => client.failed(error),
        }
        self.report.client(client);
        let echoed = outcome.is_ok_and(|connection| {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    plain
                        .accept()
                        .and_then(|(server, _)| traffic::tcp_echo_once(&server))
                });
                traffic::ask_for_echo(&connection).is_ok()
            })
        });
        self.report.promise(
            "a client falls back to TCP where nobody listens on the SAN",
            fell_back && echoed,
        );
        Ok(())
    }

    fn close(&mut self) {
        self.report.step("closing");
        self.listener.close();
        let ended = self.switch.shutdown();
        self.report
            .promise("the switch's threads have ended", ended);
    }

    fn accept(&self) -> Result<Connection, Problem> {
        self.listener
            .accept_timeout(PATIENCE)
            .map_err(|error| Problem::new(format!("the demo's accept: {error}")))
    }

    fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.pair.server, self.listener.local_addr().port())
    }

    fn client_options(&self) -> ConnectOptions {
        ConnectOptions::default().local(SocketAddr::new(self.pair.client, 0))
    }

    fn provider_counters(&self) -> san_provider::Counters {
        let all = self.switch.provider_counters();
        all.into_iter()
            .next()
            .map(|(_, counters)| counters)
            .unwrap_or_default()
    }
}

fn tcp_echo(client: &TcpStream) -> io::Result<()> {
    use io::{Read, Write};
    let sent = pattern();
    let mut writer = client;
    writer.write_all(&sent)?;
    client.shutdown(std::net::Shutdown::Write)?;
    let mut back = Vec::new();
    let mut reader = client;
    reader.read_to_end(&mut back)?;
    traffic::compare(&sent, &back)
}
