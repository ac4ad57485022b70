//! `san listen`: a listener on TCP and the SAN, joined to standard input and output.

use crate::args::ListenArguments;
use crate::problem::Problem;
use crate::relay::{RouteReport, echo, join_to_standard_streams};
use san_switch::{
    CompanionState, CompanionStatus, Connection, ListenOptions, Listener, Switch, SwitchConfig,
};
use serde::Serialize;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

/// How long nobody is accepted after the system had no descriptor.
const REST: Duration = Duration::from_millis(20);

#[derive(Debug, Serialize)]
struct ListenReport {
    event: &'static str,
    address: SocketAddr,
    backlog: u32,
    san: Vec<String>,
    no_san: Option<String>,
}

/// Listens and serves.
pub(crate) fn run(arguments: &ListenArguments) -> Result<ExitCode, Problem> {
    let config = SwitchConfig::from_env()?;
    let switch = Switch::new(config)?;
    let mut options = ListenOptions::default();
    options.backlog = arguments.backlog;
    options.route = arguments.route;
    let listener = switch.listen(arguments.address, options)?;
    tell(&switch, &listener, arguments.json);
    loop {
        let connection = accept(&listener)?;
        RouteReport::new("accepted", &connection).tell(arguments.json);
        if arguments.echo {
            std::thread::Builder::new()
                .name("san-echo".to_owned())
                .spawn(move || {
                    if let Err(error) = echo(&connection) {
                        eprintln!("san: {}: {error}", connection.peer_addr());
                    }
                })?;
            continue;
        }
        let peer = connection.peer_addr();
        if let Err(error) = join_to_standard_streams(connection) {
            let problem = Problem::new(format!("the connection to {peer} broke: {error}"));
            if !arguments.keep_open {
                return Err(problem);
            }
            eprintln!("san: {problem}");
        }
        if !arguments.keep_open {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Waits for a connection. Want of descriptors or memory ends nothing: it is said once and waited
/// out, while those who are served go on and give back what they have.
pub(crate) fn accept(listener: &Listener) -> Result<Connection, Problem> {
    let mut is_told = false;
    loop {
        match listener.accept() {
            Ok(connection) => return Ok(connection),
            Err(error) if error.is_want_of_resources() => {
                if !is_told {
                    eprintln!("san: {error}; the next connection waits until there is room");
                    is_told = true;
                }
                // Nothing tells when a descriptor is given back.
                std::thread::sleep(REST);
            }
            Err(error) => return Err(Problem::new(error.to_string())),
        }
    }
}

/// Says where it listens, and what came of the SAN.
pub(crate) fn tell(switch: &Switch, listener: &Listener, json: bool) {
    let san: Vec<String> = listener
        .san_status()
        .iter()
        .map(ToString::to_string)
        .collect();
    let report = ListenReport {
        event: "listening",
        address: listener.local_addr(),
        backlog: listener.backlog(),
        no_san: match (san.is_empty(), switch.no_san_reason()) {
            (false, _) => None,
            (true, Some(reason)) => Some(reason.to_owned()),
            (true, None) => Some("the address is no SAN NIC's".to_owned()),
        },
        san,
    };
    if json {
        if let Ok(line) = serde_json::to_string(&report) {
            eprintln!("{line}");
        }
        return;
    }
    eprintln!(
        "san: listening on {}, backlog {}",
        report.address, report.backlog
    );
    for line in &report.san {
        eprintln!("san:   {line}");
    }
    let has_failed =
        |companion: &CompanionStatus| matches!(companion.state, CompanionState::Failed { .. });
    if listener.san_status().iter().any(has_failed) {
        eprintln!("     TCP goes on without it; see what is in the way: san doctor");
    }
    if let Some(reason) = &report.no_san {
        eprintln!("san:   TCP only: {reason}");
    }
}
