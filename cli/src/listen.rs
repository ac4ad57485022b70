//! `san listen`: a listener on TCP and the SAN, joined to standard input and output.

use crate::args::ListenArguments;
use crate::output::tell;
use crate::problem::Problem;
use crate::relay::{RouteReport, echo, join_to_standard_streams};
use san_switch::{
    CompanionState, CompanionStatus, Connection, FabricChoice, ListenOptions, Listener,
    RouteChoice, Switch, SwitchConfig,
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
                        tell!("san: {}: {error}", connection.peer_addr());
                    }
                })?;
            continue;
        }
        if let Err(problem) = join_to_standard_streams(connection) {
            if !arguments.keep_open || problem.is_broken_pipe() {
                return Err(problem);
            }
            tell!("san: {problem}");
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
                    tell!("san: {error}; the next connection waits until there is room");
                    is_told = true;
                }
                // Nothing tells when a descriptor is given back.
                std::thread::sleep(REST);
            }
            Err(error) => return Err(Problem::new(error.to_string())),
        }
    }
}

/// Why nothing listens on the SAN beside a listener, though the SAN is there.
fn why_none(config: &SwitchConfig, address: SocketAddr) -> String {
    match (config.fabric, config.route) {
        (FabricChoice::Off, _) => "SAN_FABRIC=off says so".to_owned(),
        (_, RouteChoice::Off) if config.rules.is_empty() => "SAN_ROUTE=off says so".to_owned(),
        _ if config.rules.is_empty() => {
            let ip = address.ip();
            format!("{ip} is no address of the SAN; see which are: san devices")
        }
        _ => {
            let ip = address.ip();
            format!(
                "a rule says off, or {ip} is no address of the SAN; see: san config, san devices"
            )
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
            (true, None) => Some(why_none(switch.config(), listener.local_addr())),
        },
        san,
    };
    if json {
        if let Ok(line) = serde_json::to_string(&report) {
            tell!("{line}");
        }
        return;
    }
    let mut lines = vec![format!(
        "san: listening on {}, backlog {}",
        report.address, report.backlog
    )];
    lines.extend(report.san.iter().map(|line| format!("san:   {line}")));
    let has_failed =
        |companion: &CompanionStatus| matches!(companion.state, CompanionState::Failed { .. });
    if listener.san_status().iter().any(has_failed) {
        lines.push("     TCP goes on without it; see what is in the way: san doctor".to_owned());
    }
    if let Some(reason) = &report.no_san {
        lines.push(format!("san:   TCP only: {reason}"));
        if switch.no_san_reason().is_some() {
            lines.push("     see what is missing, and what to type: san doctor".to_owned());
        }
    }
    tell!("{}", lines.join("\n"));
}
